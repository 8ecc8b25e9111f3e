//! Storms: what happens to a room or lobby in which more is written than people read.
//!
//! The engine that owns a conversation counts what it commits ([`rate`]) and chooses a gear ([`gearbox`]) by the
//! conversation's [`rules`]: *direct* pushes each message, *merged* joins those of a short time, *signal* only says that there
//! are some, and clients pull. Every gateway keeps the newest messages of conversations that are pulled ([`tail`],
//! [`keeper`]) and pages of older ones ([`pages`]), each made once for everybody.
//!
//! Always: a gear decides how messages travel, never whether they are kept; messages of the system are pushed at once in
//! every gear.

pub mod gearbox;
pub mod keeper;
pub mod pages;
pub mod pulls;
mod rate;
pub mod rules;
pub mod tail;
#[cfg(test)]
pub(crate) mod testing;

pub use gearbox::{Gearbox, Shift};
pub use keeper::TailKeeper;
pub use pages::Pages;
pub use pulls::{Pulled, Pulls};
pub use rules::{StormRule, StormRules};
pub use tail::{Format, Life, LiveTail, Tag, Tail};
