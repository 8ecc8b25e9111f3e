//! How far the archive was, written beside it: a file that is behind its mark was replaced by an older copy.
//!
//! In come the lock file and, after commits, the writer's connection; out goes whether the archive went back. Always: the mark
//! never is ahead of what the disk holds, because it is written after a commit; it may be behind by [`INTERVAL`] and by
//! what a power cut takes, and then a loss that small goes unnoticed.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Between two writes of the mark: far more seldom than commits, and no more work than one small write.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// The highest epoch in use, and the newest message's row. The greater is the later, as for a conversation's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reach {
    pub(super) epoch: u32,
    pub(super) row: i64,
}

impl Reach {
    /// How far the archive is.
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let select = "SELECT MAX((SELECT COALESCE(MAX(epoch), 0) FROM archive_meta),
                                 (SELECT COALESCE(MAX(epoch), 0) FROM conversation_epochs)),
                             (SELECT COALESCE(MAX(row), 0) FROM messages)";
        let mut select = connection.prepare_cached(select)?;
        select.query_row([], |row| Ok(Self { epoch: row.get(0)?, row: row.get(1)? }))
    }

    /// What the lock file says. Nothing, or what is not of our making, says nothing.
    pub(super) fn read(mut file: &File) -> io::Result<Self> {
        const MARK_BYTES_MAX: u64 = 64;
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        // Whoever put bytes there that are no text has left no mark.
        if file.take(MARK_BYTES_MAX).read_to_string(&mut text).is_err() {
            return Ok(Self::default());
        }
        let mut numbers = text.split_ascii_whitespace();
        let epoch = numbers.next().and_then(|number| number.parse().ok());
        let row = numbers.next().and_then(|number| number.parse().ok());
        Ok(epoch.zip(row).map_or_else(Self::default, |(epoch, row)| Self { epoch, row }))
    }

    /// In one write of a fixed length: a process that is killed leaves the mark before or the mark after.
    pub(super) fn write(self, mut file: &File) -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(format!("{:010} {:020}\n", self.epoch, self.row).as_bytes())
    }
}

/// The mark as the writer keeps it.
pub(super) struct Mark {
    file: File,
    written: Reach,
    due: Option<Instant>,
}

impl Mark {
    pub(super) fn new(file: File) -> Self {
        Self { file, written: Reach::default(), due: Some(Instant::now()) }
    }

    /// Something was committed: the mark will be written.
    pub(super) fn is_behind(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + INTERVAL);
    }

    /// How long the mark may wait, if it is to be written at all.
    pub(super) fn due_in(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Writes the mark if it is time. A failure costs the proof of a later loss and nothing else.
    pub(super) fn keep(&mut self, connection: &Connection) {
        if self.due_in() == Some(Duration::ZERO) {
            self.write(connection);
        }
    }

    /// Writes the mark now.
    pub(super) fn write(&mut self, connection: &Connection) {
        self.due = None;
        let reach = match Reach::of(connection) {
            Ok(reach) if reach == self.written => return,
            Ok(reach) => reach,
            Err(error) => return tracing::warn!(%error, "how far the archive is could not be read"),
        };
        match reach.write(&self.file) {
            Ok(()) => self.written = reach,
            Err(error) => tracing::warn!(%error, "how far the archive is could not be written beside it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_rubbish_is_none() {
        let path = std::env::temp_dir().join(format!("tidegate-mark-{}", std::process::id()));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).expect("a file");
        assert_eq!(Reach::read(&file).expect("read"), Reach::default());
        let late = Reach { epoch: u32::MAX, row: i64::MAX };
        for reach in [late, Reach { epoch: 7, row: 12 }] {
            reach.write(&file).expect("written");
            assert_eq!(Reach::read(&file).expect("read"), reach);
        }
        for rubbish in [&b"\xff\xfe 12 13, and so on, at length and without any sense whatever"[..], b"twelve 13 "] {
            file.set_len(0).expect("cut");
            (&file).seek(SeekFrom::Start(0)).expect("to the start");
            (&file).write_all(rubbish).expect("written");
            assert_eq!(Reach::read(&file).expect("read"), Reach::default());
        }
        std::fs::remove_file(path).expect("removed");
    }
}
