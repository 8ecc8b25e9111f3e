//! The Tidegate gateway: the program around the domain. Only this crate opens a socket.

pub mod clock;
pub mod config;
pub mod telemetry;

pub mod mysql;
pub mod rabbitmq;
pub mod redis;
pub mod sqlite;
mod writing;

pub mod http;
pub mod shard;

pub mod app;
pub mod backends;
pub mod banner;

pub mod chat;
