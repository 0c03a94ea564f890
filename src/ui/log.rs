//! The file of `--log-file`: each message with time and worker, appended.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use jiff::Zoned;
use rustix::fs::{self, Mode, OFlags};

use crate::protocol::error::Reason;
use crate::quote::quote;

/// An open log.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    /// The path for messages.
    path: String,
    process: u32,
}

impl Log {
    /// Opens a file to append to, and makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = quote(path.as_os_str().as_encoded_bytes());
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let file = fs::open(path, flags | OFlags::NOCTTY, Mode::from_raw_mode(0o666))
            .map_err(Reason::from)
            .with_context(|| format!("{shown}: open log"))?;
        Ok(Self {
            file: file.into(),
            path: shown,
            process: std::process::id(),
        })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Appends one line with one write, so that lines of two runs do not mix.
    pub(super) fn write(&self, worker: Option<&str>, text: &str) -> io::Result<()> {
        let time = Zoned::now().strftime("%Y-%m-%dT%H:%M:%S.%3f%:z");
        let worker = worker
            .map(|worker| format!("{worker} "))
            .unwrap_or_default();
        let line = format!("{time} pcopy[{}]: {worker}{text}\n", self.process);
        (&self.file).write_all(line.as_bytes())
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_with_time_and_worker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let log = Log::open(&path).unwrap();
        log.write(Some("[thread 3]"), "a: open: denied").unwrap();
        log.write(None, "done").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let process = std::process::id();
        let end = format!(" pcopy[{process}]: [thread 3] a: open: denied");
        assert_eq!(lines[0], "before");
        let time = lines[1].strip_suffix(&end).unwrap();
        // RFC 3339, as the crate that wrote it reads it.
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        assert_eq!(time.len(), "2026-11-27T01:02:03.456+01:00".len());
        assert!(lines[2].ends_with(&format!(" pcopy[{process}]: done")));
    }
}
