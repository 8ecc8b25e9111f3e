//! One connection to the gateway: dialling and login, the commands in flight, and the bytes waiting to be written.
//!
//! In: a token; out: a [`Connection`] that is logged in, with the limits the server stated. Afterwards the lane drives
//! it: its [`Places`] hold the commands in flight, `flush` writes all that has been put since the last time.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use std::{fmt, io};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::v1::{Close, Error, Heartbeat, Login, LoginReply, Ping};
use tidegate_proto::{Frame, Kind, Opening, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::places::Places;
use crate::wire::{SendTemplate, Stamp};

/// A server that does not answer a login in this time is not ready for load.
const LOGIN_DEADLINE: Duration = Duration::from_secs(20);

/// Connections from one source address to one destination; the kernel has about 28,000 ports for them.
const CONNECTIONS_PER_SOURCE: u32 = 20_000;

/// What it takes to log in.
#[derive(Clone, Debug)]
pub struct Account {
    /// As registered.
    pub user_id: u64,
    /// From the HTTP login.
    pub token: String,
}

/// A live, logged-in connection.
#[derive(Debug)]
pub struct Connection {
    /// The socket; the lane's reader polls it.
    pub stream: TcpStream,
    /// The lane's index of the conversation it takes part in.
    pub conversation: u32,
    /// Which of the conversation's members it is.
    pub member: u32,
    /// Who is logged in.
    pub user_id: u64,
    /// Its messages' frame.
    template: SendTemplate,
    /// Largest frame the server sends.
    pub frame_bytes_max: usize,
    /// Silence after which the server wants a ping, from its heartbeat.
    pub ping_after_ns: u64,
    /// Received bytes of an unfinished frame.
    pub unfinished: Vec<u8>,
    /// Times at which messages were due that wait for a place in flight.
    pub held_back: VecDeque<u64>,
    /// True while it is listed for the next flush.
    pub is_touched: bool,
    /// When bytes were written last.
    pub written_ns: u64,
    /// Whether it reads.
    pub reading: Reading,
    /// False once it is closed.
    pub is_open: bool,
    out: Vec<u8>,
    out_written: usize,
    /// The commands in flight.
    pub places: Places,
}

/// What a connection reads after its login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All that comes.
    All,
    /// Nothing, with a receive buffer as small as the kernel allows: a receiver that hangs.
    Nothing,
}

/// A socket that is logged in, before it has a place in a lane.
pub struct LoggedIn {
    /// The socket.
    pub stream: TcpStream,
    /// What the server said.
    pub reply: LoginReply,
    /// Bytes that came behind the reply.
    pub received: Bytes,
}

/// A login that the server answered with an error or a Close.
#[derive(Debug)]
pub struct Refused {
    /// [`Code`](tidegate_proto::Code) or [`CloseCode`](tidegate_proto::CloseCode); their numbers differ.
    pub code: i32,
    text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

impl LoggedIn {
    /// Dials, opens, logs in.
    ///
    /// # Errors
    /// What the server answered, or why it could not be reached. The token is in no error.
    pub async fn connect(
        address: SocketAddr,
        index: u32,
        account: &Account,
        device_id: &str,
        reading: Reading,
    ) -> anyhow::Result<Self> {
        let login = Login { device_id: device_id.to_owned(), ..Login::default() };
        Self::connect_as(address, index, account, login, reading).await
    }

    /// The same with a Login that says more than the device: a session to resume, positions.
    ///
    /// # Errors
    /// What the server answered, or why it could not be reached. The token is in no error.
    pub async fn connect_as(
        address: SocketAddr,
        index: u32,
        account: &Account,
        login: Login,
        reading: Reading,
    ) -> anyhow::Result<Self> {
        let dialled =
            tokio::time::timeout(LOGIN_DEADLINE, Self::dial_and_login(address, index, account, login, reading));
        let result = dialled.await.unwrap_or_else(|_| bail!("no login reply within {LOGIN_DEADLINE:?}"));
        result.with_context(|| format!("connection {index} to {address}"))
    }

    async fn dial_and_login(
        address: SocketAddr,
        index: u32,
        account: &Account,
        login: Login,
        reading: Reading,
    ) -> anyhow::Result<Self> {
        let mut stream = dial(address, index, reading).await?;
        let mut out = BytesMut::from(&Opening::CURRENT.encode()[..]);
        let login = Login {
            token: account.token.clone(),
            device_class: "desktop".to_owned(),
            client: concat!("tidegate-loadtest ", env!("CARGO_PKG_VERSION")).to_owned(),
            ..login
        };
        frame::put_message(&mut out, Kind::Login, 0, &login);
        stream.write_all(&out).await?;

        let mut received = BytesMut::new();
        loop {
            if stream.read_buf(&mut received).await? == 0 {
                bail!("closed before the login reply");
            }
            let mut bytes = received.split().freeze();
            while let Some(frame) = frame::next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT)? {
                if let Some(reply) = parse_login_reply(&frame)? {
                    if reply.user_id != account.user_id {
                        bail!("logged in as user {}, not {}", reply.user_id, account.user_id);
                    }
                    return Ok(Self { stream, reply, received: bytes });
                }
            }
            received.extend_from_slice(&bytes);
        }
    }

    /// Gives the connection its place.
    pub fn into_connection(
        self,
        conversation: u32,
        member: u32,
        template: SendTemplate,
        reading: Reading,
        now_ns: u64,
    ) -> Connection {
        let heartbeat =
            self.reply.heartbeat.unwrap_or(Heartbeat { min_interval_s: 5, max_interval_s: 180, probe_count: 3 });
        Connection {
            stream: self.stream,
            conversation,
            member,
            user_id: self.reply.user_id,
            template,
            frame_bytes_max: (self.reply.max_frame_bytes as usize).max(FRAME_BYTES_MAX_DEFAULT),
            ping_after_ns: u64::from(heartbeat.max_interval_s.max(1)) * 800_000_000,
            unfinished: self.received.to_vec(),
            held_back: VecDeque::new(),
            is_touched: false,
            written_ns: now_ns,
            reading,
            is_open: true,
            out: Vec::new(),
            out_written: 0,
            places: Places::new(self.reply.max_in_flight),
        }
    }
}

/// The reply if it is one; `None` for pushes, which are skipped.
///
/// # Errors
/// [`Refused`], or that the payload cannot be read.
pub fn parse_login_reply(frame: &Frame) -> anyhow::Result<Option<LoginReply>> {
    match Kind::try_from(i32::from(frame.head.kind)) {
        Ok(Kind::LoginReply) => Ok(Some(prost::Message::decode(frame.payload.clone())?)),
        Ok(Kind::Error) => {
            let error: Error = prost::Message::decode(frame.payload.clone())?;
            let text = format!("login refused: {} {}", error.code().as_str_name(), error.text);
            bail!(Refused { code: error.code, text })
        }
        Ok(Kind::Close) => {
            let close: Close = prost::Message::decode(frame.payload.clone())?;
            let text = format!("closed during login: {} {}", close.code, close.text);
            bail!(Refused { code: close.code, text })
        }
        _ => Ok(None),
    }
}

/// The kernel rounds it up to the smallest it has.
const STUCK_RECEIVE_BUFFER_BYTES: u32 = 4096;

/// Opens a socket to the gateway. `index` spreads many connections over source addresses.
///
/// # Errors
/// The system's.
pub async fn dial(address: SocketAddr, index: u32, reading: Reading) -> anyhow::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if reading == Reading::Nothing {
        socket.set_recv_buffer_size(STUCK_RECEIVE_BUFFER_BYTES)?;
    }
    if let IpAddr::V4(ip) = address.ip()
        && ip.is_loopback()
    {
        // The port is chosen at connect, for this destination alone, instead of at bind, for all.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + index / CONNECTIONS_PER_SOURCE);
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection {
    /// Appends a message's frame.
    pub fn put_send(&mut self, correlation: u16, stamp: Stamp) {
        self.template.put(&mut self.out, correlation, stamp);
    }

    /// Appends a ping. Its reply needs no bookkeeping.
    pub fn put_ping(&mut self) {
        let mut ping = BytesMut::new();
        frame::put_message(&mut ping, Kind::Ping, 0, &Ping {});
        self.out.extend_from_slice(&ping);
    }

    /// Writes what is waiting. `Ok(false)` if the socket is full and bytes still wait.
    ///
    /// # Errors
    /// The socket's error; the connection is of no use any more.
    pub fn flush(&mut self, now_ns: u64) -> io::Result<bool> {
        while self.out_written < self.out.len() {
            match self.stream.try_write(&self.out[self.out_written..]) {
                Ok(written) => {
                    self.out_written += written;
                    self.written_ns = now_ns;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out_written = 0;
        // An idle connection keeps no buffer.
        if self.out.capacity() > 64 * 1024 {
            self.out = Vec::new();
        }
        Ok(true)
    }
}
