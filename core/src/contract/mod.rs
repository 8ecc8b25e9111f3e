//! What every backend must do, as functions over the ports. The twins run them here, the adapters in the gateway's tests.

pub mod archive;
pub mod hot_store;
pub mod queues;
