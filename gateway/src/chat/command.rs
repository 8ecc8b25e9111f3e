//! What a typed line asks for.
//!
//! In goes one line, out comes a [`Command`] or a sentence saying what was wrong with it. Must always hold: a line that does
//! not begin with a slash is said as it stands, so that nobody has to know a command in order to talk.

/// What `/help` shows.
pub const HELP: &str = "\
Type a line to say it where you are; // in front says a line that begins with a slash.
  /rooms              the newest rooms
  /create NAME        make a room and go there
  /join ID|NAME       join a room and go there
  /leave              leave the room you are in
  /msg NAME TEXT      say something to one person
  /open NAME|ROOM|lobby   go to a private conversation, a room of yours or a lobby
  /list               your conversations and what is unread
  /history [N]        the N messages before those on the screen (20)
  /who                who is in this room
  /quit               leave (Ctrl-D does it, too)";

/// Messages `/history` asks for unless told.
const HISTORY_DEFAULT: u32 = 20;

/// One line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Say this in the current conversation.
    Say(String),
    /// Show [`HELP`].
    Help,
    /// List rooms.
    Rooms,
    /// Make a room of this name.
    Create(String),
    /// Join the room of this id or name.
    Join(String),
    /// Leave the current room.
    Leave,
    /// Say something in private.
    Msg {
        /// To whom.
        name: String,
        /// What.
        text: String,
    },
    /// Go to the conversation of this name.
    Open(String),
    /// List conversations.
    List,
    /// Show older messages, at most so many.
    History(u32),
    /// List the members of the current room.
    Who,
    /// End the program.
    Quit,
}

/// Understands a line; `None` for one that says nothing.
///
/// # Errors
/// A sentence for the person who typed it.
pub fn parse(line: &str) -> Result<Option<Command>, String> {
    let line = line.trim_end();
    let Some(rest) = line.trim_start().strip_prefix('/') else {
        return Ok((!line.is_empty()).then(|| Command::Say(line.to_owned())));
    };
    if rest.starts_with('/') {
        return Ok(Some(Command::Say(rest.to_owned())));
    }
    let (word, rest) = split(rest);
    let command = match (word, rest) {
        ("help" | "h" | "?", _) => Command::Help,
        ("rooms", _) => Command::Rooms,
        ("leave", _) => Command::Leave,
        ("list", _) => Command::List,
        ("who", _) => Command::Who,
        ("quit" | "exit" | "q", _) => Command::Quit,
        ("create", name) if !name.is_empty() => Command::Create(name.to_owned()),
        ("join", room) if !room.is_empty() => Command::Join(room.to_owned()),
        ("open", name) if !name.is_empty() => Command::Open(name.to_owned()),
        ("msg", rest) => match split(rest) {
            (name, text) if !text.is_empty() => Command::Msg { name: name.to_owned(), text: text.to_owned() },
            _ => return Err("/msg wants a name and a text, like /msg ben hello".to_owned()),
        },
        ("create" | "join" | "open", _) => return Err(format!("/{word} wants a name, see /help")),
        ("history", "") => Command::History(HISTORY_DEFAULT),
        ("history", count) => match count.parse() {
            Ok(count @ 1..) => Command::History(count),
            _ => return Err("/history wants a number, like /history 50".to_owned()),
        },
        _ => return Err(format!("there is no /{word}; /help lists what there is")),
    };
    Ok(Some(command))
}

/// Whether the line, once said, comes back as a message, so that the typed line need not stay on the screen.
#[must_use]
pub fn is_said(line: &str) -> bool {
    matches!(parse(line), Ok(Some(Command::Say(_) | Command::Msg { .. })))
}

/// The first word and what follows it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(line: &str) -> Command {
        parse(line).expect("a command").expect("not nothing")
    }

    #[test]
    fn a_line_without_a_slash_is_said_as_it_stands() {
        assert_eq!(understood("  two  words "), Command::Say("  two  words".into()));
        assert_eq!(understood("and/or"), Command::Say("and/or".into()));
        assert_eq!(understood("//etc is a folder"), Command::Say("/etc is a folder".into()));
        assert_eq!(parse("  \t "), Ok(None));
    }

    #[test]
    fn commands_take_their_words() {
        let msg = Command::Msg { name: "ben".into(), text: "hello  there".into() };
        assert_eq!(understood("/msg  ben   hello  there"), msg);
        assert_eq!(understood("/create The Long Room"), Command::Create("The Long Room".into()));
        assert_eq!(understood(" /join 7 "), Command::Join("7".into()));
        assert_eq!(understood("/open lobby"), Command::Open("lobby".into()));
        assert_eq!(understood("/history"), Command::History(20));
        assert_eq!(understood("/history 5"), Command::History(5));
        for (line, command) in [("/help", Command::Help), ("/q", Command::Quit), ("/who", Command::Who)] {
            assert_eq!(understood(line), command);
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_never_sent() {
        for line in ["/msg", "/msg ben", "/join", "/history x", "/history 0", "/history -1", "/jion 7", "/"] {
            assert!(parse(line).is_err(), "{line:?}");
            assert!(!is_said(line));
        }
        assert!(is_said("hi") && is_said("/msg ben hi") && !is_said("/who"));
    }
}
