//! The screen: where lines are printed, around what is being typed if it is a terminal.
//!
//! In go rendered lines, out they come on standard output, notices of a script's run on standard error. Must always hold:
//! lines appear whole, in order, and never within the line being typed; whatever happens, the terminal is left as it was.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustyline::ExternalPrinter;
use tokio::sync::mpsc;

use super::keyboard::{self, Editor, Gate, Typed};
use super::line::Paint;

/// Lines that wait for the terminal; beyond, the client waits for it.
const LINES_MAX: usize = 256;

/// How long the terminal may take over the last lines.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Wakes the editor and leaves no trace: one line up (ECMA-48: CPL), one down.
const NOTHING: &str = "\x1b[F\n";

/// What a line is to a script that reads us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What was asked for.
    Out,
    /// What should be known besides.
    Err,
}

/// Where lines go.
pub struct Screen {
    /// Whether lines may be coloured.
    pub paint: Paint,
    terminal: Option<Terminal>,
}

struct Terminal {
    lines: mpsc::Sender<String>,
    gate: Arc<Gate>,
    threads: [JoinHandle<()>; 2],
}

impl Screen {
    /// A screen that is no terminal, and the lines typed, or piped, to it.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn plain() -> io::Result<(Self, mpsc::Receiver<Typed>)> {
        let (typed, typed_rx) = mpsc::channel(1);
        // Not joined: it may be waiting for standard input for ever.
        std::thread::Builder::new().name("stdin".into()).spawn(move || keyboard::read_plain(&typed))?;
        Ok((Self { paint: Paint::Off, terminal: None }, typed_rx))
    }

    /// A terminal, with its line editor.
    ///
    /// # Errors
    /// If the terminal is none, or no thread can be started.
    pub fn terminal(
        mut editor: Editor,
        gate: Arc<Gate>,
        paint: Paint,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Typed>)> {
        let printer = editor.create_external_printer()?;
        let (typed, typed_rx) = mpsc::channel(1);
        let (lines, lines_rx) = mpsc::channel(LINES_MAX);
        let printing = {
            let gate = Arc::clone(&gate);
            let print = move || print_around(printer, &gate, lines_rx);
            std::thread::Builder::new().name("screen".into()).spawn(print)?
        };
        let reading = {
            let gate = Arc::clone(&gate);
            std::thread::Builder::new().name("keyboard".into()).spawn(move || keyboard::read(editor, &gate, &typed))?
        };
        let terminal = Terminal { lines, gate, threads: [printing, reading] };
        Ok((Self { paint, terminal: Some(terminal) }, typed_rx))
    }

    /// Whether somebody sits before it.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Prints one line.
    ///
    /// # Errors
    /// If nobody reads it any more.
    pub async fn print(&self, stream: Stream, line: String) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => terminal.lines.send(line).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe)),
            None => print_plain(stream, &line),
        }
    }

    /// Prints what is left, ends the line editor and gives the terminal back.
    pub async fn leave(self) {
        let Some(Terminal { lines, gate, threads }) = self.terminal else { return };
        drop(lines);
        let joined = tokio::task::spawn_blocking(move || {
            let [printing, reading] = threads;
            // A thread that panicked has said so.
            let _ = printing.join();
            gate.close();
            let _ = reading.join();
        });
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, joined).await;
    }
}

fn print_plain(stream: Stream, line: &str) -> io::Result<()> {
    match stream {
        Stream::Out => {
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()
        }
        Stream::Err => writeln!(io::stderr(), "{line}"),
    }
}

/// The printing thread: takes all lines there are at once, waits until the editor is where they can be printed around
/// it, and at the end makes the editor leave.
fn print_around(mut printer: impl ExternalPrinter, gate: &Gate, mut lines: mpsc::Receiver<String>) {
    let mut batch = Vec::new();
    loop {
        let count = lines.blocking_recv_many(&mut batch, LINES_MAX);
        let ends = lines.is_closed() && lines.is_empty();
        let mut text = batch.drain(..).map(|line| line + "\n").collect::<String>();
        if ends {
            gate.make_leave();
        }
        if count > 0 || ends {
            if text.is_empty() {
                text.push_str(NOTHING);
            }
            if gate.enter() {
                let printed = printer.print(text);
                gate.exit();
                if printed.is_err() {
                    return;
                }
            } else if text != NOTHING {
                // The editor has ended: nobody is typing.
                let _ = print_plain(Stream::Out, text.trim_end_matches('\n'));
            }
        }
        if ends {
            return;
        }
    }
}
