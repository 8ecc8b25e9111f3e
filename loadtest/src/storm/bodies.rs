//! Recognises bodies that were seen before. In a storm everybody gets the same bytes: they are taken apart and checked
//! once, and for each further watcher comparing them with what is remembered is enough.
//!
//! In: the `repeated Message` part of a payload; out: the sequences it holds, as intervals. What is remembered is bounded
//! in number and in bytes; what was forgotten is taken apart again, so memory costs time and never truth.

use std::collections::HashMap;

use crate::finding::Fault;
use crate::wire::each_message;

use super::ledger::Ledger;

/// Bodies remembered.
const BODIES_MAX: usize = 4_096;

/// Bytes of them.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// A body that was taken apart, and what it held.
#[derive(Debug)]
struct Body {
    bytes: Vec<u8>,
    runs: Vec<(u64, u64)>,
}

/// The memory of one thread.
#[derive(Debug, Default)]
pub struct Bodies {
    by_key: HashMap<u64, Body>,
    /// Keys in the order in which their bodies came.
    order: std::collections::VecDeque<u64>,
    bytes: usize,
    /// Of the last body that was not remembered because something was wrong with it.
    unsound: Vec<(u64, u64)>,
    /// Bodies that were taken apart.
    pub distinct: u64,
    /// Bodies that were known.
    pub repeated: u64,
}

impl Bodies {
    /// The sequences in `messages`, ascending intervals; those of messages older than the run are left out. What is
    /// wrong goes to `find`, each time the bytes come.
    pub fn read(&mut self, messages: &[u8], ledger: &mut Ledger, mut find: impl FnMut(Fault, String)) -> &[(u64, u64)] {
        let key = key_of(messages);
        if self.by_key.get(&key).is_some_and(|body| body.bytes == messages) {
            self.repeated += 1;
            return self.by_key.get(&key).map_or(&[], |body| &body.runs);
        }
        self.distinct += 1;
        let (runs, is_sound) = take_apart(messages, ledger, &mut find);
        if !is_sound {
            self.unsound = runs;
            return &self.unsound;
        }
        self.remember(key, Body { bytes: messages.to_vec(), runs });
        self.by_key.get(&key).map_or(&[], |body| &body.runs)
    }

    fn remember(&mut self, key: u64, body: Body) {
        self.bytes += body.bytes.len();
        if let Some(replaced) = self.by_key.insert(key, body) {
            self.bytes -= replaced.bytes.len();
        } else {
            self.order.push_back(key);
        }
        while self.order.len() > BODIES_MAX || self.bytes > BYTES_MAX && self.order.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.by_key.remove(&oldest).map_or(0, |body| body.bytes.len());
        }
    }
}

/// Length, beginning and end: the first message's sequence and the last one's body are among them. Two bodies with one
/// key take each other's place, which costs time only.
fn key_of(messages: &[u8]) -> u64 {
    let mix = |key: u64, word: u64| (key.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let words = |bytes: &[u8], key: u64| {
        bytes.as_chunks::<8>().0.iter().fold(key, |key, word| mix(key, u64::from_le_bytes(*word)))
    };
    let len = messages.len();
    let key = words(&messages[..len.min(96)], mix(0, len as u64));
    words(&messages[len - len.min(160)..], key)
}

/// True if nothing was wrong.
fn take_apart(messages: &[u8], ledger: &mut Ledger, find: &mut impl FnMut(Fault, String)) -> (Vec<(u64, u64)>, bool) {
    let (mut runs, mut is_sound, mut before): (Vec<(u64, u64)>, bool, u64) = (Vec::new(), true, 0);
    let is_whole = each_message(messages, |view| {
        if view.seq <= before {
            is_sound = false;
            find(Fault::Reordered, format!("seq {} comes after {before} in one frame", view.seq));
        }
        before = view.seq;
        match ledger.take(view) {
            Ok(Some(seq)) => match runs.last_mut() {
                Some((_, end)) if *end + 1 == seq => *end = seq,
                _ => runs.push((seq, seq)),
            },
            Ok(None) => {}
            Err((fault, example)) => {
                is_sound = false;
                find(fault, example);
            }
        }
    });
    if !is_whole {
        find(Fault::Protocol, "messages that cannot be read".to_owned());
    }
    (runs, is_sound && is_whole)
}

#[cfg(test)]
mod tests {
    use super::super::ledger::tests::{message, origin};
    use super::*;
    use prost::Message as _;
    use tidegate_proto::v1::{Message, Messages};

    fn read(bodies: &mut Bodies, ledger: &mut Ledger, messages: &[Message]) -> (Vec<(u64, u64)>, Vec<Fault>) {
        let payload = Messages { messages: messages.to_vec() }.encode_to_vec();
        let mut faults = Vec::new();
        (bodies.read(&payload, ledger, |fault, _| faults.push(fault)).to_vec(), faults)
    }

    #[test]
    fn the_same_bytes_are_taken_apart_once() {
        let (mut bodies, mut ledger) = (Bodies::default(), Ledger::new(origin()));
        let body = [message(9, 0), message(11, 0), message(12, 1), message(14, 2)];
        for _ in 0..3 {
            assert_eq!(read(&mut bodies, &mut ledger, &body), (vec![(11, 12), (14, 14)], vec![]));
        }
        assert_eq!((bodies.distinct, bodies.repeated), (1, 2));
    }

    #[test]
    fn a_body_that_differs_in_its_middle_is_not_taken_for_another() {
        let (mut bodies, mut ledger) = (Bodies::default(), Ledger::new(origin()));
        let body = [message(11, 0), message(12, 1), message(13, 2)];
        assert_eq!(read(&mut bodies, &mut ledger, &body).1, []);
        let mut other = body.clone();
        other[1].message_id = vec![77; 16].into();
        for _ in 0..2 {
            // What is wrong is found every time.
            assert_eq!(read(&mut bodies, &mut ledger, &other), (vec![(11, 11), (13, 13)], vec![Fault::Disagreement]));
        }
        assert_eq!(read(&mut bodies, &mut ledger, &body), (vec![(11, 13)], vec![]));
        assert_eq!(bodies.repeated, 1);
    }

    #[test]
    fn order_and_broken_bytes_are_looked_at() {
        let (mut bodies, mut ledger) = (Bodies::default(), Ledger::new(origin()));
        assert_eq!(read(&mut bodies, &mut ledger, &[message(12, 1), message(11, 0)]).1, [Fault::Reordered]);
        let mut faults = Vec::new();
        bodies.read(&[0x0a, 200, 1, 2], &mut ledger, |fault, _| faults.push(fault));
        assert_eq!(faults, [Fault::Protocol]);
    }
}
