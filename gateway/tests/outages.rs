//! Each service behind a gateway stopped, killed, frozen, emptied, slowed down or out of memory, while people write.
//!
//! The gateway is a process with the settings it is shipped with; the servers are each test's own. For every fault:
//!
//! - every command is answered within [`ANSWER_MAX`], by what it asked for or by a code that says "repeat it later";
//! - `/readyz` is 503 and names the part within [`NOTICE_MAX`];
//! - the gateway's memory does not grow with what is offered to it;
//! - within [`RECOVERY_MAX`] of the fault's end all is well again, without anybody's help: ready, sending, pushing to those
//!   who were connected all the time, and logging in;
//! - whatever was acknowledged, before, during or after, is in History once, under sequences without a gap.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use support::process::{Process, until_down, until_ready};
use support::servers::{ALL, Proxy, Servers};
use support::{Account, Client, eventually};
use tidegate_core::ids::UserId;
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, CloseCode, Code};
use tokio::time::{Instant, timeout};

/// The longest wait inside the gateway is five seconds (RabbitMQ's and MySQL's calls); a login makes several calls, but
/// gives up with the first. The rest is for a machine that does other things as well.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// Parts are pinged once a second and have a second to answer.
const NOTICE_MAX: Duration = Duration::from_secs(5);

/// Adapters try again at least every five seconds, engines every two.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// What a flood may add to the gateway's memory: full accept queues (two partitions of 16 MiB), what is on its way to the
/// broker, and what the allocator keeps.
const GROWTH_MAX: u64 = 64 << 20;

/// What people can expect while a fault lasts.
struct Expected {
    /// The part `/readyz` names.
    part: &'static str,
    /// Sends are acknowledged all the same.
    sends: bool,
    logins: bool,
    histories: bool,
    /// Megabytes of messages offered meanwhile.
    flood_mib: usize,
}

/// Without a broker nothing can be accepted; who is connected can still read.
const NO_BROKER: Expected = Expected { part: "broker", sends: false, logins: true, histories: true, flood_mib: 128 };

/// The broker keeps what is sent until there are sequences again.
const NO_REDIS: Expected = Expected { part: "hot_store", sends: true, logins: false, histories: true, flood_mib: 8 };

/// As above, and nothing can be looked up.
const NO_MYSQL: Expected = Expected { part: "archive", sends: true, logins: false, histories: false, flood_mib: 8 };

/// One conversation, and everything in it that was acknowledged.
struct Books {
    conversation: String,
    /// In order, since the books were checked last.
    acknowledged: Vec<String>,
    /// Every body the archive had then.
    seen: HashSet<Vec<u8>>,
    said: usize,
}

impl Books {
    fn of(conversation: String) -> Self {
        Self { conversation, acknowledged: Vec::new(), seen: HashSet::new(), said: 0 }
    }

    fn next_key(&mut self) -> String {
        self.said += 1;
        format!("k{}", self.said)
    }

    /// What was acknowledged is there once, in its order; what was refused is there at most once; no sequence is missing.
    async fn check(&mut self, name: &str, client: &mut Client) {
        let (since, mut seq) = (Instant::now(), self.seen.len() as u64);
        let mut acknowledged = self.acknowledged.drain(..).peekable();
        loop {
            let conversation_id = self.conversation.clone();
            let history = v1::History { conversation_id, after_seq: Some(seq), page_size: 200, ..Default::default() };
            let page: v1::HistoryReply = client.ask(Kind::History, &history).await.expect("a page");
            for message in page.messages {
                seq += 1;
                assert_eq!(message.seq, seq, "{name}: sequences are dense");
                acknowledged.next_if(|body| body.as_bytes() == &message.body[..]);
                assert!(self.seen.insert(message.body.to_vec()), "{name}: {seq} repeats a message");
            }
            // The rest may still be on its way.
            if !page.more && (acknowledged.peek().is_none() || since.elapsed() > RECOVERY_MAX) {
                break;
            }
        }
        let lost = acknowledged.next().map(|body| body.chars().take(40).collect::<String>());
        assert_eq!(lost, None, "{name}: an acknowledged message is lost, or out of its place");
    }
}

/// Two people who write to each other, and a third who floods a lobby that nobody watches.
struct Town {
    servers: Servers,
    gateway: Process,
    anna: Account,
    ben: UserId,
    /// Logged in all the time, as is Ben.
    anna_pc: Client,
    ben_pc: Client,
    talk: Books,
    carl: Account,
    flooded: Books,
}

impl Town {
    async fn start(test: &str) -> Option<Self> {
        let servers = Servers::start(test, &ALL)?;
        let settings = servers.settings();
        Some(Self::settle(servers, Process::start("gw-outages", &settings, &["rabbitmq.partitions=2"])).await)
    }

    async fn settle(servers: Servers, gateway: Process) -> Self {
        until_ready(&gateway, RECOVERY_MAX).await;
        let (anna, ben) = (gateway.register("anna").await, gateway.register("ben").await);
        let carl = gateway.register("carl").await;
        let (anna_pc, ben_pc) = (gateway.connect(&anna, "pc").await, gateway.connect(&ben, "pc").await);
        let (talk, flooded) = (Books::of(anna.with(&ben)), Books::of("lobby_main".to_owned()));
        let ben = ben.id;
        let mut town = Self { servers, gateway, anna, ben, anna_pc, ben_pc, talk, carl, flooded };
        // From here on the gateway knows that Ben exists, and need not look him up in an outage.
        town.say("hello").await.expect("all is well");
        town
    }

    /// Sends one new message and reports the answer, which must come in time.
    async fn say(&mut self, body: &str) -> Result<(), Code> {
        let key = self.talk.next_key();
        let answer = timeout(ANSWER_MAX, self.anna_pc.send(&self.talk.conversation, &key, body)).await;
        let answer = answer.unwrap_or_else(|_| panic!("a Send was not answered within {ANSWER_MAX:?}"));
        if answer.is_ok() {
            self.talk.acknowledged.push(body.to_owned());
        }
        answer.map(drop)
    }

    /// Sends one message as clients do: again and again under one key until it is acknowledged.
    async fn say_patiently(&mut self, body: &str, within: Duration) {
        let (key, since) = (self.talk.next_key(), Instant::now());
        while let Err(code) = self.anna_pc.send(&self.talk.conversation, &key, body).await {
            assert!(code.may_retry(), "{code:?}");
            assert!(since.elapsed() < within, "still {code:?} after {within:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.talk.acknowledged.push(body.to_owned());
    }

    /// Sends more than the gateway may keep. `carl_pc` must be logged in.
    async fn flood_from(&mut self, mut carl_pc: Client, name: &str, mib: usize) {
        const BODY_BYTES: usize = 15 * 1024;
        const IN_FLIGHT: usize = 1000;
        let mut left = (mib << 20) / BODY_BYTES;
        let before = self.gateway.resident_bytes();
        let mut peak = before;
        let mut refused = 0;
        while left > 0 {
            let count = left.min(IN_FLIGHT);
            left -= count;
            let mut waiting = Vec::with_capacity(count);
            for _ in 0..count {
                let key = self.flooded.next_key();
                let body = format!("{name} {key} {:x<BODY_BYTES$}", "");
                let send = support::send(&self.flooded.conversation, &key, &body);
                waiting.push((carl_pc.command(Kind::Send, &send).await, body));
            }
            for (correlation, body) in waiting {
                let answer = timeout(ANSWER_MAX, carl_pc.reply::<v1::SendAck>(correlation)).await;
                match answer.unwrap_or_else(|_| panic!("{name}: a Send was not answered within {ANSWER_MAX:?}")) {
                    Ok(_) => self.flooded.acknowledged.push(body),
                    Err(code) => {
                        assert!(code.may_retry(), "{name}: {code:?}");
                        refused += 1;
                    }
                }
            }
            peak = peak.max(self.gateway.resident_bytes());
        }
        let grown = peak.saturating_sub(before);
        eprintln!("  {name}: {mib} MiB offered, {refused} refused, memory grew by {} MiB", grown >> 20);
        assert!(grown < GROWTH_MAX, "{name}: {mib} MiB were offered and memory grew by {} MiB", grown >> 20);
    }

    async fn log_in(&self, account: &Account, device: &str) -> Result<(), Code> {
        let login = v1::Login { token: account.token.clone(), device_id: device.to_owned(), ..v1::Login::default() };
        let mut client = Client::open(self.gateway.tcp).await;
        let answer = timeout(ANSWER_MAX, client.ask::<v1::LoginReply>(Kind::Login, &login)).await;
        let answer = answer.unwrap_or_else(|_| panic!("a Login was not answered within {ANSWER_MAX:?}"));
        if answer.is_err() {
            assert_eq!(client.close().await, CloseCode::Unavailable);
        }
        answer.map(drop)
    }

    async fn newest_page(&mut self) -> Result<(), Code> {
        let history =
            v1::History { conversation_id: self.talk.conversation.clone(), page_size: 10, ..Default::default() };
        let answer = timeout(ANSWER_MAX, self.ben_pc.ask::<v1::HistoryReply>(Kind::History, &history)).await;
        answer.unwrap_or_else(|_| panic!("a History was not answered within {ANSWER_MAX:?}")).map(drop)
    }

    /// A fault from its beginning to its end, and what follows.
    async fn endure(
        &mut self,
        name: &str,
        expected: &Expected,
        begin: impl FnOnce(&Servers),
        end: impl FnOnce(&Servers),
    ) {
        let began = Instant::now();
        let carl_pc = self.gateway.connect(&self.carl, "pc").await;
        let before = format!("before {name}");
        self.say(&before).await.unwrap_or_else(|code| panic!("{before}: {code:?}"));
        self.ben_hears(&before).await;
        tokio::task::block_in_place(|| begin(&self.servers));
        self.suffer(name, expected, carl_pc).await;
        tokio::task::block_in_place(|| end(&self.servers));
        self.recover(name).await;
        eprintln!("{name}: {:?} in all", began.elapsed());
    }

    /// Who is connected all the time hears of a message unasked; the archive has it then.
    async fn ben_hears(&mut self, body: &str) {
        let heard = timeout(RECOVERY_MAX, async { while self.ben_pc.message().await.body != body.as_bytes() {} });
        heard.await.unwrap_or_else(|_| panic!("not pushed: {body}"));
    }

    /// A service takes its time, and everything works all the same.
    async fn bear(&mut self, name: &str) {
        let body = format!("during {name}");
        self.say(&body).await.unwrap_or_else(|code| panic!("{body}: {code:?}"));
        self.ben_hears(&body).await;
        self.log_in(&self.anna, "phone").await.unwrap_or_else(|code| panic!("{name}: a login: {code:?}"));
        self.newest_page().await.unwrap_or_else(|code| panic!("{name}: a page of history: {code:?}"));
        let (ready, down) = self.gateway.readiness().await;
        assert!(ready, "{name}: down are {down:?}");
    }

    async fn suffer(&mut self, name: &str, expected: &Expected, carl_pc: Client) {
        let noticed = until_down(&self.gateway, expected.part, NOTICE_MAX).await;
        eprintln!("  {name}: /readyz names {} after {noticed:?}", expected.part);
        let login = self.log_in(&self.anna, "phone").await;
        let allowed = if expected.logins { Ok(()) } else { Err(Code::Unavailable) };
        assert_eq!(login, allowed, "{name}: a login");
        let page = self.newest_page().await;
        let allowed = if expected.histories { Ok(()) } else { Err(Code::Unavailable) };
        assert_eq!(page, allowed, "{name}: a page of history");
        match self.say(&format!("during {name}")).await {
            Ok(()) => assert!(expected.sends, "{name}: acknowledged by whom?"),
            Err(code) => assert!(!expected.sends && code.may_retry(), "{name}: {code:?}"),
        }
        self.flood_from(carl_pc, name, expected.flood_mib).await;
        let (ready, down) = self.gateway.readiness().await;
        assert!(!ready && down == [expected.part], "{name}: still down is {down:?}");
    }

    async fn recover(&mut self, name: &str) {
        let since = Instant::now();
        let ready = until_ready(&self.gateway, RECOVERY_MAX).await;
        let last = format!("after {name}");
        self.say_patiently(&last, RECOVERY_MAX).await;
        let sent = since.elapsed();
        self.ben_hears(&last).await;
        let pushed = since.elapsed();
        // Redis may have forgotten the old tokens.
        self.anna.token = self.gateway.token("anna").await.expect("a token").1;
        self.carl.token = self.gateway.token("carl").await.expect("a token").1;
        self.log_in(&self.anna, "phone").await.unwrap_or_else(|code| panic!("{name}: cannot log in: {code:?}"));
        assert!(since.elapsed() < RECOVERY_MAX, "{name}: recovered only after {:?}", since.elapsed());
        eprintln!("  {name}: ready after {ready:?}, sent after {sent:?}, pushed after {pushed:?}");
        self.talk.check(name, &mut self.ben_pc).await;
        self.flooded.check(name, &mut self.ben_pc).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_service_is_waited_for_but_not_for_ever() {
    /// As far away as another continent.
    const FAR: Duration = Duration::from_millis(150);
    /// Beyond every bound of a call, there and back.
    const TOO_FAR: Duration = Duration::from_secs(3);
    let Some(servers) = Servers::start("outages-slow", &ALL) else { return };
    let rabbitmq = Proxy::to(servers.address("rabbitmq")).await;
    let redis = Proxy::to(servers.address("redis")).await;
    let mysql = Proxy::to(servers.address("mariadb")).await;
    let settings = [
        ("TIDEGATE_BACKEND", "services".to_owned()),
        ("TIDEGATE_RABBITMQ_URL", servers.rabbitmq_url_at(rabbitmq.address)),
        ("TIDEGATE_REDIS_URL", servers.redis_url_at(redis.address)),
        ("TIDEGATE_MYSQL_URL", servers.mysql_url_at(mysql.address)),
    ];
    let gateway = Process::start("gw-outages", &settings, &["rabbitmq.partitions=2"]);
    let mut town = Town::settle(servers, gateway).await;
    let services = [("rabbitmq", rabbitmq, NO_BROKER), ("redis", redis, NO_REDIS), ("mysql", mysql, NO_MYSQL)];
    for (name, proxy, expected) in services {
        proxy.slow_by(FAR);
        town.bear(&format!("{name} slow")).await;
        proxy.slow_by(Duration::ZERO);
        let (begin, end) = (|_: &Servers| proxy.slow_by(TOO_FAR), |_: &Servers| proxy.slow_by(Duration::ZERO));
        town.endure(&format!("{name} too slow"), &expected, begin, end).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_goes_away_and_comes_back() {
    let Some(mut town) = Town::start("outages-rabbitmq").await else { return };
    let start = |servers: &Servers| drop(servers.run("start", &["rabbitmq"]));
    let hang = |servers: &Servers| servers.signal("rabbitmq", "-STOP");
    town.endure("rabbitmq hung", &NO_BROKER, hang, |servers| servers.signal("rabbitmq", "-CONT")).await;
    town.endure("rabbitmq killed", &NO_BROKER, |servers| drop(servers.run("kill", &["rabbitmq"])), start).await;
    town.endure(
        "rabbitmq without memory",
        &NO_BROKER,
        |servers| servers.broker_memory_limit("1MB"),
        |servers| servers.broker_memory_limit("1GB"),
    )
    .await;
    // What the archive has by now the broker may forget, with its queues and exchanges.
    let empty = |servers: &Servers| {
        servers.run("stop", &["rabbitmq"]);
        std::fs::remove_dir_all(servers.data("rabbitmq")).expect("its data is there");
    };
    town.endure("rabbitmq stopped and emptied", &NO_BROKER, empty, start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_goes_away_and_comes_back() {
    let Some(mut town) = Town::start("outages-redis").await else { return };
    let start = |servers: &Servers| drop(servers.run("start", &["redis"]));
    let hang = |servers: &Servers| servers.signal("redis", "-STOP");
    town.endure("redis hung", &NO_REDIS, hang, |servers| servers.signal("redis", "-CONT")).await;
    town.endure("redis killed", &NO_REDIS, |servers| drop(servers.run("kill", &["redis"])), start).await;
    town.endure("redis stopped", &NO_REDIS, |servers| drop(servers.run("stop", &["redis"])), start).await;
    let empty = |servers: &Servers| {
        servers.run("kill", &["redis"]);
        std::fs::remove_dir_all(servers.data("redis")).expect("its data is there");
    };
    town.endure("redis killed and emptied", &NO_REDIS, empty, start).await;
    // Nobody is told of this one.
    town.servers.run("cli", &["redis", "FLUSHALL"]);
    town.recover("redis flushed").await;
    // Within a beat Redis knows again who is here, though nobody came or went.
    let status = format!("user:status:{}", town.ben.0);
    eventually("Ben is here again", async || {
        (town.servers.run("cli", &["redis", "EXISTS", &status]).trim() == "1").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_goes_away_and_comes_back() {
    let Some(mut town) = Town::start("outages-mysql").await else { return };
    let start = |servers: &Servers| drop(servers.run("start", &["mariadb"]));
    let hang = |servers: &Servers| servers.signal("mariadb", "-STOP");
    town.endure("mysql hung", &NO_MYSQL, hang, |servers| servers.signal("mariadb", "-CONT")).await;
    town.endure("mysql killed", &NO_MYSQL, |servers| drop(servers.run("kill", &["mariadb"])), start).await;
    town.endure("mysql stopped", &NO_MYSQL, |servers| drop(servers.run("stop", &["mariadb"])), start).await;
    // An empty database is no archive: all waits until the right one is back.
    let empty = |servers: &Servers| {
        servers.run("stop", &["mariadb"]);
        let data = servers.data("mariadb");
        std::fs::rename(&data, data.with_extension("kept")).expect("it is there");
        servers.run("start", &["mariadb"]);
    };
    let restore = |servers: &Servers| {
        servers.run("stop", &["mariadb"]);
        let data = servers.data("mariadb");
        std::fs::rename(&data, data.with_extension("empty")).expect("it is there");
        std::fs::rename(data.with_extension("kept"), &data).expect("it is there");
        servers.run("start", &["mariadb"]);
    };
    town.endure("mysql emptied", &NO_MYSQL, empty, restore).await;
}
