//! Three gateways over the same services, as processes: messages cross, people move, one of the three is killed and one frozen.
//!
//! The one that is killed was started first, so it is the consumer of every partition: all ingest work has to move. What must
//! hold: nothing that was acknowledged is lost or doubled or out of order, whichever gateway it was sent by; every partition
//! goes on within [`HANDOVER_MAX`]; who was connected to the dead gateway is away within [`AWAY_MAX`], and finds counts and
//! inbox at the next login.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::process::{Process, until_ready};
use support::servers::{ALL, Servers};
use support::{Account, Client, DEADLINE, eventually};
use tidegate_core::ids::ConversationId;
use tidegate_core::limits::GATEWAY_TTL;
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, CloseCode};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PARTITIONS: u32 = 4;

/// The broker sees a killed process's connection end at once and activates the next consumer.
const HANDOVER_MAX: Duration = Duration::from_secs(10);

/// The broker hears nothing of a frozen process for two or three heartbeats of five seconds before it gives it up; the
/// database ends its transactions earlier.
const FROZEN_MAX: Duration = Duration::from_secs(25);

/// Three beats are missed, and a message has to come that asks.
const AWAY_MAX: Duration = Duration::from_secs(GATEWAY_TTL.as_secs() + 10);

const LOBBIES: &str = "lobbies.names=lobby_main,lobby_a,lobby_b,lobby_c,lobby_d,lobby_e,lobby_f,lobby_g,lobby_h";

/// One lobby in each partition.
fn lobbies() -> Vec<String> {
    let mut of_partition = HashMap::new();
    for name in LOBBIES.split_once('=').unwrap().1.split(',') {
        let conversation: ConversationId = name.parse().unwrap();
        of_partition.entry(conversation.partition(PARTITIONS)).or_insert_with(|| name.to_owned());
    }
    assert_eq!(of_partition.len(), PARTITIONS as usize, "the lobbies above cover all partitions");
    of_partition.into_values().collect()
}

fn start(name: &str, servers: &Servers) -> Process {
    // The writers are in a hurry, and the readers follow pushes.
    let settings = [&format!("rabbitmq.partitions={PARTITIONS}"), LOBBIES, "storm.gears=direct"];
    Process::start(name, &servers.settings(), &settings)
}

/// Somebody who writes one message after the other, each until it is acknowledged, and goes to the next gateway when the
/// connection ends.
struct Writer {
    stop: Arc<AtomicBool>,
    work: JoinHandle<Vec<String>>,
}

impl Writer {
    fn start(gateways: Vec<SocketAddr>, account: Account, conversation: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = tokio::spawn(async move {
            let (mut acknowledged, mut gateway, mut client) = (Vec::new(), 0, None);
            while !stopped.load(Ordering::SeqCst) {
                let body = format!("{} says {}", account.id.0, acknowledged.len());
                let since = Instant::now();
                loop {
                    assert!(since.elapsed() < DEADLINE, "not acknowledged in time: {body}");
                    let connected = match &mut client {
                        Some(client) => client,
                        None => match connect(gateways[gateway % gateways.len()], &account).await {
                            Some(connected) => client.insert(connected),
                            None => {
                                gateway += 1;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                                continue;
                            }
                        },
                    };
                    match connected.try_send(&conversation, &body, &body).await {
                        Some(Ok(_)) => break,
                        Some(Err(code)) => assert!(code.may_retry(), "{code:?}"),
                        None => client = None,
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                acknowledged.push(body);
            }
            acknowledged
        });
        Self { stop, work }
    }

    /// What was acknowledged, in order.
    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.work.await.unwrap()
    }
}

async fn connect(address: SocketAddr, account: &Account) -> Option<Client> {
    let mut client = Client::try_open(address).await?;
    let login = v1::Login { token: account.token.clone(), device_id: "pc".to_owned(), ..v1::Login::default() };
    client.try_ask::<v1::LoginReply>(Kind::Login, &login).await?.ok()?;
    Some(client)
}

/// When which sequence was pushed, by conversation.
type Seen = HashMap<String, Vec<(Instant, u64)>>;

/// Somebody who reads everything that is pushed, and remembers when.
struct Reader {
    seen: Arc<Mutex<Seen>>,
    work: JoinHandle<()>,
}

impl Reader {
    async fn start(gateway: &Process, account: &Account, watch: &[String]) -> Self {
        let mut client = Client::open(gateway.tcp).await;
        let names: Vec<&str> = watch.iter().map(String::as_str).collect();
        client.login(account, "pc", &names).await;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let seen_here = Arc::clone(&seen);
        let work = tokio::spawn(async move {
            loop {
                let message = client.message().await;
                let at = (Instant::now(), message.seq);
                seen_here.lock().unwrap().entry(message.conversation_id).or_default().push(at);
            }
        });
        Self { seen, work }
    }

    /// Waits until every conversation has had so many messages.
    async fn sees(&self, conversations: &[String], count: usize) {
        eventually_within(FROZEN_MAX + DEADLINE, "everything flows", async || {
            let seen = self.seen.lock().unwrap();
            let of = |name: &String| seen.get(name).map_or(0, Vec::len);
            conversations.iter().all(|name| of(name) >= count).then_some(())
        })
        .await;
    }

    /// The sequences came one after the other (a repetition is allowed, a gap is not), and never paused for long.
    fn check(self, conversations: &[String], pause_max: Duration) {
        self.work.abort();
        let seen = self.seen.lock().unwrap();
        for name in conversations {
            let mut last: Option<(Instant, u64)> = None;
            let mut longest = Duration::ZERO;
            for (at, seq) in &seen[name] {
                if let Some((before, last_seq)) = last {
                    longest = longest.max(*at - before);
                    assert!(*seq <= last_seq + 1, "{name}: {seq} was pushed after {last_seq}");
                }
                last = Some((*at, last.map_or(*seq, |(_, last_seq)| last_seq.max(*seq))));
            }
            eprintln!("{name}: {} pushes, the longest pause was {longest:?}", seen[name].len());
            assert!(longest < pause_max, "{name} paused for {longest:?}");
        }
    }
}

/// What is stored is dense, holds nothing twice, and what each writer was told is there, in that writer's order.
async fn check_books(client: &mut Client, conversation: &str, writers: &[&Vec<String>]) -> u64 {
    let mut stored: Vec<v1::Message> = Vec::new();
    loop {
        let after_seq = Some(stored.last().map_or(0, |message| message.seq));
        let history =
            v1::History { conversation_id: conversation.to_owned(), after_seq, page_size: 200, ..Default::default() };
        let page: v1::HistoryReply = client.ask(Kind::History, &history).await.unwrap();
        stored.extend(page.messages);
        if !page.more {
            break;
        }
    }
    let seqs: Vec<u64> = stored.iter().map(|message| message.seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "{conversation} is dense");
    let acknowledged: usize = writers.iter().map(|bodies| bodies.len()).sum();
    assert_eq!(stored.len(), acknowledged, "{conversation}: as many as were acknowledged");
    for bodies in writers {
        let mut rest = stored.iter();
        for body in *bodies {
            assert!(
                rest.any(|message| &message.body[..] == body.as_bytes()),
                "{conversation}: {body} is not in its place"
            );
        }
    }
    seqs.len() as u64
}

fn hash_field(servers: &Servers, account: &Account, field: &str) -> String {
    servers.run("cli", &["redis", "HGET", &format!("user:status:{}", account.id.0), field]).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_share_the_work_and_survive_one_of_them() {
    let Some(servers) = Servers::start("several-gateways", &ALL) else { return };
    // Ready one after the other: the first is every partition's consumer.
    let mut one = start("gw-1", &servers);
    until_ready(&one, DEADLINE).await;
    let (two, three) = (start("gw-2", &servers), start("gw-3", &servers));
    until_ready(&two, DEADLINE).await;
    until_ready(&three, DEADLINE).await;
    let (anna, ben, carl) = (two.register("anna").await, two.register("ben").await, two.register("carl").await);

    messages_cross(&one, &two, &three, [&anna, &ben, &carl]).await;
    a_device_moves(&servers, &two, &three, &anna, &ben).await;

    // Traffic in every partition and from every gateway, then SIGKILL.
    let lobbies = lobbies();
    let mut everything = lobbies.clone();
    everything.push(anna.with(&carl));
    let reader = Reader::start(&three, &carl, &lobbies).await;
    let mut writers: Vec<(String, Writer)> = Vec::new();
    for lobby in &lobbies {
        for process in [&one, &two] {
            let name = format!("writer-{}", writers.len());
            let (account, gateways) = (two.register(&name).await, vec![process.tcp, three.tcp, two.tcp]);
            writers.push((lobby.clone(), Writer::start(gateways, account, lobby.clone())));
        }
    }
    let anna_again = Account { id: anna.id, token: anna.token.clone() };
    writers.push((anna.with(&carl), Writer::start(vec![one.tcp, two.tcp], anna_again, anna.with(&carl))));
    // Ben is connected to the one that dies, and nowhere else.
    let ben_pc = one.connect(&ben, "pc").await;
    let mut anna_phone = two.connect(&anna, "phone").await;
    reader.sees(&everything, 30).await;
    one.kill();
    let killed = Instant::now();
    drop(ben_pc);
    let before: usize = reader.seen.lock().unwrap().values().map(Vec::len).max().unwrap();
    reader.sees(&everything, before + 30).await;

    // Ben shows as away: what is written to him waits in his inbox from then on.
    let inbox = format!("offline:msg:{}", ben.id.0);
    let ben_talk = anna.with(&ben);
    let mut to_ben = Vec::new();
    let offline = eventually_within(AWAY_MAX, "Ben is away", async || {
        let body = format!("are you there? {}", to_ben.len());
        anna_phone.send(&ben_talk, &body, &body).await.expect("the other gateways work");
        to_ben.push(body);
        (servers.run("cli", &["redis", "LLEN", &inbox]).trim() != "0").then(|| killed.elapsed())
    })
    .await;
    eprintln!("away {offline:?} after the kill");

    let mut told = Told::new();
    collect(writers, &mut told).await;
    check_all_books(&two, &carl, &told).await;
    reader.check(&everything, HANDOVER_MAX);

    // At the next login, wherever, nothing was missed: two of Anna's from before, and all since.
    let reply = Client::open(three.tcp).await.login(&ben, "phone", &[]).await;
    let position = reply.positions.iter().find(|position| position.conversation_id == ben_talk).unwrap();
    assert_eq!(position.unread as usize, 2 + to_ben.len(), "exactly what Anna wrote");
    assert_eq!(&reply.recent.last().unwrap().body[..], to_ben.last().unwrap().as_bytes(), "the inbox has the newest");

    // The dead one comes back under its name, and holds nobody until somebody comes.
    let one = start("gw-1", &servers);
    until_ready(&one, DEADLINE).await;
    let mut ben_pc = one.connect(&ben, "pc").await;
    anna_phone.send(&ben_talk, "last", "welcome back").await.unwrap();
    while &ben_pc.message().await.body[..] != b"welcome back" {}
    drop((anna_phone, ben_pc));

    // The second was next in every partition's line. It stops in its tracks, and goes on when others have its work.
    let reader = Reader::start(&three, &carl, &lobbies).await;
    let mut writers = Vec::new();
    for lobby in &lobbies {
        let account = three.register(&format!("late-{}", writers.len())).await;
        writers.push((lobby.clone(), Writer::start(vec![three.tcp, one.tcp], account, lobby.clone())));
    }
    reader.sees(&lobbies, 30).await;
    two.signal("-STOP");
    let before: usize = reader.seen.lock().unwrap().values().map(Vec::len).max().unwrap();
    reader.sees(&lobbies, before + 30).await;
    two.signal("-CONT");
    until_ready(&two, DEADLINE).await;
    let before: usize = reader.seen.lock().unwrap().values().map(Vec::len).max().unwrap();
    reader.sees(&lobbies, before + 30).await;
    collect(writers, &mut told).await;
    check_all_books(&two, &carl, &told).await;
    reader.check(&lobbies, FROZEN_MAX);
}

/// What writers were told, by conversation.
type Told = HashMap<String, Vec<Vec<String>>>;

async fn collect(writers: Vec<(String, Writer)>, told: &mut Told) {
    for (conversation, writer) in writers {
        told.entry(conversation).or_default().push(writer.stop().await);
    }
}

async fn check_all_books(gateway: &Process, account: &Account, told: &Told) {
    let mut client = gateway.connect(account, "checker").await;
    for (conversation, bodies) in told {
        let acknowledged = bodies.iter().map(Vec::len).sum::<usize>() as u64;
        // The last ones may still be on their way.
        eventually("all is stored", async || {
            let history = v1::History { conversation_id: conversation.clone(), page_size: 1, ..Default::default() };
            let page: v1::HistoryReply = client.ask(Kind::History, &history).await.unwrap();
            (page.last_seq >= acknowledged).then_some(())
        })
        .await;
        check_books(&mut client, conversation, &bodies.iter().collect::<Vec<_>>()).await;
    }
}

async fn messages_cross(one: &Process, two: &Process, three: &Process, people: [&Account; 3]) {
    let [anna, ben, carl] = people;
    let mut anna_pc = one.connect(anna, "pc").await;
    let mut ben_pc = two.connect(ben, "pc").await;
    anna_pc.send(&anna.with(ben), "k1", "across").await.unwrap();
    assert_eq!(&ben_pc.message().await.body[..], b"across");
    ben_pc.send(&anna.with(ben), "k1", "and back").await.unwrap();
    while &anna_pc.message().await.body[..] != b"and back" {}

    // Made at one gateway, joined at another, heard at all three.
    let body = serde_json::json!({ "name": "den", "capacity": 8 });
    let (status, text) = one.request_as(&anna.token, "POST", "/api/v1/rooms", Some(body)).await.unwrap();
    assert_eq!(status, 201, "{text}");
    let room = serde_json::from_str::<serde_json::Value>(&text).unwrap()["room_id"].as_u64().unwrap();
    let mut carl_pc = three.connect(carl, "pc").await;
    for account in [ben, carl] {
        let path = format!("/api/v1/rooms/{room}/join");
        let (status, text) = two.request_as(&account.token, "POST", &path, None).await.unwrap();
        assert!(status < 300, "{text}");
    }
    let conversation = format!("r_{room}");
    eventually("carl may write", async || carl_pc.send(&conversation, "k1", "hello all").await.ok()).await;
    for client in [&mut anna_pc, &mut ben_pc, &mut carl_pc] {
        while &client.message().await.body[..] != b"hello all" {}
    }
}

/// The same device appears at another gateway before its former connection has ended.
async fn a_device_moves(servers: &Servers, two: &Process, three: &Process, anna: &Account, ben: &Account) {
    let mut at_two = two.connect(ben, "phone").await;
    assert!(hash_field(servers, ben, "device:phone").starts_with("gw-2|"));
    let mut at_three = three.connect(ben, "phone").await;
    assert!(hash_field(servers, ben, "device:phone").starts_with("gw-3|"));
    // Gone there is not gone here.
    assert_eq!(at_two.close().await, CloseCode::Replaced);
    drop(at_two);
    assert!(hash_field(servers, ben, "device:phone").starts_with("gw-3|"));
    let mut anna_pc = two.connect(anna, "pc").await;
    anna_pc.send(&anna.with(ben), "moved", "found you").await.unwrap();
    while &at_three.message().await.body[..] != b"found you" {}
}

/// As [`eventually`], with a bound of its own.
async fn eventually_within<T>(bound: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let attempts = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(bound, attempts).await.unwrap_or_else(|_| panic!("not within {bound:?}: {what}"))
}
