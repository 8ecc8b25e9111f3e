//! The Tidegate byte protocol: schema, frame head and codec, WebSocket framing.
//!
//! In go bytes, out come frames, and the other way round. Nothing here opens a socket or needs a runtime; `PROTOCOL.md`
//! describes the same bytes for people who write a client.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

mod code;
pub mod codec;
pub mod frame;
pub mod head;
pub mod limits;
pub mod opening;
pub mod websocket;

/// Types generated from `schema/tidegate/v1/client.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
}

/// Types generated from `schema/tidegate/event/v1/event.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod event {
    /// Version 1 of the broker events.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tidegate.event.v1.rs"));
    }
}

pub use codec::{CodecError, FrameCodec};
pub use frame::{Frame, FrameError};
pub use head::{HEAD_BYTES, Head};
pub use opening::{OPENING_BYTES, Opening};
pub use v1::{CloseCode, Code, Kind};
