//! The fixed head in front of every payload: eight bytes, big-endian.
//!
//! ```text
//! 0      1      2      3      4      5      6      7
//! | kind | flags| correlation |       payload length      |
//! ```

use crate::frame::FrameError;

/// Bytes of a frame before its payload.
pub const HEAD_BYTES: usize = 8;

/// The head of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// A [`crate::Kind`] number; kept raw because an unknown kind is answered, not fatal.
    pub kind: u8,
    /// Reserved: zero in version 1.
    pub flags: u8,
    /// Chosen by the client for a command and repeated in its reply; zero in pushes.
    pub correlation: u16,
    /// Bytes of payload that follow.
    pub payload_bytes: u32,
}

impl Head {
    /// Reads a head. Any kind is accepted here.
    ///
    /// # Errors
    /// [`FrameError::Flags`] if a reserved flag is set.
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        let [kind, flags, c0, c1, l0, l1, l2, l3] = bytes;
        if flags != 0 {
            return Err(FrameError::Flags { flags });
        }
        Ok(Self {
            kind,
            flags,
            correlation: u16::from_be_bytes([c0, c1]),
            payload_bytes: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// The eight bytes of this head.
    #[must_use]
    pub fn encode(self) -> [u8; HEAD_BYTES] {
        let [c0, c1] = self.correlation.to_be_bytes();
        let [l0, l1, l2, l3] = self.payload_bytes.to_be_bytes();
        [self.kind, self.flags, c0, c1, l0, l1, l2, l3]
    }
}
