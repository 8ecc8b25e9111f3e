//! The in-process twins of the ports: the embedded backends, and the world that tests play in.
//!
//! They give the guarantees of the services within one process. What they keep in memory is gone with it; the engines
//! then ask the archive, exactly as after the loss of a Redis.

pub mod archive;
pub mod hot_store;
pub mod queues;
