//! The first eight bytes a client sends: who we are and which version we speak.

/// Bytes of the opening.
pub const OPENING_BYTES: usize = 8;

const MAGIC: [u8; 4] = *b"TIDE";

/// The version this crate implements.
pub const VERSION: u8 = 1;

/// A client's opening: `TIDE`, the version, three reserved zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Protocol version the client speaks.
    pub version: u8,
}

/// Why an opening is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// Not our protocol at all, or a frame before the opening.
    #[error("the connection does not begin with a Tidegate opening")]
    Magic,
    /// A version this gateway does not speak.
    #[error("version {version} is not spoken here, version {VERSION} is")]
    Version {
        /// What the client asked for.
        version: u8,
    },
}

impl Opening {
    /// The opening of this version.
    pub const CURRENT: Self = Self { version: VERSION };

    /// Reads an opening.
    ///
    /// # Errors
    /// [`OpeningError`] if the bytes are not ours or the version is another.
    pub fn parse(bytes: [u8; OPENING_BYTES]) -> Result<Self, OpeningError> {
        let [m0, m1, m2, m3, version, r0, r1, r2] = bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(OpeningError::Magic);
        }
        if version != VERSION {
            return Err(OpeningError::Version { version });
        }
        if [r0, r1, r2] != [0; 3] {
            return Err(OpeningError::Magic);
        }
        Ok(Self { version })
    }

    /// True as soon as `prefix` can no longer become an opening, so that a stranger is not waited for.
    #[must_use]
    pub fn is_hopeless(prefix: &[u8]) -> bool {
        prefix.iter().zip(MAGIC).any(|(got, want)| *got != want)
    }

    /// The eight bytes of this opening.
    #[must_use]
    pub fn encode(self) -> [u8; OPENING_BYTES] {
        let [m0, m1, m2, m3] = MAGIC;
        [m0, m1, m2, m3, self.version, 0, 0, 0]
    }
}
