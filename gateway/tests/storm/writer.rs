//! Those who make storms: people, and the system.

use std::time::Duration;

use bytes::Bytes;
use tidegate_core::event::{Accepted, IngestEvent};
use tidegate_core::ids::{ClientMsgId, ConversationId, MessageId, Millis, SessionId, UserId};
use tidegate_core::ports::{Backend, IngestQueue as _};
use tidegate_proto::Kind;
use tidegate_proto::v1;

use crate::support::{Account, Client, World, send};

/// Somebody who writes into one conversation, message after message.
pub struct Writer {
    client: Client,
    conversation: String,
    /// Messages said so far, each with its number as its body.
    pub said: u64,
}

impl Writer {
    pub async fn new<B: Backend>(world: &World<B>, account: &Account, conversation: &str) -> Self {
        Self::by(world.connect(account, "writer").await, conversation)
    }

    /// The same with a client that is there.
    pub fn by(client: Client, conversation: &str) -> Self {
        Self { client, conversation: conversation.to_owned(), said: 0 }
    }

    /// Sends so many at once and waits for their acks.
    pub async fn burst(&mut self, count: u64) {
        let mut waiting = Vec::new();
        for _ in 0..count {
            self.said += 1;
            let key = format!("{}-{}", self.conversation, self.said);
            let message = send(&self.conversation, &key, &self.said.to_string());
            waiting.push(self.client.command(Kind::Send, &message).await);
        }
        for correlation in waiting {
            let _: v1::SendAck = self.client.reply(correlation).await.unwrap();
        }
    }

    /// Sends `count` every `pause` until `is_enough`.
    pub async fn keep_on(&mut self, count: u64, pause: Duration, mut is_enough: impl FnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + crate::support::DEADLINE;
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !is_enough() {
            assert!(tokio::time::Instant::now() < deadline, "not enough after {} messages", self.said);
            ticks.tick().await;
            self.burst(count).await;
        }
    }
}

/// What another service does: a message of the system, straight into MQ1. Returns once it is confirmed.
pub async fn announce<B: Backend>(world: &World<B>, conversation: &str, body: &str) {
    let conversation: ConversationId = conversation.parse().unwrap();
    let key = ClientMsgId::new(Bytes::copy_from_slice(body.as_bytes())).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let event = IngestEvent::Accepted(Accepted {
        message_id: MessageId::derive(UserId::SYSTEM, &key),
        conversation,
        sender: UserId::SYSTEM,
        session: SessionId(0),
        gateway: world.config.gateway_id.clone(),
        accepted_at: Millis(u64::try_from(now.as_millis()).unwrap()),
        content_type: v1::ContentType::Text,
        body: Bytes::copy_from_slice(body.as_bytes()),
    });
    let ingest = world.backend.ingest();
    let partition = conversation.partition(ingest.partitions());
    ingest.publish(partition, vec![event]).await.unwrap().await.unwrap();
}
