//! A large file in pieces: one worker prepares it ([`Copier::entry`]), several copy its pieces,
//! one seals it.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;

use super::content::CopyMethod;
use super::dir::{DirPair, open_prepared};
use super::{Copier, Outcome, Partial, content, metadata};
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::{Action, ChunkedFile};
use crate::scoreboard::Ending;

/// Data in one piece: enough that dealing it costs nothing, little enough that all workers end
/// at about the same time.
const PIECE: u64 = 16 << 20;

impl ChunkedFile {
    /// The pieces: offsets and lengths. A file with holes has longer ones, with about as much
    /// data in each.
    pub(crate) fn pieces(&self) -> Vec<(u64, u64)> {
        let FileStat {
            size, allocated, ..
        } = self.stamp;
        let count = allocated.min(size).div_ceil(PIECE).max(1);
        let length = size.div_ceil(count).next_multiple_of(1 << 20);
        (0..size)
            .step_by(length as usize)
            .map(|offset| (offset, length.min(size - offset)))
            .collect()
    }
}

impl Copier {
    /// Copies one piece.
    ///
    /// # Errors
    /// [`Reason::Changed`] where the source is not what it was: sealing copies it anew then.
    pub(crate) fn piece(
        &mut self,
        folder: &mut DirPair,
        from: &CStr,
        large: &ChunkedFile,
        (offset, length): (u64, u64),
    ) -> Result<(), CopyError> {
        let stamp = &large.stamp;
        let source = self.open_source(folder, from).at(Step::Open)?;
        if FileStat::of(&fs::fstat(&source).at(Step::Look)?).inode != stamp.inode {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        if large.written_as != large.name {
            // Or another run would take it for a left-over.
            folder.lock_for_temporaries();
        }
        let file = open_prepared(folder, large, OFlags::empty())?;
        let range = (offset, length, CopyMethod::for_pieces(&file));
        let copied = self.copy_range(&source, &file, stamp, range, folder)?;
        if copied < length {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        crate::fs::sys::close(file).at(Step::Close)
    }

    /// Prepares a file to be copied in pieces, and says which one it is. None where it is to be
    /// copied in one go: the file system lets files grow only by being written, or enough others
    /// are being copied in pieces. All that are prepared have their space, and are to be removed
    /// by a run that stops.
    ///
    /// # Errors
    /// What ftruncate(2), fallocate(2) and fstat(2) say.
    pub(super) fn prepare(
        &self,
        file: &OwnedFd,
        stamp: &FileStat,
    ) -> Result<Option<FileId>, CopyError> {
        if !self.context.scoreboard.begin_large() {
            return Ok(None);
        }
        let prepared = content::reserve(file, stamp).and_then(|reserved| {
            let stat = fs::fstat(file).at(Step::LookAtDestination)?;
            Ok(reserved.then(|| FileId::of(&stat)))
        });
        if !matches!(prepared, Ok(Some(_))) {
            self.context.scoreboard.end_large();
        }
        prepared
    }

    /// Completes a file whose pieces are all there.
    ///
    /// # Errors
    /// What was tried and why it did not work. The incomplete file is removed then.
    pub(crate) fn seal(
        &mut self,
        folder: &mut DirPair,
        from: &CStr,
        large: &ChunkedFile,
        to: &CStr,
        changed: bool,
    ) -> Result<Outcome, CopyError> {
        let partial = self.adopt(folder, large)?;
        let source = self.open_source(folder, from).at(Step::Open)?;
        let mut stamp = FileStat::of(&fs::fstat(&source).at(Step::Look)?);
        let mut flags = OFlags::empty();
        let again = changed || !stamp.has_same_contents(&large.stamp);
        if again {
            // The source changed while it was read: once more, by this worker alone.
            flags = OFlags::TRUNC;
        } else {
            stamp = large.stamp;
        }
        let file = match open_prepared(folder, large, flags) {
            // A worker before this one died between the last step and its report.
            Err(trouble) if trouble.reason == Errno::NOENT.into() => {
                let there = folder.existing(to).at(Step::LookAtDestination)?;
                let there = there.map(|stat| FileStat::of(&stat));
                if there.is_none_or(|there| !self.is_copy(folder, &there, &stamp)) {
                    return Err(trouble);
                }
                partial.keep();
                return Ok(Outcome::Done(Ending::Copied, Action::Copy));
            }
            Err(trouble) => {
                if trouble.reason == Reason::Replaced {
                    // Not ours to remove.
                    partial.keep();
                }
                return Err(trouble);
            }
            Ok(file) => file,
        };
        if again {
            self.copy_whole(&source, &file, &stamp, folder)?;
        } else {
            // It was longer while it was not complete.
            fs::ftruncate(&file, stamp.size).at(Step::Write)?;
        }
        folder.learn(file.as_fd()).at(Step::LookAtDestination)?;
        let now = fs::fstat(&file).at(Step::LookAtDestination)?;
        let has = metadata::InitialMeta {
            owner: Some((now.st_uid, now.st_gid)),
            mode: Some(now.st_mode & 0o7777).filter(|_| !folder.inherits()),
        };
        let attributes = metadata::list_attributes(source.as_fd(), &self.context.config)
            .at(Step::ReadAttributes)?;
        self.complete(
            folder,
            &source,
            (file, partial),
            &stamp,
            has,
            &attributes,
            to,
        )?;
        Ok(Outcome::Done(Ending::Copied, Action::Copy))
    }

    /// Removes what there is of a large file.
    ///
    /// # Errors
    /// In a dry run, where there is none.
    pub(crate) fn abandon(
        &mut self,
        folder: &mut DirPair,
        large: &ChunkedFile,
    ) -> Result<(), CopyError> {
        let partial = self.adopt(folder, large)?;
        let there = fs::statat(
            &partial.directory,
            &*partial.name,
            AtFlags::SYMLINK_NOFOLLOW,
        );
        if there.is_ok_and(|stat| FileId::of(&stat) != large.prepared) {
            // Somebody else's by now.
            partial.keep();
        }
        Ok(())
    }

    /// Takes over what another worker has prepared: it is removed unless it is completed.
    ///
    /// The slot does not say so. Should this worker die, the file is not to be cleared: the next
    /// worker seals it.
    fn adopt(
        &self,
        folder: &mut DirPair,
        large: &ChunkedFile,
    ) -> Result<Partial<'static>, CopyError> {
        let name = large.written_as.to_c_string();
        if large.written_as != large.name {
            folder.lock_for_temporaries();
        }
        Ok(Partial {
            directory: folder.share_destination()?,
            name: Cow::Owned(name),
            slot: self.slot,
            armed: true,
        })
    }

    /// Removes names under which a worker that died has left something incomplete.
    ///
    /// # Errors
    /// What unlinkat(2) says.
    pub(crate) fn clear(
        &mut self,
        folder: &DirPair,
        names: &[crate::fs::path::Name],
    ) -> Result<(), CopyError> {
        if names.is_empty() || self.context.config.dry_run {
            return Ok(());
        }
        let dir = Rc::clone(&folder.share_destination()?);
        for name in names {
            match fs::unlinkat(&dir, name.as_bytes(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(CopyError::new(Step::Remove, errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_the_file_once(size in 1_u64..1 << 40, part in 1_u64..=64) {
            let large = ChunkedFile::sample("n", size, size / part);
            let mut at = 0;
            for (offset, length) in large.pieces() {
                prop_assert_eq!(offset, at);
                prop_assert!(length > 0);
                at += length;
            }
            prop_assert_eq!(at, size);
        }
    }
}
