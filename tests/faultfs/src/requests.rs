//! The requests of the kernel.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{self, AtFlags, CWD, FallocateFlags, OFlags, SeekFrom, XattrFlags};
use rustix::io::{self, Result};

use crate::convert::errno;
use crate::faults::Kind;
use crate::hang::hang;
use crate::inodes::path_of;
use crate::metadata::{NewAttributes, answer_xattr};
use crate::open_files::Handle;
use crate::passthrough::{Passthrough, answer};

/// The number of background requests, such as readahead and release, that may wait at a time.
const MAX_BACKGROUND: u16 = 512;
/// The largest write, which is also the kernel's limit.
const MAX_WRITE: u32 = 1 << 20;

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS // look up and list in one directory at the same time
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            // Without it each write causes a request for security.capability.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        if !self.settings.no_permissions {
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        // An old kernel that lacks some of these is slower or less faithful, but works.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer_entry(reply, self.look_up(parent, name));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.inodes.forget(ino, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer_attributes(reply, self.inodes.get(ino));
    }

    fn setattr(
        &self, _: &Request, ino: INodeNo, mode: Option<u32>, owner: Option<u32>,
        group: Option<u32>, size: Option<u64>, accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>, _ctime: Option<SystemTime>, handle: Option<FileHandle>,
        _crtime: Option<SystemTime>, _chgtime: Option<SystemTime>, _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>, reply: ReplyAttr,
    ) {
        let new = NewAttributes { mode, owner, group, size, accessed, modified, handle };
        let inode = self.inodes.get(ino).and_then(|inode| {
            self.set_attributes(&inode, &new)?;
            Ok(inode)
        });
        self.answer_attributes(reply, inode);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.fd(ino).and_then(|fd| fs::readlinkat(fd, "", Vec::new()));
        answer!(self, reply, target, target => reply.data(target.as_bytes()));
    }

    fn mknod(
        &self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        let (kind, mode) = (fs::FileType::from_raw_mode(mode), self.settings.new_mode(mode));
        let make = |dir: &OwnedFd, name: &OsStr| fs::mknodat(dir, name, kind, mode, rdev.into());
        let created = self.create_entry(request, parent, name, make);
        self.answer_entry(reply, created.map(|((), entry)| entry));
    }

    fn mkdir(
        &self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = self.settings.new_mode(mode);
        let make = |dir: &OwnedFd, name: &OsStr| fs::mkdirat(dir, name, mode);
        let created = self.create_entry(request, parent, name, make);
        self.answer_entry(reply, created.map(|((), entry)| entry));
    }

    fn symlink(
        &self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let make = |dir: &OwnedFd, name: &OsStr| fs::symlinkat(target, dir, name);
        let created = self.create_entry(request, parent, name, make);
        self.answer_entry(reply, created.map(|((), entry)| entry));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = || {
            if self.settings.no_hard_links {
                return Err(io::Errno::PERM);
            }
            let (fd, parent) = (self.fd(ino)?, self.inodes.get(parent)?);
            self.check_new_name(&parent, name)?;
            let name = &*self.stored_name(&parent, name)?;
            fs::linkat(CWD, path_of(&fd), parent.fd()?, name, AtFlags::SYMLINK_FOLLOW)?;
            self.inodes.look_up(&parent, name)
        };
        self.answer_entry(reply, linked());
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.remove(parent, name, AtFlags::empty());
        answer!(self, reply, removed, () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.remove(parent, name, AtFlags::REMOVEDIR);
        answer!(self, reply, removed, () => reply.ok());
    }

    fn rename(
        &self, _: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        let rename = || {
            self.check_rename(name)?;
            self.check_rename(new_name)?;
            let (old, new) = (self.inodes.get(parent)?, self.inodes.get(new_parent)?);
            let name = &*self.stored_name(&old, name)?;
            self.check_new_name(&new, new_name)?;
            let new_name = &*self.stored_name(&new, new_name)?;
            let flags = fs::RenameFlags::from_bits_retain(flags.bits());
            fs::renameat_with(old.fd()?, name, new.fd()?, new_name, flags)?;
            if self.settings.rename_links && flags.is_empty() {
                // It is still there if both were the same file.
                let _ = fs::unlinkat(old.fd()?, name, AtFlags::empty());
            }
            self.inodes.renamed(&new, new_name);
            // Only an exchange leaves an entry there.
            self.inodes.renamed(&old, name);
            Ok(())
        };
        answer!(self, reply, rename(), () => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.inodes.get(ino).and_then(|inode| {
            if self.fails_to_open(&inode) {
                return Err(io::Errno::IO);
            }
            let file = inode.open(open_flags(flags.0))?;
            Ok(self.add_handle(inode, file))
        });
        answer!(self, reply, opened, handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn create(
        &self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32,
        flags: i32, reply: ReplyCreate,
    ) {
        let flags = open_flags(flags) | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = self.settings.new_mode(mode);
        let make = |dir: &OwnedFd, name: &OsStr| fs::openat(dir, name, flags, mode);
        let created =
            self.create_entry(request, parent, name, make).map(|(file, (inode, stat))| {
                let ttl = self.ttl(&inode).min(self.name_ttl());
                let attributes = self.attributes(inode.id, &stat);
                let handle = self.add_handle(inode, file);
                if let Ok(handle) = self.handle(handle) {
                    handle.was_written.store(true, Ordering::Relaxed);
                }
                (ttl, attributes, handle)
            });
        answer!(self, reply, created, (ttl, attributes, handle) => {
            reply.created(&ttl, &attributes, Generation(0), handle, FopenFlags::empty());
        });
    }

    fn read(
        &self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, size: u32,
        _: OpenFlags, _: Option<LockOwner>, reply: ReplyData,
    ) {
        let handle = self.handle(handle);
        if self.hangs(&handle, Kind::HangRead) {
            return hang(request, |error| reply.error(error));
        }
        if self.hangs(&handle, Kind::DeadRead) {
            // To drop it would answer the request.
            return std::mem::forget(reply);
        }
        let delay = |handle: &Arc<Handle>| self.read_delay(&handle.inode);
        let mut time = self.settings.delay + handle.as_ref().map_or(Duration::ZERO, delay);
        let data = handle.and_then(|handle| self.read_file(&handle, offset, size));
        if let (Some(head), Ok(data)) = (&self.head, &data) {
            time += head.read(Instant::now(), ino.0, offset, data.len() as u64);
        }
        self.delayed.after(time, move || match data {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn write(
        &self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, data: &[u8],
        _: WriteFlags, _: OpenFlags, _: Option<LockOwner>, reply: ReplyWrite,
    ) {
        let write = || {
            let handle = self.handle(handle)?;
            self.check_write(&handle, offset, data.len() as u64)?;
            handle.was_written.store(true, Ordering::Relaxed);
            io::pwrite(&handle.file, &self.stored(&handle, offset, data), offset)
        };
        answer!(self, reply, write(), written => reply.written(written as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // All writes are done. A network file system would wait for them here.
        let flushed = self.handle(handle).and_then(|handle| self.flush_file(&handle));
        answer!(self, reply, flushed, () => reply.ok());
    }

    fn release(
        &self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, _: Option<LockOwner>,
        _: bool, reply: ReplyEmpty,
    ) {
        self.handles.write().unwrap().remove(&handle.0);
        answer!(self, reply, Ok(()), () => reply.ok());
    }

    fn fsync(
        &self, _: &Request, _: INodeNo, handle: FileHandle, only_data: bool, reply: ReplyEmpty,
    ) {
        let synced = self.handle(handle).and_then(|handle| match only_data {
            true => fs::fdatasync(&handle.file),
            false => fs::fsync(&handle.file),
        });
        // One after another.
        let now = Instant::now();
        let mut flushed = self.flushed.lock().unwrap();
        *flushed = (*flushed).max(now) + self.settings.flush;
        let wait = self.settings.delay + flushed.saturating_duration_since(now);
        self.delayed.after(wait, move || match synced {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.open(request, ino, flags, reply);
    }

    fn readdir(
        &self, request: &Request, _: INodeNo, handle: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let handle = self.handle(handle);
        if self.hangs(&handle, Kind::HangList) {
            return hang(request, |error| reply.error(error));
        }
        let entries = handle.and_then(|handle| self.list(&handle, offset));
        let filled = entries.map(|entries| {
            for (entry, next) in entries.iter().zip(1..).skip(offset as usize) {
                if reply.add(INodeNo(entry.inode), next, entry.kind, &entry.name) {
                    break;
                }
            }
        });
        answer!(self, reply, filled, () => reply.ok());
    }

    fn readdirplus(
        &self, request: &Request, _: INodeNo, handle: FileHandle, offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let handle = self.handle(handle);
        if self.hangs(&handle, Kind::HangList) {
            return hang(request, |error| reply.error(error));
        }
        let filled = handle.and_then(|handle| {
            let entries = self.list(&handle, offset)?;
            for (entry, next) in entries.iter().zip(1..).skip(offset as usize) {
                if self.add_entry(&mut reply, &handle.inode, entry, next) {
                    break;
                }
            }
            Ok(())
        });
        answer!(self, reply, filled, () => reply.ok());
    }

    fn releasedir(
        &self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty,
    ) {
        self.handles.write().unwrap().remove(&handle.0);
        answer!(self, reply, Ok(()), () => reply.ok());
    }

    fn fsyncdir(
        &self, request: &Request, ino: INodeNo, handle: FileHandle, only_data: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(request, ino, handle, only_data, reply);
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let found = self.fd(ino).and_then(fs::fstatvfs);
        answer!(self, reply, found, it => reply.statfs(
            it.f_blocks,
            it.f_bfree,
            it.f_bavail,
            it.f_files,
            it.f_ffree,
            it.f_bsize as u32,
            it.f_namemax as u32,
            it.f_frsize as u32,
        ));
    }

    fn setxattr(
        &self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32,
        reply: ReplyEmpty,
    ) {
        let set = self.set_attribute(ino, name, value, XattrFlags::from_bits_retain(flags as u32));
        answer!(self, reply, set, () => reply.ok());
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.get_attribute(ino, name);
        answer!(self, reply, value, value => answer_xattr(reply, size, &value));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.list_attributes(ino, request);
        answer!(self, reply, names, names => answer_xattr(reply, size, &names));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.fd(ino).and_then(|fd| fs::removexattr(path_of(&fd), name));
        answer!(self, reply, removed, () => reply.ok());
    }

    fn fallocate(
        &self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, length: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let allocate = || {
            if self.settings.fill_holes {
                return Err(io::Errno::OPNOTSUPP);
            }
            let handle = self.handle(handle)?;
            self.check_write(&handle, offset, 0)?;
            fs::fallocate(&handle.file, mode, offset, length)
        };
        answer!(self, reply, allocate(), () => reply.ok());
    }

    fn lseek(
        &self, _: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = || {
            if self.settings.fill_holes {
                // The kernel then treats the whole file as data.
                return Err(io::Errno::NOSYS);
            }
            let offset = u64::try_from(offset).map_err(|_| io::Errno::NXIO)?;
            // The kernel answers the other kinds itself.
            let position = match whence {
                3 => SeekFrom::Data(offset),
                4 => SeekFrom::Hole(offset),
                _ => return Err(io::Errno::INVAL),
            };
            let handle = self.handle(handle)?;
            if self.has_fault(&handle.inode, |kind| kind == Kind::HideHoles) {
                let size = fs::fstat(&handle.file)?.st_size as u64;
                return match position {
                    _ if offset >= size => Err(io::Errno::NXIO),
                    SeekFrom::Data(_) => Ok(offset),
                    _ => Ok(size),
                };
            }
            fs::seek(&handle.file, position)
        };
        answer!(self, reply, seek(), offset => reply.offset(offset as i64));
    }
}

/// Returns the flags to open a file in the source.
///
/// `O_DIRECT` is left out, because requests are not aligned as it demands.
fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags as u32) - OFlags::DIRECT
}

impl Passthrough {
    fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Result<()> {
        let parent = self.inodes.get(parent)?;
        fs::unlinkat(parent.fd()?, &*self.stored_name(&parent, name)?, flags)
    }

    fn check_rename(&self, name: &OsStr) -> Result<()> {
        let error = self.faults.of(name).find_map(|fault| match fault.kind {
            Kind::RefuseRename => Some(io::Errno::PERM),
            Kind::NoRename => Some(io::Errno::NOSYS),
            _ => None,
        });
        error.map_or(Ok(()), Err)
    }
}
