//! A file's contents: ranges by copy_file_range(2) or read and write, holes, shared extents.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{self, Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::Copier;
use super::digest::Digest;
use super::dir::{Devices, DirPair};
use crate::config::{Reflink, Sparse};
use crate::fs::file_system::FileSystem;
use crate::fs::stat::FileStat;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// Bytes that the first system call copies. Between two calls a worker checks for a stop and shows
/// its progress. So a call must not take long on a slow disk.
const FIRST_REQUEST: u64 = 1 << 20;
/// Requests grow up to this size while they take less than [`REQUEST_TIME`].
const LAST_REQUEST: u64 = 256 << 20;
const REQUEST_TIME: Duration = Duration::from_millis(20);
/// Bytes for read and write if the kernel cannot copy by itself.
pub(super) const BUFFER: usize = 512 << 10;
/// Bytes that the kernel reads ahead of a reader by itself (`read_ahead_kb` of most devices, and the
/// most that FUSE allows). A file that is not longer arrives whole with the first read.
pub(super) const READAHEAD: u64 = 128 << 10;
/// With `--sparse=always`, blocks of zeros of this length become holes, as does a shorter last
/// block.
const HOLE: usize = 4096;
/// Extra bytes of a file whose size is set before its contents. So an incomplete file does not have
/// the source's size. Its time could match by chance on a file system with coarse times.
const UNFINISHED: u64 = 1;

/// Length of a hole that shows whether a file system keeps holes.
const HOLE_PROBE: u64 = 1 << 20;

/// The two files of a copy, open.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) source: &'a OwnedFd,
    pub(super) new: &'a OwnedFd,
    pub(super) devices: Devices,
}

impl<'a> Files<'a> {
    pub(super) fn new(source: &'a OwnedFd, new: &'a OwnedFd, dir: &DirPair) -> Self {
        Self {
            source,
            new,
            devices: dir.devices(),
        }
    }
}

/// How data gets from one file to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyMethod {
    /// copy_file_range(2): the kernel's own copy, a server's, or shared extents.
    CopyRange,
    /// read(2) and write(2) through a buffer.
    ReadWrite,
}

impl CopyMethod {
    /// Chooses how to copy chunks into a file. copy_file_range(2) holds the file's lock all the
    /// while, so several workers take as long as one. Between read and write the lock is free (2
    /// GiB, 2 workers: 1.03 s, not 1.31 s, on tmpfs; 0.50 s, not 0.68 s, on ext4). On other file
    /// systems copy_file_range(2) may share extents or copy on the server.
    pub(super) fn for_chunks(file: &OwnedFd) -> Self {
        match FileSystem::of(file) {
            Some(FileSystem::Tmpfs | FileSystem::Ext) => Self::ReadWrite,
            _ => Self::CopyRange,
        }
    }
}

/// Returns true if a new, empty file can be written in chunks, in any order.
///
/// A file system without holes first fills the space before a chunk with zeros (FAT: 375 MiB
/// written for 200 MiB). One without lasting inode numbers cannot prove that a reopened file is the
/// same. FUSE and SMB may have both limits. None of these writes two parts of a file at once
/// anyway.
pub(super) fn takes_chunks(file: &OwnedFd) -> Result<bool, CopyError> {
    if let Some(FileSystem::Fat | FileSystem::ExFat | FileSystem::Smb | FileSystem::Fuse) =
        FileSystem::of(file)
    {
        return Ok(false);
    }
    if !lengthen(file, HOLE_PROBE).at(Step::Reserve)? {
        return Ok(false);
    }
    let stat = FileStat::of(&fs::fstat(file).at(Step::LookAtDestination)?);
    Ok(stat.allocated < HOLE_PROBE)
}

/// Sets a chunked file's length before its contents (see [`lengthen`]). Also reserves its space, if
/// that makes writing faster and shows a full disk at once (ext4, 2 GiB: 0.53 s, not 0.73 s).
/// Returns false if the file system cannot extend a file without writing it.
pub(super) fn preallocate(file: &OwnedFd, stat: &FileStat) -> Result<bool, CopyError> {
    if !lengthen(file, stat.size).at(Step::Reserve)? {
        return Ok(false);
    }
    // tmpfs reserves space by filling it with zeros, which costs more than it saves.
    if FileSystem::of(file) == Some(FileSystem::Tmpfs) || stat.allocated < stat.size {
        return Ok(true);
    }
    match fs::fallocate(file, FallocateFlags::empty(), 0, stat.size) {
        Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(CopyError::new(Step::Reserve, errno)),
        // Any other failure does no harm: the file can be written without.
        _ => Ok(true),
    }
}

/// Extends a file with a hole, to `size` and [`UNFINISHED`] more. Returns false if the file system
/// cannot do that. ftruncate(2) does not require it, and some FUSE file systems (FAT, object
/// stores) cannot.
fn lengthen(file: &OwnedFd, size: u64) -> rustix::io::Result<bool> {
    let lengthened = match fs::ftruncate(file, (size + UNFINISHED).min(i64::MAX as u64)) {
        // `size` is the largest that the file system allows, as for many films on FAT.
        Err(Errno::FBIG) => fs::ftruncate(file, size),
        result => result,
    };
    match lengthened {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

impl Copier {
    /// Shares the source's extents if that is wanted and possible. Returns true if it did.
    pub(super) fn clone_whole(&mut self, files: Files<'_>) -> Result<bool, CopyError> {
        let cloned = match self.context.config.reflink {
            Reflink::Never => return Ok(false),
            _ => fs::ioctl_ficlone(files.new, files.source),
        };
        match cloned {
            Ok(()) => {
                let stat = fs::fstat(files.new).at(Step::Clone)?;
                self.slot.add_bytes(stat.st_size as u64);
                Ok(true)
            }
            Err(_) if self.context.config.reflink == Reflink::Auto => Ok(false),
            Err(errno) => Err(CopyError::new(Step::Clone, errno)),
        }
    }

    /// Copies a file's contents from the start to the end.
    pub(super) fn copy_whole(
        &mut self,
        files: Files<'_>,
        stat: &FileStat,
    ) -> Result<(), CopyError> {
        if stat.size == 0 {
            // Empty, or a file of /proc, which does not know its size.
            let first = self.read_write(files, 0..BUFFER as u64, Zeros::Write)?;
            if first == BUFFER as u64 {
                // A file that has a size by now may grow faster than it can be read.
                if fs::fstat(files.source).at(Step::Look)?.st_size != 0 {
                    return Err(CopyError::new(Step::Read, Reason::Changed));
                }
                self.read_write(files, first..u64::MAX, Zeros::Write)?;
            }
            return Ok(());
        }
        if self.context.config.reflink == Reflink::Always {
            return self.clone_whole(files).map(drop);
        }
        // copy_file_range(2) may share extents too, but does not say so, and would be slowed down.
        let config = &self.context.config;
        let may_share = config.limits.bwlimit.is_some() && config.sparse == Sparse::Auto;
        if may_share && self.clone_whole(files)? {
            return Ok(());
        }
        let copied = self.copy_range(files, stat, 0..stat.size, CopyMethod::CopyRange)?;
        if copied < stat.size && !is_size_reported(files.source, stat) {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        Ok(())
    }

    /// Copies a range. Returns the copied length, holes included. That is less than the range's
    /// length only if the source ends earlier. The destination has the right size afterwards.
    pub(super) fn copy_range(
        &mut self,
        files: Files<'_>,
        stat: &FileStat,
        range: Range<u64>,
        method: CopyMethod,
    ) -> Result<u64, CopyError> {
        let _turn = self.take_turn();
        let before = self.slot.bytes();
        let length = self.copy_range_as_wanted(files, stat, range, method)?;
        let copied = self.slot.bytes().wrapping_sub(before);
        self.slot.add_spared(length.saturating_sub(copied));
        Ok(length)
    }

    fn copy_range_as_wanted(
        &mut self,
        files: Files<'_>,
        stat: &FileStat,
        range: Range<u64>,
        method: CopyMethod,
    ) -> Result<u64, CopyError> {
        if stat.size > READAHEAD {
            expect_sequential(files.source);
        }
        let sparse = self.context.config.sparse;
        if sparse == Sparse::Auto && stat.allocated < stat.size {
            return self.copy_data_between_holes(files, range, method);
        }
        if sparse == Sparse::Always {
            let offset = range.start;
            let copied = self.read_write(files, range, Zeros::Skip)?;
            fs::ftruncate(files.new, offset + copied).at(Step::Write)?;
            return Ok(copied);
        }
        self.copy_data(files, range, method)
    }

    fn copy_data_between_holes(
        &mut self,
        files: Files<'_>,
        range: Range<u64>,
        method: CopyMethod,
    ) -> Result<u64, CopyError> {
        let Range { start, end } = range;
        // Set the size first, with the hole at the end. Otherwise XFS takes a write beyond the end
        // for the start of a long file, and reserves space for the hole (15 times the data).
        let size = fs::fstat(files.new).at(Step::Write)?.st_size as u64;
        let is_short = size < end;
        // FAT and exFAT fill the new space with zeros, so it would be written twice.
        let fills = matches!(
            FileSystem::of(files.new),
            Some(FileSystem::Fat | FileSystem::ExFat)
        );
        if is_short && !fills && !lengthen(files.new, end).at(Step::Write)? {
            return self.read_write(files, range, Zeros::Write);
        }
        let zeros = if has_hidden_holes(files.source) {
            Zeros::Skip
        } else {
            Zeros::Write
        };
        let mut position = start;
        while position < end {
            let data = next_data(files.source, position, end).at(Step::Read)?;
            if data.is_empty() {
                break;
            }
            let Range {
                start: data,
                end: hole,
            } = data;
            let copied = match zeros {
                Zeros::Skip => self.read_write(files, data..hole, zeros)?,
                Zeros::Write => self.copy_data(files, data..hole, method)?,
            };
            if copied < hole - data {
                fs::ftruncate(files.new, data + copied).at(Step::Write)?;
                return Ok(data + copied - start);
            }
            position = hole;
        }
        if is_short {
            fs::ftruncate(files.new, end).at(Step::Write)?;
        }
        if let Some(digest) = &mut self.digest {
            digest.add_hole(end);
        }
        Ok(end - start)
    }

    fn copy_data(
        &mut self,
        files: Files<'_>,
        range: Range<u64>,
        method: CopyMethod,
    ) -> Result<u64, CopyError> {
        let config = &self.context.config;
        if method == CopyMethod::ReadWrite
            // A worker does not see the data that the kernel copies.
            || self.digest.is_some()
            || config.reflink == Reflink::Never
            || config.sparse == Sparse::Never
            || self.no_copy_range.contains(&files.devices)
        {
            return self.read_write(files, range, Zeros::Write);
        }
        let length = range.end - range.start;
        let mut copied = 0;
        let mut pace = Pace::new(length);
        while copied < length {
            let position = range.start + copied;
            let (mut from, mut to) = (position, position);
            let request = pace.next_request(length - copied);
            let request = self.take_bandwidth(request)? as usize;
            let (source, new) = (files.source, files.new);
            match fs::copy_file_range(source, Some(&mut from), new, Some(&mut to), request) {
                // The end of the file, or a file system that wrongly reports it. read(2) shows
                // which.
                Ok(0) => {
                    self.return_bandwidth(request as u64);
                    return Ok(copied + self.read_write(files, position..range.end, Zeros::Write)?);
                }
                Ok(count) => {
                    copied += count as u64;
                    self.slot.add_bytes(count as u64);
                    self.return_bandwidth((request - count) as u64);
                }
                Err(Errno::INTR) => self.return_bandwidth(request as u64),
                // One of the files is gone on its server. read(2) shows which.
                Err(Errno::STALE) => {
                    return Ok(copied + self.read_write(files, position..range.end, Zeros::Write)?);
                }
                Err(
                    Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM
                    // A swap file in use.
                    | Errno::TXTBSY,
                ) if copied == 0 =>
                {
                    self.no_copy_range.push(files.devices);
                    self.return_bandwidth(request as u64);
                    return self.read_write(files, range, Zeros::Write);
                }
                Err(errno) => {
                    let reason = Reason::from(errno);
                    let step = if reason.is_full() || errno == Errno::FBIG {
                        Step::Write
                    } else {
                        Step::Copy
                    };
                    return Err(CopyError::new(step, reason));
                }
            }
            self.check_stop()?;
        }
        Ok(copied)
    }

    /// Copies a range through the worker's buffer. Returns the copied length.
    fn read_write(
        &mut self,
        files: Files<'_>,
        range: Range<u64>,
        zeros: Zeros,
    ) -> Result<u64, CopyError> {
        let mut buffer = take_buffer(&mut self.buffer);
        let mut digest = self.digest.take();
        let result = self.read_write_with(&mut buffer, digest.as_mut(), files, range, zeros);
        self.digest = digest;
        self.buffer = buffer;
        result
    }

    fn read_write_with(
        &self,
        buffer: &mut [u8],
        mut digest: Option<&mut Digest>,
        files: Files<'_>,
        range: Range<u64>,
        zeros: Zeros,
    ) -> Result<u64, CopyError> {
        let mut position = range.start;
        while position < range.end {
            let wanted = (range.end - position).min(buffer.len() as u64);
            let wanted = self.take_bandwidth(wanted)? as usize;
            let count = match rustix::io::pread(files.source, &mut buffer[..wanted], position) {
                Ok(count) => count,
                Err(Errno::INTR) => {
                    self.return_bandwidth(wanted as u64);
                    continue;
                }
                Err(errno) => return Err(CopyError::new(Step::Read, errno)),
            };
            self.return_bandwidth((wanted - count) as u64);
            if count == 0 {
                break;
            }
            match zeros {
                Zeros::Write => write_all(files.new, &buffer[..count], position),
                Zeros::Skip => write_without_zeros(files.new, &buffer[..count], position),
            }
            .at(Step::Write)?;
            if let Some(digest) = &mut digest {
                digest.add(&buffer[..count], position);
            }
            position += count as u64;
            self.slot.add_bytes(count as u64);
            self.check_stop()?;
        }
        Ok(position - range.start)
    }

    /// Checks between two requests: fails if the run must stop, and waits if other workers go
    /// first.
    pub(super) fn check_stop(&self) -> Result<(), CopyError> {
        self.keep_turn();
        if self.context.scoreboard.is_stopping() {
            return Err(CopyError::new(Step::Copy, Reason::Stopped));
        }
        Ok(())
    }
}

/// Takes a worker's buffer, and makes it at first.
pub(super) fn take_buffer(buffer: &mut Vec<u8>) -> Vec<u8> {
    let buffer = std::mem::take(buffer);
    if buffer.is_empty() {
        // Not by resizing, which would write to every page of it.
        return vec![0; BUFFER];
    }
    buffer
}

/// Returns the next data of a file from `position` on, at most up to `end`. Empty, at `end`, if only
/// a hole is left.
pub(super) fn next_data(file: &OwnedFd, position: u64, end: u64) -> rustix::io::Result<Range<u64>> {
    let start = match fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => start.min(end),
        // Nothing but a hole up to the end of the file.
        Err(Errno::NXIO) => end,
        // The file system does not know about holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(position..end),
        Err(errno) => return Err(errno),
    };
    if start == end {
        return Ok(end..end);
    }
    match fs::seek(file, SeekFrom::Hole(start)) {
        Ok(hole) => Ok(start..hole.clamp(start + 1, end)),
        // The file system knows no holes, or the file has become shorter. Reading the data shows
        // which.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => Ok(start..end),
        Err(errno) => Err(errno),
    }
}

/// Makes the kernel read twice as far ahead. A file of 20 MiB on a file system that takes 40 ms for
/// each read is there in half of the time (`benches/README.md`). This is only a hint.
pub(super) fn expect_sequential(source: &OwnedFd) {
    let _ = fs::fadvise(source, 0, None, Advice::Sequential);
}

/// How to write blocks of zeros.
#[derive(Clone, Copy)]
enum Zeros {
    Write,
    /// Leave holes in their place.
    Skip,
}

/// Returns true if lseek(2) finds the holes on this file system. If it finds none in a file with
/// fewer blocks than bytes, compression has made the file small, and its extents can be shared.
fn knows_holes(file_system: FileSystem) -> bool {
    use FileSystem::{Bcachefs, Btrfs, Ext, F2fs, Overlayfs, Tmpfs, Xfs, Zfs};
    matches!(
        file_system,
        Bcachefs | Btrfs | Ext | F2fs | Overlayfs | Tmpfs | Xfs | Zfs
    )
}

/// Returns true if lseek(2) reports a file with holes as all data. NFS 3, SMB and some FUSE file
/// systems do so. Call it for a file with fewer blocks than bytes.
fn has_hidden_holes(source: &OwnedFd) -> bool {
    let is_all_data = match fs::seek(source, SeekFrom::Data(0)) {
        Ok(0) => {
            let hole = fs::seek(source, SeekFrom::Hole(0));
            hole.is_ok_and(|hole| fs::fstat(source).is_ok_and(|it| hole >= it.st_size as u64))
        }
        Err(Errno::INVAL | Errno::OPNOTSUPP) => true,
        _ => false,
    };
    is_all_data && !FileSystem::of(source).is_some_and(knows_holes)
}

/// Returns true if a file that ended early still reports its full size. In /sys each file reports
/// 4096 bytes and has fewer. Such file systems have no blocks.
fn is_size_reported(source: &OwnedFd, stat: &FileStat) -> bool {
    fs::fstat(source).is_ok_and(|now| stat.has_same_contents(&FileStat::of(&now)))
        && fs::fstatfs(source).is_ok_and(|statfs| statfs.f_blocks == 0)
}

pub(super) fn write_all(
    file: &OwnedFd,
    mut bytes: &[u8],
    mut offset: u64,
) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file.as_fd(), bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(super) fn write_without_zeros(
    file: &OwnedFd,
    bytes: &[u8],
    offset: u64,
) -> rustix::io::Result<()> {
    // The last block of a file may be shorter; its size is set at the end.
    let is_hole = |block: &[u8]| block.iter().all(|&b| b == 0);
    let mut blocks = bytes.chunks(HOLE).peekable();
    let mut start = 0;
    while let Some(block) = blocks.next() {
        if is_hole(block) {
            start += block.len();
            continue;
        }
        let mut end = start + block.len();
        while let Some(next) = blocks.next_if(|next| !is_hole(next)) {
            end += next.len();
        }
        write_all(file, &bytes[start..end], offset + start as u64)?;
        start = end;
    }
    Ok(())
}

/// How much to copy with one system call: little at first, more while the calls are fast.
struct Pace {
    request: u64,
    /// None if one request is enough: the clock is not read then.
    since: Option<Instant>,
}

impl Pace {
    fn new(length: u64) -> Self {
        Self {
            request: FIRST_REQUEST,
            since: (length > FIRST_REQUEST).then(Instant::now),
        }
    }

    /// Returns the length of the next request. `remaining` bytes are still to be copied.
    fn next_request(&mut self, remaining: u64) -> u64 {
        if let Some(since) = &mut self.since {
            let now = Instant::now();
            let took = now - std::mem::replace(since, now);
            if took < REQUEST_TIME {
                self.request = (self.request * 2).min(LAST_REQUEST);
            } else if took > REQUEST_TIME * 4 {
                self.request = (self.request / 2).max(FIRST_REQUEST);
            }
        }
        self.request.min(remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn zeros_become_holes_and_the_rest_is_written() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0_u8; 64 * HOLE + 17];
        bytes[5 * HOLE + 3] = 1;
        bytes[6 * HOLE] = 2;
        bytes[40 * HOLE] = 3;
        let fd = OwnedFd::from(file.try_clone().unwrap());
        fs::ftruncate(&fd, bytes.len() as u64).unwrap();
        write_without_zeros(&fd, &bytes, 0).unwrap();
        let mut back = vec![9; bytes.len()];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < bytes.len() as u64 / 2);
    }

    #[test]
    fn requests_grow_while_they_are_fast() {
        let mut pace = Pace::new(1 << 40);
        let first = pace.next_request(1 << 40);
        let second = pace.next_request(1 << 40);
        assert!(second >= first);
        assert_eq!(pace.next_request(10), 10);
    }
}
