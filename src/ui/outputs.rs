//! Files that a run writes besides stdout and stderr. They are opened before anything else starts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;

use super::failed::{FailedList, reason};
use super::log::Log;
use crate::config::Report;

/// The log and the list of what failed, if they are wanted.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    log: Option<Log>,
    failed: Option<FailedList>,
}

impl Outputs {
    /// Opens the files.
    ///
    /// # Errors
    /// If one cannot be written to.
    pub(crate) fn open(report: &Report) -> Result<Self> {
        Ok(Self {
            log: report.log_file.as_deref().map(Log::open).transpose()?,
            failed: report
                .failed_to
                .as_deref()
                .map(FailedList::open)
                .transpose()?,
        })
    }

    /// Returns their descriptors.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let log = self.log.iter().map(AsFd::as_fd);
        log.chain(self.failed.iter().map(AsFd::as_fd)).collect()
    }

    /// Appends the error that keeps the run from starting to the log.
    pub(crate) fn log_fatal(&mut self, error: &anyhow::Error) {
        // The caller prints it in any case.
        let _ = self.log(None, &format!("{error:#}"));
    }

    pub(super) fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// Appends a line to the log. Closes the log if that fails, and returns what to say then.
    pub(super) fn log(&mut self, worker: Option<&str>, line: &str) -> Option<String> {
        let error = self.log.as_ref()?.write(worker, line).err()?;
        let log = self.log.take()?;
        Some(lost(log.path(), error, "continuing without it"))
    }

    /// Adds a path to the list. Gives the list up if that fails, and returns what to say then.
    pub(super) fn add_failed(&mut self, path: impl FnOnce() -> Vec<u8>) -> Option<String> {
        let error = self.failed.as_mut()?.add(&path()).err()?;
        let list = self.failed.take()?;
        Some(lost(list.path(), error, "the list is not replaced"))
    }

    /// Puts the list in its place. Returns what to say if that fails.
    pub(super) fn finish_failed(&mut self) -> Option<String> {
        let list = self.failed.take()?;
        let path = list.path().to_owned();
        let error = list.finish().err()?;
        Some(lost(&path, error, "the list is not replaced"))
    }
}

fn lost(path: &str, error: io::Error, consequence: &str) -> String {
    format!("{path}: write: {}; {consequence}", reason(error))
}
