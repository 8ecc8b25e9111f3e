//! What must hold once everything is at rest: the archive, every screen and every count against each other.
//!
//! In come the ledger, the archive as it is and what each device has shown; out comes a violation or nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures_util::FutureExt as _;
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, MessageId, Seq, UserId};
use tidegate_core::ports::HotStore as _;

use crate::client::Screen;
use crate::faults::Incident;
use crate::gateway::Backends;
use crate::ledger::Ledger;

/// One device, for the judge.
pub struct Device {
    pub name: String,
    pub user: UserId,
    pub conversations: Vec<ConversationId>,
    pub screen: Rc<RefCell<Screen>>,
}

/// The first rule that does not hold.
pub fn judge(backends: &Backends, devices: &[Device]) -> Result<(), String> {
    let ledger = &backends.shared.ledger;
    let archive: BTreeMap<ConversationId, Vec<StoredMessage>> =
        ledger.conversations().into_iter().map(|conversation| (conversation, ledger.all_of(conversation))).collect();
    sequences_are_dense(&archive)?;
    everything_acknowledged_is_there_once(ledger, &archive)?;
    for device in devices {
        everything_was_shown(device, &archive)?;
        order_of_sending_holds(device, ledger)?;
        counts_are_exact(device, ledger, &archive)?;
        if backends.shared.faults.is_calm() {
            contradictions_were_told(device, ledger)?;
        }
    }
    hot_counts_are_exact(backends, devices)
}

/// Guarantee 2.
fn sequences_are_dense(archive: &BTreeMap<ConversationId, Vec<StoredMessage>>) -> Result<(), String> {
    for (conversation, messages) in archive {
        let seqs: Vec<u64> = messages.iter().map(|message| message.seq.0).collect();
        if !seqs.iter().copied().eq(1..=seqs.len() as u64) {
            return Err(format!("guarantee 2: {conversation} has the sequences {seqs:?}"));
        }
    }
    Ok(())
}

/// Guarantees 1 and 3.
fn everything_acknowledged_is_there_once(
    ledger: &Ledger,
    archive: &BTreeMap<ConversationId, Vec<StoredMessage>>,
) -> Result<(), String> {
    let mut there: BTreeSet<MessageId> = BTreeSet::new();
    for message in archive.values().flatten() {
        if !there.insert(message.message_id) {
            return Err(format!("guarantee 3: {} is stored twice", message.message_id));
        }
        let is_sent = ledger.contents(message.message_id).iter().any(|content| {
            (content.sender, content.conversation, &content.body)
                == (message.sender, message.conversation, &message.body)
        });
        if !is_sent {
            return Err(format!("nobody sent {message:?}"));
        }
    }
    match ledger.acked().difference(&there).next() {
        Some(lost) => Err(format!("guarantee 1: {lost} was acknowledged and is not in the archive")),
        None => Ok(()),
    }
}

/// Guarantee 2, as clients see it. That each is shown once and in order is the sync rule's work; here, that it was right.
fn everything_was_shown(device: &Device, archive: &BTreeMap<ConversationId, Vec<StoredMessage>>) -> Result<(), String> {
    let screen = device.screen.borrow();
    for conversation in &device.conversations {
        let stored = archive.get(conversation).map_or(&[][..], |all| all);
        let shown = screen.shown.get(conversation).map_or(&[][..], |all| all);
        if !stored.iter().map(|message| &message.message_id).eq(shown) {
            let (name, shown, stored) = (&device.name, shown.len(), stored.len());
            return Err(format!(
                "guarantee 2: {name} has shown {shown} messages of {conversation}, not the {stored} there are"
            ));
        }
    }
    Ok(())
}

/// PROTOCOL.md, "Correlation and order". Repetitions may be late; what was acknowledged at once is in order.
fn order_of_sending_holds(device: &Device, ledger: &Ledger) -> Result<(), String> {
    let mut sent = device.screen.borrow().first_attempts.clone();
    sent.sort_unstable();
    let mut before: Option<(u64, ConversationId, Seq)> = None;
    for (connection, conversation, _, id) in sent {
        // Under a contradicted id the other content may have come first.
        let Some(stored) = ledger.stored(id).filter(|_| ledger.contents(id).len() == 1) else { continue };
        if let Some((_, _, seq)) = before.filter(|(c, v, _)| (*c, *v) == (connection, conversation))
            && seq >= stored.seq
        {
            let name = &device.name;
            return Err(format!(
                "guarantee 2: {name} sent {id} after what is {conversation} {} and it is {}",
                seq.0, stored.seq.0
            ));
        }
        before = Some((connection, conversation, stored.seq));
    }
    Ok(())
}

/// Guarantee 6, as the last login told it.
fn counts_are_exact(
    device: &Device,
    ledger: &Ledger,
    archive: &BTreeMap<ConversationId, Vec<StoredMessage>>,
) -> Result<(), String> {
    let (name, screen) = (&device.name, device.screen.borrow());
    for conversation in &device.conversations {
        let (least, most) = ledger.read_bounds(device.user, *conversation);
        let Some(position) = screen.positions.iter().find(|p| p.conversation_id == conversation.to_string()) else {
            if archive.contains_key(conversation) && !matches!(conversation, ConversationId::Lobby(_)) {
                return Err(format!("guarantee 6: {name} was not told of {conversation}"));
            }
            continue;
        };
        if !(least.0..=most.0).contains(&position.read_seq) {
            let read = position.read_seq;
            return Err(format!(
                "guarantee 6: {name} has read {conversation} to {read}, not within {least:?}..={most:?}"
            ));
        }
        let stored = archive.get(conversation).map_or(&[][..], |all| all);
        let is_unread = |message: &&StoredMessage| message.seq.0 > position.read_seq && message.sender != device.user;
        let unread = stored.iter().filter(is_unread).count() as u32;
        if position.unread != unread || position.last_seq != stored.len() as u64 {
            return Err(format!("guarantee 6: {name} was told {position:?}, unread are {unread} of {}", stored.len()));
        }
    }
    Ok(())
}

/// Guarantee 6 in the hot store, where it knows the counts.
fn hot_counts_are_exact(backends: &Backends, devices: &[Device]) -> Result<(), String> {
    let ledger = &backends.shared.ledger;
    // What a stale replica counts is known to be wrong until the user reads; logins show the archive's counts.
    if backends.shared.faults.incidents.contains(&Incident::HotRolledBack) {
        return Ok(());
    }
    let users: BTreeMap<UserId, &Device> = devices.iter().map(|device| (device.user, device)).collect();
    for (user, device) in users {
        let summary = backends.hot.take_summary(user).now_or_never().unwrap().unwrap();
        let Ok(mut known) = summary.unread else { continue };
        let standing = |conversation: &ConversationId| (*conversation, ledger.standing(user, *conversation).unread);
        let mut exact: Vec<_> =
            device.conversations.iter().filter(|c| !matches!(c, ConversationId::Lobby(_))).map(standing).collect();
        exact.retain(|(_, unread)| *unread > 0);
        exact.sort_unstable();
        known.sort_unstable();
        if known != exact {
            return Err(format!("guarantee 6: the hot store counts {known:?} for user {}, exact is {exact:?}", user.0));
        }
    }
    Ok(())
}

/// Guarantee 3, where nothing may have got lost on the way to the client.
fn contradictions_were_told(device: &Device, ledger: &Ledger) -> Result<(), String> {
    let screen = device.screen.borrow();
    let untold = screen.contradicted.difference(&screen.rejected).find(|id| ledger.contents(**id).len() > 1);
    match untold {
        Some(id) => Err(format!("guarantee 3: {} sent {id} with two contents and was not told", device.name)),
        None => Ok(()),
    }
}
