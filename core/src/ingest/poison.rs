//! Events the archive will never take.
//!
//! In comes a turn's batch that was refused for the sake of a value in it; out goes what is stored of it, and the rest to the
//! dead letters, each with the archive's reason. What always holds: only an event that is refused *alone* is buried, and only
//! by an archive that says it is the value's fault ([`PortError::Unfit`]); one that cannot store anything is waited for. The
//! messages around it keep their order and have no gap between them. A crash before the turn's acknowledgement buries the
//! event again when it is delivered again.

use super::IngestEngine;
use super::commit::Ends;
use crate::clock::Clock;
use crate::event::{Accepted, IngestEvent, ReceiptMoved};
use crate::meter;
use crate::ports::{Backend, DeadLetter, IngestQueue, PersistBatch, PortError, PortResult};
use crate::retry::until_done;

/// What became of a batch that was not taken as a whole.
pub(super) struct Apart {
    /// What was added.
    pub persist: PersistBatch,
    /// Messages that were buried; their senders are told.
    pub unfit: Vec<Accepted>,
}

/// A part of a batch that is committed by itself.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Messages(&'a [Accepted]),
    Receipts(&'a [ReceiptMoved]),
}

impl Piece<'_> {
    /// `None` if there is but one event in it.
    fn halves(&self) -> Option<[Self; 2]> {
        match self {
            Self::Messages([]) | Self::Messages([_]) | Self::Receipts([]) | Self::Receipts([_]) => None,
            Self::Messages(messages) => {
                let (first, second) = messages.split_at(messages.len() / 2);
                Some([Self::Messages(first), Self::Messages(second)])
            }
            Self::Receipts(receipts) => {
                let (first, second) = receipts.split_at(receipts.len() / 2);
                Some([Self::Receipts(first), Self::Receipts(second)])
            }
        }
    }
}

impl<B: Backend, C: Clock> IngestEngine<B, C> {
    /// Commits piece by piece, halving those that are refused, and buries what is refused alone.
    ///
    /// # Errors
    /// [`PortError::Conflict`] as for a whole batch; some of it may be stored then.
    pub(super) async fn commit_apart(
        &mut self,
        messages: &[Accepted],
        receipts: &[ReceiptMoved],
        ends: &mut Ends,
    ) -> PortResult<Apart> {
        let mut apart = Apart { persist: PersistBatch::default(), unfit: Vec::new() };
        let mut dead = Vec::new();
        // The last is the next; first of all the messages, in their order.
        let mut pieces = vec![Piece::Receipts(receipts), Piece::Messages(messages)];
        while let Some(piece) = pieces.pop() {
            let batch = match piece {
                Piece::Messages(messages) => {
                    PersistBatch { messages: self.sequence(messages, ends).await?, receipts: Vec::new() }
                }
                Piece::Receipts(receipts) => PersistBatch { messages: Vec::new(), receipts: receipts.to_vec() },
            };
            match (self.persist(&batch, ends).await, piece.halves(), piece) {
                (Ok(()), ..) => {
                    apart.persist.messages.extend(batch.messages);
                    apart.persist.receipts.extend(batch.receipts);
                }
                (Err(PortError::Unfit { .. }), Some([first, second]), _) => pieces.extend([second, first]),
                (Err(error @ PortError::Unfit { .. }), None, Piece::Messages(messages)) => {
                    let bury = |message: &Accepted| (IngestEvent::Accepted(message.clone()), error.to_string());
                    dead.extend(messages.iter().map(bury));
                    apart.unfit.extend_from_slice(messages);
                }
                (Err(error @ PortError::Unfit { .. }), None, Piece::Receipts(receipts)) => {
                    let bury = |receipt: &ReceiptMoved| (IngestEvent::ReceiptMoved(*receipt), error.to_string());
                    dead.extend(receipts.iter().map(bury));
                }
                (Err(error), ..) => return Err(error),
            }
        }
        self.bury(dead.into_iter().map(|(event, reason)| DeadLetter { event, reason }).collect()).await?;
        Ok(apart)
    }

    async fn bury(&self, letters: Vec<DeadLetter>) -> PortResult<()> {
        for DeadLetter { event, reason } in &letters {
            let conversation = event.conversation();
            tracing::error!(partition = self.partition.0, %conversation, reason, "buried an event");
        }
        let ingest = self.backend.ingest();
        until_done(&self.clock, "bury", || ingest.bury(self.partition, letters.clone())).await?;
        metrics::counter!(meter::INGEST_BURIED).increment(letters.len() as u64);
        Ok(())
    }
}
