//! What the kernel asks for, done in the source folder.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{
    self, AtFlags, CWD, Dir, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Stat, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::{self, Result};

use crate::convert::{attributes, errno, file_type, new_time};
use crate::delay::Delayed;
use crate::faults::{Faults, Kind};
use crate::hung::hang;
use crate::inodes::{Inode, Inodes, path_of};

const SETID_BITS: u32 = 0o6000;

/// As many requests as this may wait at a time on behalf of nobody (readahead, release).
const MAX_BACKGROUND: u16 = 512;
/// The longest extended attribute, and the longest list of their names, that the kernel takes.
const XATTR_MAX: usize = 1 << 16;
/// The largest write; the kernel's own limit is the same.
const MAX_WRITE: u32 = 1 << 20;

/// How the mount behaves apart from its faults.
pub(crate) struct Settings {
    pub(crate) delay: Duration,
    pub(crate) ttl: Duration,
    pub(crate) check_permissions: bool,
}

/// The file system.
pub(crate) struct Passthrough {
    settings: Settings,
    /// Whether we may give files away.
    is_root: bool,
    faults: Faults,
    delayed: Delayed,
    inodes: Inodes,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
}

/// An open file or folder.
struct Handle {
    inode: Arc<Inode>,
    file: Arc<OwnedFd>,
    was_read: AtomicBool,
    /// What a folder contained when its reading began; offsets count in it.
    entries: Mutex<Arc<[Entry]>>,
}

struct Entry {
    name: OsString,
    inode: u64,
    kind: FileType,
}

/// Answers a request with what `$work` came to, when it is time.
macro_rules! answer {
    ($self:ident, $reply:ident, $work:expr, $value:pat => $success:expr) => {{
        let result = $work;
        $self.delayed.after($self.settings.delay, move || match result {
            Ok($value) => $success,
            Err(error) => $reply.error(errno(error)),
        });
    }};
}

impl Passthrough {
    pub(crate) fn new(source: &Path, settings: Settings, faults: Faults) -> Result<Self> {
        Ok(Passthrough {
            settings,
            is_root: rustix::process::geteuid().is_root(),
            faults,
            delayed: Delayed::start(),
            inodes: Inodes::new(source)?,
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    fn has_fault(&self, inode: &Inode, which: impl Fn(Kind) -> bool) -> bool {
        self.faults.of(&inode.name()).any(|fault| which(fault.kind))
    }

    /// How long the kernel may rely on an inode's attributes.
    fn ttl(&self, inode: &Inode) -> Duration {
        if self.has_fault(inode, Kind::changes) { Duration::ZERO } else { self.settings.ttl }
    }

    fn reach(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        self.inodes.get(ino)?.fd()
    }

    /// How much longer than other calls a read of it takes.
    fn slowness(&self, inode: &Inode) -> Duration {
        let time = |kind| if let Kind::SlowRead(time) = kind { time } else { Duration::ZERO };
        self.faults.of(&inode.name()).map(|fault| time(fault.kind)).sum()
    }

    fn vanishes(&self, name: &OsStr) -> bool {
        self.faults.of(name).any(|it| it.kind == Kind::Vanish)
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<(Arc<Inode>, Stat)> {
        if self.vanishes(name) {
            return Err(io::Errno::NOENT);
        }
        self.inodes.enter(&self.inodes.get(parent)?, name)
    }

    fn answer_entry(&self, reply: ReplyEntry, found: Result<(Arc<Inode>, Stat)>) {
        let found = found.map(|(inode, stat)| (self.ttl(&inode), attributes(inode.id, &stat)));
        let name_ttl = self.settings.ttl;
        answer!(self, reply, found, (ttl, attributes) => {
            reply.entry_with_ttls(&ttl, &name_ttl, &attributes, Generation(0));
        });
    }

    fn answer_attributes(&self, reply: ReplyAttr, inode: Result<Arc<Inode>>) {
        let found = inode.and_then(|inode| {
            let stat = inode.stat()?;
            // The root has a fixed number towards the kernel, but users shall see the real one.
            let shown = if inode.id == INodeNo::ROOT.0 { stat.st_ino } else { inode.id };
            Ok((self.ttl(&inode), attributes(shown, &stat)))
        });
        answer!(self, reply, found, (ttl, attributes) => reply.attr(&ttl, &attributes));
    }

    /// Makes a new entry by `make`, as the caller would have made it.
    fn create_entry<T>(
        &self, request: &Request, parent: INodeNo, name: &OsStr,
        make: impl FnOnce(&OwnedFd) -> Result<T>,
    ) -> Result<(T, (Arc<Inode>, Stat))> {
        let parent = self.inodes.get(parent)?;
        let made = make(&*parent.fd()?)?;
        if self.is_root && (request.uid(), request.gid()) != (0, 0) {
            give_away(&parent, name, request)?;
        }
        Ok((made, self.inodes.enter(&parent, name)?))
    }

    fn add_handle(&self, inode: Arc<Inode>, file: OwnedFd) -> FileHandle {
        let file = Arc::new(file);
        inode.set_opened(&file);
        let (was_read, entries) = (AtomicBool::new(false), Mutex::default());
        let handle = Arc::new(Handle { inode, file, was_read, entries });
        let id = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().unwrap().insert(id, handle);
        FileHandle(id)
    }

    fn handle(&self, handle: FileHandle) -> Result<Arc<Handle>> {
        let handles = self.handles.read().unwrap();
        handles.get(&handle.0).cloned().ok_or(io::Errno::BADF)
    }

    fn read_file(&self, handle: &Handle, offset: u64, size: u32) -> Result<Vec<u8>> {
        let name = handle.inode.name();
        // A short answer would mean the end of the file to the kernel, so a request that reaches
        // the bad place fails whole; the kernel then asks page by page.
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

    /// Fails if writing this range shall fail.
    fn check_write(&self, handle: &Handle, offset: u64, size: u64) -> Result<()> {
        let is_bad = |kind| matches!(kind, Kind::EioWrite(bad) if offset + size > bad);
        if self.has_fault(&handle.inode, is_bad) {
            return Err(io::Errno::IO);
        }
        if !self.faults.take_space(size) {
            return Err(io::Errno::NOSPC);
        }
        Ok(())
    }

    fn set_attributes(&self, inode: &Inode, new: &NewAttributes) -> Result<()> {
        let fd = inode.fd()?;
        match (new.size, new.handle) {
            (None, _) => {}
            (Some(size), Some(handle)) => fs::ftruncate(&self.handle(handle)?.file, size)?,
            (Some(size), None) => fs::ftruncate(inode.open(OFlags::WRONLY)?, size)?,
        }
        if new.owner.is_some() || new.group.is_some() {
            let (owner, group) = (new.owner.map(Uid::from_raw), new.group.map(Gid::from_raw));
            fs::chownat(&fd, "", owner, group, AtFlags::EMPTY_PATH)?;
        }
        // After the owner, whose change takes the setuid and setgid bits away.
        if let Some(mode) = new.mode {
            fs::chmodat(CWD, path_of(&fd), Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        if new.accessed.is_some() || new.modified.is_some() {
            let times = Timestamps {
                last_access: new_time(new.accessed),
                last_modification: new_time(new.modified),
            };
            fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// The entries of an open folder from `offset` on; a reading that starts anew sees it anew.
    fn list(&self, handle: &Handle, offset: u64) -> Result<Arc<[Entry]>> {
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

    /// Adds an entry to a listing, as a lookup of it would have answered; true if it has no room.
    fn add_entry(
        &self, reply: &mut ReplyDirectoryPlus, parent: &Arc<Inode>, entry: &Entry, next: u64,
    ) -> bool {
        let (id, ttl, attributes) = if entry.name == "." || entry.name == ".." {
            // The kernel takes no more than the number and the type from these.
            let Ok(stat) = parent.stat() else { return false };
            (None, Duration::ZERO, attributes(entry.inode, &stat))
        } else {
            let Ok((inode, stat)) = self.inodes.enter(parent, &entry.name) else {
                // Removed a moment ago.
                return false;
            };
            let vanishes = self.vanishes(&entry.name);
            let ttl = if vanishes { Duration::ZERO } else { self.ttl(&inode) };
            (Some(inode.id), ttl, attributes(inode.id, &stat))
        };
        let is_full =
            reply.add(attributes.ino, next, &entry.name, &ttl, &attributes, Generation(0));
        if let Some(id) = id.filter(|_| is_full) {
            // What is not sent is not looked up either.
            self.inodes.forget(INodeNo(id), 1);
        }
        is_full
    }

    /// Whether a request on `handle` shall not be answered because of the fault `kind`.
    fn hangs(&self, handle: &Result<Arc<Handle>>, kind: Kind) -> bool {
        let inode = handle.as_ref().map(|handle| &handle.inode);
        inode.is_ok_and(|inode| self.has_fault(inode, |it| it == kind))
    }
}

/// What a caller wants changed; `None` stays as it is.
struct NewAttributes {
    mode: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
    size: Option<u64>,
    accessed: Option<TimeOrNow>,
    modified: Option<TimeOrNow>,
    handle: Option<FileHandle>,
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS // look up and list in one folder at the same time
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            // Otherwise each write costs a question for security.capability.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        if self.settings.check_permissions {
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        // What an old kernel lacks costs speed or fidelity, but works.
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
        let target = self.reach(ino).and_then(|fd| fs::readlinkat(fd, "", Vec::new()));
        answer!(self, reply, target, target => reply.data(target.as_bytes()));
    }

    fn mknod(
        &self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        let (kind, mode) = (fs::FileType::from_raw_mode(mode), Mode::from_raw_mode(mode));
        let make = |dir: &OwnedFd| fs::mknodat(dir, name, kind, mode, rdev.into());
        let made = self.create_entry(request, parent, name, make);
        self.answer_entry(reply, made.map(|((), entry)| entry));
    }

    fn mkdir(
        &self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32,
        reply: ReplyEntry,
    ) {
        let make = |dir: &OwnedFd| fs::mkdirat(dir, name, Mode::from_raw_mode(mode));
        let made = self.create_entry(request, parent, name, make);
        self.answer_entry(reply, made.map(|((), entry)| entry));
    }

    fn symlink(
        &self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let make = |dir: &OwnedFd| fs::symlinkat(target, dir, name);
        let made = self.create_entry(request, parent, name, make);
        self.answer_entry(reply, made.map(|((), entry)| entry));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = || {
            let (fd, parent) = (self.reach(ino)?, self.inodes.get(parent)?);
            fs::linkat(CWD, path_of(&fd), parent.fd()?, name, AtFlags::SYMLINK_FOLLOW)?;
            self.inodes.enter(&parent, name)
        };
        self.answer_entry(reply, linked());
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.reach(parent).and_then(|dir| fs::unlinkat(dir, name, AtFlags::empty()));
        answer!(self, reply, removed, () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed =
            self.reach(parent).and_then(|dir| fs::unlinkat(dir, name, AtFlags::REMOVEDIR));
        answer!(self, reply, removed, () => reply.ok());
    }

    fn rename(
        &self, _: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        let rename = || {
            let (old, new) = (self.inodes.get(parent)?, self.inodes.get(new_parent)?);
            let flags = fs::RenameFlags::from_bits_retain(flags.bits());
            fs::renameat_with(old.fd()?, name, new.fd()?, new_name, flags)?;
            self.inodes.renamed(&new, new_name);
            // Something is there only after an exchange.
            self.inodes.renamed(&old, name);
            Ok(())
        };
        answer!(self, reply, rename(), () => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.inodes.get(ino).and_then(|inode| {
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
        let make = |dir: &OwnedFd| fs::openat(dir, name, flags, Mode::from_raw_mode(mode));
        let made = self.create_entry(request, parent, name, make).map(|(file, (inode, stat))| {
            let (ttl, attributes) = (self.ttl(&inode), attributes(inode.id, &stat));
            (ttl, attributes, self.add_handle(inode, file))
        });
        answer!(self, reply, made, (ttl, attributes, handle) => {
            reply.created(&ttl, &attributes, Generation(0), handle, FopenFlags::empty());
        });
    }

    fn read(
        &self, request: &Request, _: INodeNo, handle: FileHandle, offset: u64, size: u32,
        _: OpenFlags, _: Option<LockOwner>, reply: ReplyData,
    ) {
        let handle = self.handle(handle);
        if self.hangs(&handle, Kind::HangRead) {
            return hang(request, |error| reply.error(error));
        }
        if self.hangs(&handle, Kind::DeadRead) {
            // Dropped, it would answer.
            return std::mem::forget(reply);
        }
        let slow = |handle: &Arc<Handle>| self.slowness(&handle.inode);
        let time = self.settings.delay + handle.as_ref().map_or(Duration::ZERO, slow);
        let data = handle.and_then(|handle| self.read_file(&handle, offset, size));
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
            io::pwrite(&handle.file, data, offset)
        };
        answer!(self, reply, write(), written => reply.written(written as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Writes are through already; a network file system would wait for them here.
        answer!(self, reply, Ok(()), () => reply.ok());
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
        answer!(self, reply, synced, () => reply.ok());
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
        let found = self.reach(ino).and_then(fs::fstatvfs);
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
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let set = self.reach(ino).and_then(|fd| fs::setxattr(path_of(&fd), name, value, flags));
        answer!(self, reply, set, () => reply.ok());
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mut value = vec![0; XATTR_MAX];
        let get = |fd: Arc<OwnedFd>| fs::getxattr(path_of(&fd), name, &mut value[..]);
        let length = self.reach(ino).and_then(get);
        answer!(self, reply, length, length => answer_xattr(reply, size, &value[..length]));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mut names = vec![0; XATTR_MAX];
        let list = |fd: Arc<OwnedFd>| fs::listxattr(path_of(&fd), &mut names[..]);
        let length = self.reach(ino).and_then(list);
        let may_see_all = request.uid() == 0;
        answer!(self, reply, length, length => {
            let all = names[..length].split_inclusive(|&byte| byte == 0);
            let seen = all.filter(|name| may_see_all || !name.starts_with(b"trusted."));
            answer_xattr(reply, size, &seen.flatten().copied().collect::<Vec<u8>>());
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.reach(ino).and_then(|fd| fs::removexattr(path_of(&fd), name));
        answer!(self, reply, removed, () => reply.ok());
    }

    fn fallocate(
        &self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, length: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let allocate = || {
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

/// Answers with `data`, or with its length to a caller who asks for that by `size` 0.
fn answer_xattr(reply: ReplyXattr, size: u32, data: &[u8]) {
    match size as usize {
        0 => reply.size(data.len() as u32),
        size if size < data.len() => reply.error(Errno::ERANGE),
        _ => reply.data(data),
    }
}

/// Makes an entry that we just created the caller's own.
fn give_away(parent: &Inode, name: &OsStr, caller: &Request) -> Result<()> {
    let (dir, itself) = (parent.fd()?, AtFlags::SYMLINK_NOFOLLOW);
    let mode = fs::statat(&dir, name, itself)?.st_mode;
    let inherits_group = fs::fstat(&dir)?.st_mode & Mode::SGID.as_raw_mode() != 0;
    let group = (!inherits_group).then(|| Gid::from_raw(caller.gid()));
    fs::chownat(&dir, name, Some(Uid::from_raw(caller.uid())), group, itself)?;
    if mode & SETID_BITS != 0 {
        // The change of owner took them away.
        fs::chmodat(&dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(())
}

/// How to open a file in the source: without what the kernel has dealt with, and without what
/// would bind us to alignments that it does not keep.
fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags as u32) - OFlags::DIRECT
}
