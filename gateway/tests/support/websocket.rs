//! Clients over WebSocket, from behind the HTTP handshake on.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tidegate::shard::mailboxes::Upgraded;
use tidegate_core::delivery::ShardId;
use tidegate_core::ports::Backend;
use tidegate_proto::websocket::{self, Opcode};
use tidegate_proto::{Frame, frame};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::{DEADLINE, World};

/// A client behind the handshake.
pub struct WebSocketClient {
    pub stream: TcpStream,
    bytes: BytesMut,
    decoder: websocket::Decoder,
    frames: VecDeque<Frame>,
    pub pongs: Vec<Bytes>,
}

impl WebSocketClient {
    pub fn new(stream: TcpStream) -> Self {
        let decoder = websocket::Decoder::new(websocket::Role::Client);
        Self { stream, bytes: BytesMut::new(), decoder, frames: VecDeque::new(), pongs: Vec::new() }
    }

    /// The next frame, a reply or a push.
    pub async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return frame;
            }
            match self.decoder.next(&mut self.bytes, 1 << 20).unwrap() {
                Some(websocket::Event::Message(message)) => {
                    let mut message = message.freeze();
                    while let Some(frame) = frame::next_frame(&mut message, 1 << 20).unwrap() {
                        self.frames.push_back(frame);
                    }
                }
                Some(websocket::Event::Pong(payload)) => self.pongs.push(payload),
                Some(other) => panic!("{other:?}"),
                None => {
                    let read = self.stream.read_buf(&mut self.bytes);
                    assert_ne!(tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap(), 0);
                }
            }
        }
    }
}

/// A socket handed to a shard as the HTTP listener does it.
pub async fn handed_over<B: Backend>(world: &World<B>, early: &[u8]) -> TcpStream {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut upgraded = VecDeque::from([Upgraded { stream, early: Bytes::copy_from_slice(early) }]);
    world.gateway.mailboxes().of(ShardId(0)).upgraded.offer(&mut upgraded);
    client
}

pub fn masked(opcode: Opcode, payload: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    websocket::put_masked(&mut bytes, opcode, [1, 2, 3, 4], payload);
    bytes
}
