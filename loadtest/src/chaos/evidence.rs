//! What the clients of a chaos run hand to the judge: what each sent, what each saw, what the archive said at the end.
//!
//! Plain facts without any judgement, so that made-up evidence can test the judge.

use crate::finding::Findings;

/// Sixteen bytes that name a message.
pub type MessageId = [u8; 16];

/// Which message it is in the senders' own words, from its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Index of the conversation within the run.
    pub conversation: u32,
    /// Index of the sender among the conversation's members.
    pub member: u32,
    /// 0, 1, 2 ... per sender and conversation.
    pub counter: u32,
}

/// How a message came to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A push.
    Push,
    /// An answer: a Synced or a page of History.
    Answer,
}

/// A message as a client or an audit saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the conversation.
    pub seq: u64,
    /// Identity of the conversation's storage life.
    pub epoch: u32,
    /// The server's name of it.
    pub message_id: MessageId,
    /// From the body; `None` if the body is none that this run sent.
    pub origin: Option<Origin>,
    /// True if the server names the sender whose index the body holds.
    pub is_from_sender: bool,
    /// How it came.
    pub via: Via,
}

/// What came of a Send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// None that settles it.
    None,
    /// A `SendAck` with this id.
    Accepted(MessageId),
    /// An error for good.
    Refused,
}

/// A message that was to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Which.
    pub origin: Origin,
    /// How often it was written to a connection.
    pub attempts: u32,
    /// The sender's connection it was first written to: 1, 2, 3 ...
    pub connection: u32,
    /// Its place among what was written to that connection.
    pub place: u32,
    /// What the server said.
    pub answer: Answer,
    /// True if it was sent after all had recovered, to see whether pushes arrive.
    pub is_probe: bool,
}

/// One device's view of one conversation.
#[derive(Clone, Debug)]
pub struct View {
    /// Names the device in findings.
    pub who: String,
    /// Index of the conversation within the run.
    pub conversation: u32,
    /// What was shown, in the order in which it was shown.
    pub shown: Vec<Entry>,
}

/// One user's last look at one conversation, on a fresh connection: positions and the whole History.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Names the user in findings.
    pub who: String,
    /// Index of the conversation within the run.
    pub conversation: u32,
    /// Index of the user among the conversation's members.
    pub member: u32,
    /// All pages of History, in the order in which they came.
    pub archive: Vec<Entry>,
    /// From the login reply; `None` if the conversation was not in it.
    pub position: Option<Standing>,
    /// Unread messages by the HTTP login.
    pub unread_http: u64,
    /// The highest read watermark that was acknowledged.
    pub read_acked: u64,
    /// The highest read watermark that was ever sent.
    pub read_sent: u64,
}

/// A login reply's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Newest in the conversation.
    pub last_seq: u64,
    /// Up to where the user has read.
    pub read_seq: u64,
    /// Messages of others after that.
    pub unread: u64,
}

/// Everything there is to judge.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Names of the conversations, by index.
    pub conversations: Vec<String>,
    /// What was to be sent.
    pub sent: Vec<Sent>,
    /// What was seen.
    pub views: Vec<View>,
    /// What is stored.
    pub audits: Vec<Audit>,
    /// True if probes must have come by push: nobody had a gap when they were sent.
    pub probes_count: bool,
    /// What was wrong with the traffic itself.
    pub findings: Findings,
}
