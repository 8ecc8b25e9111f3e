//! Which message stands under which sequence, as far as one reader has seen it, and whether it is as it was sent.
//!
//! In: messages, wherever they came from; out: their sequences, or what is wrong with them. A message is looked at once
//! per distinct body that holds it, not once per watcher: see [`super::bodies`].

use std::sync::Arc;

use crate::finding::Fault;
use crate::wire::{MessageView, STAMP_BYTES, Stamp};

/// A sequence further ahead than this is a fault, not a reason to allocate.
const JUMP_MAX: u64 = 16_000_000;

/// What all messages of a run have in common.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The lobby.
    pub lobby: String,
    /// Identity of the lobby's storage life.
    pub epoch: u32,
    /// The lobby's last sequence before the run; what stands there is none of ours.
    pub base_seq: u64,
    /// Tells apart messages of two runs.
    pub run: u32,
    /// Messages there will be; their numbers are below.
    pub messages: u64,
    /// User of each sender.
    pub sender_ids: Vec<u64>,
    /// What bodies hold behind their stamp begins here too.
    pub filler: Vec<u8>,
}

/// A message as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Of the run's messages, counted from 0.
    pub number: u32,
    /// When it was due.
    pub due_ns: u64,
    /// The server's name of it.
    pub message_id: [u8; 16],
}

/// The sequences behind the base.
#[derive(Clone, Debug)]
pub struct Ledger {
    origin: Arc<Origin>,
    sights: Vec<Option<Sight>>,
}

impl Ledger {
    /// Nothing seen.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self { origin, sights: Vec::new() }
    }

    /// Checks a message and remembers it. `Ok(None)` if it is older than the run.
    ///
    /// # Errors
    /// What is wrong with it, and an example for people.
    pub fn take(&mut self, view: &MessageView<'_>) -> Result<Option<u64>, (Fault, String)> {
        let origin = &*self.origin;
        if view.conversation_id != origin.lobby.as_bytes() {
            return Err((Fault::Foreign, format!("a message of {}", String::from_utf8_lossy(view.conversation_id))));
        }
        if view.epoch != origin.epoch {
            return Err((Fault::EpochChanged, format!("seq {}: epoch {}, not {}", view.seq, view.epoch, origin.epoch)));
        }
        let Some(place) = view.seq.checked_sub(origin.base_seq + 1) else { return Ok(None) };
        if place > JUMP_MAX {
            return Err((Fault::Protocol, format!("seq {} is far beyond all that was sent", view.seq)));
        }
        let place = place as usize;
        let sight = Self::read(origin, view)?;
        if place >= self.sights.len() {
            self.sights.resize(place + 1, None);
        }
        match &self.sights[place] {
            Some(known) if *known != sight => {
                let (seq, one, other) = (view.seq, known.number, sight.number);
                Err((Fault::Disagreement, format!("seq {seq} is message {one} and message {other}")))
            }
            Some(_) => Ok(Some(view.seq)),
            None => {
                self.sights[place] = Some(sight);
                Ok(Some(view.seq))
            }
        }
    }

    /// What the message says of itself, if sender and body are as they were sent.
    fn read(origin: &Origin, view: &MessageView<'_>) -> Result<Sight, (Fault, String)> {
        let altered = || (Fault::Altered, format!("seq {}: not as it was sent", view.seq));
        let stamp = Stamp::parse(view.body).ok_or_else(altered)?;
        if stamp.run != origin.run || u64::from(stamp.counter) >= origin.messages {
            return Err((Fault::NeverSent, format!("seq {}: of user {}, not of this run", view.seq, view.sender_id)));
        }
        let is_own = origin.sender_ids.get(stamp.member as usize) == Some(&view.sender_id)
            && view.body.get(STAMP_BYTES..) == origin.filler.get(STAMP_BYTES..);
        let message_id = view.message_id.try_into().map_err(|_| altered())?;
        if is_own { Ok(Sight { number: stamp.counter, due_ns: stamp.intended_ns, message_id }) } else { Err(altered()) }
    }

    /// The message under a sequence.
    pub fn sight(&self, seq: u64) -> Option<&Sight> {
        self.sights.get(seq.checked_sub(self.origin.base_seq + 1)? as usize)?.as_ref()
    }

    /// Everything seen, ascending by sequence.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Sight)> {
        (self.origin.base_seq + 1..).zip(&self.sights).filter_map(|(seq, sight)| Some((seq, sight.as_ref()?)))
    }

    /// What all its messages have in common.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use bytes::Bytes;
    use tidegate_proto::v1::Message;

    /// A run of three messages by two users behind sequence 10.
    pub fn origin() -> Arc<Origin> {
        Arc::new(Origin {
            lobby: "lobby_main".to_owned(),
            epoch: 1,
            base_seq: 10,
            run: 7,
            messages: 3,
            sender_ids: vec![501, 502],
            filler: vec![9; 40],
        })
    }

    /// Message `number` under `seq`, by the first user.
    pub fn message(seq: u64, number: u32) -> Message {
        let stamp =
            Stamp { run: 7, conversation: 0, member: 0, counter: number, intended_ns: u64::from(number) * 1_000 };
        let mut body = vec![9; 40];
        body[..STAMP_BYTES].copy_from_slice(&stamp.encode());
        Message {
            conversation_id: "lobby_main".to_owned(),
            seq,
            epoch: 1,
            message_id: Bytes::from(vec![number as u8 + 1; 16]),
            sender_id: 501,
            sent_at_ms: 5,
            content_type: 1,
            body: body.into(),
        }
    }

    fn take(ledger: &mut Ledger, message: &Message) -> Result<Option<u64>, Fault> {
        let payload = prost::Message::encode_to_vec(message);
        ledger.take(&MessageView::scan(&payload).unwrap()).map_err(|(fault, _)| fault)
    }

    #[test]
    fn a_message_is_known_again_and_any_difference_is_seen() {
        let mut ledger = Ledger::new(origin());
        assert_eq!(take(&mut ledger, &message(12, 1)), Ok(Some(12)));
        assert_eq!(take(&mut ledger, &message(12, 1)), Ok(Some(12)));
        assert_eq!(take(&mut ledger, &message(9, 1)), Ok(None), "older than the run");
        let mut altered = message(11, 0).body.to_vec();
        altered[39] ^= 1;
        for (wrong, fault) in [
            (message(12, 2), Fault::Disagreement),
            (Message { message_id: vec![3; 16].into(), ..message(12, 1) }, Fault::Disagreement),
            (message(13, 3), Fault::NeverSent),
            (Message { sender_id: 502, ..message(11, 0) }, Fault::Altered),
            (Message { body: altered.into(), ..message(11, 0) }, Fault::Altered),
            (Message { body: Bytes::new(), ..message(11, 0) }, Fault::Altered),
            (Message { message_id: Bytes::new(), ..message(11, 0) }, Fault::Altered),
            (Message { conversation_id: "lobby_eu".to_owned(), ..message(11, 0) }, Fault::Foreign),
            (Message { epoch: 2, ..message(11, 0) }, Fault::EpochChanged),
            (message(99_000_000, 0), Fault::Protocol),
        ] {
            assert_eq!(take(&mut ledger, &wrong), Err(fault), "{wrong:?}");
        }
        assert_eq!(ledger.iter().map(|(seq, sight)| (seq, sight.number)).collect::<Vec<_>>(), [(12, 1)]);
    }
}
