//! `--inplace`: writes into existing files, for destinations that cannot rename.
//!
//! A file is emptied and written anew. Its times are set last. If the run is killed, the file
//! differs from its source, and the next run writes it again. Any other entry is removed first.
//! Other hard links to an existing file show the new contents.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Copier;
use super::dir::{DirPair, Owner};
use super::file::NewFile;
use super::handle::{Handle, Subject};
use super::metadata::{InitialMeta, SourceFile};
use crate::fs::path::Kind;
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::scoreboard::WriteTarget;

impl Copier {
    /// Opens and empties the existing file to write into. Returns `None` if a new file must be
    /// created.
    pub(super) fn open_in_place<'a>(
        &mut self,
        dir: &DirPair,
        to: &'a CStr,
        source: &SourceFile,
        decision: Decision,
    ) -> Result<Option<NewFile<'a>>, CopyError> {
        let config = &self.context.config;
        if !config.inplace || decision == Decision::Create {
            return Ok(None);
        }
        if decision == Decision::ReplaceOtherKind {
            self.make_room(dir, to, decision)?;
            return Ok(None);
        }
        let new = self.open_existing(dir, to, Some(source.stat.id))?;
        if config.preserve.mode.is_wanted() {
            // Other users must not read more than the source allows. The final mode follows.
            let _ = fs::fchmod(&new.fd, Mode::RUSR | Mode::WUSR);
        }
        fs::ftruncate(&new.fd, 0).at(Step::Write)?;
        let subject = Subject {
            handle: Handle::Open(new.fd.as_fd()),
            device: dir.devices().destination,
            kind: Kind::File,
        };
        self.remove_other_attributes(dir, &subject, &source.attributes.names);
        Ok(Some(new))
    }

    /// Opens an existing file for writing.
    pub(super) fn open_existing<'a>(
        &mut self,
        dir: &DirPair,
        to: &'a CStr,
        source: Option<FileId>,
    ) -> Result<NewFile<'a>, CopyError> {
        let (fd, unfinished) = self.create(dir, to, WriteTarget::Final, |dir, name| {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            fs::openat(dir, name, flags, Mode::empty()).at(Step::Write)
        })?;
        let old = fs::fstat(&fd).at(Step::LookAtDestination)?;
        let id = FileId::of(&old);
        // Another process may have given the name to something else meanwhile.
        let is_other = FileType::from_raw_mode(old.st_mode) != FileType::RegularFile
            || Some(id) == source
            || self.context.targets.is_source(id);
        if is_other {
            unfinished.keep();
            return Err(CopyError::new(Step::Write, Reason::Replaced));
        }
        let meta = InitialMeta {
            owner: Some(Owner::of(&FileStat::of(&old))),
            mode: None,
        };
        Ok(NewFile {
            fd,
            unfinished,
            meta,
        })
    }

    /// Removes the existing entry with `--inplace`, because no rename replaces it.
    pub(super) fn make_room(
        &self,
        dir: &DirPair,
        to: &CStr,
        decision: Decision,
    ) -> Result<(), CopyError> {
        if !self.context.config.inplace || decision == Decision::Create {
            return Ok(());
        }
        match fs::unlinkat(dir.destination()?, to, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(CopyError::new(Step::Create, errno)),
        }
    }
}
