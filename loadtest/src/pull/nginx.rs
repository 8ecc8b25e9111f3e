//! An nginx for the occasion: one file, a configuration of its own, one worker per core.
//!
//! In: a path and the bytes behind it; out: an [`Nginx`] that serves them on a free port. It runs as the user who calls,
//! writes below one directory only, and does not outlive its value.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

use super::client::Answer;
use crate::process;

const READY_DEADLINE: Duration = Duration::from_secs(10);
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A running nginx.
pub struct Nginx {
    /// Where it listens.
    pub address: SocketAddr,
    /// As it calls itself.
    pub version: String,
    child: Child,
    directory: PathBuf,
}

impl Nginx {
    /// Starts one that answers `path` with the body and type of `answer`, in a new directory below `parent`.
    ///
    /// # Errors
    /// If there is no nginx, or it does not start; with what it said.
    pub fn start(program: Option<&Path>, parent: &Path, path: &str, answer: &Answer) -> anyhow::Result<Self> {
        let program = find_program(program)?;
        let version = version(&program)?;
        let directory = parent.join("nginx");
        let file = directory.join("www").join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().context("the path has a directory")?)?;
        let directory = directory.canonicalize()?;
        fs::write(&file, &answer.body)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?.local_addr()?.port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = directory.join("nginx.conf");
        fs::write(&config, configuration(&directory, address, &answer.content_type)?)?;
        let child = Command::new(&program)
            .arg("-p")
            .arg(&directory)
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(directory.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("stderr.log"))?)
            // A Ctrl-C at the terminal is ours to handle.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut nginx = Self { address, version, child, directory };
        nginx.wait_until_ready()?;
        Ok(nginx)
    }

    /// CPU time of its workers so far, in seconds.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let workers = process::children(self.child.id());
        workers.into_iter().map(process::cpu_seconds).sum::<Option<f64>>()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("nginx ended with {status}:\n{}", self.said());
            }
            if started.elapsed() > READY_DEADLINE {
                bail!("nginx does not answer after {READY_DEADLINE:?}:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn said(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        format!("{}{}", read("stderr.log"), read("error.log"))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGQUIT would wait for clients; nobody is left whose answer matters. It is not reaped yet: the pid is its own.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > END_DEADLINE {
                let _ = writeln!(std::io::stderr(), "nginx did not end within {END_DEADLINE:?}; killing it");
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn find_program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let hint = "install it (Debian, Ubuntu: apt-get install nginx-light), or name it with --nginx; \
                `apt-get download nginx` and `dpkg-deb -x` get the program without a system service";
    if let Some(path) = named {
        return path.canonicalize().with_context(|| format!("there is no {}: {hint}", path.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has it where only root's PATH leads.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    directories
        .map(|directory| directory.join("nginx"))
        .find(|program| program.is_file())
        .with_context(|| format!("there is no nginx in PATH: {hint}"))
}

fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).arg("-v").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(said.rsplit_once("version: ").map_or(said.as_str(), |(_, version)| version).trim().to_owned())
}

/// As fast as nginx goes: no log, no look at the file system per request, connections spread evenly over the workers.
fn configuration(directory: &Path, address: SocketAddr, content_type: &str) -> anyhow::Result<String> {
    let directory = directory.to_str().context("the directory's name is not UTF-8")?;
    if directory.contains(['"', '$', ';', '\\']) {
        bail!("nginx does not take a directory named {directory}");
    }
    // Workers of root's nginx would be somebody else otherwise, who may not read below here.
    let user = match Uid::effective() {
        uid if uid.is_root() => User::from_uid(uid)?.map(|user| format!("user \"{}\";\n", user.name)),
        _ => None,
    };
    let user = user.unwrap_or_default();
    Ok(format!(
        "{user}\
daemon off;
worker_processes auto;
worker_rlimit_nofile 16384;
pid \"{directory}/nginx.pid\";
error_log \"{directory}/error.log\" warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    keepalive_time 24h;
    open_file_cache max=16 inactive=3600s;
    open_file_cache_valid 3600s;
    server_tokens off;
    types {{ }}
    default_type \"{content_type}\";
    client_body_temp_path \"{directory}/body\";
    proxy_temp_path \"{directory}/proxy\";
    fastcgi_temp_path \"{directory}/fastcgi\";
    uwsgi_temp_path \"{directory}/uwsgi\";
    scgi_temp_path \"{directory}/scgi\";
    server {{
        listen {address} reuseport backlog=4096;
        root \"{directory}/www\";
    }}
}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_nginx_is_an_error_that_says_how_to_get_one() {
        let error = format!("{:#}", find_program(Some(Path::new("/nowhere/nginx"))).expect_err("it is not there"));
        for expected in ["/nowhere/nginx", "apt-get install nginx-light", "--nginx", "apt-get download nginx"] {
            assert!(error.contains(expected), "{expected} is not in {error}");
        }
    }

    #[test]
    fn everything_nginx_touches_is_below_its_directory() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8123));
        let text = configuration(Path::new("/some/where"), address, "application/x-protobuf").unwrap();
        let paths = text.split('"').filter(|quoted| quoted.starts_with('/'));
        assert!(paths.clone().count() >= 8 && paths.clone().all(|path| path.starts_with("/some/where/")), "{text}");
        assert!(text.contains("listen 127.0.0.1:8123 ") && text.contains("daemon off;"), "{text}");
        for strange in ["/some\"where", "/some/$where", "/some;where"] {
            assert!(configuration(Path::new(strange), address, "a/b").is_err(), "{strange}");
        }
    }
}
