//! `--partial`: goes on with a chunked file where an earlier run was interrupted.
//!
//! - The temporary name of such a file ends in the [`Origin`] of its contents: the inode, size and
//!   times of the source, and its name. An interrupted run leaves the file. The next run with
//!   `--partial` renames it to a name of its own, and a run without `--partial` removes it like any
//!   leftover.
//! - Behind the contents the file has a mark for each segment of each chunk. It is written after the
//!   segment was synced to disk, so that it is true after a power cut or an unplugged disk too. The
//!   commit cuts the marks off.
//! - A worker that copies a chunk skips its marked segments. With `--checksum` it compares them
//!   first.
//!
//! A file of another user is not gone on with: its contents could be anything.

use std::ffi::{CStr, CString};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use super::content::{CopyMethod, Files, write_all};
use super::dir::DirPair;
use super::origin::Origin;
use super::temp;
use super::verify::open_copy;
use super::{Copier, file_type};
use crate::fs::path::Name;
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::entry::{CHUNK_ALIGNMENT, CHUNK_SIZE, Chunk, ChunkedFile};
use crate::protocol::error::{At, CopyError, Reason, Step};

/// Segments of a chunk.
const SEGMENTS: u64 = 16;
/// The mark of a segment that is whole.
const WHOLE: u8 = 0xC1;
/// Marks begin this many bytes after the contents: the byte between shows that a file is
/// unfinished.
const MARKS_AFTER: u64 = 1;
/// A worker syncs and marks its segments after this many times the duration of the last sync, and
/// at the latest after [`SYNC_AFTER`]. No more work than that is lost. In memory, where syncing is
/// free, each segment is marked. (2 GiB killed ten times on tmpfs: 1.02 times its size was read, and
/// 1.21 times with marks at the end of a chunk only.)
const SYNC_SHARE: u32 = 10;
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// A file to go on with.
pub(super) struct Resumed {
    pub(super) id: FileId,
    pub(super) temp: Name,
}

impl Copier {
    /// Finds the unfinished copy of this source that an interrupted run has left. Renames it as one
    /// of this run.
    pub(super) fn resume_partial(
        &mut self,
        dir: &DirPair,
        from: &CStr,
        stat: &FileStat,
    ) -> Option<Resumed> {
        if dir.is_known_empty() {
            return None;
        }
        let origin = self.origin(from, stat);
        let destination = dir.destination().ok()?;
        for left in temp::partials_of(self.context, dir, origin) {
            let name = self.partial_name(origin);
            // Another run may be faster.
            if fs::renameat(destination, &left, destination, &name).is_err() {
                continue;
            }
            match own_file(dir, &name, stat) {
                Some(id) => {
                    let temp = Name::new(name.to_bytes());
                    return Some(Resumed { id, temp });
                }
                None => {
                    let _ = fs::unlinkat(destination, &name, AtFlags::empty());
                }
            }
        }
        None
    }

    fn origin(&self, from: &CStr, stat: &FileStat) -> Origin {
        Origin::of(from, stat, self.context.config.preserve.links.is_wanted())
    }

    fn partial_name(&mut self, origin: Origin) -> CString {
        let number = self.next_temp_number();
        temp::partial_name(self.context, self.worker, number, origin)
    }

    /// Gives an unfinished file a name that a later run can recognize it by.
    pub(super) fn name_partial(
        &mut self,
        dir: &DirPair,
        temp: &CStr,
        from: &CStr,
        stat: &FileStat,
    ) -> Result<Name, CopyError> {
        let name = self.partial_name(self.origin(from, stat));
        let destination = dir.destination()?;
        fs::renameat(destination, temp, destination, &name).at(Step::Rename)?;
        Ok(Name::new(name.to_bytes()))
    }

    /// Copies the segments of a chunk that are not marked as whole, and marks them.
    pub(super) fn copy_segments(
        &mut self,
        dir: &DirPair,
        files: Files<'_>,
        file: &ChunkedFile,
        temp: &CStr,
        chunk: Chunk,
    ) -> Result<(), CopyError> {
        let method = CopyMethod::for_chunks(files.new);
        let copy = open_copy(dir, temp).at(Step::ReadBack)?;
        let mut marks = Marks::read(&copy, &file.stat, chunk);
        let is_checked = self.context.config.contents.checksum;
        let (mut synced, mut sync_time) = (Instant::now(), Duration::ZERO);
        for (index, range) in segments(&file.stat, chunk).enumerate() {
            let is_whole = marks.is_whole(index)
                && (!is_checked || {
                    let _turn = self.take_turn();
                    self.compare_range(files.source, &copy, range.clone(), &file.stat)?
                });
            if is_whole {
                self.slot.add_spared(range.end - range.start);
                self.check_stop()?;
                continue;
            }
            self.copy_part(dir, files, &file.stat, range, method, temp)?;
            marks.pending.push(index);
            let copied = Instant::now();
            if copied - synced >= SYNC_AFTER.min(sync_time * SYNC_SHARE) {
                marks.write(files.new)?;
                synced = Instant::now();
                sync_time = synced - copied;
            }
        }
        marks.write(files.new)
    }

    /// Copies a part of a chunked file, and verifies it if that is asked for.
    pub(super) fn copy_part(
        &mut self,
        dir: &DirPair,
        files: Files<'_>,
        stat: &FileStat,
        range: Range<u64>,
        method: CopyMethod,
        temp: &CStr,
    ) -> Result<(), CopyError> {
        let verifies = self.context.config.contents.verify;
        let mut is_repeated = false;
        loop {
            self.digest = verifies.then(|| super::digest::Digest::new(None, range.start));
            let copied = self.copy_range(files, stat, range.clone(), method);
            let digest = self.digest.take();
            if copied? < range.end - range.start {
                return Err(CopyError::new(Step::Read, Reason::Changed));
            }
            let Some(digest) = digest else {
                return Ok(());
            };
            match self.verify(dir, files.new, temp, &digest) {
                Err(error) if error.reason == Reason::Differs && !is_repeated => is_repeated = true,
                Ok(()) => {
                    self.was_repeated |= is_repeated;
                    return Ok(());
                }
                failed => return failed,
            }
        }
    }
}

/// The marks of a chunk's segments.
struct Marks {
    offset: u64,
    /// As they were when the chunk was begun.
    read: Vec<u8>,
    /// Segments that are whole now, and not marked.
    pending: Vec<usize>,
}

impl Marks {
    fn read(copy: &OwnedFd, stat: &FileStat, chunk: Chunk) -> Self {
        let number = chunk.offset / ChunkedFile::chunk_length(stat, CHUNK_SIZE);
        let offset = stat.size + MARKS_AFTER + number * SEGMENTS;
        let mut read = vec![0; SEGMENTS as usize];
        let count = rustix::io::pread(copy, &mut read[..], offset).unwrap_or(0);
        read.truncate(count);
        Self {
            offset,
            read,
            pending: Vec::new(),
        }
    }

    fn is_whole(&self, index: usize) -> bool {
        self.read.get(index) == Some(&WHOLE)
    }

    /// Syncs the pending segments and then marks them.
    fn write(&mut self, file: &OwnedFd) -> Result<(), CopyError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        fs::fdatasync(file).at(Step::Sync)?;
        for index in self.pending.drain(..) {
            // Without its mark, the segment is copied again.
            let _ = write_all(file, &[WHOLE], self.offset + index as u64);
        }
        Ok(())
    }
}

/// Divides a chunk into segments.
fn segments(stat: &FileStat, chunk: Chunk) -> impl Iterator<Item = Range<u64>> {
    let length = ChunkedFile::chunk_length(stat, CHUNK_SIZE)
        .div_ceil(SEGMENTS)
        .next_multiple_of(CHUNK_ALIGNMENT);
    let end = chunk.offset + chunk.length;
    (chunk.offset..end)
        .step_by(length as usize)
        .map(move |start| start..end.min(start + length))
}

/// Returns the ID of an unfinished file that can be gone on with: a file of this user that no other
/// name leads to.
fn own_file(dir: &DirPair, name: &CStr, stat: &FileStat) -> Option<FileId> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = fs::openat(dir.destination().ok()?, name, flags, Mode::empty()).ok()?;
    let found = FileStat::of(&fs::fstat(&file).ok()?);
    let is_own = file_type(&found) == FileType::RegularFile
        && found.uid == rustix::process::geteuid().as_raw()
        && found.links == 1
        && found.mode & 0o022 == 0
        && found.size > stat.size;
    is_own.then_some(found.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(size: u64, allocated: u64) -> FileStat {
        FileStat {
            size,
            allocated,
            ..*ChunkedFile::sample("n", size, allocated).stat
        }
    }

    #[test]
    fn an_origin_is_read_back_from_a_name() {
        let origin = Origin::of(c"film", &stat(1 << 40, 0), true);
        assert_eq!(Origin::parse(origin.text().as_bytes()), Some(origin));
        for other in ["", "1-2", "1-2-3-4", "1-2-x", "+1-2-3", "1-2-"] {
            assert_eq!(Origin::parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn another_name_or_time_or_size_is_another_origin() {
        let (name, this) = (c"film", stat(1 << 30, 1 << 30));
        let of = |name: &CStr, stat: &FileStat| Origin::of(name, stat, true);
        let origin = of(name, &this);
        assert_eq!(of(name, &this), origin);
        let later = FileStat {
            ctime: (this.ctime.0, this.ctime.1 + 1),
            ..this
        };
        assert_ne!(of(name, &later), origin);
        assert_ne!(of(c"films", &this), origin);
        assert_ne!(of(name, &stat(this.size - 1, this.allocated)), origin);
        let linked = FileStat { links: 2, ..this };
        assert_eq!(of(c"films", &linked), of(name, &linked));
        assert_ne!(Origin::of(c"films", &linked, false), of(name, &linked));
    }

    proptest! {
        #[test]
        fn each_segment_has_a_mark_of_its_own(size in 1_u64..1 << 40, part in 1_u64..=64) {
            let file = ChunkedFile::sample("n", size, size / part);
            let none = OwnedFd::from(tempfile::tempfile().unwrap());
            let mut end = 0;
            let mut last_mark = size;
            for chunk in file.chunks(CHUNK_SIZE).into_iter().take(1000) {
                let marks = Marks::read(&none, &file.stat, chunk);
                for (index, segment) in segments(&file.stat, chunk).enumerate() {
                    prop_assert_eq!(segment.start, end);
                    prop_assert!(segment.end > segment.start && (index as u64) < SEGMENTS);
                    end = segment.end;
                    let mark = marks.offset + index as u64;
                    prop_assert!(mark > last_mark);
                    last_mark = mark;
                }
                prop_assert_eq!(end, chunk.offset + chunk.length);
            }
        }
    }
}
