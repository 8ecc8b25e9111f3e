//! Logging in a watcher, over either transport; and the little HTTP that the WebSocket handshake takes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf as _, BytesMut};
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::v1::{Login, LoginReply};
use tidegate_proto::websocket::{Decoder, Event, Role};
use tidegate_proto::{Kind, Opening, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::options::Transport;
use super::watcher::put_wrapped;
use crate::connection::{Account, LoggedIn, Reading, dial, parse_login_reply};

/// A server that does not answer a login in this time is not ready for load.
const LOGIN_DEADLINE: Duration = Duration::from_secs(20);

/// Any 16 bytes will do (RFC 6455, section 4.1); the answer to these is always the same.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const KEY_ANSWER: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A socket that is logged in.
pub struct Dialled {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// What the server said.
    pub reply: LoginReply,
    /// Bytes that came behind the reply.
    pub received: Vec<u8>,
}

/// Where a gateway is.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Frames over TCP.
    pub tcp: SocketAddr,
    /// HTTP, and WebSocket below it.
    pub http: SocketAddr,
}

/// Dials, opens, logs in and watches `lobby`. `index` names the device and spreads connections over source addresses.
///
/// # Errors
/// What the server answered, or why it could not be reached. The token is in no error.
pub async fn log_in(
    addresses: Addresses,
    transport: Transport,
    index: u32,
    account: &Account,
    lobby: &str,
) -> anyhow::Result<Dialled> {
    let device_id = format!("loadtest-{index}");
    let login = Login { device_id, watch: vec![lobby.to_owned()], ..Login::default() };
    let dialled = match transport {
        Transport::Tcp => {
            let logged_in = LoggedIn::connect_as(addresses.tcp, index, account, login, Reading::All).await?;
            Dialled {
                stream: logged_in.stream.into_std()?,
                reply: logged_in.reply,
                received: logged_in.received.to_vec(),
            }
        }
        Transport::Websocket => {
            let upgraded = tokio::time::timeout(LOGIN_DEADLINE, over_websocket(addresses.http, index, account, login));
            let result = upgraded.await.unwrap_or_else(|_| bail!("no login reply within {LOGIN_DEADLINE:?}"));
            result.with_context(|| format!("connection {index} to ws://{}/ws", addresses.http))?
        }
    };
    if !dialled.reply.watching.iter().any(|watched| watched == lobby) {
        bail!("connection {index}: the server does not let it watch {lobby}");
    }
    Ok(dialled)
}

async fn over_websocket(http: SocketAddr, index: u32, account: &Account, login: Login) -> anyhow::Result<Dialled> {
    let mut stream = dial(http, index, Reading::All).await?;
    let mut received = upgrade(&mut stream, http).await?;

    let mut bytes = BytesMut::from(&Opening::CURRENT.encode()[..]);
    let login = Login {
        token: account.token.clone(),
        device_class: "browser".to_owned(),
        client: concat!("tidegate-loadtest ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..login
    };
    frame::put_message(&mut bytes, Kind::Login, 0, &login);
    let mut out = BytesMut::new();
    put_wrapped(&mut out, Transport::Websocket, &bytes);
    stream.write_all(&out).await?;

    let mut decoder = Decoder::new(Role::Client);
    loop {
        while let Some(event) = decoder.next(&mut received, FRAME_BYTES_MAX_DEFAULT)? {
            let Event::Message(message) = event else { continue };
            let mut message = message.freeze();
            while let Some(frame) = frame::next_frame(&mut message, FRAME_BYTES_MAX_DEFAULT)? {
                let Some(reply) = parse_login_reply(&frame)? else { continue };
                if reply.user_id != account.user_id {
                    bail!("logged in as user {}, not {}", reply.user_id, account.user_id);
                }
                // Frames behind the reply in the same message go back into a message of their own.
                let mut rest = BytesMut::new();
                if message.has_remaining() {
                    tidegate_proto::websocket::put_header(
                        &mut rest,
                        tidegate_proto::websocket::Opcode::Binary,
                        message.len(),
                    );
                    rest.extend_from_slice(&message);
                }
                rest.extend_from_slice(&received);
                return Ok(Dialled { stream: stream.into_std()?, reply, received: rest.to_vec() });
            }
        }
        if stream.read_buf(&mut received).await? == 0 {
            bail!("closed before the login reply");
        }
    }
}

/// The opening handshake; returns the bytes that came behind the answer.
async fn upgrade(stream: &mut TcpStream, http: SocketAddr) -> anyhow::Result<BytesMut> {
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {http}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\nsec-websocket-protocol: tidegate.v1\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut received = BytesMut::new();
    let head_bytes = loop {
        if let Some(at) = received.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if received.len() > 16 * 1024 || stream.read_buf(&mut received).await? == 0 {
            bail!("no answer to the WebSocket handshake");
        }
    };
    let head = received.split_to(head_bytes);
    let head = String::from_utf8_lossy(&head);
    if !head.starts_with("HTTP/1.1 101 ") || !head.contains(KEY_ANSWER) {
        bail!("the WebSocket handshake was answered with: {}", head.lines().next().unwrap_or_default());
    }
    Ok(received)
}
