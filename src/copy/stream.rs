//! Sources that are pipes: read to their end into a regular file.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, FileType};
use rustix::io::Errno;

use super::content::{BUFFER, write_all, write_without_zeros};
use super::dir::DirPair;
use super::{Copier, Entry, file_type};
use crate::config::{Overwrite, Reflink, Sparse};
use crate::fs::stat::FileStat;
use crate::fs::sys;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// A source that can be read once.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) fd: &'a OwnedFd,
    /// A worker that was lost may have read from it.
    pub(crate) is_used: bool,
}

impl Copier {
    /// Reads a pipe to its end into a file. The file gets the owner, mode and times of any new
    /// file: the pipe has none worth keeping.
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
        let target = self.write_target(decision);
        // A pipe has no mode of its own that a file should get.
        let mode = 0o666 & !self.context.identity.umask;
        let new = self.create_file(dir, entry.to, target, mode)?;
        let size = self.read_to_end(stream.fd, &new.fd)?;
        fs::ftruncate(&new.fd, size).at(Step::Write)?;
        if self.context.config.fsync {
            fs::fsync(&new.fd).at(Step::Sync)?;
        }
        sys::close(new.fd).at(Step::Close)?;
        new.unfinished.commit(entry.to, decision)?;
        Ok(decision)
    }

    /// Decides what to do with an existing entry. A pipe cannot be compared, and is always newer.
    fn decide_stream(&self, dir: &DirPair, entry: Entry<'_>) -> Result<Decision, CopyError> {
        let Some(old) = dir.existing(entry.to).at(Step::LookAtDestination)? else {
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
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            buffer = vec![0; BUFFER];
        }
        let result = self.read_to_end_with(&mut buffer, stream, file);
        self.buffer = buffer;
        result
    }

    fn read_to_end_with(
        &self,
        buffer: &mut [u8],
        stream: &OwnedFd,
        file: &OwnedFd,
    ) -> Result<u64, CopyError> {
        let mut position = 0;
        loop {
            self.await_data(stream)?;
            let count = match rustix::io::read(stream, &mut *buffer) {
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
