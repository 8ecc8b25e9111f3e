//! Storms from outside: what people in a busy lobby or room are sent and can pull, on both sets of backends.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod gears;
mod outages;
mod pulls;
mod watcher;
mod writer;
