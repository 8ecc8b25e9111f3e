//! The conversation itself: joins keyboard, connection, HTTP API and screen around the [`State`].
//!
//! In come lines, events and answers, one at a time; out go asks and lines. Must always hold: lines are obeyed in the order
//! they were typed; one that depends on the server's answer holds up those behind it, never what arrives.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tidegate_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::ask::{Ask, Standing};
use super::command::{self, Command};
use super::errand::{self, Done, Errand};
use super::http::UserApi;
use super::keyboard::{Prompt, Typed};
use super::line::{Line, Named, Names, Part, Place, escape, private};
use super::screen::{Screen, Stream};
use super::state::State;
use super::wire::Event;

/// How often what waits is looked at, while something waits.
const TICK: Duration = Duration::from_millis(50);

/// A line waits so long for a name, then a number stands for it.
const NAME_PATIENCE: Duration = Duration::from_secs(2);

/// Attempts to connect that are so far apart are told of.
const LONG_DELAY: Duration = Duration::from_secs(20);

/// After the end of piped input: nothing happened for so long, and everything is done.
const QUIET: Duration = Duration::from_millis(300);

/// After the end of piped input, everything must be done in this time.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the user wanted.
    Left,
    /// The server, or its absence, ended it.
    Ended(String),
    /// Input ended and so many messages were never acknowledged.
    Unsent(usize),
    /// Nobody reads what is printed.
    Unread,
}

/// Everything there is to a running client.
pub struct Talk {
    /// What is known.
    pub state: State,
    /// For lookups and rooms.
    pub api: UserApi,
    /// The lobbies of this server.
    pub lobbies: Vec<String>,
    /// Where lines go.
    pub screen: Screen,
    /// To the connection.
    pub asks: mpsc::Sender<Ask>,
    /// From the connection.
    pub events: mpsc::Receiver<Event>,
    /// For the connection's next login.
    pub standing: watch::Sender<Standing>,
    /// From the keyboard.
    pub typed: mpsc::Receiver<Typed>,
    /// The names known.
    pub names: Names,
}

/// What changes while it runs.
struct Run {
    talk: Talk,
    errands: JoinSet<Done>,
    /// An errand of a typed line is under way; more lines wait.
    busy: bool,
    next: Option<oneshot::Sender<Prompt>>,
    /// An ask that found the connection's queue full.
    unasked: Option<Ask>,
    /// The first line of the screen waits for a name since then.
    name_awaited: Option<Instant>,
    names_asked: std::collections::HashSet<Named>,
    /// The server's clock minus ours.
    ahead_ms: i64,
    online: bool,
    /// It was online before.
    met: bool,
    /// The user knows of this outage, and that it is a long one.
    told_lost: bool,
    told_long: bool,
    /// When input ended.
    finishing: Option<Instant>,
    /// When something last happened.
    stirred: Instant,
}

impl Talk {
    /// Talks until it ends; `stop` ends it from outside.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Outcome {
        let now = Instant::now();
        let mut run = Run {
            talk: self,
            errands: JoinSet::new(),
            busy: false,
            next: None,
            unasked: None,
            name_awaited: None,
            names_asked: Default::default(),
            ahead_ms: 0,
            online: false,
            met: false,
            told_lost: false,
            told_long: false,
            finishing: None,
            stirred: now,
        };
        let outcome = run.run(stop).await;
        if let Outcome::Ended(why) = &outcome {
            run.talk.state.notice(vec![why.clone().into()]);
        }
        run.name_awaited = Some(now - 2 * NAME_PATIENCE);
        let _ = run.flush().await;
        drop((run.talk.typed, run.next));
        run.talk.screen.leave().await;
        outcome
    }
}

impl Run {
    async fn run(&mut self, stop: impl Future<Output = ()>) -> Outcome {
        let mut stop = std::pin::pin!(stop);
        loop {
            match self.flush().await {
                Ok(()) => {}
                Err(_) => return Outcome::Unread,
            }
            if let Some(outcome) = self.finished() {
                return outcome;
            }
            let listens = self.listens();
            let waits = self.unasked.is_some()
                || self.name_awaited.is_some()
                || self.finishing.is_some()
                || self.talk.state.waits();
            tokio::select! {
                () = &mut stop => return Outcome::Left,
                event = self.talk.events.recv() => {
                    let Some(event) = event else { return Outcome::Ended("the connection ended".to_owned()) };
                    if let Some(outcome) = self.handle_event(event) {
                        return outcome;
                    }
                }
                typed = self.talk.typed.recv(), if listens => match typed {
                    Some(Typed::Line { text, at, next }) => {
                        self.next = next;
                        if self.handle_line(&text, at.as_deref()) {
                            return Outcome::Left;
                        }
                        self.prompt();
                    }
                    Some(Typed::End) | None if self.talk.screen.is_terminal() => return Outcome::Left,
                    Some(Typed::End) | None => self.finishing = Some(Instant::now()),
                },
                Some(done) = self.errands.join_next() => {
                    if let Ok(done) = done {
                        self.handle_done(done);
                    }
                    self.prompt();
                }
                () = tokio::time::sleep(TICK), if waits => {
                    self.talk.state.handle_tick(Instant::now());
                    continue;
                }
            }
            self.stirred = Instant::now();
        }
    }

    /// Whether the next typed line can be obeyed. A script's lines are obeyed one after the other, so that what they show
    /// comes in their order; a person's are not held up by an acknowledgement.
    fn listens(&self) -> bool {
        let state = &self.talk.state;
        let is_its_turn =
            if self.talk.screen.is_terminal() { state.has_room() } else { self.met && state.is_at_rest() };
        !self.busy && self.finishing.is_none() && is_its_turn
    }

    /// After the end of the input: whether all is done, or it is too late.
    fn finished(&self) -> Option<Outcome> {
        let since = self.finishing?;
        let state = &self.talk.state;
        let at_rest = self.online && state.is_at_rest() && !self.busy && state.first_line().is_none();
        if at_rest && self.stirred.elapsed() >= QUIET {
            return Some(Outcome::Left);
        }
        if since.elapsed() < FINISH_TIMEOUT {
            return None;
        }
        Some(match state.unsent() {
            0 => Outcome::Left,
            count => Outcome::Unsent(count),
        })
    }

    /// Gives the connection what it can take and the screen what can be shown.
    async fn flush(&mut self) -> io::Result<()> {
        while let Some(ask) = self.unasked.take().or_else(|| self.talk.state.next_ask()) {
            match self.talk.asks.try_send(ask) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(ask)) => {
                    self.unasked = Some(ask);
                    break;
                }
                // The connection task says why in its last event.
                Err(mpsc::error::TrySendError::Closed(_)) => break,
            }
        }
        while let Some(line) = self.talk.state.first_line() {
            let me = self.talk.names.me;
            let missing: Vec<_> = line.names(me).into_iter().filter(|named| !self.talk.names.knows(*named)).collect();
            if !missing.is_empty() {
                let since = *self.name_awaited.get_or_insert_with(Instant::now);
                if since.elapsed() < NAME_PATIENCE {
                    self.look_up(missing);
                    break;
                }
                self.names_asked.clear();
            }
            self.name_awaited = None;
            let line = self.talk.state.take_line().expect("it was there above");
            let stream = if matches!(line, Line::Notice(_)) { Stream::Err } else { Stream::Out };
            let text = line.render(&self.talk.names, self.server_now_ms(), self.talk.screen.paint);
            self.talk.screen.print(stream, text).await?;
        }
        Ok(())
    }

    fn look_up(&mut self, mut missing: Vec<Named>) {
        missing.retain(|named| self.names_asked.insert(*named));
        if !missing.is_empty() {
            let api = self.talk.api.clone();
            self.errands.spawn_blocking(move || errand::look_up(&api, missing));
        }
    }

    fn server_now_ms(&self) -> u64 {
        now_ms().saturating_add_signed(self.ahead_ms)
    }

    /// The editor's next prompt, once the line before it is done with.
    fn prompt(&mut self) {
        if !self.busy
            && let Some(next) = self.next.take()
        {
            let at = self.talk.state.current().to_owned();
            // An editor that has gone needs no prompt.
            let _ = next.send(Prompt { text: format!("{}> ", self.talk.names.title(&at)), at });
        }
    }

    fn handle_event(&mut self, event: Event) -> Option<Outcome> {
        let (now, state) = (Instant::now(), &mut self.talk.state);
        match event {
            Event::Online { login, asked, token, chance } => {
                self.talk.api = self.talk.api.with_token(&token);
                self.handle_online(now, login, &asked, chance);
            }
            Event::Answer(ask, answer) => state.handle_answer(now, ask, answer),
            Event::Push(push) => state.handle_push(now, push),
            Event::Lost { why, retry_in } => {
                self.online = false;
                self.unasked = None;
                state.handle_lost(now);
                self.talk.standing.send_replace(state.standing());
                // One line per outage, and one more when it has become a long one.
                if !std::mem::replace(&mut self.told_lost, true) {
                    state.notice(vec![format!("no connection ({why}); trying again").into()]);
                } else if retry_in > LONG_DELAY && !std::mem::replace(&mut self.told_long, true) {
                    state.notice(vec![format!("still no connection ({why}); trying every minute").into()]);
                }
            }
            Event::Ended { why } => return Some(Outcome::Ended(why)),
        }
        None
    }

    fn handle_online(&mut self, now: Instant, login: v1::LoginReply, asked: &[v1::SyncFrom], chance: u32) {
        let again = std::mem::replace(&mut self.met, true);
        self.online = true;
        (self.told_lost, self.told_long) = (false, false);
        self.ahead_ms = i64::try_from(login.server_time_ms).unwrap_or(0) - i64::try_from(now_ms()).unwrap_or(0);
        let what = if again { "connected again" } else { "connected" };
        let gateway = escape(&login.gateway_id);
        self.talk.state.notice(vec![format!("{what} to {gateway} as ").into(), Part::User(login.user_id)]);
        self.talk.state.handle_login(now, login, asked, chance);
    }

    /// True to leave.
    fn handle_line(&mut self, text: &str, at: Option<&str>) -> bool {
        let now = Instant::now();
        let command = match command::parse(text) {
            Ok(Some(command)) => command,
            Ok(None) => return false,
            Err(what) => {
                self.talk.state.notice(vec![escape(&what).into()]);
                return false;
            }
        };
        let state = &mut self.talk.state;
        match command {
            Command::Quit => return true,
            Command::Help => command::HELP.lines().for_each(|line| state.show(Line::Output(vec![line.into()]))),
            Command::List => state.list().into_iter().for_each(|line| state.show(line)),
            Command::History(count) => state.show_older(now, count),
            Command::Say(text) => match at {
                // The room was left while this was being typed: it was not meant for here.
                Some(at) if at != state.current() => {
                    state.notice(vec!["you are no longer where you typed; not sent: ".into(), escape(&text).into()]);
                }
                _ => {
                    let current = state.current().to_owned();
                    self.say(&current, &text);
                }
            },
            Command::Msg { name, text } => match self.talk.names.user_called(&name) {
                Some(user) => self.say_to(user, &text),
                None => self.go(Errand::Message { name, text }),
            },
            Command::Open(name) => self.open(name),
            Command::Rooms => self.go(Errand::Rooms),
            Command::Create(name) => self.go(Errand::Create(name)),
            Command::Join(room) => self.go(Errand::Join(room)),
            Command::Leave => match Place::of(state.current()) {
                Place::Room(room) => self.go(Errand::Leave(room)),
                Place::Lobby | Place::Private(..) => {
                    state.notice(vec!["only rooms are left; /open goes elsewhere".into()])
                }
            },
            Command::Who => match Place::of(state.current()) {
                Place::Room(room) => self.go(Errand::Members(room)),
                Place::Private(low, high) => {
                    state.show(Line::Output(vec![Part::User(low), " and ".into(), Part::User(high)]));
                }
                Place::Lobby => state.notice(vec!["a lobby is everybody's; it keeps no list".into()]),
            },
        }
        false
    }

    fn open(&mut self, name: String) {
        let (now, state) = (Instant::now(), &mut self.talk.state);
        let lobby = if name == "lobby" { Some(state.home().to_owned()) } else { None };
        if let Some(lobby) = lobby.or_else(|| self.talk.lobbies.iter().find(|lobby| **lobby == name).cloned()) {
            return state.open(now, &lobby);
        }
        let is_meant = |id: &&str| name == **id || same(&self.talk.names.title(id), &name);
        let room = state.rooms().find(is_meant).map(str::to_owned);
        if let Some(room) = room {
            state.open(now, &room);
        } else if let Some(user) = self.talk.names.user_called(&name).filter(|user| *user != self.talk.names.me) {
            state.open(now, &private(user, self.talk.names.me));
        } else {
            self.go(Errand::Open(name));
        }
    }

    fn say_to(&mut self, user: u64, text: &str) {
        if user == self.talk.names.me {
            self.talk.state.notice(vec!["that is you".into()]);
        } else {
            self.say(&private(user, self.talk.names.me), text);
        }
    }

    fn say(&mut self, conversation: &str, text: &str) {
        let mut key = [0; 16];
        if getrandom::fill(&mut key).is_err() {
            self.talk.state.notice(vec!["not sent: the system has no randomness".into()]);
            return;
        }
        self.talk.state.say(Instant::now(), conversation, Bytes::copy_from_slice(&key), text);
    }

    /// Asks the HTTP API; lines typed meanwhile wait.
    fn go(&mut self, errand: Errand) {
        self.busy = true;
        let api = self.talk.api.clone();
        self.errands.spawn_blocking(move || errand::run(&api, errand));
    }

    fn handle_done(&mut self, done: Done) {
        let now = Instant::now();
        for (named, name) in done.learnt {
            self.names_asked.remove(&named);
            self.talk.names.learn(named, name);
        }
        if !done.of_a_line {
            return;
        }
        self.busy = false;
        done.lines.into_iter().for_each(|line| self.talk.state.show(line));
        match done.then {
            errand::Then::Nothing => {}
            errand::Then::Enter(conversation) => self.talk.state.enter(now, &conversation),
            errand::Then::Forget(conversation) => {
                self.talk.state.notice(vec!["you have left ".into(), Part::Title(conversation.clone())]);
                self.talk.state.forget(now, &conversation);
            }
            errand::Then::Open(user) if user == self.talk.names.me => {
                self.talk.state.notice(vec!["that is you".into()]);
            }
            errand::Then::Open(user) => self.talk.state.open(now, &private(user, self.talk.names.me)),
            errand::Then::Say(user, text) => self.say_to(user, &text),
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
