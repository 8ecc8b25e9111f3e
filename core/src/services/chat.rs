//! Reading back: history, and who may read it.
//!
//! In go a user and a conversation, out come pages of messages in ascending order. Must always hold: a user sees only
//! conversations it is in; lobbies are everybody's, and there are only the configured ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::try_join3;

use crate::event::StoredMessage;
use crate::ids::{ConversationId, Epoch, LobbyName, Seq, UserId};
use crate::limits::{HISTORY_PAGE_BYTES_MAX, HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX};
use crate::ports::{Archive as _, Backend, End, Page, Watermark};

use super::{ServiceError, ServiceResult};

/// Reading back over a backend.
pub struct ChatService<B> {
    backend: Arc<B>,
    lobbies: BTreeSet<LobbyName>,
}

/// One page of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// What the sequences are comparable within.
    pub epoch: Epoch,
    /// The conversation's newest sequence.
    pub last: Seq,
    /// In ascending order.
    pub messages: Vec<StoredMessage>,
    /// Whether there is another page in the direction asked for.
    pub more: bool,
    /// How far those who have received or read anything are, ascending by user; none in lobbies.
    pub watermarks: Vec<Watermark>,
}

impl<B: Backend> ChatService<B> {
    /// Conversations of `backend`, with these lobbies.
    pub fn new(backend: Arc<B>, lobbies: impl IntoIterator<Item = LobbyName>) -> Self {
        Self { backend, lobbies: lobbies.into_iter().collect() }
    }

    /// One page; `size` zero means [`HISTORY_PAGE_DEFAULT`], more than [`HISTORY_PAGE_MAX`] means that. A page also ends
    /// before its bodies exceed [`HISTORY_PAGE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`ServiceError::NotMember`], or a port's error.
    pub async fn history(
        &self,
        user: UserId,
        conversation: ConversationId,
        page: Page,
        size: u32,
    ) -> ServiceResult<HistoryPage> {
        self.admit(user, conversation).await?;
        let size = if size == 0 { HISTORY_PAGE_DEFAULT } else { size.min(HISTORY_PAGE_MAX) };
        let archive = self.backend.archive();
        let conversations = [conversation];
        let (mut messages, ends, mut watermarks) = try_join3(
            archive.history(conversation, page, size),
            archive.ends(&conversations),
            archive.watermarks(&conversations),
        )
        .await?;
        trim(&mut messages, page);
        let oldest = messages.first().map(|message| message.seq);
        let newest = messages.last().map(|message| message.seq);
        // The two answers were given at different moments: a message may have come between them.
        let End { epoch, last } = ends.first().copied().unwrap_or(End { epoch: archive.epoch(), last: Seq(0) });
        let last = last.max(newest.unwrap_or_default());
        // Sequences are dense from 1, so the ends of the page say whether something lies beyond.
        let more = match page {
            Page::Newest | Page::Before(_) => oldest.is_some_and(|seq| seq > Seq(1)),
            Page::After(_) => newest.is_some_and(|seq| seq < last),
        };
        Ok(HistoryPage { epoch, last, messages, more, watermarks: watermarks.pop().unwrap_or_default() })
    }

    /// The private conversation of two users.
    ///
    /// # Errors
    /// [`ServiceError::ConversationInvalid`] with oneself, [`ServiceError::UserUnknown`], or a port's error.
    pub async fn open_private(&self, user: UserId, peer: UserId) -> ServiceResult<ConversationId> {
        let conversation = ConversationId::private(user, peer).ok_or(ServiceError::ConversationInvalid)?;
        if self.backend.archive().users(&[peer]).await?.is_empty() {
            return Err(ServiceError::UserUnknown);
        }
        Ok(conversation)
    }

    /// Whether `user` may read `conversation`.
    ///
    /// # Errors
    /// [`ServiceError::NotMember`] if not, or a port's error.
    pub async fn admit(&self, user: UserId, conversation: ConversationId) -> ServiceResult<()> {
        let member = match conversation {
            ConversationId::Private { .. } => conversation.peer_of(user).is_some(),
            ConversationId::Lobby(name) => self.lobbies.contains(&name),
            // The user's rooms, not the room's members: a user is in a few rooms, a room may hold a thousand.
            ConversationId::Room(room) => self.backend.archive().rooms_of(user).await?.contains(&room),
        };
        if member { Ok(()) } else { Err(ServiceError::NotMember) }
    }
}

/// Takes off the far end, seen from where the page begins, until the bodies are within their bound.
fn trim(messages: &mut Vec<StoredMessage>, page: Page) {
    let mut bytes = 0;
    let mut fits = |message: &StoredMessage| {
        bytes += message.body.len();
        bytes <= HISTORY_PAGE_BYTES_MAX
    };
    match page {
        Page::After(_) => {
            let kept = messages.iter().take_while(|message| fits(message)).count();
            messages.truncate(kept);
        }
        Page::Newest | Page::Before(_) => {
            let kept = messages.iter().rev().take_while(|message| fits(message)).count();
            messages.drain(..messages.len() - kept);
        }
    }
}
