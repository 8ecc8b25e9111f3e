//! Errands to the HTTP API: what some commands need before they can be obeyed.
//!
//! In goes an [`Errand`], out comes what was learnt, what to show and what to do then. Blocking. Must always hold: an
//! errand always comes back, and its failure is a sentence.

use super::http::{ApiError, LOOKUP_MAX, Room, User, UserApi};
use super::line::{Line, Named, Part, escape};

/// What a command needs to know or have done.
#[derive(Debug)]
pub enum Errand {
    /// The newest rooms.
    Rooms,
    /// Make a room and enter it.
    Create(String),
    /// Join the room of this id or name and enter it.
    Join(String),
    /// Leave a room.
    Leave(u64),
    /// Who is in a room.
    Members(u64),
    /// Whom to talk to.
    Open(String),
    /// Whom to say something to.
    Message {
        /// To whom.
        name: String,
        /// What.
        text: String,
    },
}

/// What to do after an errand.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing but showing.
    Nothing,
    /// Go to the conversation of a room just joined.
    Enter(String),
    /// The conversation is no longer the user's.
    Forget(String),
    /// Go to the private conversation with this user.
    Open(u64),
    /// Say something to this user.
    Say(u64, String),
}

/// What came of an errand.
#[derive(Debug)]
pub struct Done {
    /// Names on the way.
    pub learnt: Vec<(Named, String)>,
    /// For the screen.
    pub lines: Vec<Line>,
    /// What to do.
    pub then: Then,
    /// Whether a typed line waits for it.
    pub of_a_line: bool,
}

/// Looks up names; those that do not exist get none.
pub fn look_up(api: &UserApi, missing: Vec<Named>) -> Done {
    let mut learnt = Vec::new();
    let mut ids: Vec<u64> = Vec::new();
    for named in missing {
        match named {
            Named::User(id) => ids.push(id),
            // A name that cannot be had now stays a number for this line.
            Named::Room(id) => learnt.extend(api.room(id).ok().map(|room| (Named::Room(id), room.name))),
        }
    }
    for ids in ids.chunks(LOOKUP_MAX) {
        let users = api.users(ids).unwrap_or_default();
        learnt.extend(users.into_iter().map(|user| (Named::User(user.user_id), user.name)));
    }
    Done { learnt, lines: Vec::new(), then: Then::Nothing, of_a_line: false }
}

/// Runs an errand of a typed line.
pub fn run(api: &UserApi, errand: Errand) -> Done {
    let mut done = Done { learnt: Vec::new(), lines: Vec::new(), then: Then::Nothing, of_a_line: true };
    match attempt(api, errand, &mut done) {
        Ok(then) => done.then = then,
        Err(error) => {
            let what = match &error {
                ApiError::Unreachable(why) => format!("the server does not answer: {why}"),
                other => other.to_string(),
            };
            done.lines.push(notice(what));
        }
    }
    done
}

fn attempt(api: &UserApi, errand: Errand, done: &mut Done) -> Result<Then, ApiError> {
    let then = match errand {
        Errand::Rooms => {
            let rooms = api.rooms()?;
            if rooms.is_empty() {
                done.lines.push(notice("there are no rooms yet; /create NAME makes one".to_owned()));
            }
            done.lines.extend(rooms.iter().map(|room| Line::Output(vec![listed(room).into()])));
            Then::Nothing
        }
        Errand::Create(name) => done.enter(api.create_room(&name)?),
        Errand::Join(text) => match id_of(&text) {
            Some(id) => done.enter(api.join(id)?),
            None => {
                let rooms = api.rooms_called(&text)?;
                match &rooms[..] {
                    [] => done.say(format!("there is no room called {}; /rooms lists the newest", escape(&text))),
                    [room] => done.enter(api.join(room.room_id)?),
                    several => {
                        done.lines.push(notice("several rooms have that name; /join one by its number:".to_owned()));
                        done.lines.extend(several.iter().map(|room| Line::Output(vec![listed(room).into()])));
                        Then::Nothing
                    }
                }
            }
        },
        Errand::Leave(room) => {
            api.leave(room)?;
            Then::Forget(format!("r_{room}"))
        }
        Errand::Members(room) => {
            let members = api.members(room)?;
            let names: Vec<_> = members.iter().map(|user| escape(&user.name)).collect();
            done.lines.push(Line::Output(vec![format!("{} here: {}", names.len(), names.join(", ")).into()]));
            done.learn(members);
            Then::Nothing
        }
        Errand::Open(name) => match api.user_called(&name)? {
            Some(user) => Then::Open(done.learn_one(user)),
            None if id_of(&name).is_some() => done.say(format!("you are not in room {name}; /join {name}")),
            None => done.say(format!("nobody, and no room of yours, is called {}", escape(&name))),
        },
        Errand::Message { name, text } => match api.user_called(&name)? {
            Some(user) => Then::Say(done.learn_one(user), text),
            None => done.say(format!("nobody is called {}; not sent: {}", escape(&name), escape(&text))),
        },
    };
    Ok(then)
}

impl Done {
    fn learn(&mut self, users: Vec<User>) {
        self.learnt.extend(users.into_iter().map(|user| (Named::User(user.user_id), user.name)));
    }

    fn learn_one(&mut self, user: User) -> u64 {
        let id = user.user_id;
        self.learn(vec![user]);
        id
    }

    fn enter(&mut self, room: Room) -> Then {
        self.learnt.push((Named::Room(room.room_id), room.name));
        Then::Enter(room.conversation_id)
    }

    fn say(&mut self, text: String) -> Then {
        self.lines.push(notice(text));
        Then::Nothing
    }
}

fn notice(text: String) -> Line {
    Line::Notice(vec![Part::Text(text)])
}

fn listed(room: &Room) -> String {
    format!("{:>6}  {}  ({} of {})", room.room_id, escape(&room.name), room.members, room.capacity)
}

/// `7`, `#7` and `r_7` are room 7.
fn id_of(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('#').or_else(|| text.strip_prefix("r_")).unwrap_or(text);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_named_by_its_number_in_three_ways() {
        assert_eq!(["7", "#7", "r_7"].map(id_of), [Some(7); 3]);
        assert_eq!(["seven", "r_", "-1", "room 7"].map(id_of), [None; 4]);
    }
}
