//! The HTTP side over real loopback sockets, on the in-process twins: what clients, probes and attackers see.

#![allow(clippy::unwrap_used)]

mod accounts;
mod document;
mod history;
mod limits;
mod probes;
mod pull;
mod refusals;
mod rooms;
mod websocket;
mod world;
