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
use super::partial::Resumed;
use super::temp::Unfinished;
use super::{Attempt, Copier, Entry, EntryResult, is_name_taken};
use crate::config::{Reflink, Sparse};
use crate::fs::devices;
use crate::fs::path::Name;
use crate::fs::stat::{FileId, FileStat};
use crate::fs::sys;
use crate::protocol::entry::{Chunk, ChunkedFile, Decision};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::scoreboard::WriteTarget;

/// From this size on, a file is copied in chunks. A smaller one is finished by one worker before
/// its chunks would be handed out (`benches/README.md`).
const MIN_SIZE: u64 = 32 << 20;

impl Copier {
    /// Returns true for a file that is large enough to be divided into chunks.
    pub(super) fn is_divisible(&self, stat: &FileStat) -> bool {
        let config = &self.context.config;
        stat.size >= MIN_SIZE
            && stat.allocated >= MIN_SIZE
            && (config.jobs != Some(1) || config.contents.partial)
            && !self.is_undivided
    }

    /// Returns true if a file is large enough for chunks, and the options allow them.
    ///
    /// A checksum needs one reader that copies the file from front to back. Copying it in chunks
    /// and reading it again takes longer (SHA-256 reads 0.6 GB/s, and a copy is written with 3).
    /// With `--partial` it is read again.
    pub(super) fn is_chunkable(&self, stat: &FileStat) -> bool {
        let config = &self.context.config;
        self.is_divisible(stat)
            && config.sparse == Sparse::Auto
            && config.reflink != Reflink::Always
            && !config.inplace
            && (config.contents.manifest.is_none() || config.contents.partial)
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
        let is_partial = self.context.config.contents.partial;
        if is_partial
            && let Some(Resumed { id, temp }) = self.resume_partial(dir, entry.from, &source.stat)
        {
            return Ok(Some(EntryResult::Chunked(ChunkedFile {
                name: Name::new(entry.from.to_bytes()),
                temp: Some(temp),
                id,
                stat: Box::new(source.stat),
                decision,
                items: self.items.take(),
            })));
        }
        // Other workers open it again for each chunk, and the source may change meanwhile. Until
        // it is complete, only the owner gets access.
        let mode = if self.context.config.preserve.mode.is_wanted() {
            0o600
        } else {
            self.initial_mode(dir, source, decision)
        };
        let new = self.create_file(dir, entry.to, target, mode)?;
        self.set_storage_flags(new.fd.as_fd(), source.flags);
        if !self.context.config.contents.verify
            && self.clone_whole(Files::new(&source.fd, &new.fd, dir))?
        {
            let finish = Finish {
                from: entry.from,
                to: entry.to,
                decision,
                attempt: entry.attempt,
            };
            return self.finish_file(dir, source, new, finish).map(Some);
        }
        if !content::takes_chunks(&new.fd)? || !content::preallocate(&new.fd, &source.stat)? {
            // It is created again under its own name, and written from front to back.
            return Ok(None);
        }
        let stat = fs::fstat(&new.fd).at(Step::LookAtDestination)?;
        let temp = if is_partial {
            self.name_partial(dir, new.unfinished.name(), entry.from, &source.stat)?
        } else {
            Name::new(new.unfinished.name().to_bytes())
        };
        let file = ChunkedFile {
            name: Name::new(entry.from.to_bytes()),
            temp: Some(temp),
            id: FileId::of(&stat),
            stat: Box::new(source.stat),
            decision,
            items: self.items.take(),
        };
        new.unfinished.hand_over();
        Ok(Some(EntryResult::Chunked(file)))
    }

    /// Copies one chunk, or compares it. Fails with [`Reason::Changed`] if the source has changed,
    /// and with [`Reason::Differs`] if the chunk is not the same. Then the file must be committed with
    /// `changed`.
    pub(crate) fn copy_chunk(
        &mut self,
        dir: &mut DirPair,
        from: &CStr,
        file: &ChunkedFile,
        chunk: Chunk,
    ) -> Result<(), CopyError> {
        self.was_repeated = false;
        let Some(temp) = &file.temp else {
            return self.compare_chunk(dir, from, file, chunk);
        };
        let temp = temp.to_c_string();
        let stat = &file.stat;
        let source = self.open_source(dir, from).at(Step::Open)?;
        let now = FileStat::of(&fs::fstat(&source).at(Step::Look)?);
        // On many network file systems inode numbers change. So another inode alone is no change.
        if now.id != stat.id && !now.has_same_contents(stat) {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        let new = open_chunked(dir, file, &temp)?;
        let range = chunk.offset..chunk.offset + chunk.length;
        let files = Files::new(&source, &new, dir);
        if self.context.config.contents.partial {
            self.copy_segments(dir, files, file, &temp, chunk)?;
        } else {
            let method = CopyMethod::for_chunks(&new);
            self.copy_part(dir, files, stat, range, method, &temp)?;
        }
        if devices::is_shared() {
            // A machine may write late, and with its own clock. The times are set after this.
            fs::fdatasync(&new).at(Step::Sync)?;
        }
        sys::close(new).at(Step::Close)
    }

    /// Finishes a file whose chunks were all copied or compared. With `changed`, or if the source
    /// has changed by now, copies the whole file again. If this fails, the file is removed.
    pub(crate) fn commit_chunked(
        &mut self,
        dir: &mut DirPair,
        from: &CStr,
        to: &CStr,
        file: &ChunkedFile,
        changed: bool,
    ) -> Result<EntryResult, CopyError> {
        (self.checksum, self.was_repeated) = (None, false);
        let Some(temp) = &file.temp else {
            return self.commit_comparison(dir, from, to, file, changed);
        };
        let unfinished = Unfinished::adopt(dir, temp)?;
        let temp = temp.to_c_string();
        let source = self.open_source(dir, from).at(Step::Open)?;
        let now = FileStat::of(&fs::fstat(&source).at(Step::Look)?);
        let now = self.context.config.changes.apply(now);
        let has_changed = changed || !now.has_same_contents(&file.stat);
        let stat = if has_changed { now } else { *file.stat };
        let fd = match open_chunked(dir, file, &temp) {
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
        self.size = Some(stat.size);
        let mut source = self.source_file(dir, source, stat);
        if has_changed {
            self.copy_again(dir, Files::new(&source.fd, &fd, dir), &stat, &temp)?;
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
            from,
            to,
            decision: file.decision,
            attempt: Attempt::Last,
        };
        match self.finish_file(dir, &mut source, new, finish) {
            Ok(EntryResult::Done(_)) => {
                self.add_checksum(dir, to, Decision::Create)?;
                self.items = file.items;
                Ok(EntryResult::Done(file.decision))
            }
            Ok(unsynced) => Ok(unsynced),
            Err(error) if is_name_taken(&error) => {
                // Another run has made the file meanwhile, or the destination treats its name as
                // that of another file. So the existing entry is examined.
                dir.expect_others();
                self.copy_undivided(dir, Entry::file(from, to))
            }
            Err(error) => Err(error),
        }
    }

    /// Copies the whole of a chunked file again, because the source has changed.
    fn copy_again(
        &mut self,
        dir: &DirPair,
        files: Files<'_>,
        stat: &FileStat,
        temp: &CStr,
    ) -> Result<(), CopyError> {
        loop {
            fs::ftruncate(files.new, 0).at(Step::Write)?;
            match self.copy_contents(dir, files, stat, temp) {
                Err(error) if error.reason == Reason::Differs && !self.was_repeated => {
                    self.was_repeated = true;
                }
                result => return result,
            }
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
    pub(super) fn find_committed(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
        stat: &FileStat,
        error: CopyError,
    ) -> Result<EntryResult, CopyError> {
        let found = dir.stat_destination(to).at(Step::LookAtDestination)?;
        match found.map(|found| FileStat::of(&found)) {
            Some(found) if self.is_copy(dir, &found, stat) => {
                self.add_checksum(dir, to, Decision::Create)?;
                Ok(EntryResult::Done(Decision::Create))
            }
            _ => Err(error),
        }
    }

    /// Removes a chunked file that cannot be completed. With `--partial` a later run may.
    pub(crate) fn discard_chunked(
        &mut self,
        dir: &mut DirPair,
        file: &ChunkedFile,
    ) -> Result<(), CopyError> {
        let Some(temp) = &file.temp else {
            return Ok(());
        };
        let unfinished = Unfinished::adopt(dir, temp)?;
        // The name may stand for another process's file now.
        if unfinished.is_replaced(file.id) || self.context.config.contents.partial {
            unfinished.keep();
        }
        Ok(())
    }
}

/// Opens a chunked file for writing.
fn open_chunked(dir: &DirPair, file: &ChunkedFile, temp: &CStr) -> Result<OwnedFd, CopyError> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = fs::openat(dir.destination()?, temp, flags, Mode::empty()).at(Step::Write)?;
    // Another process may have given the name to another file, which must not be written to.
    if FileId::of(&fs::fstat(&fd).at(Step::LookAtDestination)?) != file.id {
        return Err(CopyError::new(Step::Write, Reason::Replaced));
    }
    Ok(fd)
}
