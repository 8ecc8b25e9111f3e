//! What people do apart from sending messages: accounts, rooms, reading back.
//!
//! Services are generic over [`crate::ports::Backend`] and hold no state that an answer depends on: any instance answers
//! the same. Time and randomness come in as arguments.

mod error;
pub mod password;

pub mod chat;
pub mod room;
pub mod user;

#[cfg(test)]
mod testing;

pub use error::{ServiceError, ServiceResult};
