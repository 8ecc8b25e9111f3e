//! Asking the broker whether it takes messages.
//!
//! In: the question. Out: an answer of the broker's own, since a connection that stands says little: a frozen broker is
//! found out by its heartbeat only after two of them were missed, and one that is short of memory or disk tells so only
//! those who publish. So a message is published, to nobody. What must hold: asking neither disturbs what goes over the
//! connection nor piles up; the channel is made once, and the caller's patience is the only timeout.

use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};
use tidegate_core::ports::PortResult;
use tokio::sync::Mutex;

use super::connection::{Link, Live};
use super::port_error;

/// A channel to ask on.
#[derive(Default)]
pub(super) struct Probe(Mutex<Option<(Arc<Live>, Channel)>>);

impl Probe {
    /// Waits for the broker's answer for as long as the caller does. May be cancelled: the answer then finds nobody.
    /// `to` names a queue that does not exist; the broker confirms the message and forgets it.
    ///
    /// # Errors
    /// [`tidegate_core::ports::PortError::Unavailable`] if there is no connection, or the broker blocks publishing.
    pub(super) async fn ask(&self, link: &Link, to: ShortString) -> PortResult<()> {
        const DOING: &str = "asking for a sign of life";
        let live = link.unblocked()?;
        let mut open = self.0.lock().await;
        let is_good = |(on, channel): &(Arc<Live>, Channel)| Arc::ptr_eq(on, &live) && channel.status().connected();
        if !open.as_ref().is_some_and(is_good) {
            let channel = live.channel().await?;
            let confirms = channel.confirm_select(ConfirmSelectOptions::default()).await;
            confirms.map_err(|error| port_error(DOING, &error))?;
            *open = Some((Arc::clone(&live), channel));
        }
        let (_, channel) = open.as_ref().expect("just opened");
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let published = channel.basic_publish(ShortString::default(), to, options, &[], properties).await;
        let confirmed = published.map_err(|error| port_error(DOING, &error))?.await;
        confirmed.map_err(|error| port_error(DOING, &error)).map(drop)
    }
}
