//! Files that are synced many at a time with `--fsync` (`copy/batched.rs`), seen from a worker.
//!
//! A worker reports its unsynced files, and keeps them until its job ends. Then they are the
//! parent's. If they are very many before that, the worker syncs and commits them itself. Otherwise
//! a directory with a million files would fill the parent's memory.

use super::{ReportSink, Worker};
use crate::copy::Copier;
use crate::copy::dir::DirPair;
use crate::fs::path::Kind;
use crate::protocol::error::CopyError;
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{Job, JobProgress};

/// From this many files or bytes in one job on, the worker syncs them itself.
const MOST_FILES: usize = 4096;
const MOST_BYTES: u64 = 256 << 20;

impl Worker {
    /// Notes a file that must be synced. It is counted when it is committed.
    pub(super) fn note_unsynced(&mut self, file: Unsynced) {
        self.size += size_of::<Unsynced>() + file.name.as_bytes().len();
        self.current.unsynced_bytes += file.stat.size;
        self.current.unsynced.push(file.clone());
        self.current.update.unsynced.push(file);
    }

    /// Returns true if the parent does not know the last temporary name yet.
    pub(super) fn has_unreported_temp(&self) -> bool {
        let last = self.current.update.unsynced.last();
        last.is_some_and(|file| file.temp.is_some())
    }

    /// Syncs and commits the job's files if they are very many.
    pub(super) fn sync_own_if_many(&mut self, dir: &mut DirPair, job: &Job) {
        let (files, bytes) = (self.current.unsynced.len(), self.current.unsynced_bytes);
        if files < MOST_FILES && bytes < MOST_BYTES {
            return;
        }
        self.current.unsynced_bytes = 0;
        let synced = self.while_syncing(|copier| copier.sync_own(dir));
        match synced {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                self.context.scoreboard.sync_alone();
                self.current.unsynced.clear();
                self.current.update.sync_error = Some(error);
                return;
            }
        }
        let files = std::mem::take(&mut self.current.unsynced);
        for (at, file) in files.iter().enumerate() {
            if self.should_end() {
                self.current.unsynced.extend_from_slice(&files[at..]);
                break;
            }
            self.commit_file(dir, job, file);
            self.current.update.settled_unsynced += 1;
        }
    }

    /// Shows in the slot that this worker waits for the disk as long as `sync` takes.
    fn while_syncing<T>(&mut self, sync: impl FnOnce(&Copier) -> T) -> T {
        self.slot.begin_dir();
        self.slot.set_syncing(true);
        let result = sync(&self.copier);
        self.slot.set_syncing(false);
        result
    }

    fn commit_file(&mut self, dir: &mut DirPair, job: &Job, file: &Unsynced) {
        let from = file.name.to_c_string();
        let target = &self.context.targets.list[job.target as usize];
        let to = target.name_at_destination(&from);
        self.slot.begin_entry(file.name.as_bytes());
        self.copier.take_issues();
        let result = self.copier.commit_synced(dir, &from, to, file);
        let result = result.map_err(|error| {
            // This removes the incomplete file. If it fails too, nothing else can be done.
            let _ = self.copier.discard_unsynced(dir, to, file);
            self.copier.explain_name(dir, to, error)
        });
        self.conclude(Kind::File, &from, result);
    }

    /// Syncs everything on the device of a target.
    pub(super) fn run_sync(&mut self, job: &Job, root: usize) -> Result<(), CopyError> {
        self.while_syncing(|copier| copier.sync_device(job.target as usize, root))
    }

    /// Commits files that are on disk.
    pub(super) fn run_commit_synced(
        &mut self,
        job: &Job,
        files: &[Unsynced],
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let mut dir = self.open(job)?;
        let mut settled = 0;
        for file in files {
            if self.should_end() {
                break;
            }
            self.commit_file(&mut dir, job, file);
            settled += 1;
            self.after_entry(|| JobProgress::Settled(settled), sink);
        }
        // If the run stops, the parent removes the rest.
        self.current.update.progress = JobProgress::Settled(settled);
        Ok(())
    }

    /// Removes files that could not be synced.
    pub(super) fn run_discard_unsynced(
        &mut self,
        job: &Job,
        files: &[Unsynced],
    ) -> Result<(), CopyError> {
        let dir = self.open(job)?;
        for file in files {
            let from = file.name.to_c_string();
            let target = &self.context.targets.list[job.target as usize];
            self.slot.begin_entry(file.name.as_bytes());
            let to = target.name_at_destination(&from);
            self.copier.discard_unsynced(&dir, to, file)?;
            self.slot.end_entry();
        }
        Ok(())
    }
}
