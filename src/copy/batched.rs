//! Syncs many files at once (`--fsync`): fsync(2) for each of them takes twenty times as long as
//! copying them.
//!
//! A file is written, gets all metadata but its times, and is left *unsynced*. A new small file has
//! its own name already, and a time older than its source's. Any other file has a temporary name.
//! Once there are enough of them, one syncfs(2) writes all to disk. Only then do they get their
//! times and names. So after a power cut no file without its contents looks complete, and none has
//! replaced another file. Times and names of the last batch, links and directories are written by
//! one more syncfs(2) at the end of the run.
//!
//! `scheduler/batched.rs` collects the files of all workers and asks for the sync. A worker with
//! very many files in one job syncs and commits them itself.
//!
//! **Errors.** A descriptor reports each failed write of its file system once, since it was opened
//! (`f_sb_err` in Linux). So each worker that syncs, and the parent's batches, have descriptors of
//! their own, opened before the first file is written. So no error is lost, or reported for another
//! sync. The error does not say which file failed, so all files of the batch fail. From then on
//! each file is synced alone.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, Timestamps};
use rustix::io::Errno;

use super::dir::DirPair;
use super::file::{Finish, NewFile};
use super::handle::{Handle, Subject};
use super::metadata::SourceFile;
use super::temp::Unfinished;
use super::times::times;
use super::{Copier, Entry, EntryResult, is_name_taken};
use crate::fs::open::{DIRECTORY, ENTRY};
use crate::fs::path::{Kind, Name};
use crate::fs::stat::{FileId, FileStat};
use crate::fs::sys;
use crate::protocol::error::{At, CopyError, Step};
use crate::protocol::unsynced::Unsynced;

/// Seconds subtracted from the mtime of an unsynced file. One second would be too little on FAT.
const UNSYNCED_IS_OLDER: i64 = 2;

impl Copier {
    /// Returns true if files in this directory are synced in batches.
    pub(crate) fn is_batched(&self, dir: &DirPair) -> bool {
        // On another device, mounted below the destination, each file is synced alone.
        let batch = self.context.targets.list[dir.target].batch;
        batch.is_some_and(|batch| batch.device == dir.devices().destination)
            && !self.is_synced_alone
            && !self.context.scoreboard.must_sync_alone()
    }

    /// Gives an unsynced file a time that differs from its source's. Returns the file's ID.
    pub(super) fn mark_unsynced(
        &self,
        new: &NewFile<'_>,
        stat: &FileStat,
        to: &CStr,
    ) -> Result<FileId, CopyError> {
        let has_own_name = new.unfinished.name() == to;
        if has_own_name && self.context.config.preserve.timestamps.is_wanted() {
            let mut stat = *stat;
            stat.mtime.0 = stat.mtime.0.saturating_sub(UNSYNCED_IS_OLDER);
            let older: Timestamps = times(&stat);
            // If this fails, its times cannot be set at all, and the commit reports that.
            let _ = fs::futimens(&new.fd, &older);
        }
        let found = fs::fstat(&new.fd).at(Step::LookAtDestination)?;
        Ok(FileId::of(&found))
    }

    /// Closes a file, and leaves its sync to a batch.
    pub(super) fn leave_unsynced(
        &mut self,
        source: &SourceFile,
        new: NewFile<'_>,
        id: FileId,
        finish: Finish<'_>,
    ) -> Result<EntryResult, CopyError> {
        sys::close(new.fd).at(Step::Close)?;
        let name = new.unfinished.name();
        let temp = (name != finish.to).then(|| Name::new(name.to_bytes()));
        if temp.is_some() {
            new.unfinished.hand_over();
        } else {
            new.unfinished.keep();
        }
        let issues = self.take_issues();
        Ok(EntryResult::Unsynced(Unsynced {
            name: Name::new(finish.from.to_bytes()),
            temp,
            id,
            stat: Box::new(source.stat),
            decision: finish.decision,
            failures: issues.failures,
            refusals: issues.refusals,
        }))
    }

    /// Opens a descriptor to sync by, before the first file is written.
    pub(crate) fn prepare_sync(&mut self, target: usize) {
        let target = &self.context.targets.list[target];
        let Some((batch, destination)) = target.batch.zip(target.destination.as_ref()) else {
            return;
        };
        if self
            .sync_roots
            .iter()
            .all(|(known, _)| *known != batch.device)
            && let Ok(root) = fs::openat(destination, c".", DIRECTORY, Mode::empty())
        {
            self.sync_roots.push((batch.device, root));
        }
    }

    /// Syncs the files that this worker has written, and everything else on their device. Returns
    /// false if it has no descriptor for that.
    pub(crate) fn sync_own(&self, dir: &DirPair) -> Result<bool, CopyError> {
        let device = dir.devices().destination;
        let root = self.sync_roots.iter().find(|(known, _)| *known == device);
        match root {
            Some((_, root)) => sync(root).map(|()| true),
            None => Ok(false),
        }
    }

    /// Syncs all files on the device of a target. One worker does that at a time.
    pub(crate) fn sync_device(&self, target: usize, root: usize) -> Result<(), CopyError> {
        match self.context.targets.list[target].sync_roots.get(root) {
            Some(root) => sync(root),
            None => Err(CopyError::new(Step::Sync, Errno::BADF)),
        }
    }

    /// Gives a file that is on disk its times and its name.
    pub(crate) fn commit_synced(
        &mut self,
        dir: &mut DirPair,
        from: &CStr,
        to: &CStr,
        file: &Unsynced,
    ) -> Result<EntryResult, CopyError> {
        let temp = file.temp.as_ref().map(Name::to_c_string);
        let name = temp.as_deref().unwrap_or(to);
        let destination = dir.destination()?;
        let opened = match fs::openat(destination, name, ENTRY, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOENT) if temp.is_some() => {
                // A worker has renamed it, and crashed before it could report that.
                let error = CopyError::new(Step::Rename, Errno::NOENT);
                self.restore_issues(file);
                return self.find_committed(dir, to, &file.stat, error);
            }
            Err(Errno::NOENT) => return self.copy_alone(dir, from, to),
            Err(errno) => return Err(CopyError::new(Step::LookAtDestination, errno)),
        };
        let found = fs::fstat(&opened).at(Step::LookAtDestination)?;
        if FileId::of(&found) != file.id {
            // Another run has put its own copy there, which may be incomplete.
            return self.copy_alone(dir, from, to);
        }
        let subject = Subject {
            handle: Handle::path(&opened, destination, name),
            device: dir.devices().destination,
            kind: Kind::File,
        };
        self.restore_issues(file);
        self.apply_times(&subject, &file.stat);
        let committed = match &file.temp {
            Some(temp) => Unfinished::adopt(dir, temp)?.commit(to, file.decision),
            None => Ok(()),
        };
        match committed {
            Ok(()) => Ok(EntryResult::Done(file.decision)),
            Err(error) if is_name_taken(&error) => self.copy_alone(dir, from, to),
            Err(error) => Err(error),
        }
    }

    /// Removes a file that could not be synced.
    pub(crate) fn discard_unsynced(
        &mut self,
        dir: &DirPair,
        to: &CStr,
        file: &Unsynced,
    ) -> Result<(), CopyError> {
        let destination = dir.destination()?;
        let temp = file.temp.as_ref().map(Name::to_c_string);
        let name = temp.as_deref().unwrap_or(to);
        match fs::statat(destination, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileId::of(&found) == file.id => {
                fs::unlinkat(destination, name, AtFlags::empty()).at(Step::Remove)
            }
            // The name is free, or stands for another process's file.
            _ => Ok(()),
        }
    }

    /// Copies an entry whose name has been given to another one meanwhile, and syncs it at once.
    fn copy_alone(
        &mut self,
        dir: &mut DirPair,
        from: &CStr,
        to: &CStr,
    ) -> Result<EntryResult, CopyError> {
        dir.expect_others();
        let entry = Entry::file(from, to);
        let before = std::mem::replace(&mut self.is_synced_alone, true);
        let result = self.copy_undivided(dir, entry);
        self.is_synced_alone = before;
        result
    }

    fn restore_issues(&mut self, file: &Unsynced) {
        self.issues.failures.clone_from(&file.failures);
        self.issues.refusals.clone_from(&file.refusals);
    }
}

fn sync(root: &OwnedFd) -> Result<(), CopyError> {
    fs::syncfs(root.as_fd()).at(Step::Sync)
}
