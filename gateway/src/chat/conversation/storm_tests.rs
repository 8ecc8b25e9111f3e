//! A storm, case by case: when a pull is due, and what becomes of what it leaves out.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use super::*;
use crate::chat::ask::Range;
use crate::chat::line::Place;

const SPREAD: Duration = Duration::from_millis(1000);

fn message(seq: u64, sender_id: u64) -> v1::Message {
    v1::Message { conversation_id: "r_1".into(), seq, epoch: 1, sender_id, ..Default::default() }
}

fn notice(latest_seq: u64) -> v1::NotifyNewMessages {
    v1::NotifyNewMessages { conversation_id: "r_1".into(), epoch: 1, latest_seq, spread_ms: 1000 }
}

fn changed(gear: Gear, from_seq: u64) -> v1::GearChanged {
    v1::GearChanged { conversation_id: "r_1".into(), epoch: 1, gear: gear.into(), from_seq }
}

fn reply(seqs: std::ops::RangeInclusive<u64>, latest_seq: u64) -> v1::PullReply {
    let (from_seq, to_seq) = (*seqs.start(), *seqs.end());
    let messages = seqs.map(|seq| message(seq, 2)).collect();
    v1::PullReply { epoch: 1, from_seq, to_seq, latest_seq, messages, ..Default::default() }
}

/// Pulls at a quarter of each spread; everything up to `last` is shown.
struct Desk {
    c: Conversation,
    phase: Phase,
    now: Instant,
}

impl Desk {
    fn at(last: u64) -> Self {
        let (mut c, now) = (Conversation::new(Place::Room(1)), Instant::now());
        c.follow_from(1, last);
        Self { c, phase: Phase::new(now, 1 << 30), now }
    }

    fn notice(&mut self, latest_seq: u64) -> Option<Weather> {
        self.c.handle_notice(self.now, self.phase, &notice(latest_seq))
    }

    fn gear(&mut self, gear: Gear, from_seq: u64) -> Option<Weather> {
        self.c.handle_gear(self.now, self.phase, &changed(gear, from_seq))
    }

    /// What is asked for now, as (kind, after, before).
    fn asks(&mut self) -> Option<(Want, v1::Pull)> {
        let want = self.c.due_want(self.now)?;
        let (after_seq, before_seq) = self.c.pulls_from(want);
        Some((want, v1::Pull { conversation_id: "r_1".into(), epoch: 1, after_seq, before_seq }))
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn pulled(&mut self, asked: &v1::Pull, reply: v1::PullReply) -> Vec<String> {
        let steps = self.c.handle_pulled(self.now, asked, reply);
        said(&steps)
    }
}

fn said(steps: &[Step]) -> Vec<String> {
    let say = |step: &Step| match step {
        Step::Show(message) => message.seq.to_string(),
        Step::Ahead(message) => format!("ahead {}", message.seq),
        Step::Passed(seq) => format!("passed {seq}"),
        Step::LeftOut { count, .. } => format!("left out {count}"),
        Step::Filled(messages) => {
            format!("filled {:?}", messages.iter().map(|message| message.seq).collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    };
    steps.iter().map(say).collect()
}

#[test]
fn pulls_come_at_the_own_phase_and_once_per_spread() {
    let mut desk = Desk::at(3);
    assert_eq!(desk.notice(5), Some(Weather::Busy));
    assert_eq!(desk.asks(), None);
    desk.wait(249);
    assert_eq!(desk.asks(), None);
    desk.wait(2);
    let (want, asked) = desk.asks().unwrap();
    assert_eq!((want, asked.after_seq, asked.before_seq), (Want::Pull, Some(3), 0));
    assert_eq!(desk.notice(6), None, "said once");
    assert_eq!(desk.pulled(&asked, reply(3..=6, 6)), ["4", "5", "6"]);
    desk.wait(100);
    assert_eq!(desk.asks(), None, "what the notice told of is here");
    assert!(desk.c.waits() && !desk.c.is_busy(), "more may come");
    desk.notice(7);
    desk.wait(898);
    assert_eq!(desk.asks(), None, "at the next phase");
    desk.wait(30);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(desk.pulled(&asked, reply(7..=7, 7)), ["7"]);
    desk.wait(970);
    assert_eq!(desk.asks(), None);
    desk.wait(1);
    let (_, asked) = desk.asks().expect("while something comes no notice is needed, and the phase stays");
    assert_eq!(desk.pulled(&asked, reply(7..=7, 7)), [""; 0]);
    assert!(!desk.c.waits(), "until the next notice");
}

#[test]
fn phases_lie_within_the_spread_and_differ() {
    let origin = Instant::now();
    let mut seen = Vec::new();
    for part in [0, 1, 1 << 31, u32::MAX] {
        for after_ms in [0, 1, 999, 1000, 123_456] {
            let now = origin + Duration::from_millis(after_ms);
            let at = Phase::new(origin, part).next(now, SPREAD);
            assert!(now <= at && at < now + SPREAD, "{part} {after_ms}");
            seen.push((part, (at - origin).as_nanos() % SPREAD.as_nanos()));
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 4, "one place each: {seen:?}");
    let nothing = Phase::new(origin, 7).next(origin, Duration::ZERO);
    assert!(nothing <= origin + SPREAD_MIN, "no division by nothing");
}

#[test]
fn what_is_left_out_is_named_and_filled_when_it_is_calm() {
    let mut desk = Desk::at(3);
    desk.notice(100);
    desk.wait(300);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(desk.pulled(&asked, reply(99..=100, 100)), ["left out 95", "99", "100"]);
    assert!(desk.c.fetch_older(desk.now, 20), "/history reads it");
    assert_eq!(desk.c.due_want(desk.now), Some(Want::Page(Range::Before(99, 20))));
    let page = v1::HistoryReply {
        epoch: 1,
        last_seq: 100,
        messages: (79..=98).map(|seq| message(seq, 2)).collect(),
        ..Default::default()
    };
    desk.c.handle_history(desk.now, Range::Before(99, 20), page);
    assert_eq!(desk.gear(Gear::Merged, 101), Some(Weather::Calm(0)));
    assert_eq!(desk.asks(), None, "not everybody at once");
    assert_eq!(desk.gear(Gear::Signal, 101), Some(Weather::Busy));
    desk.wait(10_000);
    assert_eq!(desk.asks(), None, "it was not over");
    assert_eq!(desk.gear(Gear::Merged, 101), Some(Weather::Calm(0)));
    desk.wait(5_000);
    let (want, asked) = desk.asks().unwrap();
    assert_eq!((want, asked.after_seq, asked.before_seq), (Want::Fill, Some(3), 79), "what was read is not asked for");
    assert_eq!(said(&desk.c.handle_message(desk.now, message(101, 2))), ["101"], "nobody waits for it");
    let seqs: Vec<u64> = (4..=50).collect();
    let first = v1::PullReply { more: true, ..reply(4..=50, 101) };
    assert_eq!(desk.pulled(&asked, first), [format!("filled {seqs:?}")]);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!((asked.after_seq, asked.before_seq), (Some(50), 79));
    let seqs: Vec<u64> = (51..=78).collect();
    assert_eq!(desk.pulled(&asked, reply(51..=78, 101)), [format!("filled {seqs:?}")]);
    assert!(!desk.c.is_busy());
    assert_eq!(desk.c.oldest, 4, "all that was shown is one piece");
}

#[test]
fn too_much_is_said_and_not_fetched() {
    let mut desk = Desk::at(3);
    desk.notice(1000);
    desk.wait(300);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(desk.pulled(&asked, reply(1000..=1000, 1000)), ["left out 996", "1000"]);
    assert_eq!(desk.gear(Gear::Direct, 1001), Some(Weather::Calm(996)));
    desk.wait(60_000);
    assert_eq!(desk.asks(), None);
    assert!(!desk.c.is_busy());
}

#[test]
fn the_system_speaks_ahead_and_is_not_repeated() {
    let mut desk = Desk::at(3);
    assert_eq!(said(&desk.c.handle_message(desk.now, message(8, 0))), ["ahead 8"]);
    assert_eq!(said(&desk.c.handle_message(desk.now, message(8, 0))), [""; 0]);
    assert_eq!(desk.c.stands_at(), Some((1, 3)), "others come in their turn");
    assert_eq!(desk.asks(), None);
    desk.notice(9);
    desk.wait(300);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(asked.after_seq, Some(3));
    assert_eq!(desk.pulled(&asked, reply(6..=9, 9)), ["left out 2", "6", "7", "passed 8", "9"]);
    assert_eq!(said(&desk.c.handle_message(desk.now, message(4, 0))), ["ahead 4"], "it was left out a moment ago");
    desk.gear(Gear::Direct, 10);
    desk.wait(5_000);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(desk.pulled(&asked, reply(4..=5, 9)), ["filled [5]"]);
}

#[test]
fn what_came_before_a_change_of_gear_is_pulled_before_what_follows_it() {
    let mut desk = Desk::at(3);
    desk.notice(5);
    assert_eq!(desk.gear(Gear::Merged, 8), Some(Weather::Calm(0)));
    assert_eq!(said(&desk.c.handle_message(desk.now, message(8, 2))), [""; 0]);
    assert_eq!(desk.asks(), None, "no Sync besides");
    desk.wait(300);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(desk.pulled(&asked, reply(4..=7, 8)), ["4", "5", "6", "7", "8"]);
    assert!(!desk.c.is_busy());
    assert_eq!(desk.gear(Gear::Direct, 9), None);
    assert_eq!(desk.gear(Gear::Signal, 9), Some(Weather::Busy));
    assert_eq!(desk.gear(Gear::Merged, 9), Some(Weather::Calm(0)));
    desk.wait(2_000);
    assert_eq!(desk.asks(), None, "nothing was said in between");
}

#[test]
fn a_push_ends_a_storm_of_whose_end_nobody_heard() {
    let mut desk = Desk::at(3);
    desk.notice(100);
    desk.wait(300);
    let (_, asked) = desk.asks().unwrap();
    desk.pulled(&asked, reply(99..=100, 100));
    assert_eq!(said(&desk.c.handle_message(desk.now, message(98, 2))), [""; 0], "a repetition says nothing");
    assert_eq!(said(&desk.c.handle_message(desk.now, message(103, 2))), ["Weather(Calm(0))"]);
    desk.wait(1_000);
    let (want, asked) = desk.asks().unwrap();
    assert_eq!((want, asked.after_seq), (Want::Pull, Some(100)), "no Sync");
    assert_eq!(desk.pulled(&asked, reply(101..=103, 103)), ["101", "102", "103"]);
    desk.wait(5_000);
    assert_eq!(desk.asks().map(|(want, _)| want), Some(Want::Fill));
}

#[test]
fn a_pull_that_is_refused_is_repeated_later_or_replaced_by_sync() {
    let mut desk = Desk::at(3);
    desk.notice(5);
    desk.wait(300);
    desk.asks().unwrap();
    desk.c.fetch_later(desk.now, 700);
    desk.wait(699);
    assert_eq!(desk.asks(), None);
    desk.wait(1);
    let (want, asked) = desk.asks().unwrap();
    assert_eq!(want, Want::Pull);
    desk.c.handle_no_pull(desk.now, &asked);
    assert_eq!(desk.asks().map(|(want, _)| want), Some(Want::Missing));
}

#[test]
fn a_reply_of_another_epoch_is_compared_like_a_message() {
    let mut desk = Desk::at(30);
    desk.notice(31);
    desk.wait(300);
    let (_, asked) = desk.asks().unwrap();
    let newer =
        v1::PullReply { epoch: 2, messages: vec![v1::Message { epoch: 2, ..message(5, 2) }], ..reply(5..=5, 5) };
    assert_eq!(desk.pulled(&asked, newer), ["left out 4", "5"]);
    desk.c.handle_notice(desk.now, desk.phase, &v1::NotifyNewMessages { epoch: 2, ..notice(6) });
    desk.wait(1000);
    let (_, asked) = desk.asks().unwrap();
    assert_eq!(desk.pulled(&asked, reply(31..=31, 31)), [""; 0], "of the epoch before");
    assert!(desk.c.is_busy(), "and asked again");
}
