//! Side pull: how many answers per second a client can pull from a lobby in a storm, compared with nginx serving the same
//! bytes from a file.
//!
//! In: options; out: a [`PullResult`]. A gateway and an nginx are started for the occasion and measured in turn by the same
//! client, in rounds, so that whatever else the machine does meets all of them: nginx, the gateway over HTTP, the gateway
//! over its own protocol. Only one of them is busy at a time.
//!
//! Files in reading order: [`options`], [`lobby`] (what is pulled), [`nginx`], [`client`] (who asks), [`report`].

mod client;
mod lobby;
mod nginx;
pub mod options;
pub mod report;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, bail};

use self::client::{Asker, Counted, Dialect, Window};
use self::lobby::{Speaker, Speaking};
use self::nginx::Nginx;
use self::options::PullOptions;
use self::report::{PullResult, Side, SideResult, Spread};
use crate::connection::Account;
use crate::gateway::{self, Gateway};
use crate::pacer::Random;
use crate::process;
use crate::progress::Bar;
use crate::report::Verdict;
use crate::scenario::Stage;

/// Accounts whose tokens the connections carry.
const ACCOUNTS: usize = 16;

/// Measures.
///
/// # Errors
/// If there is no nginx, something cannot be set up, or a server does something wrong.
pub fn run(options: &PullOptions, stop: &AtomicBool) -> anyhow::Result<PullResult> {
    if !options.common.start_gateway {
        bail!("pull measures a gateway with settings of its own: use --start-gateway");
    }
    let settings = lobby::settings(options.answer_bytes);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let gateway = Gateway::start(&options.common, &settings, stop)?;
    let measured = Bench::set_up(options, &gateway, stop).and_then(Bench::measure);
    drop(gateway);
    measured
}

/// All that runs.
struct Bench<'a> {
    options: &'a PullOptions,
    gateway: &'a Gateway,
    http: SocketAddr,
    accounts: Vec<Account>,
    nginx: Nginx,
    file: (usize, String),
    speaking: Speaking,
    runtime: tokio::runtime::Runtime,
    stop: &'a AtomicBool,
}

impl<'a> Bench<'a> {
    fn set_up(options: &'a PullOptions, gateway: &'a Gateway, stop: &'a AtomicBool) -> anyhow::Result<Self> {
        let http = gateway.http.strip_prefix("http://").context("the gateway's address is not HTTP")?.parse()?;
        let common = &options.common;
        let stage = Stage {
            tcp: vec![gateway.tcp],
            http: gateway.http.clone(),
            server_pid: Some(gateway.pid()),
            stop,
            threads: common.threads as usize,
            seed: common.seed,
        };
        let accounts = stage.users(ACCOUNTS)?;
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let speaking_runtime = runtime()?;
        let (speaker, answer) = speaking_runtime.block_on(async {
            let mut speaker = Speaker::fill(gateway.tcp, &accounts[0], options.answer_bytes).await?;
            let answer = speaker.full_answer(http, &accounts[0], options.answer_bytes).await?;
            anyhow::Ok((speaker, answer))
        })?;
        let nginx = Nginx::start(options.nginx.as_deref(), &gateway::new_data_dir()?, lobby::PATH, &answer)?;
        let copy = client::fetch(nginx.address, &lobby::http_request(nginx.address, &accounts[0]))?;
        if copy.body != answer.body || copy.content_type != answer.content_type {
            bail!("nginx does not answer what the gateway answered");
        }
        let file = (answer.body.len(), answer.content_type);
        let speaking = Speaking::begin(speaker, speaking_runtime)?;
        Ok(Self { options, gateway, http, accounts, nginx, file, speaking, runtime: runtime()?, stop })
    }

    fn measure(self) -> anyhow::Result<PullResult> {
        let mut random = Random::new(self.options.common.seed);
        let mut rounds = [(); 3].map(|()| Vec::new());
        let mut own_pulls = PullCounts::default();
        let bar = Bar::counting("measuring", u64::from(self.options.pairs) * 3);
        for _ in 0..self.options.pairs {
            let mut sides = [Side::Nginx, Side::Http, Side::Own];
            for last in (1..sides.len()).rev() {
                sides.swap(last, random.below(last as u64 + 1) as usize);
            }
            for side in sides {
                let before = PullCounts::ask(self.http)?;
                rounds[side as usize].push(self.play(side)?);
                if side == Side::Own {
                    own_pulls.add_what_came(before, PullCounts::ask(self.http)?);
                }
                bar.advance();
            }
        }
        drop(bar);
        let Self { options, nginx, file, speaking, .. } = self;
        speaking.end()?;
        let mut result = PullResult::of(options.clone(), nginx.version.clone(), file, rounds);
        result.shard_share = own_pulls.shard_share();
        (result.verdict, result.reasons) = report::judge(&result);
        Ok(result)
    }

    fn play(&self, side: Side) -> anyhow::Result<Counted> {
        let options = self.options;
        let askers = match side {
            Side::Nginx => self.http_askers(self.nginx.address)?,
            Side::Http => self.http_askers(self.http)?,
            Side::Own => {
                let askers = lobby::askers(self.gateway.tcp, &self.accounts, options.own_connections);
                self.runtime.block_on(askers)?
            }
        };
        let dialect = if side == Side::Own { Dialect::Frames } else { Dialect::Http };
        let window = Window { warmup: options.warmup, counted: options.seconds };
        let cpu = || match side {
            Side::Nginx => self.nginx.cpu_seconds(),
            Side::Http | Side::Own => process::cpu_seconds(self.gateway.pid()),
        };
        self.speaking.be_quiet(side == Side::Nginx);
        let played = client::play(dialect, askers, options.common.threads as usize, window, cpu, self.stop);
        self.speaking.be_quiet(true);
        played.with_context(|| format!("{side:?}"))
    }

    fn http_askers(&self, address: SocketAddr) -> anyhow::Result<Vec<Asker>> {
        let requests: Vec<Arc<[u8]>> =
            self.accounts.iter().map(|account| lobby::http_request(address, account)).collect();
        let next = AtomicUsize::new(0);
        let asker = |_| {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let request = Arc::clone(&requests[next.fetch_add(1, Ordering::Relaxed) % requests.len()]);
            Ok(Asker { stream, request, received: Vec::new() })
        };
        (0..self.options.connections).map(asker).collect()
    }
}

/// What the gateway has counted of its answers to pulls.
#[derive(Clone, Copy, Default)]
struct PullCounts {
    shard: f64,
    reception: f64,
}

impl PullCounts {
    fn ask(http: SocketAddr) -> anyhow::Result<Self> {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\n\r\n");
        let answer = client::fetch(http, request.as_bytes())?;
        let text = String::from_utf8_lossy(&answer.body);
        let value = |from: &str| {
            let name = format!("tidegate_pull_answers_total{{from=\"{from}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok()).unwrap_or_default()
        };
        Ok(Self { shard: value("shard"), reception: value("reception") })
    }

    fn add_what_came(&mut self, before: Self, after: Self) {
        self.shard += after.shard - before.shard;
        self.reception += after.reception - before.reception;
    }

    /// Shards tell what they counted once a second, so their share is rather more than this.
    fn shard_share(self) -> Option<f64> {
        let all = self.shard + self.reception;
        (all > 0.0).then(|| self.shard / all)
    }
}

impl PullResult {
    /// From rounds of nginx, HTTP and the own protocol, in this order; `file` is the answer's length and type.
    fn of(options: PullOptions, nginx_version: String, file: (usize, String), rounds: [Vec<Counted>; 3]) -> Self {
        let counted_s = options.seconds.as_secs_f64();
        let [nginx, http, own] = rounds.map(|rounds| SideResult::of(&rounds, counted_s));
        let cpu = |side: &SideResult| {
            let (nginx, side) = (nginx.server_cpu_s_per_10k.as_ref()?, side.server_cpu_s_per_10k.as_ref()?);
            Some(Spread::ratio(nginx, side))
        };
        let mut result = Self {
            verdict: Verdict::Void,
            reasons: Vec::new(),
            parameters: options,
            nginx_version,
            file_bytes: file.0,
            content_type: file.1,
            http_to_nginx: Spread::ratio(&http.per_s, &nginx.per_s),
            own_to_nginx: Spread::ratio(&own.per_s, &nginx.per_s),
            http_cpu_to_nginx: cpu(&http),
            own_cpu_to_nginx: cpu(&own),
            nginx,
            http,
            own,
            shard_share: None,
        };
        (result.verdict, result.reasons) = report::judge(&result);
        result
    }
}
