//! A socket with the bytes of an unfinished frame and the bytes that wait to be written. It never blocks; who owns it
//! is told by epoll when there is something to read, and writes once a turn.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use bytes::BytesMut;

/// Larger buffers than this are given back as soon as they are empty: ten thousand lines share a thread.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// One side of a stream.
#[derive(Debug)]
pub struct Line {
    /// The socket, non-blocking.
    pub stream: TcpStream,
    /// When bytes were written last.
    pub written_ns: u64,
    /// What waits to be written.
    pub out: BytesMut,
    unfinished: Vec<u8>,
    out_written: usize,
}

impl Line {
    /// A non-blocking socket; `received` came behind what was read from it so far.
    pub fn new(stream: TcpStream, received: &[u8], now_ns: u64) -> Self {
        Self { stream, written_ns: now_ns, out: BytesMut::new(), unfinished: received.to_vec(), out_written: 0 }
    }

    /// Reads once: what was unfinished and what has arrived, at the front of `buffer`. Returns how many bytes that is
    /// and how many of them are new; `None` if nothing has arrived.
    ///
    /// # Errors
    /// The socket's error, or that the stream has ended, or that something unfinished fills the buffer.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
        let kept = self.unfinished.len();
        if kept >= buffer.len() {
            return Err(io::Error::other("something longer than the buffer"));
        }
        match self.stream.read(&mut buffer[kept..]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(new) => {
                buffer[..kept].copy_from_slice(&self.unfinished);
                self.unfinished.clear();
                if self.unfinished.capacity() > KEPT_BYTES_MAX {
                    self.unfinished = Vec::new();
                }
                Ok(Some((kept + new, new)))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What was unfinished, taken out.
    pub fn take_unfinished(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unfinished)
    }

    /// Keeps what is unfinished until more arrives.
    pub fn keep(&mut self, unfinished: &[u8]) {
        self.unfinished.extend_from_slice(unfinished);
    }

    /// Writes what is waiting. `Ok(false)` if the socket is full and bytes still wait.
    ///
    /// # Errors
    /// The socket's error; the line is of no use any more.
    pub fn flush(&mut self, now_ns: u64) -> io::Result<bool> {
        while self.out_written < self.out.len() {
            match self.stream.write(&self.out[self.out_written..]) {
                Ok(written) => {
                    self.out_written += written;
                    self.written_ns = now_ns;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out_written = 0;
        if self.out.capacity() > KEPT_BYTES_MAX {
            self.out = BytesMut::new();
        }
        Ok(true)
    }
}
