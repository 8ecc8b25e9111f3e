//! `tidegate chat` against `tidegate serve`, both as processes: what a person or a script sees.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// No step of a test takes longer, on a machine that does ten other things as well.
const DEADLINE: Duration = Duration::from_secs(30);

/// A gateway, and a home folder for its users.
struct Server {
    process: Child,
    folder: PathBuf,
    tcp: String,
    http: String,
}

impl Server {
    fn start(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tidegate-chat-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (process, tcp, http) = serve(&folder, "127.0.0.1:0", "127.0.0.1:0");
        Self { process, folder, tcp, http }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// At the same addresses, over the same files.
    fn start_again(&mut self) {
        (self.process, ..) = serve(&self.folder, &self.tcp, &self.http);
    }

    fn chat(&self, user: &str) -> Command {
        let mut command = chat(&self.folder);
        command.args(["--user", user, "--server", &format!("http://{}", self.http)]);
        command
    }

    /// Pipes `lines` through a client; what it printed.
    fn run(&self, user: &str, lines: &str) -> (Vec<String>, String) {
        let (code, out, err) = finish(self.chat(user), lines);
        assert_eq!(code, 0, "{out}\n{err}");
        (out.lines().map(str::to_owned).collect(), err)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
        command.env_remove(name);
    }
    command
}

fn serve(folder: &Path, tcp: &str, http: &str) -> (Child, String, String) {
    let mut command = tidegate();
    command.args(["serve", "--tcp", tcp, "--http", http, "--shards", "1", "--data-dir"]).arg(folder.join("data"));
    let mut process =
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = lines_of(process.stdout.take().unwrap());
    let word_after = |label: &str| {
        let line = wait_for(&lines, |line| line.trim_start().starts_with(label));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let tcp = word_after("TCP");
    let http = word_after("HTTP").trim_start_matches("http://").split('/').next().unwrap().to_owned();
    // What it logs later must not fill the pipe.
    std::thread::spawn(move || lines.into_iter().for_each(drop));
    (process, tcp, http)
}

fn chat(folder: &Path) -> Command {
    let mut command = tidegate();
    command.arg("chat").env("XDG_CONFIG_HOME", folder.join("config")).current_dir(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command, lines: &str) -> (i32, String, String) {
    let mut process = command.spawn().unwrap();
    // A client that ends early does not read it all.
    let _ = process.stdin.take().unwrap().write_all(lines.as_bytes());
    let Output { status, stdout, stderr } = process.wait_with_output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, rx) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    rx
}

fn wait_for(lines: &Receiver<String>, wanted: impl Fn(&str) -> bool) -> String {
    let (end, mut seen) = (Instant::now() + DEADLINE, Vec::new());
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if wanted(&line) => return line,
            Ok(line) => seen.push(line),
            Err(error) => panic!("{error}; until then: {seen:#?}"),
        }
    }
}

/// A line to the gateway that can be cut.
struct Line {
    address: String,
    state: Arc<Mutex<LineState>>,
}

#[derive(Default)]
struct LineState {
    is_cut: bool,
    sockets: Vec<TcpStream>,
}

impl Line {
    fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(LineState::default()));
        let (to, shared) = (to.to_owned(), Arc::clone(&state));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = shared.lock().unwrap();
                if state.is_cut {
                    continue;
                }
                let server = TcpStream::connect(&to).unwrap();
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    std::thread::spawn(move || {
                        // A cut ends it with an error, and so does either side.
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
                state.sockets.extend([client, server]);
            }
        });
        Self { address, state }
    }

    fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for socket in state.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

/// A client with an open input.
struct Talker {
    process: Child,
    input: ChildStdin,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Talker {
    fn start(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let (out, err) = (lines_of(process.stdout.take().unwrap()), lines_of(process.stderr.take().unwrap()));
        Self { process, input, out, err }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn end(self) -> i32 {
        let Self { mut process, input, .. } = self;
        drop(input);
        process.wait().unwrap().code().unwrap()
    }
}

#[test]
fn a_script_is_shown_what_it_says_and_what_was_said_before() {
    let server = Server::start("script");
    assert_eq!(server.run("anna", "hello\n//slash\n\n").0, ["anna: hello", "anna: /slash"]);
    let (out, err) = server.run("ben", "hi anna\n/msg anna psst\n/msg nobody-there x\n");
    assert_eq!(out, ["anna: hello", "anna: /slash", "ben: hi anna", "[to anna] ben: psst"]);
    assert!(err.contains("* nobody is called nobody-there; not sent: x"), "{err}");
    // The second time the name needs no more than the first time.
    let (out, err) = server.run("anna", "/list\n/open ben\n/list\n");
    assert!(err.contains("* while you were away:") && err.contains("* unread: ben 1"), "{err}");
    assert_eq!(out[0], "[private] ben: psst");
    assert_eq!(out[1..4], ["anna: hello", "anna: /slash", "ben: hi anna"]);
    assert_eq!(out[4..], ["  ben  (private)  1 unread", "> lobby_main", "  lobby_main", "> ben  (private)"]);
    let (_, err) = server.run("anna", "");
    assert!(!err.contains("unread"), "it was read: {err}");
}

#[test]
fn two_people_meet_in_a_room() {
    let server = Server::start("room");
    let mut anna = Talker::start(server.chat("anna"));
    anna.say("/create The Den");
    wait_for(&anna.err, |line| line == "* you are in The Den");
    let mut ben = Talker::start(server.chat("ben"));
    ben.say("/rooms");
    wait_for(&ben.out, |line| line == "     1  The Den  (1 of 1000)");
    ben.say("/join the den");
    wait_for(&anna.err, |line| line == "* ben has joined The Den");
    ben.say("knock knock");
    wait_for(&anna.out, |line| line == "ben: knock knock");
    anna.say("who is there?");
    wait_for(&ben.out, |line| line == "anna: who is there?");
    anna.say("/who");
    wait_for(&anna.out, |line| line == "2 here: anna, ben");
    ben.say("/leave");
    wait_for(&anna.err, |line| line == "* ben has left The Den");
    wait_for(&ben.err, |line| line == "* you are in lobby_main");
    ben.say("/open The Den");
    wait_for(&ben.err, |line| line == "* nobody, and no room of yours, is called The Den");
    assert_eq!((anna.end(), ben.end()), (0, 0));
}

#[test]
fn a_server_that_comes_back_finds_its_clients_and_what_they_said_meanwhile() {
    let mut server = Server::start("restart");
    let mut anna = Talker::start(server.chat("anna"));
    anna.say("before");
    wait_for(&anna.out, |line| line == "anna: before");
    server.kill();
    wait_for(&anna.err, |line| line.starts_with("* no connection ("));
    anna.say("meanwhile");
    anna.say("and more");
    server.start_again();
    // Its tokens went with it: the client logs in anew.
    wait_for(&anna.err, |line| line.starts_with("* connected again"));
    wait_for(&anna.out, |line| line == "anna: meanwhile");
    wait_for(&anna.out, |line| line == "anna: and more");
    anna.say("/rooms");
    wait_for(&anna.err, |line| line.starts_with("* there are no rooms yet"));
    assert_eq!(anna.end(), 0);
    let (out, _) = server.run("ben", "");
    assert_eq!(out, ["anna: before", "anna: meanwhile", "anna: and more"]);
}

#[test]
fn what_is_said_during_an_outage_of_the_line_is_shown_once_and_in_order() {
    let server = Server::start("line");
    let line = Line::start(&server.tcp);
    let mut command = server.chat("anna");
    command.args(["--tcp", &line.address]);
    let anna = Talker::start(command);
    let mut ben = Talker::start(server.chat("ben"));
    ben.say("before");
    wait_for(&anna.out, |line| line == "ben: before");
    line.cut();
    wait_for(&anna.err, |line| line.starts_with("* no connection ("));
    for n in 0..30 {
        ben.say(&format!("lobby {n}"));
        ben.say(&format!("/msg anna private {n}"));
    }
    wait_for(&ben.out, |line| line == "[to anna] ben: private 29");
    line.mend();
    wait_for(&anna.err, |line| line.starts_with("* connected again"));
    let (mut lobby, mut private) = (0, 0);
    while lobby + private < 60 {
        let line = wait_for(&anna.out, |_| true);
        if line == format!("ben: lobby {lobby}") {
            lobby += 1;
        } else {
            assert_eq!(line, format!("[private] ben: private {private}"), "after {lobby} in the lobby");
            private += 1;
        }
    }
    ben.say("after");
    assert_eq!(wait_for(&anna.out, |_| true), "ben: after", "and nothing else");
    assert_eq!((anna.end(), ben.end()), (0, 0));
}

#[test]
fn nobody_steers_anothers_terminal() {
    let server = Server::start("escape");
    server.run("anna", "\x1b[2J\x1b]0;mine\x07 \u{202e}txt\n");
    assert_eq!(server.run("ben", "").0, ["anna: \\u{1b}[2J\\u{1b}]0;mine\\u{7} \\u{202e}txt"]);
}

#[test]
fn refusals_are_sentences_with_an_exit_code() {
    let server = Server::start("refusals");
    server.run("anna", "");
    let refused = |command: Command| {
        let (code, out, err) = finish(command, "never said\n");
        assert_eq!(out, "");
        (code, err)
    };

    let mut with_password = server.chat("anna");
    with_password.env("TIDEGATE_CHAT_PASSWORD", "not hers at all");
    let (code, err) = refused(with_password);
    assert_eq!((code, err.contains("this is not anna's password")), (77, true), "{err}");

    for _ in 0..2 {
        let mut without_password = server.chat("Anna");
        without_password.env("XDG_CONFIG_HOME", server.folder.join("elsewhere"));
        let (code, err) = refused(without_password);
        assert_eq!(
            (code, err.contains("the name Anna is taken, and its password is not kept here")),
            (77, true),
            "{err}"
        );
    }

    let (code, err) = refused(server.chat("no spaces"));
    assert_eq!((code, err.starts_with("tidegate chat: ")), (77, true), "{err}");

    let mut nowhere = chat(&server.folder);
    nowhere.args(["--user", "anna", "--server", "http://127.0.0.1:9"]);
    let (code, err) = refused(nowhere);
    assert_eq!((code, err.contains("no server answers") && err.contains("`make run`")), (69, true), "{err}");

    let mut unsafe_address = chat(&server.folder);
    unsafe_address.args(["--user", "anna", "--server", "https://127.0.0.1:9"]);
    assert_eq!(refused(unsafe_address).0, 64);
}
