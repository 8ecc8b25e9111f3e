//! The Tidegate domain: what a message is and what happens to it, without sockets, clocks, brokers or databases.
//!
//! Modules in reading order. Time comes in as an argument or through [`clock::Clock`], everything outside through the
//! traits in [`ports`], whose in-process twins are in [`twins`].

pub mod ids;
pub mod limits;

pub mod event;

pub mod clock;
pub mod ports;
pub mod twins;

#[cfg(any(test, feature = "contract"))]
pub mod contract;

pub mod meter;
pub mod pattern;
pub mod queue;
mod recent;
mod retry;

pub mod fairness;

pub mod delivery;
pub mod session;

pub mod storm;

pub mod accept;
pub mod ingest;
pub mod push;
pub mod streams;

pub mod presence;
pub mod reception;

pub mod services;
