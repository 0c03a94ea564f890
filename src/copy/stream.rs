//! Sources that are pipes: read to their end into a regular file.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, FileType};
use rustix::io::Errno;

use super::content::{take_buffer, write_all, write_without_zeros};
use super::digest::Digest;
use super::dir::DirPair;
use super::file::NewFile;
use super::handle::{Handle, Subject};
use super::metadata::{InitialMeta, Replaced, Wanted};
use super::{Copier, Entry, file_type};
use crate::config::{Overwrite, Reflink, Sparse};
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;
use crate::fs::sys;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::metadata::AttributeClass;

/// A source that can be read once.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) fd: &'a OwnedFd,
    /// A worker that was lost may have read from it.
    pub(crate) is_used: bool,
}

impl Copier {
    /// Reads a pipe to its end into a file. The pipe has no metadata worth keeping. So a new file
    /// gets those of any new file, and an existing one keeps its own: a private file stays private.
    pub(super) fn copy_stream(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        stream: Stream<'_>,
    ) -> Result<Decision, CopyError> {
        let decision = self.decide_stream(dir, entry)?;
        if !decision.changes() || self.context.config.dry_run {
            return Ok(decision);
        }
        if stream.is_used {
            return Err(CopyError::new(Step::Read, Reason::ReadOnce));
        }
        if self.context.config.reflink == Reflink::Always {
            return Err(CopyError::new(Step::Clone, Errno::OPNOTSUPP));
        }
        let replaced = (decision != Decision::Create)
            .then(|| Replaced::open(dir, entry.to))
            .flatten()
            .filter(|old| file_type(&old.stat) == FileType::RegularFile);
        let is_in_place = self.context.config.inplace;
        let new = match &replaced {
            Some(_) if is_in_place => {
                let new = self.open_existing(dir, entry.to, None)?;
                fs::ftruncate(&new.fd, 0).at(Step::Write)?;
                new
            }
            _ => {
                self.make_room(dir, entry.to, decision)?;
                let target = self.write_target(decision);
                let mode = match replaced {
                    Some(_) => 0o600,
                    None => 0o666 & !self.context.identity.umask,
                };
                self.create_file(dir, entry.to, target, mode)?
            }
        };
        if self.context.config.contents.reads_everything() {
            self.digest = Some(self.new_digest(0));
        }
        let read = self.read_to_end(stream.fd, &new.fd);
        let digest = self.digest.take();
        let size = read?;
        self.size = Some(size);
        fs::ftruncate(&new.fd, size).at(Step::Write)?;
        if let Some(digest) = digest {
            self.conclude_digest(dir, &new.fd, new.unfinished.name(), &digest)?;
        }
        if let Some(old) = replaced.filter(|_| !is_in_place) {
            self.keep_old_metadata(dir, &old, &new);
        }
        if self.context.config.fsync {
            fs::fsync(&new.fd).at(Step::Sync)?;
        }
        sys::close(new.fd).at(Step::Close)?;
        self.commit_with_backup(dir, new.unfinished, entry.to, decision)?;
        Ok(decision)
    }

    /// Copies owner, mode and attributes from the replaced file to the new one.
    fn keep_old_metadata(&mut self, dir: &DirPair, old: &Replaced, new: &NewFile<'_>) {
        let subject = Subject {
            handle: Handle::Open(new.fd.as_fd()),
            device: dir.devices().destination,
            kind: Kind::File,
        };
        let source = old.handle();
        let mut attributes = self.list_attributes(dir, &source, &subject);
        // They belong to the old contents.
        let is_capability =
            |name: &CString| AttributeClass::of(name.to_bytes()) == AttributeClass::Capability;
        attributes.names.retain(|name| !is_capability(name));
        let wanted = Wanted {
            source: &source,
            stat: &old.stat,
            attributes: &attributes,
            initial: InitialMeta {
                owner: new.meta.owner,
                mode: None,
            },
            replaced: Some(old),
            set_times: false,
            verify: false,
        };
        self.apply(&subject, &wanted);
    }

    /// Decides what to do with an existing entry. A pipe cannot be compared, and is always newer.
    fn decide_stream(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<Decision, CopyError> {
        let Some(old) = self.find_existing(dir, entry.to)? else {
            return Ok(if self.context.config.filter.existing {
                Decision::SkipMissing
            } else {
                Decision::Create
            });
        };
        let old = FileStat::of(&old);
        if file_type(&old) == FileType::Directory {
            return Err(CopyError::new(Step::Create, Reason::DirectoryInTheWay));
        }
        if self.context.targets.is_source(old.id) {
            return Err(CopyError::new(Step::Create, Reason::IsSource));
        }
        Ok(match self.context.config.overwrite {
            Overwrite::Never => Decision::SkipExisting,
            Overwrite::Older => Decision::ReplaceOlder,
            Overwrite::Always => Decision::ReplaceAlways,
            Overwrite::Changed if file_type(&old) != FileType::RegularFile => {
                Decision::ReplaceOtherKind
            }
            Overwrite::Changed => Decision::ReplaceTime,
        })
    }

    /// Copies the stream to a file and returns its length.
    fn read_to_end(&mut self, stream: &OwnedFd, file: &OwnedFd) -> Result<u64, CopyError> {
        let mut buffer = take_buffer(&mut self.buffer);
        let mut digest = self.digest.take();
        let result = self.read_to_end_with(&mut buffer, digest.as_mut(), stream, file);
        self.digest = digest;
        self.buffer = buffer;
        result
    }

    fn read_to_end_with(
        &self,
        buffer: &mut [u8],
        mut digest: Option<&mut Digest>,
        stream: &OwnedFd,
        file: &OwnedFd,
    ) -> Result<u64, CopyError> {
        let mut position = 0;
        loop {
            self.await_data(stream)?;
            let wanted = self.take_bandwidth(buffer.len() as u64)? as usize;
            let read = rustix::io::read(stream, &mut buffer[..wanted]);
            self.return_bandwidth((wanted - read.unwrap_or(0)) as u64);
            let count = match read {
                Ok(0) => return Ok(position),
                Ok(count) => count,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(errno) => return Err(CopyError::new(Step::Read, errno)),
            };
            if self.context.config.sparse == Sparse::Always {
                write_without_zeros(file, &buffer[..count], position)
            } else {
                write_all(file, &buffer[..count], position)
            }
            .at(Step::Write)?;
            if let Some(digest) = &mut digest {
                digest.add(&buffer[..count], position);
            }
            position += count as u64;
            self.slot.add_bytes(count as u64);
        }
    }

    /// Waits until the stream can be read. A slow writer is not a stall.
    fn await_data(&self, stream: &OwnedFd) -> Result<(), CopyError> {
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        loop {
            self.check_stop()?;
            self.slot.heartbeat();
            match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&moment)) {
                Ok(0) | Err(Errno::INTR) => {}
                // read(2) shows whether it is data, the end or an error.
                _ => return Ok(()),
            }
        }
    }
}
