//! The state as the loop sees it: what it asks for and what it shows.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use super::*;
use crate::chat::line::{Names, Paint};

const HOME: &str = "lobby_main";

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
        let login = v1::LoginReply {
            user_id: 1,
            max_body_bytes: 100,
            positions: positions.to_vec(),
            recent,
            ..Default::default()
        };
        self.state.handle_login(self.now, login);
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

fn newest(conversation: &str) -> Ask {
    Ask::History { conversation: conversation.into(), range: Range::Newest(OPENING_PAGE) }
}

#[test]
fn a_login_watches_the_lobby_and_shows_its_last_lines_after_what_was_missed() {
    let recent = vec![message("p_1_2", 4, 2, "ping"), message("p_1_2", 5, 1, "own"), message("p_1_2", 6, 2, "pong")];
    let mut desk = Desk::online(&[position("p_1_2", 6, 3, 2), position("r_7", 9, 9, 0)], recent);
    assert_eq!(desk.asks(), [Ask::Watch(vec![HOME.into()]), newest(HOME)]);
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
    desk.log_in(&[position("r_7", 11, 9, 1)], vec![message("r_7", 11, 2, "missed")]);
    let asks = desk.asks();
    let after = |conversation: &str, seq| Ask::History { conversation: conversation.into(), range: Range::After(seq) };
    assert_eq!(asks[0], Ask::Watch(vec![HOME.into()]));
    for expected in [&sent[0], &after("r_7", 9), &after(HOME, 3)] {
        assert!(asks.contains(expected), "{expected:?} is not in {asks:?}");
    }
    assert_eq!(asks.len(), 4, "one message at a time: {asks:?}");
    desk.history("r_7", Range::After(9), vec![message("r_7", 10, 1, "hello"), message("r_7", 11, 2, "missed")]);
    desk.history(HOME, Range::After(3), vec![]);
    assert_eq!(desk.lines(), ["[room 7] user 1: hello", "[room 7] user 2: missed"]);
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
