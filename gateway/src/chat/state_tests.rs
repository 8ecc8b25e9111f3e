//! The state as the loop sees it: what it asks for and what it shows.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use super::*;
use crate::chat::ask::Range;
use crate::chat::line::{Names, Paint};

const HOME: &str = "lobby_main";

/// Pulls at a quarter of each spread.
const CHANCE: u32 = 1 << 30;

struct Desk {
    state: State,
    now: Instant,
    key: u8,
}

impl Desk {
    /// User 1, logged in where `positions` stand.
    fn online(positions: &[v1::Position], recent: Vec<v1::Message>) -> Self {
        let mut desk = Self { state: State::new(HOME.into()), now: Instant::now(), key: 0 };
        desk.log_in(positions, recent);
        desk
    }

    fn log_in(&mut self, positions: &[v1::Position], recent: Vec<v1::Message>) {
        self.log_in_synced(positions, recent, vec![]);
    }

    /// By a connection that said where everything stands; the answers are to the first of the positions.
    fn log_in_synced(&mut self, positions: &[v1::Position], recent: Vec<v1::Message>, synced: Vec<v1::Synced>) {
        let standing = self.state.standing();
        let mut asked = standing.positions;
        // In the order of the answers.
        asked.sort_by_key(|from| {
            let place = synced.iter().position(|s| s.conversation_id == from.conversation_id);
            place.unwrap_or(usize::MAX)
        });
        let login = v1::LoginReply {
            user_id: 1,
            session_id: 99,
            max_body_bytes: 100,
            positions: positions.to_vec(),
            recent,
            watching: standing.watch,
            synced,
            ..Default::default()
        };
        self.state.handle_login(self.now, login, &asked, CHANCE);
    }

    fn asks(&mut self) -> Vec<Ask> {
        std::iter::from_fn(|| self.state.next_ask()).collect()
    }

    fn lines(&mut self) -> Vec<String> {
        let names = Names::of(1);
        std::iter::from_fn(|| self.state.take_line()).map(|line| line.render(&names, 0, Paint::Off)).collect()
    }

    fn push(&mut self, message: v1::Message) {
        self.state.handle_push(self.now, Push::Message(message));
    }

    fn say(&mut self, conversation: &str, text: &str) {
        self.key += 1;
        self.state.say(self.now, conversation, Bytes::copy_from_slice(&[self.key]), text);
    }

    fn history(&mut self, conversation: &str, range: Range, messages: Vec<v1::Message>) {
        let last_seq = messages.last().map_or(0, |message| message.seq);
        let reply = v1::HistoryReply { messages, last_seq, epoch: 1, ..Default::default() };
        let ask = Ask::History { conversation: conversation.into(), range };
        self.state.handle_answer(self.now, ask, Answer::History(reply));
    }
}

fn message(conversation: &str, seq: u64, sender: u64, text: &str) -> v1::Message {
    v1::Message {
        conversation_id: conversation.into(),
        seq,
        epoch: 1,
        sender_id: sender,
        message_id: Bytes::from(format!("{conversation}/{seq}")),
        body: text.to_owned().into(),
        ..Default::default()
    }
}

fn position(conversation: &str, last_seq: u64, read_seq: u64, unread: u32) -> v1::Position {
    v1::Position { conversation_id: conversation.into(), epoch: 1, last_seq, read_seq, unread }
}

fn synced(conversation: &str, last_seq: u64, messages: Vec<v1::Message>) -> v1::Synced {
    v1::Synced { conversation_id: conversation.into(), epoch: 1, last_seq, messages, ..Default::default() }
}

fn not_member(conversation: &str) -> v1::Synced {
    v1::Synced { outcome: SyncOutcome::NotMember.into(), ..synced(conversation, 0, vec![]) }
}

fn from(conversation: &str, seq: u64) -> v1::SyncFrom {
    v1::SyncFrom { conversation_id: conversation.into(), epoch: 1, seq }
}

fn sorted(asked: &[v1::SyncFrom]) -> Vec<v1::SyncFrom> {
    let mut asked = asked.to_vec();
    asked.sort_by(|a, b| a.conversation_id.cmp(&b.conversation_id));
    asked
}

fn sync(positions: &[v1::SyncFrom]) -> Ask {
    Ask::Sync(v1::Sync { positions: positions.to_vec(), others: false })
}

fn newest(conversation: &str) -> Ask {
    Ask::History { conversation: conversation.into(), range: Range::Newest(OPENING_PAGE) }
}

#[test]
fn a_login_watches_the_lobby_and_shows_its_last_lines_after_what_was_missed() {
    let recent = vec![message("p_1_2", 4, 2, "ping"), message("p_1_2", 5, 1, "own"), message("p_1_2", 6, 2, "pong")];
    let mut desk = Desk::online(&[position("p_1_2", 6, 3, 2), position("r_7", 9, 9, 0)], recent);
    assert_eq!(desk.asks(), [newest(HOME)], "the login watches already");
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 8, 3, "hi all")]);
    let expected = [
        "* while you were away:",
        "[private] user 2: ping",
        "[private] user 2: pong",
        "* unread: user 2 2 (/open NAME)",
        "* you are in lobby_main",
        "user 3: hi all",
    ];
    assert_eq!(desk.lines(), expected);
}

#[test]
fn what_is_said_elsewhere_says_where_and_opening_it_marks_it_read() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0)], vec![]);
    desk.asks();
    desk.lines();
    desk.push(message("r_7", 10, 2, "psst"));
    assert_eq!(desk.lines(), ["[room 7] user 2: psst"]);
    let told = |delivered, read| Ask::Receipt { conversation: "r_7".into(), delivered, read };
    assert_eq!(desk.asks(), [told(10, 9)]);
    assert!(desk.state.list()[0].render(&Names::of(1), 0, Paint::Off).ends_with("(room 7)  1 unread"));
    desk.now += Duration::from_secs(1);
    desk.state.open(desk.now, "r_7");
    assert_eq!(desk.asks(), [told(10, 10)], "it is on the screen already");
    desk.push(message("r_7", 11, 2, "here"));
    assert_eq!(desk.lines(), ["* you are in room 7", "user 2: here"]);
}

#[test]
fn an_own_message_is_shown_once_whether_its_push_or_its_ack_comes_first() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0)], vec![]);
    desk.state.open(desk.now, "r_7");
    let ack =
        |seq: u64| Answer::Sent(v1::SendAck { message_id: Bytes::from(format!("r_7/{seq}")), ..Default::default() });
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![]);
    desk.history("r_7", Range::Before(10, OPENING_PAGE), vec![message("r_7", 9, 2, "before")]);
    desk.asks();
    desk.lines();
    for (seq, push_first) in [(10, true), (11, false)] {
        desk.say("r_7", "hello");
        let ask = desk.asks().pop().unwrap();
        assert!(!desk.state.is_at_rest());
        if push_first {
            desk.push(message("r_7", seq, 1, "hello"));
            desk.state.handle_answer(desk.now, ask, ack(seq));
        } else {
            desk.state.handle_answer(desk.now, ask, ack(seq));
            assert!(!desk.state.is_at_rest(), "not on the screen yet");
            desk.push(message("r_7", seq, 1, "hello"));
        }
        assert!(desk.state.is_at_rest());
        assert_eq!(desk.lines(), ["user 1: hello"]);
    }
    assert_eq!(desk.asks(), [], "own messages need no receipt");
}

#[test]
fn a_reconnect_repeats_what_was_under_way_and_fetches_what_was_missed() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0)], vec![]);
    desk.asks();
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 3, 2, "old")]);
    desk.say("r_7", "hello");
    let sent = desk.asks();
    desk.lines();
    desk.state.handle_lost(desk.now);
    desk.say("r_7", "second");
    assert_eq!(desk.asks(), [], "nobody to ask");
    let standing = desk.state.standing();
    assert_eq!((standing.session, standing.watch), (99, vec![HOME.to_owned()]));
    let missed = vec![message("r_7", 10, 1, "hello"), message("r_7", 11, 2, "missed")];
    let whole = vec![synced("r_7", 11, missed), synced(HOME, 3, vec![])];
    desk.log_in_synced(&[position("r_7", 11, 9, 1)], vec![message("r_7", 11, 2, "missed")], whole);
    assert_eq!(desk.lines(), ["[room 7] user 1: hello", "[room 7] user 2: missed"]);
    let receipt = Ask::Receipt { conversation: "r_7".into(), delivered: 11, read: 10 };
    assert_eq!(desk.asks(), [sent[0].clone(), receipt], "all that was missed is here; one message at a time");
}

#[test]
fn a_conversation_begun_during_an_outage_is_shown_from_what_is_unread() {
    let mut desk = Desk::online(&[], vec![]);
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 3, 2, "old")]);
    desk.state.handle_lost(desk.now);
    desk.asks();
    desk.lines();
    let recent = vec![message("p_1_2", 3, 2, "three")];
    desk.log_in_synced(&[position("p_1_2", 3, 1, 2)], recent, vec![synced(HOME, 3, vec![])]);
    let asked = from("p_1_2", 1);
    assert!(desk.asks().contains(&sync(std::slice::from_ref(&asked))));
    let missed = synced("p_1_2", 3, vec![message("p_1_2", 2, 2, "two"), message("p_1_2", 3, 2, "three")]);
    let reply = v1::SyncReply { synced: vec![missed], others: vec![] };
    desk.state.handle_answer(desk.now, sync(&[asked]), Answer::Synced(reply));
    assert_eq!(desk.lines(), ["[private] user 2: two", "[private] user 2: three"]);
}

#[test]
fn what_a_login_had_no_room_for_is_asked_in_one_question() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0), position("r_8", 4, 4, 0)], vec![]);
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 3, 2, "old")]);
    desk.asks();
    desk.lines();
    desk.state.handle_lost(desk.now);
    desk.log_in_synced(&[position("r_8", 4, 4, 0)], vec![], vec![not_member("r_7")]);
    let asks = desk.asks();
    let [Ask::Sync(asked)] = &asks[..] else { panic!("{asks:?}") };
    assert_eq!(sorted(&asked.positions), [from(HOME, 3), from("r_8", 4)]);
    assert!(desk.state.rooms().eq(["r_8"]), "the other is none of the user's any more");
    // Again there is room for one only.
    let first = synced(&asked.positions[0].conversation_id, asked.positions[0].seq, vec![]);
    let reply = v1::SyncReply { synced: vec![first], others: vec![] };
    desk.state.handle_answer(desk.now, asks[0].clone(), Answer::Synced(reply));
    assert_eq!(desk.asks(), [sync(&asked.positions[1..])]);
}

#[test]
fn behind_is_answered_with_one_question_after_its_wait() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0), position("r_8", 4, 4, 0)], vec![]);
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 3, 2, "old")]);
    desk.asks();
    desk.lines();
    let in_room = v1::Behind { conversation_id: "r_7".into(), epoch: 1, after_seq: 9, last_seq: 11, spread_ms: 0 };
    desk.state.handle_push(desk.now, Push::Behind(in_room, Duration::ZERO));
    assert_eq!(desk.asks(), [sync(&[from("r_7", 9)])]);
    let missed = synced("r_7", 11, vec![message("r_7", 10, 2, "one"), message("r_7", 11, 2, "two")]);
    let reply = v1::SyncReply { synced: vec![missed], others: vec![] };
    desk.state.handle_answer(desk.now, sync(&[from("r_7", 9)]), Answer::Synced(reply));
    assert_eq!(desk.lines(), ["[room 7] user 2: one", "[room 7] user 2: two"]);
    desk.asks();

    let memberships = v1::Behind { conversation_id: "r_8".into(), ..Default::default() };
    desk.state.handle_push(desk.now, Push::Behind(memberships, Duration::ZERO));
    assert_eq!(desk.asks(), [sync(&[from("r_8", 4)])]);
    let reply = v1::SyncReply { synced: vec![synced("r_8", 4, vec![])], others: vec![] };
    desk.state.handle_answer(desk.now, sync(&[from("r_8", 4)]), Answer::Synced(reply));

    let wait = Duration::from_secs(3);
    desk.state.handle_push(desk.now, Push::Behind(v1::Behind::default(), wait));
    assert_eq!(desk.asks(), []);
    assert!(desk.state.waits());
    desk.now += wait;
    desk.state.handle_tick(desk.now);
    let asks = desk.asks();
    let [Ask::Sync(asked)] = &asks[..] else { panic!("{asks:?}") };
    assert_eq!(sorted(&asked.positions), [from(HOME, 3), from("r_7", 11), from("r_8", 4)]);
    assert!(asked.others, "and whatever has begun meanwhile");
    let answers = asked.positions.iter().map(|from| synced(&from.conversation_id, from.seq, vec![]));
    let reply = v1::SyncReply { synced: answers.collect(), others: vec![position("p_1_2", 2, 0, 2)] };
    desk.state.handle_answer(desk.now, asks[0].clone(), Answer::Synced(reply));
    assert_eq!(desk.asks(), [sync(&[from("p_1_2", 0)])]);
}

#[test]
fn behind_in_a_room_never_heard_of_begins_it_there() {
    let mut desk = Desk::online(&[], vec![]);
    desk.asks();
    let joined = v1::MembershipChanged { conversation_id: "r_7".into(), user_id: 1, joined: true };
    desk.state.handle_push(desk.now, Push::MembershipChanged(joined));
    let behind = v1::Behind { conversation_id: "r_7".into(), epoch: 1, after_seq: 9, last_seq: 11, spread_ms: 0 };
    desk.state.handle_push(desk.now, Push::Behind(behind, Duration::ZERO));
    assert_eq!(desk.asks(), [sync(&[from("r_7", 9)])]);
}

#[test]
fn too_long_an_absence_is_paged_and_cut() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0)], vec![]);
    desk.state.handle_lost(desk.now);
    desk.asks();
    desk.lines();
    let reload = v1::Synced { outcome: SyncOutcome::Reload.into(), ..synced("r_7", 5009, vec![]) };
    desk.log_in_synced(&[position("r_7", 5009, 9, 5000)], vec![], vec![reload]);
    assert_eq!(desk.lines(), ["* 4980 messages were missed in room 7; /history shows them"]);
    let after = Ask::History { conversation: "r_7".into(), range: Range::After(4989) };
    assert!(desk.asks().contains(&after));
}

#[test]
fn one_is_told_what_became_of_ones_words() {
    let mut desk = Desk::online(&[position("p_1_2", 0, 0, 0)], vec![]);
    desk.state.open(desk.now, "p_1_2");
    let listed = |desk: &Desk| {
        let lines = desk.state.list().into_iter().map(|line| line.render(&Names::of(1), 0, Paint::Off));
        lines.into_iter().find(|line| line.contains("private")).unwrap()
    };
    let moved = |delivered_seq, read_seq| {
        let id = "p_1_2".to_owned();
        Push::ReceiptMoved(v1::ReceiptMoved { conversation_id: id, user_id: 2, delivered_seq, read_seq })
    };
    assert_eq!(listed(&desk), "> user 2  (private)");
    desk.push(message("p_1_2", 1, 1, "hello"));
    assert_eq!(listed(&desk), "> user 2  (private)  yours: sent");
    desk.lines();
    desk.state.handle_push(desk.now, moved(1, 0));
    assert_eq!(listed(&desk), "> user 2  (private)  yours: delivered");
    assert_eq!(desk.lines(), [""; 0]);
    desk.state.handle_push(desk.now, moved(1, 1));
    assert_eq!(listed(&desk), "> user 2  (private)  yours: read");
    assert_eq!(desk.lines(), ["* user 2 has read it"]);
}

#[test]
fn what_another_own_device_read_is_not_unread_here() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0)], vec![]);
    desk.push(message("r_7", 10, 2, "psst"));
    desk.push(message("r_7", 11, 2, "psst"));
    let unread = |desk: &Desk| desk.state.list()[0].render(&Names::of(1), 0, Paint::Off);
    assert!(unread(&desk).ends_with("2 unread"));
    let moved = v1::ReceiptMoved { conversation_id: "r_7".into(), user_id: 1, delivered_seq: 11, read_seq: 11 };
    desk.state.handle_push(desk.now, Push::ReceiptMoved(moved));
    assert!(!desk.state.list().iter().any(|line| line.render(&Names::of(1), 0, Paint::Off).contains("unread")));
}

#[test]
fn a_room_just_joined_is_given_a_moment() {
    let mut desk = Desk::online(&[], vec![]);
    desk.asks();
    desk.state.enter(desk.now, "r_7");
    assert_eq!(desk.asks(), [newest("r_7")]);
    let not_member = v1::Error { code: Code::NotMember.into(), text: "none of yours".into(), ..Default::default() };
    desk.state.handle_answer(desk.now, newest("r_7"), Answer::Refused(not_member.clone()));
    assert_eq!(desk.state.current(), "r_7");
    desk.now += SETTLING;
    desk.state.handle_tick(desk.now);
    assert!(desk.asks().contains(&newest("r_7")));
    desk.state.handle_answer(desk.now, newest("r_7"), Answer::Refused(not_member));
    assert_eq!(desk.state.current(), HOME, "no longer a matter of moments");
}

#[test]
fn being_put_out_of_a_room_leads_home() {
    let mut desk = Desk::online(&[position("r_7", 9, 9, 0)], vec![]);
    desk.state.open(desk.now, "r_7");
    let change = |user_id, joined| {
        Push::MembershipChanged(v1::MembershipChanged { conversation_id: "r_7".into(), user_id, joined })
    };
    desk.lines();
    desk.state.handle_push(desk.now, change(2, true));
    desk.state.handle_push(desk.now, change(1, false));
    assert_eq!(desk.lines(), ["* user 2 has joined room 7", "* you are in lobby_main"]);
    assert_eq!(desk.state.current(), HOME);
}

#[test]
fn a_busy_lobby_is_told_of_and_what_it_leaves_out_is_named_and_filled() {
    let mut desk = Desk::online(&[], vec![]);
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 3, 2, "old")]);
    desk.asks();
    desk.lines();
    let notice = v1::NotifyNewMessages { conversation_id: HOME.into(), epoch: 1, latest_seq: 8, spread_ms: 1000 };
    desk.state.handle_push(desk.now, Push::Notice(notice));
    assert_eq!(desk.asks(), []);
    assert!(desk.state.waits());
    desk.now += Duration::from_millis(251);
    desk.state.handle_tick(desk.now);
    let pull = v1::Pull { conversation_id: HOME.into(), epoch: 1, after_seq: Some(3), before_seq: 0 };
    assert_eq!(desk.asks(), [Ask::Pull(pull.clone())]);
    let announced = v1::Message { sender_id: 0, ..message(HOME, 9, 0, "back in an hour") };
    desk.push(announced);
    let reply = v1::PullReply { epoch: 1, latest_seq: 8, gap: true, ..Default::default() };
    let newest = vec![message(HOME, 7, 2, "seven"), message(HOME, 8, 1, "own")];
    let newest = v1::PullReply { from_seq: 7, to_seq: 8, messages: newest, ..reply.clone() };
    desk.state.handle_answer(desk.now, Ask::Pull(pull), Answer::Pulled(newest));
    let expected = [
        "* lobby_main is busy: new messages come in batches",
        "*** back in an hour",
        "* ... 3 messages left out, /history to read them",
        "user 2: seven",
        "user 1: own",
    ];
    assert_eq!(desk.lines(), expected);
    let direct = v1::GearChanged { conversation_id: HOME.into(), epoch: 1, gear: 0, from_seq: 10 };
    desk.state.handle_push(desk.now, Push::GearChanged(direct));
    assert_eq!((desk.lines(), desk.asks()), (vec!["* lobby_main is calm again".to_owned()], vec![]));
    desk.now += Duration::from_secs(5);
    desk.state.handle_tick(desk.now);
    let fill = v1::Pull { conversation_id: HOME.into(), epoch: 1, after_seq: Some(3), before_seq: 7 };
    assert_eq!(desk.asks(), [Ask::Pull(fill.clone())]);
    let messages = (3..=8).map(|seq| message(HOME, seq, 2, &seq.to_string())).collect();
    let filled = v1::PullReply { from_seq: 3, to_seq: 8, gap: false, messages, ..reply };
    desk.state.handle_answer(desk.now, Ask::Pull(fill), Answer::Pulled(filled));
    assert_eq!(desk.lines(), ["* 3 messages that were left out:", "user 2: 4", "user 2: 5", "user 2: 6"]);
    let merged = v1::Messages { messages: vec![message(HOME, 10, 2, "ten"), message(HOME, 11, 2, "eleven")] };
    desk.state.handle_push(desk.now, Push::Messages(merged));
    assert_eq!(desk.lines(), ["user 2: ten", "user 2: eleven"]);
    assert!(!desk.state.waits());
}

#[test]
fn an_own_message_that_a_storm_left_out_is_shown_all_the_same() {
    let mut desk = Desk::online(&[], vec![]);
    desk.history(HOME, Range::Newest(OPENING_PAGE), vec![message(HOME, 3, 2, "old")]);
    let busy = v1::GearChanged { conversation_id: HOME.into(), epoch: 1, gear: 2, from_seq: 4 };
    desk.state.handle_push(desk.now, Push::GearChanged(busy));
    desk.asks();
    desk.lines();
    desk.say(HOME, "hello\x07");
    let ask = desk.asks().pop().unwrap();
    let slow = v1::Error { code: Code::SlowDown.into(), text: "slow mode".into(), retry_after_ms: 2000 };
    desk.state.handle_answer(desk.now, ask.clone(), Answer::Refused(slow));
    assert_eq!(desk.lines(), ["* slow mode; sent again in 2.0 s: hello\\u{7}"]);
    desk.now += Duration::from_secs(2);
    desk.state.handle_tick(desk.now);
    assert_eq!(desk.asks(), std::slice::from_ref(&ask), "by itself");
    let ack = v1::SendAck { message_id: Bytes::from_static(b"mine"), ..Default::default() };
    desk.state.handle_answer(desk.now, ask, Answer::Sent(ack));
    assert_eq!(desk.lines(), [""; 0]);
    desk.now += OWN_PUSH_TIMEOUT;
    desk.state.handle_tick(desk.now);
    assert_eq!(desk.lines(), ["* yours was sent, and left out here with others: hello\\u{7}"]);
    assert!(desk.state.is_at_rest());
}

#[test]
fn what_is_refused_for_good_is_said_and_not_repeated() {
    let mut desk = Desk::online(&[], vec![]);
    desk.asks();
    desk.lines();
    desk.say("r_8", "hello\x1b[2J");
    let ask = desk.asks().pop().unwrap();
    let error = v1::Error { code: Code::NotMember.into(), text: "none of yours".into(), ..Default::default() };
    desk.state.handle_answer(desk.now, ask, Answer::Refused(error));
    assert_eq!(desk.lines(), ["* not sent, none of yours: hello\\u{1b}[2J"]);
    assert_eq!((desk.asks(), desk.state.unsent()), (vec![], 0));
}
