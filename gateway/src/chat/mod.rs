//! `tidegate chat`: a plain terminal client over TCP, to see the gateway work and to drive it from scripts.
//!
//! In go a name and typed lines, out come conversations. It is a client: it knows the protocol (`tidegate-proto`,
//! `proto/PROTOCOL.md`) and the HTTP API, and nothing of the server's own modules. Read `talk` for what happens, `state` for
//! what must hold, `wire` for the connection, `screen` and `keyboard` for the terminal.

mod account;
mod ask;
mod command;
mod conversation;
mod errand;
mod heartbeat;
mod http;
mod keyboard;
mod line;
mod marks;
mod outbox;
mod screen;
mod state;
mod talk;
mod wire;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use rustyline::error::ReadlineError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use account::{Account, Password, Refusal};
use http::{Api, ApiError, Login, Settings};
use keyboard::{Editor, Gate};
use line::{Named, Names, Paint, escape};
use screen::Screen;
use state::State;
use talk::{Outcome, Talk};

/// Exit codes of sysexits.h: wrong usage; no server; no permission.
const EX_USAGE: u8 = 64;
const EX_UNAVAILABLE: u8 = 69;
const EX_NOPERM: u8 = 77;

/// What a shell says of a program that ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Asks and events between the loop and the connection.
const CHANNEL_MAX: usize = 64;

/// The flags of `tidegate chat`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tidegate chat --user anna
  tidegate chat --user ben --server http://192.168.0.7:7480
  printf 'hello\\n/msg ben are you there?\\n' | tidegate chat --user anna

The first use of a name registers it. On this machine's own server, Enter instead of a password makes one and keeps it \
in ~/.config/tidegate/chat/<server>/<user>. /help lists what can be typed.

Without a terminal, lines are read to the end of the input; messages go to standard output, notices to standard error; \
it ends when everything is acknowledged.")]
pub struct ChatArgs {
    /// Who you are; registered at the first use
    #[arg(long, short, value_name = "NAME")]
    pub user: String,

    /// The gateway's HTTP address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7480")]
    pub server: String,

    /// The gateway's TCP address [default: the server's host and the port it names]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub tcp: Option<String>,

    /// Your password; better in the environment, where other users of the machine do not see it
    #[arg(long, value_name = "TEXT", env = "TIDEGATE_CHAT_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,

    /// This device, if you are in two places at once [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
}

/// Runs the client to its end. What went wrong is said on standard error; the exit code says it to scripts.
///
/// # Errors
/// What is nobody's doing: threads, signals, a terminal that fails.
pub fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    match talk(args) {
        Ok(code) => Ok(code),
        Err(Stop::Say(code, what)) => {
            eprintln!("tidegate chat: {what}");
            Ok(ExitCode::from(code))
        }
        Err(Stop::Quietly(code)) => Ok(ExitCode::from(code)),
        Err(Stop::Broken(error)) => Err(error),
    }
}

/// Why the client does not even begin.
enum Stop {
    Say(u8, String),
    Quietly(u8),
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

fn talk(args: ChatArgs) -> Result<ExitCode, Stop> {
    let api = Api::new(&args.server).map_err(|what| Stop::Say(EX_USAGE, what))?;
    let settings = api.settings().map_err(|error| no_server(&args.server, error))?;
    let home = home(&settings)?;
    let mut terminal = terminal()?;
    let (account, login) = log_in(&args, &api, terminal.as_mut().map(|(editor, _)| editor))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let address = args.tcp.clone().unwrap_or_else(|| format!("{}:{}", api.host(), settings.tcp_port));
        wire::probe(&address).await.map_err(|error| {
            let what =
                format!("no gateway takes connections at {}: {error}; --tcp names another address", escape(&address));
            Stop::Say(EX_UNAVAILABLE, what)
        })?;
        let is_terminal = terminal.is_some();
        let (screen, typed) = match terminal {
            Some((editor, gate)) => Screen::terminal(editor, gate, paint())?,
            None => Screen::plain()?,
        };
        let ((asks, asks_rx), (events_tx, events)) = (mpsc::channel(CHANNEL_MAX), mpsc::channel(CHANNEL_MAX));
        let mut state = State::new(home);
        let (standing, standing_rx) = watch::channel(state.standing());
        let link = wire::Link {
            address,
            device: args.device.clone().unwrap_or_else(|| device(is_terminal)),
            account: Arc::new(account),
            token: login.token.clone(),
            standing: standing_rx,
        };
        tokio::spawn(wire::run(link, asks_rx, events_tx));
        let mut names = Names::of(login.user_id);
        names.learn(Named::User(login.user_id), login.name);
        if is_terminal {
            state.notice(vec!["/help lists what can be typed, Ctrl-D leaves".into()]);
        }
        let api = api.with_token(&login.token);
        let talk = Talk { state, api, lobbies: settings.lobbies, screen, asks, events, standing, typed, names };
        Ok::<_, Stop>(talk.run(stopped()?).await)
    });
    // A thread that reads standard input may be waiting for ever.
    runtime.shutdown_background();
    match outcome? {
        Outcome::Left | Outcome::Unread => Ok(ExitCode::SUCCESS),
        Outcome::Ended(_) => Ok(ExitCode::from(EX_UNAVAILABLE)),
        Outcome::Unsent(count) => {
            Err(Stop::Say(EX_UNAVAILABLE, format!("{count} messages were not acknowledged in time")))
        }
    }
}

fn no_server(server: &str, error: ApiError) -> Stop {
    let server = escape(server);
    let what = match error {
        ApiError::Unreachable(why) => {
            format!("no server answers at {server} ({why}). Start one with `make run`, or name another with --server.")
        }
        other => format!("{server}: {other}"),
    };
    Stop::Say(EX_UNAVAILABLE, what)
}

/// Where the user starts.
fn home(settings: &Settings) -> Result<String, Stop> {
    let main = settings.lobbies.iter().find(|name| *name == "lobby_main");
    let home = main.or_else(|| settings.lobbies.first());
    home.cloned().ok_or_else(|| Stop::Say(EX_UNAVAILABLE, "this server has no lobby".to_owned()))
}

/// The line editor, if somebody sits at a terminal that can show it.
fn terminal() -> Result<Option<(Editor, Arc<Gate>)>, Stop> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if dumb || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Ok(None);
    }
    Ok(Some(keyboard::editor()?))
}

/// <https://no-color.org>
fn paint() -> Paint {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) { Paint::Off } else { Paint::On }
}

fn log_in(args: &ChatArgs, api: &Api, editor: Option<&mut Editor>) -> Result<(Account, Login), Stop> {
    let password = password(args, api, editor)?;
    let account = Account::new(api.clone(), args.user.clone(), password);
    match account.log_in() {
        Ok(login) => Ok((account, login)),
        Err(refusal) => {
            let code = match refusal {
                Refusal::Unreachable(_) => EX_UNAVAILABLE,
                Refusal::Wrong(_) | Refusal::Unacceptable(_) => {
                    account.discard_made();
                    EX_NOPERM
                }
            };
            Err(Stop::Say(code, refusal.to_string()))
        }
    }
}

/// Given, kept, typed or made, in this order.
fn password(args: &ChatArgs, api: &Api, editor: Option<&mut Editor>) -> Result<Password, Stop> {
    if let Some(given) = args.password.clone().filter(|given| !given.is_empty()) {
        return Ok(Password::Told(given));
    }
    let path = account::config_home().map(|home| account::kept_path(&home, api.authority(), &args.user));
    if let Some(path) = &path
        && let Some(kept) = account::kept(path).with_context(|| path.display().to_string())?
    {
        return Ok(Password::Kept(kept, path.clone()));
    }
    let may_make = path.filter(|_| api.is_loopback());
    let Some(editor) = editor else {
        let what = "no terminal to ask for a password; give it with TIDEGATE_CHAT_PASSWORD";
        return make(may_make.ok_or_else(|| Stop::Say(EX_USAGE, what.to_owned()))?);
    };
    let hint = if may_make.is_some() { " (Enter makes and keeps one)" } else { "" };
    let prompt = format!("Password for {}{hint}: ", escape(&args.user));
    loop {
        match keyboard::ask_secret(editor, &prompt) {
            Ok(typed) if !typed.is_empty() => return Ok(Password::Told(typed)),
            Ok(_) => {
                if let Some(path) = may_make {
                    return make(path);
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Err(Stop::Quietly(INTERRUPTED)),
            Err(ReadlineError::Signal(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn make(path: PathBuf) -> Result<Password, Stop> {
    let made = account::make_and_keep(&path).with_context(|| path.display().to_string())?;
    Ok(Password::Made(made, path))
}

/// At a terminal the same from one time to the next; a script is somebody else each time, or it would end the session of
/// the person at the terminal.
fn device(is_terminal: bool) -> String {
    if !is_terminal {
        return format!("script-{:08x}", getrandom::u32().unwrap_or_else(|_| std::process::id()));
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_graphic()).take(40).collect();
    if name.is_empty() { "terminal".to_owned() } else { format!("terminal-{name}") }
}

/// Completes when the process is told to end.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [interrupt, terminate, hangup] = kinds.map(signal);
    let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
