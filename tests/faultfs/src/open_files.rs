//! Open files and directories.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::{FileHandle, FileType, Generation, INodeNo, ReplyDirectoryPlus};
use rustix::fs::{self, Dir, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::{self, Result};

use crate::convert::file_type;
use crate::faults::Kind;
use crate::inodes::Inode;
use crate::passthrough::Passthrough;

/// An open file or directory.
pub(crate) struct Handle {
    pub(crate) inode: Arc<Inode>,
    pub(crate) file: Arc<OwnedFd>,
    was_read: AtomicBool,
    /// True if it was written to after the last flush.
    pub(crate) was_written: AtomicBool,
    /// The entries of a directory when its listing began. Offsets are indices into it.
    entries: Mutex<Arc<[Entry]>>,
}

pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) inode: u64,
    pub(crate) kind: FileType,
}

impl Passthrough {
    pub(crate) fn add_handle(&self, inode: Arc<Inode>, file: OwnedFd) -> FileHandle {
        let file = Arc::new(file);
        inode.set_opened(&file);
        let handle = Arc::new(Handle {
            inode,
            file,
            was_read: AtomicBool::new(false),
            was_written: AtomicBool::new(false),
            entries: Mutex::default(),
        });
        let id = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().unwrap().insert(id, handle);
        FileHandle(id)
    }

    pub(crate) fn handle(&self, handle: FileHandle) -> Result<Arc<Handle>> {
        let handles = self.handles.read().unwrap();
        handles.get(&handle.0).cloned().ok_or(io::Errno::BADF)
    }

    pub(crate) fn read_file(&self, handle: &Handle, offset: u64, size: u32) -> Result<Vec<u8>> {
        let name = handle.inode.name();
        // To the kernel a short answer means the end of the file. So the whole request fails if
        // it reaches the bad byte, and the kernel asks again page by page.
        let end = (offset + u64::from(size)).min(fs::fstat(&handle.file)?.st_size as u64);
        if self.faults.of(&name).any(|it| matches!(it.kind, Kind::Eio(bad) if end > bad)) {
            return Err(io::Errno::IO);
        }
        let mut data = vec![0; size as usize];
        let length = io::pread(&handle.file, &mut data[..], offset)?;
        data.truncate(length);

        let is_first = !handle.was_read.swap(true, Ordering::Relaxed);
        for fault in self.faults.of(&name).filter(|fault| fault.kind.changes()) {
            let happens = match fault.kind {
                Kind::Touch | Kind::Log(_) => is_first,
                _ => fault.is_first(handle.inode.id),
            };
            if happens {
                fault.kind.change(&handle.inode)?;
            }
        }
        Ok(data)
    }

    /// Fails if a fault concerns this write.
    pub(crate) fn check_write(&self, handle: &Handle, offset: u64, size: u64) -> Result<()> {
        let is_bad = |kind| matches!(kind, Kind::EioWrite(bad) if offset + size > bad);
        if self.has_fault(&handle.inode, is_bad) {
            return Err(io::Errno::IO);
        }
        let filled = self.filled(&handle.file, offset)?;
        if !self.faults.take_space(size + filled) {
            return Err(io::Errno::NOSPC);
        }
        Ok(())
    }

    /// Returns the bytes that are stored if these are written.
    pub(crate) fn stored<'a>(&self, handle: &Handle, offset: u64, data: &'a [u8]) -> Cow<'a, [u8]> {
        let mut stored = Cow::Borrowed(data);
        for fault in self.faults.of(&handle.inode.name()) {
            let (Kind::Flip(bad) | Kind::FlipOnce(bad)) = fault.kind else { continue };
            let is_in_data = bad >= offset && bad < offset + data.len() as u64;
            let is_once = matches!(fault.kind, Kind::FlipOnce(_));
            if is_in_data && (!is_once || fault.is_first(handle.inode.id)) {
                stored.to_mut()[(bad - offset) as usize] ^= 0x10;
            }
        }
        stored
    }

    /// Returns how many zeros a file system without holes writes before this offset.
    pub(crate) fn filled(&self, file: &OwnedFd, offset: u64) -> Result<u64> {
        if !self.settings.fill_holes {
            return Ok(0);
        }
        Ok(offset.saturating_sub(fs::fstat(file)?.st_size as u64))
    }

    /// Ends a series of writes.
    pub(crate) fn flush_file(&self, handle: &Handle) -> Result<()> {
        if self.settings.mtime_at_flush && handle.was_written.swap(false, Ordering::Relaxed) {
            let times = Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            };
            fs::futimens(&handle.file, &times)?;
        }
        if self.has_fault(&handle.inode, |it| it == Kind::EioClose) {
            return Err(io::Errno::IO);
        }
        Ok(())
    }

    /// Returns the entries of an open directory. A listing from the start reads them again.
    pub(crate) fn list(&self, handle: &Handle, offset: u64) -> Result<Arc<[Entry]>> {
        let mut entries = handle.entries.lock().unwrap();
        if offset == 0 {
            let entry = |entry: Result<fs::DirEntry>| {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
                Ok(Entry { name, inode: entry.ino(), kind: file_type(entry.file_type()) })
            };
            *entries = Dir::read_from(&handle.file)?.map(entry).collect::<Result<_>>()?;
        }
        Ok(entries.clone())
    }

    /// Adds an entry and its lookup to a listing, and returns true if the listing is full.
    pub(crate) fn add_entry(
        &self, reply: &mut ReplyDirectoryPlus, parent: &Arc<Inode>, entry: &Entry, next: u64,
    ) -> bool {
        let (id, ttl, attributes) = if entry.name == "." || entry.name == ".." {
            // The kernel uses only the number and the type of these.
            let Ok(stat) = parent.stat() else { return false };
            (None, Duration::ZERO, self.attributes(entry.inode, &stat))
        } else {
            let Ok((inode, stat)) = self.inodes.look_up(parent, &entry.name) else {
                // It was removed meanwhile.
                return false;
            };
            let vanishes = self.vanishes(&entry.name);
            let ttl = if vanishes { Duration::ZERO } else { self.ttl(&inode) };
            (Some(inode.id), ttl, self.attributes(inode.id, &stat))
        };
        let is_full =
            reply.add(attributes.ino, next, &entry.name, &ttl, &attributes, Generation(0));
        if let Some(id) = id.filter(|_| is_full) {
            // An entry that is not sent does not count as looked up.
            self.inodes.forget(INodeNo(id), 1);
        }
        is_full
    }

    /// Returns true if a fault of this kind leaves requests on the handle unanswered.
    pub(crate) fn hangs(&self, handle: &Result<Arc<Handle>>, kind: Kind) -> bool {
        let inode = handle.as_ref().map(|handle| &handle.inode);
        inode.is_ok_and(|inode| self.has_fault(inode, |it| it == kind))
    }
}
