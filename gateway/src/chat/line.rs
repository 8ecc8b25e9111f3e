//! Lines for the screen: made of texts and of names still to be looked up, and turned into text here.
//!
//! In go lines and a [`Names`] directory, out comes text. Must always hold: nothing that somebody else wrote reaches the
//! terminal without [`escape`], so that no message and no name can steer it or pass for a line of ours.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use tidegate_proto::v1::{self, ContentType};

/// Something with a name that the server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Named {
    /// A user by id.
    User(u64),
    /// A room by id.
    Room(u64),
}

/// What a conversation's id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Everybody's.
    Lobby,
    /// Of a room's members.
    Room(u64),
    /// Of two users, the lower id first.
    Private(u64, u64),
}

impl Place {
    /// Reads a conversation's id. What is neither a room nor private is taken for a lobby.
    #[must_use]
    pub fn of(conversation: &str) -> Self {
        if let Some(room) = conversation.strip_prefix("r_").and_then(|id| id.parse().ok()) {
            return Self::Room(room);
        }
        let pair = conversation.strip_prefix("p_").and_then(|pair| pair.split_once('_'));
        match pair.map(|(low, high)| (low.parse(), high.parse())) {
            Some((Ok(low), Ok(high))) => Self::Private(low, high),
            _ => Self::Lobby,
        }
    }

    /// Whose name stands for the conversation, seen by `me`; a lobby is called by its id.
    #[must_use]
    pub fn named(self, me: u64) -> Option<Named> {
        match self {
            Self::Lobby => None,
            Self::Room(room) => Some(Named::Room(room)),
            Self::Private(low, high) => Some(Named::User(if low == me { high } else { low })),
        }
    }
}

/// The private conversation of two users.
#[must_use]
pub fn private(a: u64, b: u64) -> String {
    format!("p_{}_{}", a.min(b), a.max(b))
}

/// The names known so far.
#[derive(Debug)]
pub struct Names {
    /// The user of this client.
    pub me: u64,
    known: HashMap<Named, String>,
}

impl Names {
    /// Of the user `me`, who knows nobody yet.
    #[must_use]
    pub fn of(me: u64) -> Self {
        Self { me, known: HashMap::new() }
    }

    /// Remembers a name.
    pub fn learn(&mut self, named: Named, name: String) {
        self.known.insert(named, name);
    }

    /// Whether the name is known.
    #[must_use]
    pub fn knows(&self, named: Named) -> bool {
        self.known.contains_key(&named)
    }

    /// The user of this name, in any case.
    #[must_use]
    pub fn user_called(&self, wanted: &str) -> Option<u64> {
        let wanted = wanted.to_lowercase();
        self.known.iter().find_map(|(named, name)| match named {
            Named::User(id) if name.to_lowercase() == wanted => Some(*id),
            _ => None,
        })
    }

    /// The escaped name, or what stands for it.
    #[must_use]
    pub fn name(&self, named: Named) -> String {
        match (self.known.get(&named), named) {
            (Some(name), _) => escape(name),
            (None, Named::User(id)) => format!("user {id}"),
            (None, Named::Room(id)) => format!("room {id}"),
        }
    }

    /// What a conversation is called.
    #[must_use]
    pub fn title(&self, conversation: &str) -> String {
        Place::of(conversation).named(self.me).map_or_else(|| escape(conversation), |named| self.name(named))
    }
}

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Our own words, or already escaped.
    Text(String),
    /// A user's name.
    User(u64),
    /// A conversation's title.
    Title(String),
}

impl From<&str> for Part {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Part {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A message as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Where.
    pub conversation: String,
    /// By whom.
    pub sender: u64,
    /// When the gateway accepted it, Unix time.
    pub sent_at_ms: u64,
    /// The escaped text.
    pub text: String,
    /// Whether to say where, because the user is elsewhere.
    pub elsewhere: bool,
}

impl Said {
    /// A message, ready to be shown.
    #[must_use]
    pub fn new(message: &v1::Message, elsewhere: bool) -> Self {
        Self {
            conversation: message.conversation_id.clone(),
            sender: message.sender_id,
            sent_at_ms: message.sent_at_ms,
            text: readable(message.content_type(), &message.body),
            elsewhere,
        }
    }
}

fn readable(content_type: ContentType, body: &Bytes) -> String {
    match (content_type, std::str::from_utf8(body)) {
        (ContentType::Text, Ok(text)) => escape(text),
        _ => format!("({} bytes that are no text)", body.len()),
    }
}

/// One line of the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Somebody said something.
    Said(Said),
    /// What a command was asked for.
    Output(Vec<Part>),
    /// What the user should know besides.
    Notice(Vec<Part>),
}

impl Line {
    /// The names the line cannot be shown without.
    pub fn names(&self, me: u64) -> Vec<Named> {
        match self {
            Self::Said(said) => {
                let place = Place::of(&said.conversation).named(me).filter(|_| said.elsewhere);
                let sender = (!said.is_of_the_system()).then_some(Named::User(said.sender));
                place.into_iter().chain(sender).collect()
            }
            Self::Output(parts) | Self::Notice(parts) => {
                let named = parts.iter().filter_map(|part| match part {
                    Part::Text(_) => None,
                    Part::User(id) => Some(Named::User(*id)),
                    Part::Title(conversation) => Place::of(conversation).named(me),
                });
                named.collect()
            }
        }
    }

    /// The line's text, without a line end. `now_ms` is the server's time.
    #[must_use]
    pub fn render(&self, names: &Names, now_ms: u64, paint: Paint) -> String {
        match self {
            Self::Said(said) => said.render(names, now_ms, paint),
            Self::Output(parts) => join(parts, names),
            Self::Notice(parts) => paint.dim(&format!("* {}", join(parts, names))),
        }
    }
}

impl Said {
    fn is_of_the_system(&self) -> bool {
        self.sender == 0
    }

    fn render(&self, names: &Names, now_ms: u64, paint: Paint) -> String {
        let mut out = String::new();
        if let Some(age) = age(now_ms.saturating_sub(self.sent_at_ms)) {
            let _ = write!(out, "{} ", paint.dim(&format!("{age:>3}")));
        }
        if self.elsewhere {
            let place = match Place::of(&self.conversation) {
                Place::Private(..) if self.sender == names.me => format!("to {}", names.title(&self.conversation)),
                Place::Private(..) => "private".to_owned(),
                Place::Room(_) | Place::Lobby => names.title(&self.conversation),
            };
            let _ = write!(out, "{} ", paint.dim(&format!("[{place}]")));
        }
        if self.is_of_the_system() {
            // No user's line looks like this one.
            let _ = write!(out, "{}", paint.bold(&format!("*** {}", self.text)));
            return out;
        }
        let name = names.name(Named::User(self.sender));
        let name = if self.sender == names.me { paint.bold(&name) } else { paint.coloured(&name, self.sender) };
        let _ = write!(out, "{name}: {}", self.text);
        out
    }
}

fn join(parts: &[Part], names: &Names) -> String {
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::User(id) => out.push_str(&names.name(Named::User(*id))),
            Part::Title(conversation) => out.push_str(&names.title(conversation)),
        }
    }
    out
}

/// How long ago, in two or three letters; `None` for what is news. Ages need no time zone, which we would have to guess.
fn age(ms: u64) -> Option<String> {
    let minutes = ms / 60_000;
    match minutes {
        0 => None,
        1..60 => Some(format!("{minutes}m")),
        60..1440 => Some(format!("{}h", minutes / 60)),
        _ => Some(format!("{}d", minutes / 1440)),
    }
}

/// Makes every character that a terminal might obey, and every one that hides or reorders others, visible.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(' '),
            // Line and paragraph separators, zero-width and bidirectional controls (Unicode Standard Annex #9), byte order mark.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}' => {
                // The joiner makes one emoji of several and is harmless.
                if c == '\u{200d}' { out.push(c) } else { out.extend(c.escape_unicode()) }
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Whether and how to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Plain text.
    Off,
    /// ANSI sequences.
    On,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self {
            Self::Off => text.to_owned(),
            Self::On => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// One of six colours, the same for a user everywhere.
    fn coloured(self, text: &str, user: u64) -> String {
        const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];
        let index = usize::try_from(user % COLOURS.len() as u64).expect("below six");
        self.with(COLOURS[index], text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::of(1);
        for (id, name) in [(1, "anna"), (2, "ben")] {
            names.learn(Named::User(id), name.into());
        }
        names.learn(Named::Room(7), "Den".into());
        names
    }

    #[test]
    fn the_system_has_no_name_to_look_up() {
        let line = said("lobby_main", 0, "back in an hour", true);
        assert_eq!(line.names(1), []);
        assert_eq!(line.render(&names(), 1_000_000, Paint::Off), "[lobby_main] *** back in an hour");
    }

    fn said(conversation: &str, sender: u64, text: &str, elsewhere: bool) -> Line {
        let message = v1::Message {
            conversation_id: conversation.into(),
            sender_id: sender,
            sent_at_ms: 1_000_000,
            body: text.to_owned().into(),
            ..Default::default()
        };
        Line::Said(Said::new(&message, elsewhere))
    }

    #[test]
    fn a_line_says_who_where_and_how_long_ago() {
        let shown = |line: Line, ago_ms: u64| line.render(&names(), 1_000_000 + ago_ms, Paint::Off);
        assert_eq!(shown(said("lobby_main", 2, "hi", false), 59_000), "ben: hi");
        assert_eq!(shown(said("lobby_main", 2, "hi", true), 0), "[lobby_main] ben: hi");
        assert_eq!(shown(said("r_7", 2, "hi", true), 3 * 60_000), " 3m [Den] ben: hi");
        assert_eq!(shown(said("p_1_2", 2, "hi", true), 26 * 3_600_000), " 1d [private] ben: hi");
        assert_eq!(shown(said("p_1_2", 1, "hi", true), 0), "[to ben] anna: hi");
        assert_eq!(shown(said("r_9", 3, "hi", true), 0), "[room 9] user 3: hi");
    }

    #[test]
    fn a_line_knows_which_names_it_needs() {
        assert_eq!(said("p_1_2", 1, "", true).names(1), [Named::User(2), Named::User(1)]);
        assert_eq!(said("r_7", 2, "", false).names(1), [Named::User(2)]);
        let notice = Line::Notice(vec!["now in ".into(), Part::Title("r_7".into()), Part::Title("lobby_main".into())]);
        assert_eq!(notice.names(1), [Named::Room(7)]);
        assert_eq!(notice.render(&names(), 0, Paint::Off), "* now in Denlobby_main");
    }

    #[test]
    fn nobody_steers_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\nben: fake\r\u{9b}31m\x07"), "a\\u{1b}[2Jb\\nben: fake\\r\\u{9b}31m\\u{7}");
        assert_eq!(escape("\u{202e}evil\u{2066}\u{200b}"), "\\u{202e}evil\\u{2066}\\u{200b}");
        assert_eq!(escape("héllo 👩\u{200d}💻 世界"), "héllo 👩\u{200d}💻 世界");
        let mut names = names();
        names.learn(Named::User(3), "\x1b]0;x\x07".into());
        let line = said("r_7", 3, "\x1b[31m", false).render(&names, 1_000_000, Paint::Off);
        assert!(!line.contains(char::is_control), "{line:?}");
    }

    #[test]
    fn bytes_that_are_no_text_are_not_shown() {
        assert_eq!(readable(ContentType::Text, &Bytes::from_static(b"\xff\xfe")), "(2 bytes that are no text)");
        assert_eq!(readable(ContentType::Binary, &Bytes::from_static(b"abc")), "(3 bytes that are no text)");
    }

    #[test]
    fn a_conversations_id_says_what_it_is() {
        assert_eq!(Place::of("r_7"), Place::Room(7));
        assert_eq!(Place::of("p_1_2").named(2), Some(Named::User(1)));
        assert_eq!(Place::of("lobby_p_1").named(1), None);
        assert_eq!(private(9, 3), "p_3_9");
    }
}
