//! The state against a model of a server, by chance: pushes that are left out, connections that end with answers still on
//! their way, replies with room for a part. Whatever happens, what is shown is what was said: each once, in order.
//!
//! A failing seed is printed; `SEED` in the environment runs that one alone.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::BTreeMap;

use super::*;
use crate::chat::ask::Range;
use crate::chat::line::{Names, Paint};

const ME: u64 = 1;
const BEN: u64 = 2;
const HOME: &str = "lobby_main";
const PLACES: [&str; 4] = [HOME, "r_7", "r_8", "p_1_2"];
const SEEDS: u64 = 2000;
const STEPS: u32 = 120;

/// Far below those of the protocol, so that few messages are many.
const SYNC_MESSAGES_MAX: usize = 6;
const PAGE_MAX: usize = 4;

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and each seed is another sequence.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// What the server has and what it sends; answers wait until they are let go.
struct World {
    chance: Chance,
    now: Instant,
    state: State,
    stored: BTreeMap<&'static str, Vec<v1::Message>>,
    read: BTreeMap<String, u64>,
    /// Whose pushes the connection misses, and since which message.
    behind: BTreeMap<&'static str, u64>,
    asked: Vec<Ask>,
    shown: BTreeMap<String, Vec<String>>,
    online: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            chance: Chance(seed),
            now: Instant::now(),
            state: State::new(HOME.into()),
            stored: PLACES.map(|place| (place, Vec::new())).into(),
            read: BTreeMap::new(),
            behind: BTreeMap::new(),
            asked: Vec::new(),
            shown: BTreeMap::new(),
            online: false,
        };
        world.log_in();
        // The lobby is followed from its first message on.
        world.answer_one();
        world
    }

    fn position(&self, place: &str) -> v1::Position {
        let read_seq = self.read.get(place).copied().unwrap_or_default();
        let unread = u32::try_from(self.after(place, read_seq).len()).unwrap();
        let last_seq = self.stored[place].len() as u64;
        v1::Position { conversation_id: place.to_owned(), epoch: 1, last_seq, read_seq, unread }
    }

    /// The user's conversations that positions speak of.
    fn places(&self) -> Vec<&'static str> {
        let has_position =
            |place: &&str| place.starts_with("r_") || place.starts_with("p_") && !self.stored[*place].is_empty();
        PLACES.into_iter().filter(has_position).collect()
    }

    fn after(&self, place: &str, seq: u64) -> Vec<v1::Message> {
        self.stored[place].iter().filter(|message| message.seq > seq).cloned().collect()
    }

    fn synced(&mut self, asked: &[v1::SyncFrom], least: usize) -> Vec<v1::Synced> {
        let count = least.max(self.chance.below(asked.len() + 1)).min(asked.len());
        let answer = |from: &v1::SyncFrom| {
            let position = self.position(&from.conversation_id);
            let messages = self.after(&from.conversation_id, from.seq);
            let is_whole = messages.len() <= SYNC_MESSAGES_MAX;
            v1::Synced {
                conversation_id: from.conversation_id.clone(),
                epoch: 1,
                last_seq: position.last_seq,
                outcome: if is_whole { SyncOutcome::Whole.into() } else { SyncOutcome::Reload.into() },
                messages: if is_whole { messages } else { Vec::new() },
                read_seq: if from.conversation_id == HOME { 0 } else { position.read_seq },
                unread: if from.conversation_id == HOME { 0 } else { position.unread },
            }
        };
        asked[..count].iter().map(answer).collect()
    }

    fn log_in(&mut self) {
        let standing = self.state.standing();
        let synced = self.synced(&standing.positions, 0);
        let login = v1::LoginReply {
            user_id: ME,
            session_id: 9,
            max_body_bytes: 100,
            positions: self.places().into_iter().map(|place| self.position(place)).collect(),
            watching: standing.watch,
            synced,
            ..Default::default()
        };
        self.behind.clear();
        self.online = true;
        self.state.handle_login(self.now, login, &standing.positions);
    }

    fn lose(&mut self) {
        self.online = false;
        self.asked.clear();
        self.state.handle_lost(self.now);
    }

    fn say(&mut self) {
        let place = PLACES[self.chance.below(PLACES.len())];
        let seq = self.stored[place].len() as u64 + 1;
        let message = v1::Message {
            conversation_id: place.to_owned(),
            seq,
            epoch: 1,
            sender_id: BEN,
            body: format!("{seq}").into(),
            ..Default::default()
        };
        self.stored.get_mut(place).unwrap().push(message.clone());
        if !self.online {
            return;
        }
        if self.behind.contains_key(place) || self.chance.one_in(6) {
            self.behind.entry(place).or_insert(seq - 1);
        } else {
            self.state.handle_push(self.now, Push::Message(message));
        }
    }

    /// What was left out is said, and pushes go on.
    fn tell_behind(&mut self) {
        // A private message is never left out alone: the whole gateway has missed something.
        if self.behind.keys().any(|place| place.starts_with("p_")) {
            self.behind.clear();
            let wait = Duration::from_millis(self.chance.next() % 1000);
            return self.state.handle_push(self.now, Push::Behind(v1::Behind::default(), wait));
        }
        for (place, after_seq) in std::mem::take(&mut self.behind) {
            let last_seq = self.stored[place].len() as u64;
            let conversation_id = place.to_owned();
            let behind = v1::Behind { conversation_id, epoch: 1, after_seq, last_seq, spread_ms: 0 };
            self.state.handle_push(self.now, Push::Behind(behind, Duration::ZERO));
        }
    }

    /// A Behind of the whole gateway, or a push that comes again.
    fn disturb(&mut self) {
        let place = PLACES[self.chance.below(PLACES.len())];
        if self.chance.one_in(2) {
            let wait = Duration::from_millis(self.chance.next() % 1000);
            self.state.handle_push(self.now, Push::Behind(v1::Behind::default(), wait));
        } else if !self.behind.contains_key(place) && !self.stored[place].is_empty() {
            let again = self.stored[place][self.chance.below(self.stored[place].len())].clone();
            self.state.handle_push(self.now, Push::Message(again));
        }
    }

    /// One of the questions on their way is answered, in any order.
    fn answer_one(&mut self) {
        self.asked.extend(std::iter::from_fn(|| self.state.next_ask()));
        if self.asked.is_empty() {
            return;
        }
        let ask = self.asked.swap_remove(self.chance.below(self.asked.len()));
        let answer = match &ask {
            Ask::Sync(asked) if self.chance.one_in(8) => {
                assert!(!asked.positions.is_empty() || asked.others);
                Answer::Refused(v1::Error { code: Code::Overloaded.into(), ..Default::default() })
            }
            Ask::Sync(asked) => {
                let is_named = |place: &str| asked.positions.iter().any(|from| from.conversation_id == place);
                let others = self.places().into_iter().filter(|place| asked.others && !is_named(place));
                let others = others.map(|place| self.position(place)).collect();
                Answer::Synced(v1::SyncReply { synced: self.synced(&asked.positions, 1), others })
            }
            Ask::History { conversation, range } => Answer::History(self.page(conversation, *range)),
            Ask::Receipt { conversation, read, .. } => {
                let known = self.read.entry(conversation.clone()).or_default();
                *known = (*known).max(*read);
                Answer::Done
            }
            Ask::Send { .. } | Ask::Watch(_) => Answer::Done,
        };
        self.state.handle_answer(self.now, ask, answer);
    }

    fn page(&self, conversation: &str, range: Range) -> v1::HistoryReply {
        let all = &self.stored[conversation];
        let (messages, more) = match range {
            Range::After(seq) => {
                let missing = self.after(conversation, seq);
                (missing.iter().take(PAGE_MAX).cloned().collect(), missing.len() > PAGE_MAX)
            }
            Range::Newest(count) => {
                let skipped = all.len().saturating_sub(count as usize);
                (all[skipped..].to_vec(), skipped > 0)
            }
            Range::Before(..) => panic!("nobody asked for older ones"),
        };
        let last_seq = all.len() as u64;
        v1::HistoryReply {
            conversation_id: conversation.into(),
            epoch: 1,
            last_seq,
            messages,
            more,
            watermarks: vec![],
        }
    }

    fn step(&mut self) {
        match self.chance.below(20) {
            0..9 => self.say(),
            9..15 if self.online => self.answer_one(),
            15 if self.online => self.tell_behind(),
            16 if self.online => self.disturb(),
            17 if self.online && self.chance.one_in(3) => self.lose(),
            17 | 18 if !self.online => self.log_in(),
            _ => self.tick(),
        }
        self.look();
    }

    fn tick(&mut self) {
        self.now += Duration::from_millis(200);
        self.state.handle_tick(self.now);
    }

    fn look(&mut self) {
        while let Some(line) = self.state.take_line() {
            match line {
                Line::Said(said) => self.shown.entry(said.conversation).or_default().push(said.text),
                other => {
                    let text = other.render(&Names::of(ME), 0, Paint::Off);
                    assert!(!text.contains("missed") && !text.contains("cannot"), "{text}");
                }
            }
        }
    }

    /// Everything is told and answered: now nothing may be missing.
    fn settle(&mut self) {
        if !self.online {
            self.log_in();
        }
        self.tell_behind();
        for _ in 0..400 {
            self.answer_one();
            self.tick();
        }
        self.look();
        for (place, stored) in &self.stored {
            let said: Vec<_> = stored.iter().map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect();
            assert_eq!(self.shown.get(*place).cloned().unwrap_or_default(), said, "{place}");
        }
        assert!(!self.state.waits(), "nothing is left to do");
        for place in PLACES.iter().filter(|place| **place != HOME) {
            let conversation = self.state.conversations.get(*place);
            let unread = conversation.map_or(0, |conversation| conversation.marks().unread());
            assert_eq!(unread, self.position(place).unread, "unread in {place}");
        }
    }
}

#[test]
fn whatever_is_lost_what_was_said_is_shown_once_and_in_order() {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in only.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
        let run = || {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.settle();
        };
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("again: SEED={seed} cargo test -p tidegate --lib seeded_tests");
            std::panic::resume_unwind(panic);
        }
    }
}
