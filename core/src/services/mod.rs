//! What people do apart from sending messages: accounts, rooms, reading back.

pub mod chat;
pub mod room;
pub mod user;
