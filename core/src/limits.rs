//! Every bound in one place, each with its reason. Bounds that must agree are asserted at compile time. Those that clients
//! see are the protocol's and come from there.

use std::time::Duration;

pub use tidegate_proto::limits::{
    CLIENT_MSG_ID_BYTES_MAX, CLIENT_NAME_BYTES_MAX, DEVICE_CLASS_BYTES_MAX, DEVICE_ID_BYTES_MAX,
    FRAME_BYTES_MAX_DEFAULT as FRAME_BYTES_MAX, HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX, LOBBY_ID_BYTES_MAX,
    PROTOCOL_ERRORS_MAX, SYNC_MESSAGES_MAX, SYNC_POSITIONS_MAX, WATCHES_MAX,
};

/// Keeps `im.push.<gateway_id>` readable and far below AMQP's 255 bytes.
pub const GATEWAY_ID_BYTES_MAX: usize = 32;

/// One message's body. Leaves room for ids around it, and a page of several in one frame.
pub const BODY_BYTES_MAX: usize = 16 * 1024;

/// Commands of one connection that wait for their reply; then `CODE_OVERLOADED`. At 1 ms to a confirm this still allows
/// one connection a million commands a second.
pub const IN_FLIGHT_MAX: u16 = 1024;

/// Frames waiting in one connection's outbox; a receiver that is further behind is closed as a slow consumer.
pub const OUTBOX_BYTES_MAX: usize = 256 * 1024;

/// A token in Login: a JWT may be long.
pub const TOKEN_BYTES_MAX: usize = 1024;

/// Events in one AMQP message (RabbitMQ confirmed about 11,000 messages of 64 events a second on two cores; more per
/// message gains nothing and costs latency).
pub const PUBLISH_EVENTS_MAX: usize = 64;

/// Bytes of bodies in one AMQP message: well below RabbitMQ's frame, so that it is one frame.
pub const PUBLISH_BYTES_MAX: usize = 96 * 1024;

/// AMQP messages without their confirm before a partition waits for a full batch: one on its way and one behind it keep
/// the broker busy, more would only be smaller.
pub const PUBLISH_EAGER_MAX: usize = 2;

/// AMQP messages without their confirm, per partition. Bounds what a broken connection makes uncertain.
pub const PUBLISH_WINDOW_MAX: usize = 32;

/// Events the acceptor holds per partition before sessions get `CODE_OVERLOADED`.
pub const ACCEPT_QUEUE_MAX: usize = 8192;

/// Bytes of the same: sixteen megabytes per partition while a broker is away.
pub const ACCEPT_QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Events one turn of the ingest engine handles: one Redis script, one INSERT, one push per gateway.
pub const INGEST_BATCH_MAX: usize = 512;

/// Events one turn of the push engine handles.
pub const PUSH_BATCH_MAX: usize = 1024;

/// Inputs waiting in a shard's mailbox.
pub const MAILBOX_INPUTS_MAX: usize = 16 * 1024;

/// Bytes of the same.
pub const MAILBOX_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Inputs a shard handles before it lets its connections read again.
pub const SHARD_TURN_INPUTS_MAX: usize = 1024;

/// Conversations of which a connection in the background is told in one second; of more it is told that it missed something.
pub const COUNTS_MAX: usize = 500;

/// Connections in the background that one shard tells at once, each by a write of its own; the others follow a second later. Bounds
/// how long a tick holds up everybody's messages.
pub const COUNTS_TOLD_AT_ONCE: usize = 4096;

/// Logins and look-ups waiting for the reception; then `CODE_OVERLOADED`.
pub const REQUESTS_MAX: usize = 64 * 1024;

/// Ended sessions waiting to be told to the hot store; beyond it their presence expires by itself.
pub const DEPARTURES_MAX: usize = 64 * 1024;

/// Bytes of either.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages kept in a user's inbox while away.
pub const INBOX_MESSAGES_MAX: usize = 100;

/// How long an inbox waits for its user; later logins find everything in history.
pub const INBOX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a session's presence lives unless renewed: what a killed gateway leaves behind misleads no longer than this.
pub const PRESENCE_TTL: Duration = Duration::from_secs(90);

/// A login that is carried out when the device's next one is older than this has been given up by its client, and loses. Above
/// what gateways' clocks differ by, below the time in which a client gives up.
pub const LATE_LOGIN_MS: u64 = 1000;

/// How long a session outlives its connection: a phone in a tunnel comes back with its watches.
pub const SESSION_GRACE: Duration = Duration::from_secs(60);

/// How long a gateway's sessions count after its last sign of life, while other gateways give theirs: three beats. Their
/// users are away then, and messages for them go to their inboxes.
pub const GATEWAY_TTL: Duration = Duration::from_secs(15);

/// How long an allowance to send is kept after it was whole: above the time for which a gateway keeps to itself what it let pass.
pub const ALLOWANCE_KEPT: Duration = Duration::from_secs(10);

/// How long the unread counts of a user nobody writes to or hears from are kept; then the archive is asked again.
pub const UNREAD_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a login may take from learning that the counts are unknown to handing them in; far above any deadline.
pub const UNREAD_SEEDING_TTL: Duration = Duration::from_secs(600);

/// Sequences remembered one by one per (user, conversation), so that a count made from the archive a moment ago can be
/// brought up to date. A count that is further behind is not used; the user's counts become unknown instead.
pub const UNREAD_TAIL_MAX: usize = 32;

/// Messages of the inbox that ride on the login reply; with bodies at their largest they must fit a frame, see the
/// login service, which stops earlier when bytes run out.
pub const RECENT_MESSAGES_MAX: usize = 50;

/// Conversations whose positions ride on the login reply, most recent first.
pub const POSITIONS_MAX: usize = 500;

/// Messages that one Sync reads for all its conversations together: more than a frame takes, so that a frame is full, and
/// few enough that all look-ups at once hold no more than their pages of history would.
pub const SYNC_FETCH_MAX: u64 = 256;

/// Bodies on one page of history over HTTP; the page ends earlier when they run out. Bounds what slow readers hold.
pub const HISTORY_PAGE_BYTES_MAX: usize = 256 * 1024;

/// Members of one room.
pub const ROOM_MEMBERS_MAX: u32 = 1000;

/// Members a room must take: one alone has nobody to talk to.
pub const ROOM_CAPACITY_MIN: u32 = 2;

/// Seconds between two messages of one user in a room's slow mode: six hours.
pub const SLOW_MODE_S_MAX: u32 = 6 * 3600;

/// Rooms on one page of their list.
pub const ROOMS_PAGE_MAX: u32 = 100;

/// Users in one look-up by ids.
pub const USERS_LOOKUP_MAX: usize = 100;

/// Characters of a user name, at least: one letter is too easily mistaken.
pub const NAME_CHARS_MIN: usize = 2;

/// Characters of a user name or a room name.
pub const NAME_CHARS_MAX: usize = 32;

/// Bytes of a password, at least (NIST SP 800-63B, section 3.1.1).
pub const PASSWORD_BYTES_MIN: usize = 8;

/// Bytes of a password; argon2 reads them all.
pub const PASSWORD_BYTES_MAX: usize = 256;

const _: () = assert!(OUTBOX_BYTES_MAX >= 2 * FRAME_BYTES_MAX, "an outbox holds a largest frame behind another");
const _: () = assert!(BODY_BYTES_MAX + 1024 <= FRAME_BYTES_MAX, "a message with its ids fits one frame");
const _: () = assert!(PUBLISH_EVENTS_MAX <= INGEST_BATCH_MAX, "a published batch fits one turn of the ingest engine");
const _: () = assert!(ACCEPT_QUEUE_MAX > IN_FLIGHT_MAX as usize, "one connection cannot fill the acceptor");
const _: () = assert!(SYNC_MESSAGES_MAX as u64 <= SYNC_FETCH_MAX, "the longest gap that Sync fills can be read");
const _: () = assert!(HISTORY_PAGE_BYTES_MAX >= BODY_BYTES_MAX, "a page holds at least one message");
