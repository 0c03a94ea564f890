//! Copies large files in chunks. One worker creates the file, several copy its chunks, and one
//! commits or discards it. Until then the file has a temporary name.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::content::{self, CopyMethod, Files};
use super::dir::{DirPair, Owner};
use super::file::{Finish, NewFile};
use super::metadata::{InitialMeta, SourceFile};
use super::temp::Unfinished;
use super::{Attempt, Copier, Entry, EntryResult, is_name_taken};
use crate::config::{Reflink, Sparse};
use crate::fs::devices;
use crate::fs::path::{Kind, Name};
use crate::fs::stat::{FileId, FileStat};
use crate::fs::sys;
use crate::protocol::entry::{Chunk, ChunkedFile, Decision, HardLinks};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::scoreboard::WriteTarget;

/// From this size on, a file is copied in chunks. A smaller one is finished by one worker before
/// its chunks would be handed out (`benches/README.md`).
const MIN_SIZE: u64 = 32 << 20;

impl Copier {
    /// Returns true for a file that is large enough to be copied in chunks, if options allow it.
    pub(super) fn is_chunkable(&self, stat: &FileStat) -> bool {
        let config = &self.context.config;
        stat.size >= MIN_SIZE
            && stat.allocated >= MIN_SIZE
            && config.jobs != Some(1)
            && config.sparse == Sparse::Auto
            && config.reflink != Reflink::Always
            && !config.inplace
            && !self.is_undivided
    }

    /// Creates a file to be copied in chunks, or shares the source's extents if that is possible.
    /// Returns `None` if the file has to be copied in one go.
    pub(super) fn begin_chunked(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        source: &mut SourceFile,
        decision: Decision,
    ) -> Result<Option<EntryResult>, CopyError> {
        // The space of all these files is reserved, and a run that stops has to remove them all.
        // So there must not be too many at a time.
        let target = WriteTarget::Chunked(self.next_temp_number());
        // Set before the place is reserved, so that the parent frees the place if this worker
        // crashes.
        self.slot.set_writing(target);
        if !self.context.scoreboard.begin_chunked() {
            self.slot.set_writing(WriteTarget::None);
            return Ok(None);
        }
        let result = self.create_chunked(dir, entry, source, decision, target);
        if !matches!(result, Ok(Some(EntryResult::Chunked(_)))) {
            self.context.scoreboard.end_chunked();
        }
        result
    }

    fn create_chunked(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        source: &mut SourceFile,
        decision: Decision,
        target: WriteTarget,
    ) -> Result<Option<EntryResult>, CopyError> {
        // Other workers open it again for each chunk, and the source may change meanwhile. Until
        // it is complete, only the owner gets access.
        let mode = if self.context.config.preserve.mode.is_wanted() {
            0o600
        } else {
            self.initial_mode(dir, source, decision)
        };
        let new = self.create_file(dir, entry.to, target, mode)?;
        self.set_storage_flags(new.fd.as_fd(), source.flags);
        if self.clone_whole(Files::new(&source.fd, &new.fd, dir))? {
            let finish = Finish {
                to: entry.to,
                decision,
                attempt: entry.attempt,
            };
            self.finish_file(dir, source, new, finish)?;
            return Ok(Some(EntryResult::Done(decision)));
        }
        if !content::takes_chunks(&new.fd)? || !content::preallocate(&new.fd, &source.stat)? {
            // It is created again under its own name, and written from front to back.
            return Ok(None);
        }
        let stat = fs::fstat(&new.fd).at(Step::LookAtDestination)?;
        let file = ChunkedFile {
            name: Name::new(entry.from.to_bytes()),
            temp: Name::new(new.unfinished.name().to_bytes()),
            id: FileId::of(&stat),
            stat: Box::new(source.stat),
            decision,
        };
        new.unfinished.hand_over();
        Ok(Some(EntryResult::Chunked(file)))
    }

    /// Copies one chunk. Fails with [`Reason::Changed`] if the source has changed. Then the file
    /// must be committed with `changed`.
    pub(crate) fn copy_chunk(
        &mut self,
        dir: &mut DirPair,
        from: &CStr,
        file: &ChunkedFile,
        chunk: Chunk,
    ) -> Result<(), CopyError> {
        let stat = &file.stat;
        let source = self.open_source(dir, from).at(Step::Open)?;
        let now = FileStat::of(&fs::fstat(&source).at(Step::Look)?);
        // On many network file systems inode numbers change. So another inode alone is no change.
        if now.id != stat.id && !now.has_same_contents(stat) {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        let new = open_chunked(dir, file)?;
        let range = chunk.offset..chunk.offset + chunk.length;
        let files = Files::new(&source, &new, dir);
        let copied = self.copy_range(files, stat, range, CopyMethod::for_chunks(&new))?;
        if copied < chunk.length {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        if devices::is_shared() {
            // A machine may write late, and with its own clock. The times are set after this.
            fs::fdatasync(&new).at(Step::Sync)?;
        }
        sys::close(new).at(Step::Close)
    }

    /// Finishes a file whose chunks are all there. With `changed`, or if the source has changed by
    /// now, this worker copies the whole file again. If this fails, the file is removed.
    pub(crate) fn commit_chunked(
        &mut self,
        dir: &mut DirPair,
        from: &CStr,
        to: &CStr,
        file: &ChunkedFile,
        changed: bool,
    ) -> Result<EntryResult, CopyError> {
        let unfinished = Unfinished::adopt(dir, &file.temp)?;
        let source = self.open_source(dir, from).at(Step::Open)?;
        let now = FileStat::of(&fs::fstat(&source).at(Step::Look)?);
        let has_changed = changed || !now.has_same_contents(&file.stat);
        let stat = if has_changed { now } else { *file.stat };
        let fd = match open_chunked(dir, file) {
            Ok(fd) => fd,
            Err(error) if error.reason == Errno::NOENT.into() => {
                unfinished.keep();
                return self.find_committed(dir, to, &stat, error);
            }
            Err(error) => {
                if error.reason == Reason::Replaced {
                    // Another process's file has the name now.
                    unfinished.keep();
                }
                return Err(error);
            }
        };
        let mut source = self.source_file(dir, source, stat);
        if has_changed {
            fs::ftruncate(&fd, 0).at(Step::Write)?;
            self.copy_whole(Files::new(&source.fd, &fd, dir), &stat)?;
        } else {
            // Removes the extra byte of an incomplete file (`content::UNFINISHED`).
            fs::ftruncate(&fd, stat.size).at(Step::Write)?;
        }
        dir.observe_defaults(fd.as_fd())
            .at(Step::LookAtDestination)?;
        let old = fs::fstat(&fd).at(Step::LookAtDestination)?;
        let meta = InitialMeta {
            owner: Some(Owner::of(&FileStat::of(&old))),
            mode: (!dir.has_default_acl()).then_some(old.st_mode & 0o7777),
        };
        let new = NewFile {
            fd,
            unfinished,
            meta,
        };
        let finish = Finish {
            to,
            decision: file.decision,
            attempt: Attempt::Last,
        };
        match self.finish_file(dir, &mut source, new, finish) {
            Ok(()) => Ok(EntryResult::Done(Decision::Create)),
            Err(error) if is_name_taken(&error) => {
                // Another run has made the file meanwhile, or the destination takes its name for
                // that of another file. Look at what is there.
                dir.expect_others();
                self.copy_undivided(
                    dir,
                    Entry {
                        kind: Kind::File,
                        from,
                        to,
                        hard_links: HardLinks::Copy,
                        suspect: false,
                        attempt: Attempt::First,
                        stream: None,
                    },
                )
            }
            Err(error) => Err(error),
        }
    }

    /// Copies an entry without dividing it into chunks.
    pub(super) fn copy_undivided(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        self.is_undivided = true;
        let result = self.copy_entry(dir, entry);
        self.is_undivided = false;
        result
    }

    /// Handles a commit whose temporary file is gone. A worker may have renamed it into place and
    /// crashed before it could report that. The entry is done then.
    fn find_committed(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
        stat: &FileStat,
        error: CopyError,
    ) -> Result<EntryResult, CopyError> {
        let found = dir.stat_destination(to).at(Step::LookAtDestination)?;
        match found.map(|found| FileStat::of(&found)) {
            Some(found) if self.is_copy(dir, &found, stat) => {
                Ok(EntryResult::Done(Decision::Create))
            }
            _ => Err(error),
        }
    }

    /// Removes a chunked file that cannot be completed.
    pub(crate) fn discard_chunked(
        &mut self,
        dir: &mut DirPair,
        file: &ChunkedFile,
    ) -> Result<(), CopyError> {
        let unfinished = Unfinished::adopt(dir, &file.temp)?;
        if unfinished.is_replaced(file.id) {
            // The name stands for another process's file now.
            unfinished.keep();
        }
        Ok(())
    }
}

/// Opens a chunked file for writing.
fn open_chunked(dir: &DirPair, file: &ChunkedFile) -> Result<OwnedFd, CopyError> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let name = file.temp.as_bytes();
    let fd = fs::openat(dir.destination()?, name, flags, Mode::empty()).at(Step::Write)?;
    // Another process may have given the name to another file, which must not be written to.
    if FileId::of(&fs::fstat(&fd).at(Step::LookAtDestination)?) != file.id {
        return Err(CopyError::new(Step::Write, Reason::Replaced));
    }
    Ok(fd)
}
