//! Pulls: what is newest in a conversation, or what fills a gap in it, for whoever asks.
//!
//! In go a place and a format, out come bytes that everybody at that place shares.

use bytes::Bytes;

use super::keeper::TailKeeper;
use super::pages::{Filled, Pages};
use super::tail::{Format, Tag};
use crate::clock::Clock;
use crate::delivery::{Mailboxes, Pull};
use crate::ids::Epoch;
use crate::meter;
use crate::ports::{Backend, PortResult};

/// See the module.
pub struct Pulls<B, M, C> {
    /// What is newest.
    pub tails: TailKeeper<B, M, C>,
    /// What is older.
    pub pages: Pages<B, C>,
}

/// An answer to a pull.
pub struct Pulled {
    /// In the format asked for.
    pub body: Bytes,
    /// Names the body among those of its conversation and format: equal names, equal bytes.
    pub tag: Tag,
}

impl<B: Backend, M: Mailboxes, C: Clock> Pulls<B, M, C> {
    /// Answers a pull of what is newest, if it is in memory and up to date. Whoever asks counts the answers: it may be asked
    /// for a hundred thousand a second.
    pub fn known(&self, pull: Pull, format: Format) -> Option<Pulled> {
        if pull.before.is_some() {
            return None;
        }
        let tail = self.tails.known(pull.conversation)?;
        let number = tail.answer_for(pull.after);
        Some(Pulled { body: tail.answer(number, format), tag: tail.tag(number) })
    }

    /// Answers a pull of somebody who may read the conversation.
    ///
    /// # Errors
    /// A store's, if what is asked for is not in memory.
    pub async fn pull(&self, pull: Pull, format: Format) -> PortResult<Pulled> {
        metrics::counter!(meter::PULL_ANSWERS, "from" => "reception").increment(1);
        if let (Some(after), Some(before)) = (pull.after, pull.before) {
            let Filled { body, epoch, tag } = self.pages.fill(pull.conversation, after, before, format).await?;
            if after.epoch == Epoch(0) || after.epoch == epoch {
                return Ok(Pulled { body, tag });
            }
        }
        let tail = self.tails.newest(pull.conversation).await?;
        let number = tail.answer_for(pull.after);
        Ok(Pulled { body: tail.answer(number, format), tag: tail.tag(number) })
    }
}
