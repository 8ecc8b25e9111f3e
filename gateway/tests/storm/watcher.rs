//! A client that follows a conversation through its storms by PROTOCOL.md, and writes down all that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message as _;
use tidegate_core::ports::Backend;
use tidegate_proto::v1::{self, Code, Gear};
use tidegate_proto::{Frame, Kind};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::support::{Account, Client, DEADLINE, World};

/// See the module. It works by itself until [`Watcher::finish`].
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    stop: oneshot::Sender<()>,
    working: tokio::task::JoinHandle<Client>,
    conversation: String,
}

/// What it was given.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Gear changes, in order, and before how many of `pushed` each came.
    pub gears: Vec<(Gear, u64, usize)>,
    /// Pushed messages: their sequences, and as what they came.
    pub pushed: Vec<(u64, Kind)>,
    pub notices: Vec<(Instant, u64)>,
    /// Every message, wherever it came from. One that comes again must be the same.
    pub messages: BTreeMap<u64, v1::Message>,
    /// The newest message shown that the system did not write.
    newest: u64,
    /// The newest that an answer told of.
    pulled_latest: u64,
    pub pulls: u32,
    pub gaps: u32,
    pub answer_bytes_max: usize,
}

impl Watcher {
    /// Watches a lobby, or follows a room of the account, pulling at a phase of its own.
    pub async fn start<B: Backend>(world: &World<B>, account: &Account, conversation: &str, phase_ms: u64) -> Self {
        let mut client = Client::open(world.address).await;
        let lobbies: Vec<&str> = conversation.starts_with("lobby_").then_some(conversation).into_iter().collect();
        client.login(account, &format!("watcher-{phase_ms}"), &lobbies).await;
        Self::follow(client, conversation, phase_ms)
    }

    /// The same with a client that is there and gets the conversation's pushes.
    pub fn follow(client: Client, conversation: &str, phase_ms: u64) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let pulling =
            Pulling { client, conversation: conversation.to_owned(), seen: Arc::clone(&seen), phase_ms, spread_ms: 1 };
        let working = tokio::spawn(pulling.run(stopped));
        Self { seen, stop, working, conversation: conversation.to_owned() }
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// The gear it was last told of.
    pub fn gear(&self) -> Gear {
        self.seen().gears.last().map_or(Gear::Direct, |(gear, ..)| *gear)
    }

    /// Waits until the watcher has seen what was to be seen.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Seen) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(&self.seen()) {
            assert!(Instant::now() < deadline, "not seen: {what}: {:?}", self.seen());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the watch, fills the gaps up to `last`, and returns all that was seen.
    pub async fn finish(self, last: u64) -> (Seen, Client) {
        let _ = self.stop.send(());
        let mut client = self.working.await.unwrap();
        let mut seen = self.seen.lock().unwrap().clone();
        fill(&mut client, &self.conversation, &mut seen, last).await;
        (seen, client)
    }
}

struct Pulling {
    client: Client,
    conversation: String,
    seen: Arc<Mutex<Seen>>,
    phase_ms: u64,
    spread_ms: u64,
}

impl Pulling {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) -> Client {
        let mut due: Option<Instant> = None;
        loop {
            let push = tokio::select! {
                push = self.client.push() => push,
                () = until(due) => {
                    due = self.pull().await;
                    continue;
                }
                _ = &mut stopped => return self.client,
            };
            due = self.take(push).or(due);
        }
    }

    /// When to pull because of a push.
    fn take(&mut self, push: Frame) -> Option<Instant> {
        let mut seen = self.seen.lock().unwrap();
        let kind = Kind::try_from(i32::from(push.head.kind)).unwrap();
        match kind {
            Kind::Message => seen.push(v1::Message::decode(push.payload).unwrap(), kind),
            Kind::Messages => {
                let messages = v1::Messages::decode(push.payload).unwrap().messages;
                assert!(messages.len() > 1, "one that is alone is a Message");
                messages.into_iter().for_each(|message| seen.push(message, kind));
            }
            Kind::GearChanged => {
                let changed = v1::GearChanged::decode(push.payload).unwrap();
                assert_eq!(changed.conversation_id, self.conversation);
                let before = seen.pushed.len();
                seen.gears.push((changed.gear(), changed.from_seq, before));
                return Some(Instant::now());
            }
            Kind::NotifyNewMessages => {
                let notice = v1::NotifyNewMessages::decode(push.payload).unwrap();
                assert_eq!(notice.conversation_id, self.conversation);
                seen.notices.push((Instant::now(), notice.latest_seq));
                self.spread_ms = u64::from(notice.spread_ms);
                return Some(Instant::now() + to_phase(self.phase_ms, self.spread_ms));
            }
            Kind::ReceiptMoved => {}
            other => panic!("{other:?}"),
        }
        None
    }

    /// Pulls once. When to pull again, as long as that brings something.
    async fn pull(&mut self) -> Option<Instant> {
        let newest = self.seen.lock().unwrap().newest;
        let pull =
            v1::Pull { conversation_id: self.conversation.clone(), after_seq: Some(newest), ..Default::default() };
        match self.client.ask::<v1::PullReply>(Kind::Pull, &pull).await {
            Ok(reply) => {
                let mut seen = self.seen.lock().unwrap();
                seen.pulls += 1;
                seen.pulled_latest = seen.pulled_latest.max(reply.latest_seq);
                seen.gaps += u32::from(reply.gap);
                seen.answer_bytes_max = seen.answer_bytes_max.max(reply.encoded_len());
                assert!(!reply.more, "what is newest is one answer");
                check(&reply, &pull);
                if let Some(notice) = seen.notices.last() {
                    assert!(reply.latest_seq >= notice.1, "what was told is to be had: {notice:?}, {reply:?}");
                }
                reply.messages.into_iter().for_each(|message| seen.show(message));
                let has_more = seen.newest > newest && seen.gears.last().is_some_and(|gear| gear.0 == Gear::Signal);
                has_more.then(|| Instant::now() + to_phase(self.phase_ms, self.spread_ms))
            }
            Err(code) => {
                assert_eq!(code, Code::SlowDown);
                Some(Instant::now() + to_phase(self.phase_ms, self.spread_ms))
            }
        }
    }
}

impl Seen {
    /// Whether a notice or an answer told of all up to there: who pulls on gets no notices.
    pub fn knows_of(&self, last: u64) -> bool {
        self.pulled_latest >= last || self.notices.last().is_some_and(|(_, latest)| *latest == last)
    }

    fn push(&mut self, message: v1::Message, kind: Kind) {
        self.pushed.push((message.seq, kind));
        self.show(message);
    }

    fn show(&mut self, message: v1::Message) {
        let seq = message.seq;
        if message.sender_id != 0 {
            self.newest = self.newest.max(seq);
        }
        if let Some(before) = self.messages.insert(seq, message) {
            assert_eq!(before, self.messages[&seq], "two messages under one sequence");
        }
    }

    /// Everything from 1 to `last` is there, each body once.
    pub fn has_all(&self, last: u64) {
        let seqs: Vec<u64> = self.messages.keys().copied().collect();
        assert_eq!(seqs, (1..=last).collect::<Vec<_>>());
        let bodies: BTreeSet<_> = self.messages.values().map(|message| &message.body).collect();
        assert_eq!(bodies.len() as u64, last, "a message has two sequences");
    }

    /// Gear changes say of every message how it came: whole, with others, or not at all.
    pub fn came_as_gears_say(&self, last: u64) {
        let mut before = (Gear::Direct, 0);
        for (gear, from, pushed) in &self.gears {
            assert!(*gear != before.0 && *from >= before.1, "{:?}", self.gears);
            before = (*gear, *from);
            let of_system = |seq: &u64| self.messages[seq].sender_id == 0;
            let (earlier, later) = self.pushed.split_at(*pushed);
            let is_early = |(seq, _): &(u64, Kind)| seq < from || of_system(seq);
            assert!(earlier.iter().all(is_early), "{gear:?} from {from}, and before it {earlier:?}");
            assert!(later.iter().all(|(seq, _)| seq >= from), "{gear:?} from {from}, and behind it {later:?}");
        }
        for seq in 1..=last {
            let gear = self.gears.iter().rev().find(|(_, from, _)| *from <= seq).map_or(Gear::Direct, |gear| gear.0);
            let came: Vec<Kind> =
                self.pushed.iter().filter(|(pushed, _)| *pushed == seq).map(|(_, kind)| *kind).collect();
            let is_right = match (gear, self.messages[&seq].sender_id) {
                (_, 0) | (Gear::Direct, _) => came == [Kind::Message],
                (Gear::Merged, _) => came == [Kind::Message] || came == [Kind::Messages],
                (Gear::Signal, _) => came.is_empty(),
            };
            assert!(is_right, "{seq} in {gear:?} came as {came:?}; gears {:?}", self.gears);
        }
    }

    /// At most one notice within each spread.
    pub fn was_noticed_within(&self, spread: Duration) {
        let (Some((first, _)), Some((last, _))) = (self.notices.first(), self.notices.last()) else { return };
        let most = (last.duration_since(*first).as_millis() / spread.as_millis()) as usize + 2;
        assert!(self.notices.len() <= most, "{} notices, not {most}", self.notices.len());
        assert!(self.notices.is_sorted_by(|one, other| one.1 < other.1), "a notice is news");
    }
}

/// What every answer must be.
pub fn check(reply: &v1::PullReply, pull: &v1::Pull) {
    let seqs: Vec<u64> = reply.messages.iter().map(|message| message.seq).collect();
    if seqs.is_empty() {
        assert_eq!((reply.from_seq, reply.to_seq), (0, 0));
        return;
    }
    assert_eq!(seqs, (reply.from_seq..=reply.to_seq).collect::<Vec<_>>(), "without a gap among them");
    assert!(reply.messages.iter().all(|message| message.epoch == reply.epoch));
    let after = pull.after_seq.unwrap_or(u64::MAX - 1);
    assert_eq!(reply.gap, reply.from_seq > after + 1, "{after} to {}", reply.from_seq);
    assert!(reply.to_seq <= reply.latest_seq);
    if pull.before_seq == 0 {
        assert_eq!(reply.to_seq, reply.latest_seq, "up to the newest");
    }
}

/// Pulls everything up to `last` that is missing, as a client does when it has become quiet.
async fn fill(client: &mut Client, conversation: &str, seen: &mut Seen, last: u64) {
    let mut at = 0;
    while at < last {
        if seen.messages.contains_key(&(at + 1)) {
            at += 1;
            continue;
        }
        let before_seq = seen.messages.range(at + 1..).next().map_or(last + 1, |(seq, _)| *seq);
        let pull = v1::Pull {
            conversation_id: conversation.to_owned(),
            after_seq: Some(at),
            before_seq,
            ..Default::default()
        };
        let reply: v1::PullReply = client.ask(Kind::Pull, &pull).await.unwrap();
        assert!(reply.from_seq <= at + 1 && reply.to_seq > at, "from {at} to {before_seq}: {reply:?}");
        assert_eq!(reply.more, reply.to_seq + 1 < before_seq);
        check(&reply, &pull);
        reply.messages.into_iter().for_each(|message| seen.show(message));
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Until the clock, modulo the spread, comes to the phase the next time.
fn to_phase(phase_ms: u64, spread_ms: u64) -> Duration {
    let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    Duration::from_millis((spread_ms + phase_ms % spread_ms - now_ms % spread_ms - 1) % spread_ms + 1)
}
