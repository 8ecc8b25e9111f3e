//! The keyboard: lines from the line editor or from standard input, and the gate between editor and printer.
//!
//! In goes what is typed, out come [`Typed`] lines. Must always hold: the printer prints only while the editor is waiting
//! for keys, because in between it would print into the line just accepted; the editor's thread can be made to leave at
//! any time and gives the terminal back as it was.

use std::borrow::Cow;
use std::io::{self, BufRead as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustyline::completion::Completer;
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{ColorMode, Config, Helper};
use tokio::sync::{mpsc, oneshot};

use super::command;

/// A printer that has entered the gate has decided within this time how it prints; see [`Gate::accept`].
const PRINTER_DECIDES: Duration = Duration::from_millis(5);

/// Lines the editor remembers.
const HISTORY_MAX: usize = 500;

/// What came from the keyboard.
#[derive(Debug)]
pub enum Typed {
    /// A line.
    Line {
        /// As typed.
        text: String,
        /// The conversation whose prompt the line was typed at, if there was one.
        at: Option<String>,
        /// Takes the next prompt; the editor waits for it.
        next: Option<oneshot::Sender<Prompt>>,
    },
    /// No more lines: Ctrl-C, Ctrl-D or the end of the input.
    End,
}

/// What stands before the line being typed.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// The conversation that what is typed goes to.
    pub at: String,
}

/// The line editor.
pub type Editor = rustyline::Editor<Hooks, DefaultHistory>;

/// An editor for this terminal, with the gate that its printer needs.
///
/// # Errors
/// If standard input or output is no terminal.
pub fn editor() -> rustyline::Result<(Editor, Arc<Gate>)> {
    let config = Config::builder()
        // Colours are our own, but the hooks hang on a highlighter, which is called only where colours are on.
        .color_mode(ColorMode::Enabled)
        .max_history_size(HISTORY_MAX)?
        .build();
    let mut editor = Editor::with_config(config)?;
    // An editor that leaves while it prints would not end the synchronized update.
    editor.enable_synchronized_output(false);
    let gate = Arc::new(Gate::default());
    editor.set_helper(Some(Hooks { gate: Arc::clone(&gate), secret: AtomicBool::new(false) }));
    Ok((editor, gate))
}

/// Asks for something that must not be seen.
///
/// # Errors
/// Ctrl-C and Ctrl-D among others.
pub fn ask_secret(editor: &mut Editor, prompt: &str) -> rustyline::Result<String> {
    let set = |editor: &Editor, secret| {
        if let Some(hooks) = editor.helper() {
            hooks.secret.store(secret, Ordering::Relaxed);
        }
    };
    set(editor, true);
    let answer = editor.readline(prompt);
    set(editor, false);
    answer
}

/// Reads lines of the editor until the user or the other side ends it.
pub fn read(mut editor: Editor, gate: &Gate, typed: &mpsc::Sender<Typed>) {
    let mut prompt: Option<Prompt> = None;
    // An empty line first: it says nothing, and its answer is the first prompt.
    let mut text = String::new();
    loop {
        let (next, given) = oneshot::channel();
        let at = prompt.take().map(|prompt| prompt.at);
        if typed.blocking_send(Typed::Line { text, at, next: Some(next) }).is_err() {
            break;
        }
        let Ok(given) = given.blocking_recv() else { break };
        // `Gate::make_leave` ends the editor by unwinding, see `Hooks::highlight`.
        match catch_unwind(AssertUnwindSafe(|| read_line(&mut editor, gate, &given.text))) {
            Ok(Some(line)) => text = line,
            Ok(None) => {
                gate.close();
                let _ = typed.blocking_send(Typed::End);
                break;
            }
            Err(_left) => break,
        }
        prompt = Some(given);
    }
    gate.close();
}

fn read_line(editor: &mut Editor, gate: &Gate, prompt: &str) -> Option<String> {
    loop {
        gate.begin();
        match editor.readline(prompt) {
            Ok(line) => {
                if command::is_said(&line) {
                    erase(editor, prompt, &line);
                }
                // What is not remembered can still be sent.
                let _ = editor.add_history_entry(line.as_str());
                return Some(line);
            }
            Err(ReadlineError::Signal(_)) => {}
            Err(_) => return None,
        }
    }
}

/// Takes an accepted line off the screen: it comes back as a message, in its place among the others.
fn erase(editor: &mut Editor, prompt: &str, line: &str) {
    let columns = editor.dimensions().map_or(80, |(columns, _)| usize::from(columns).max(1));
    let rows = (width(prompt) + width(line)) / columns + 1;
    let mut out = io::stdout().lock();
    // Up so many rows and to the first column; then clear to the end of the screen (ECMA-48: CPL, ED).
    let _ = write!(out, "\x1b[{rows}F\x1b[J").and_then(|()| out.flush());
}

/// Columns a text takes, nearly: wide scripts and emoji take two, combining marks none.
fn width(text: &str) -> usize {
    let columns = |c: char| match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff => 2,
        0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd => 2,
        _ => 1,
    };
    text.chars().map(columns).sum()
}

/// Reads lines of standard input to its end.
pub fn read_plain(typed: &mpsc::Sender<Typed>) {
    let mut line = Vec::new();
    let mut input = io::stdin().lock();
    while let Ok(1..) = input.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
        if typed.blocking_send(Typed::Line { text, at: None, next: None }).is_err() {
            return;
        }
        line.clear();
    }
    let _ = typed.blocking_send(Typed::End);
}

/// Between the editor's thread and the printer's.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    /// The editor waits for keys in raw mode.
    reading: bool,
    /// A line was accepted and the next prompt is not up yet.
    accepted: bool,
    /// The printer is at it.
    printing: bool,
    /// The editor is to leave at its next refresh.
    leaving: bool,
    /// The editor has left.
    closed: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        // Nobody panics while holding it; if somebody did, the flags would still be flags.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The printer waits for its time. False if there is no editor any more.
    pub fn enter(&self) -> bool {
        let wait = |state: &mut GateState| !state.reading && !state.closed;
        let state = self.changed.wait_while(self.state(), wait);
        let mut state = state.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.printing = !state.closed;
        state.printing
    }

    /// The printer is done.
    pub fn exit(&self) {
        self.state().printing = false;
        self.changed.notify_all();
    }

    /// The editor is to leave; it does so when something is printed.
    pub fn make_leave(&self) {
        self.state().leaving = true;
    }

    /// The editor has left, or never came.
    pub fn close(&self) {
        let mut state = self.state();
        (state.reading, state.closed) = (false, true);
        drop(state);
        self.changed.notify_all();
    }

    /// The editor is about to show its prompt.
    fn begin(&self) {
        self.state().accepted = false;
    }

    /// The editor shows its line and will wait for keys. False if it should leave instead.
    fn refresh(&self) -> bool {
        let mut state = self.state();
        state.reading = !state.accepted && !state.leaving;
        let stay = !state.leaving;
        drop(state);
        self.changed.notify_all();
        stay
    }

    /// The editor accepts its line. Waits until a printer under way has decided between printing around the editor and
    /// printing directly, which it does first of all; it may then wait for the editor's next line, so not for its end.
    fn accept(&self) {
        let mut state = self.state();
        (state.reading, state.accepted) = (false, true);
        drop(self.changed.wait_timeout_while(state, PRINTER_DECIDES, |state| state.printing));
    }
}

/// What the editor calls, on its own thread.
pub struct Hooks {
    gate: Arc<Gate>,
    secret: AtomicBool,
}

impl Hinter for Hooks {
    type Hint = String;
}

impl Validator for Hooks {
    /// Called at Enter, still in raw mode.
    fn validate(&self, _: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        self.gate.accept();
        Ok(ValidationResult::Valid(None))
    }
}

impl Highlighter for Hooks {
    /// Called whenever the line is painted, in raw mode, also after something was printed around it. The editor has no other
    /// way out than a key: unwinding through it runs its guards, which give the terminal back, and `resume_unwind` does
    /// not report a panic.
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if !self.gate.refresh() {
            resume_unwind(Box::new("the editor leaves"));
        }
        if self.secret.load(Ordering::Relaxed) { Cow::Owned(String::new()) } else { Cow::Borrowed(line) }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        kind != CmdKind::MoveCursor && self.secret.load(Ordering::Relaxed)
    }
}

impl Completer for Hooks {
    type Candidate = String;
}

impl Helper for Hooks {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn the_printer_waits_for_the_editor_and_prints_directly_after_it() {
        let gate = Arc::new(Gate::default());
        let (entered, was_entered) = std::sync::mpsc::sync_channel(3);
        let printer = {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || {
                for step in 0..3 {
                    // Each of the steps below happens between two of ours.
                    if step > 0 {
                        std::thread::park();
                    }
                    entered.send(gate.enter()).unwrap();
                    gate.exit();
                }
            })
        };
        let next = || was_entered.recv_timeout(Duration::from_secs(20));
        gate.begin();
        assert!(was_entered.try_recv().is_err(), "no prompt yet");
        gate.refresh();
        assert_eq!(next(), Ok(true));
        gate.accept();
        gate.refresh();
        printer.thread().unpark();
        assert!(was_entered.recv_timeout(Duration::from_millis(20)).is_err(), "a refresh after Enter is no prompt");
        gate.begin();
        gate.refresh();
        assert_eq!(next(), Ok(true));
        gate.close();
        printer.thread().unpark();
        assert_eq!(next(), Ok(false));
        printer.join().unwrap();
    }

    #[test]
    fn a_leaving_editor_is_told_at_its_next_refresh() {
        let gate = Gate::default();
        gate.begin();
        assert!(gate.refresh());
        gate.make_leave();
        assert!(!gate.refresh());
    }

    #[test]
    fn columns_are_counted_as_terminals_do() {
        assert_eq!((width("abc"), width("世界"), width("e\u{301}"), width("🎲")), (3, 4, 1, 2));
    }
}
