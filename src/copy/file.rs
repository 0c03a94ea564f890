//! Copies regular files.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::content::Files;
use super::dir::DirPair;
use super::flags::Unsealed;
use super::handle::{Handle, Subject};
use super::metadata::{self, InitialMeta, SourceFile, Wanted};
use super::temp::Unfinished;
use super::times::times;
use super::{Attempt, Copier, Entry, EntryResult, file_type};
use crate::fs::devices;
use crate::fs::path::Kind;
use crate::fs::proc::magic_link;
use crate::fs::stat::{FileId, FileStat};
use crate::fs::sys;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::scoreboard::WriteTarget;

/// Seconds subtracted from the mtime of a file that grew while it was copied. So the next run
/// replaces the copy, whatever the source's time is by then. One second would be too little on FAT.
const GROWN_IS_OLDER: i64 = 2;

/// An unfinished file at the destination, open.
pub(super) struct NewFile<'a> {
    pub(super) fd: OwnedFd,
    pub(super) unfinished: Unfinished<'a>,
    pub(super) meta: InitialMeta,
}

/// How to finish a file whose contents are complete.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// The file's name at the source.
    pub(super) from: &'a CStr,
    /// The file's name at the destination.
    pub(super) to: &'a CStr,
    pub(super) decision: Decision,
    pub(super) attempt: Attempt,
}

/// The result of finishing a file's contents.
struct Finished {
    /// The source has grown since it was opened.
    has_grown: bool,
    are_times_set: bool,
    /// The file's ID, if it will be synced in a batch.
    unsynced: Option<FileId>,
}

impl Copier {
    /// Copies a regular file, or begins one that will be copied in chunks.
    ///
    /// A small new file takes nine system calls. Source: openat, fstat, flistxattr, later fstat
    /// again. New file: openat, copy_file_range, futimens. Both: close.
    pub(super) fn copy_file(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        let decision = match self.decide(dir, entry)? {
            ControlFlow::Continue(decision) => decision,
            ControlFlow::Break(result) => return Ok(result),
        };
        let fd = match self.open_source(dir, entry.from) {
            // A link has taken its place since the directory was listed.
            Err(Errno::LOOP) if !self.context.config.dereference => {
                return self.copy_special(dir, entry);
            }
            result => result.at(Step::Open)?,
        };
        let stat = FileStat::of(&fs::fstat(&fd).at(Step::Look)?);
        let stat = self.context.config.changes.apply(stat);
        if file_type(&stat) != FileType::RegularFile {
            // It was one when the directory was listed.
            drop(fd);
            return self.copy_special(dir, entry);
        }
        if self.should_report(&stat, entry.hard_links) {
            return Ok(EntryResult::HardLink(stat));
        }
        self.note_size(stat.size);
        let mut source = self.source_file(dir, fd, stat);
        if self.is_chunkable(&source.stat)
            && !devices::is_private(dir.devices().destination)
            && let Some(result) = self.begin_chunked(dir, entry, &mut source, decision)?
        {
            return Ok(result);
        }
        let mut new = match self.open_in_place(dir, entry.to, &source, decision)? {
            Some(existing) => existing,
            None => {
                let target = self.write_target(decision);
                let mode = self.initial_mode(dir, &source, decision);
                self.create_file(dir, entry.to, target, mode)?
            }
        };
        self.set_storage_flags(new.fd.as_fd(), source.flags);
        let files = Files::new(&source.fd, &new.fd, dir);
        let copied = self.copy_contents(dir, files, &source.stat, new.unfinished.name());
        if copied.is_err() {
            self.move_aside(&mut new.unfinished, new.fd.as_fd());
        }
        copied?;
        let finish = Finish {
            from: entry.from,
            to: entry.to,
            decision,
            attempt: entry.attempt,
        };
        self.finish_file(dir, &mut source, new, finish)
    }

    /// Creates a file at the destination, and records the owner and ACL that it got.
    pub(super) fn create_file<'a>(
        &mut self,
        dir: &mut DirPair,
        to: &'a CStr,
        target: WriteTarget,
        mode: u32,
    ) -> Result<NewFile<'a>, CopyError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, unfinished) = self.create(dir, to, target, |dir, name| {
            fs::openat(dir, name, flags, Mode::from_raw_mode(mode)).at(Step::Create)
        })?;
        dir.observe_defaults(fd.as_fd())
            .at(Step::LookAtDestination)?;
        let meta = InitialMeta {
            owner: dir.default_owner(),
            // An inherited ACL changes the mode.
            mode: (!dir.has_default_acl()).then_some(mode),
        };
        Ok(NewFile {
            fd,
            unfinished,
            meta,
        })
    }

    /// Checks that the source has not changed, applies the metadata, closes the file and commits
    /// it. A file that is synced in a batch is not committed, and has no times yet.
    ///
    /// If the source has only grown at the last attempt too, such as a log, the copy keeps the
    /// length at opening. That is still an error.
    pub(super) fn finish_file(
        &mut self,
        dir: &DirPair,
        source: &mut SourceFile,
        mut new: NewFile<'_>,
        finish: Finish<'_>,
    ) -> Result<EntryResult, CopyError> {
        let is_batched = self.is_batched(dir) && !Self::is_sealed(source.flags);
        let finished = self.finish_contents(dir, source, &new, finish, is_batched);
        if finished.is_err() {
            self.move_aside(&mut new.unfinished, new.fd.as_fd());
        }
        let finished = finished?;
        if let Some(id) = finished.unsynced {
            return self.leave_unsynced(source, new, id, finish);
        }
        let sealed = Self::is_sealed(source.flags).then(|| new.fd.try_clone());
        sys::close(new.fd).at(Step::Close)?;
        if finished.are_times_set {
            self.recheck_times(dir, &new.unfinished, &source.stat)?;
        }
        // A file that an earlier run has sealed refuses to be replaced.
        let replaced = (sealed.is_some() && finish.decision != Decision::Create)
            .then(|| Unsealed::new(dir.destination().ok()?, finish.to))
            .flatten();
        self.commit_with_backup(dir, new.unfinished, finish.to, finish.decision)?;
        if let Some(replaced) = replaced {
            replaced.keep();
        }
        match sealed {
            Some(Ok(file)) => self.seal(file.as_fd(), source.flags),
            Some(Err(_)) => return Err(CopyError::new(Step::SetFlags, Errno::MFILE)),
            None => {}
        }
        if finished.has_grown {
            return Err(CopyError::new(Step::Read, Reason::Grown(source.stat.size)));
        }
        Ok(EntryResult::Done(finish.decision))
    }

    fn finish_contents(
        &mut self,
        dir: &DirPair,
        source: &mut SourceFile,
        new: &NewFile<'_>,
        finish: Finish<'_>,
        is_batched: bool,
    ) -> Result<Finished, CopyError> {
        let now = FileStat::of(&fs::fstat(&source.fd).at(Step::Look)?);
        let has_changed = !source.stat.has_same_contents(&now);
        let has_grown = now.size > source.stat.size;
        if has_changed && !(has_grown && finish.attempt == Attempt::Last) {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        if has_changed {
            // If extents were shared, the copy may hold the later, longer contents.
            fs::ftruncate(&new.fd, source.stat.size).at(Step::Write)?;
            source.stat.mtime.0 -= GROWN_IS_OLDER;
        }
        let subject = Subject {
            handle: Handle::Open(new.fd.as_fd()),
            device: dir.devices().destination,
            kind: Kind::File,
        };
        let replaced = self.open_replaced(dir, new.unfinished.name(), finish.to, &source.stat);
        // A file that has changed fails, so it is not left to a batch.
        let is_batched = is_batched && !has_changed;
        let wanted = Wanted {
            source: &Handle::Open(source.fd.as_fd()),
            stat: &source.stat,
            attributes: &source.attributes,
            initial: new.meta,
            replaced: replaced.as_ref(),
            set_times: !is_batched,
            verify: false,
        };
        let applied = self.apply(&subject, &wanted);
        self.set_unsealed_flags(new.fd.as_fd(), source.flags);
        if has_changed && !self.context.config.preserve.timestamps.is_wanted() {
            let _ = fs::futimens(&new.fd, &times(&source.stat));
        }
        let mut unsynced = None;
        if is_batched {
            unsynced = Some(self.mark_unsynced(new, &source.stat, finish.to)?);
        } else if self.context.config.fsync {
            fs::fsync(&new.fd).at(Step::Sync)?;
        }
        Ok(Finished {
            unsynced,
            has_grown: has_changed,
            are_times_set: applied.are_times_set,
        })
    }

    pub(super) fn open_source(&self, dir: &DirPair, from: &CStr) -> rustix::io::Result<OwnedFd> {
        // NONBLOCK: a FIFO may have taken the file's place, and opening that must not wait.
        let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if !self.context.config.dereference {
            flags |= OFlags::NOFOLLOW;
        }
        let open = |flags| fs::openat(dir.source(), from, flags, Mode::empty());
        if self.context.identity.is_root {
            // This keeps the source's access times. Other users may use it only for their own
            // files. For every other file the call fails and must be repeated.
            match open(flags | OFlags::NOATIME) {
                Err(Errno::PERM | Errno::AGAIN) => {}
                result => return result,
            }
        }
        match open(flags) {
            // A process, perhaps a file server, holds a lease on it (fcntl(2)). Opening it without
            // NONBLOCK waits until the lease is given up. That is safe for a regular file only.
            Err(Errno::AGAIN) => {
                let entry = open(flags | OFlags::PATH)?;
                let stat = fs::fstat(&entry)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Errno::AGAIN);
                }
                let waiting = flags.difference(OFlags::NONBLOCK | OFlags::NOFOLLOW);
                fs::open(magic_link(&entry), waiting, Mode::empty())
            }
            result => result,
        }
    }

    /// Returns the mode to create a file with. That is its final mode if nothing has to happen
    /// before other users may access the file, which saves a chmod(2). Otherwise only the owner
    /// gets access.
    pub(super) fn initial_mode(
        &self,
        dir: &DirPair,
        source: &SourceFile,
        decision: Decision,
    ) -> u32 {
        let config = &self.context.config;
        if !config.preserve.mode.is_wanted() {
            // The umask or a default ACL cuts it, as with cp -r. A file that replaces another one
            // gets its mode in the end.
            return match decision {
                Decision::Create | Decision::ReplaceOtherKind => source.stat.mode & 0o777,
                _ => 0o600,
            };
        }
        let Some(owner) = dir.default_owner() else {
            return 0o600;
        };
        let stat = &source.stat;
        let has_final_owner = !config.preserve.ownership.is_wanted()
            || owner == metadata::attainable_owner(&self.context.identity, Some(owner), stat);
        // An inherited ACL may grant other users whatever the group bits allow.
        let is_final = has_final_owner
            && source.attributes.is_empty()
            && stat.mode & 0o7000 == 0
            && !dir.has_default_acl();
        if is_final { stat.mode & 0o777 } else { 0o600 }
    }
}
