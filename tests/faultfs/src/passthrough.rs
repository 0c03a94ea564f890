//! The file system: what a request does in the source directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use fuser::{
    FileHandle, FileType, Generation, INodeNo, ReplyAttr, ReplyDirectoryPlus, ReplyEntry, Request,
    TimeOrNow,
};
use rustix::fs::{self, AtFlags, CWD, Dir, Gid, Mode, OFlags, Stat, Timestamps, Uid};
use rustix::io::{self, Result};

use crate::convert::{attributes, errno, file_type, new_time};
use crate::delay::Delayed;
use crate::faults::{Faults, Kind};
use crate::inodes::{Inode, Inodes, path_of};

const SETID_BITS: u32 = 0o6000;

/// The behaviour of the mount, apart from its faults.
pub(crate) struct Settings {
    pub(crate) delay: Duration,
    pub(crate) ttl: Duration,
    pub(crate) check_permissions: bool,
}

/// The file system.
pub(crate) struct Passthrough {
    pub(crate) settings: Settings,
    /// Only root may change the owner of new entries.
    is_root: bool,
    faults: Faults,
    pub(crate) delayed: Delayed,
    pub(crate) inodes: Inodes,
    pub(crate) handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
}

/// An open file or directory.
pub(crate) struct Handle {
    pub(crate) inode: Arc<Inode>,
    pub(crate) file: Arc<OwnedFd>,
    was_read: AtomicBool,
    /// The entries of a directory when its listing began. Offsets are indices into it.
    entries: Mutex<Arc<[Entry]>>,
}

pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) inode: u64,
    pub(crate) kind: FileType,
}

/// Answers a request with the result of `$work` after the delay.
macro_rules! answer {
    ($self:ident, $reply:ident, $work:expr, $value:pat => $success:expr) => {{
        let result = $work;
        $self.delayed.after($self.settings.delay, move || match result {
            Ok($value) => $success,
            Err(error) => $reply.error(errno(error)),
        });
    }};
}

pub(crate) use answer;

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

    /// Returns how long the kernel may cache an inode's attributes.
    pub(crate) fn ttl(&self, inode: &Inode) -> Duration {
        if self.has_fault(inode, Kind::changes) { Duration::ZERO } else { self.settings.ttl }
    }

    pub(crate) fn fd(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        self.inodes.get(ino)?.fd()
    }

    /// Returns how much longer than other calls a read takes.
    pub(crate) fn read_delay(&self, inode: &Inode) -> Duration {
        let delay = |kind| if let Kind::SlowRead(time) = kind { time } else { Duration::ZERO };
        self.faults.of(&inode.name()).map(|fault| delay(fault.kind)).sum()
    }

    fn vanishes(&self, name: &OsStr) -> bool {
        self.faults.of(name).any(|it| it.kind == Kind::Vanish)
    }

    pub(crate) fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<(Arc<Inode>, Stat)> {
        if self.vanishes(name) {
            return Err(io::Errno::NOENT);
        }
        self.inodes.look_up(&self.inodes.get(parent)?, name)
    }

    pub(crate) fn answer_entry(&self, reply: ReplyEntry, found: Result<(Arc<Inode>, Stat)>) {
        let found = found.map(|(inode, stat)| (self.ttl(&inode), attributes(inode.id, &stat)));
        let name_ttl = self.settings.ttl;
        answer!(self, reply, found, (ttl, attributes) => {
            reply.entry_with_ttls(&ttl, &name_ttl, &attributes, Generation(0));
        });
    }

    pub(crate) fn answer_attributes(&self, reply: ReplyAttr, inode: Result<Arc<Inode>>) {
        let found = inode.and_then(|inode| {
            let stat = inode.stat()?;
            // The kernel knows the root by a fixed number, but users must see the real one.
            let shown = if inode.id == INodeNo::ROOT.0 { stat.st_ino } else { inode.id };
            Ok((self.ttl(&inode), attributes(shown, &stat)))
        });
        answer!(self, reply, found, (ttl, attributes) => reply.attr(&ttl, &attributes));
    }

    /// Creates an entry by `make` with the owner that it would have in the source.
    pub(crate) fn create_entry<T>(
        &self, request: &Request, parent: INodeNo, name: &OsStr,
        make: impl FnOnce(&OwnedFd) -> Result<T>,
    ) -> Result<(T, (Arc<Inode>, Stat))> {
        let parent = self.inodes.get(parent)?;
        let created = make(&*parent.fd()?)?;
        if self.is_root && (request.uid(), request.gid()) != (0, 0) {
            give_away(&parent, name, request)?;
        }
        Ok((created, self.inodes.look_up(&parent, name)?))
    }

    pub(crate) fn add_handle(&self, inode: Arc<Inode>, file: OwnedFd) -> FileHandle {
        let file = Arc::new(file);
        inode.set_opened(&file);
        let (was_read, entries) = (AtomicBool::new(false), Mutex::default());
        let handle = Arc::new(Handle { inode, file, was_read, entries });
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
                Kind::Touch => is_first,
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
        if !self.faults.take_space(size) {
            return Err(io::Errno::NOSPC);
        }
        Ok(())
    }

    pub(crate) fn set_attributes(&self, inode: &Inode, new: &NewAttributes) -> Result<()> {
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
        // After the owner, because its change removes the setuid and setgid bits.
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
            (None, Duration::ZERO, attributes(entry.inode, &stat))
        } else {
            let Ok((inode, stat)) = self.inodes.look_up(parent, &entry.name) else {
                // It was removed meanwhile.
                return false;
            };
            let vanishes = self.vanishes(&entry.name);
            let ttl = if vanishes { Duration::ZERO } else { self.ttl(&inode) };
            (Some(inode.id), ttl, attributes(inode.id, &stat))
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

/// The attributes to set; `None` leaves one unchanged.
pub(crate) struct NewAttributes {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<TimeOrNow>,
    pub(crate) modified: Option<TimeOrNow>,
    pub(crate) handle: Option<FileHandle>,
}

/// Changes the owner of a new entry to the caller.
fn give_away(parent: &Inode, name: &OsStr, caller: &Request) -> Result<()> {
    let (dir, itself) = (parent.fd()?, AtFlags::SYMLINK_NOFOLLOW);
    let mode = fs::statat(&dir, name, itself)?.st_mode;
    let inherits_group = fs::fstat(&dir)?.st_mode & Mode::SGID.as_raw_mode() != 0;
    let group = (!inherits_group).then(|| Gid::from_raw(caller.gid()));
    fs::chownat(&dir, name, Some(Uid::from_raw(caller.uid())), group, itself)?;
    if mode & SETID_BITS != 0 {
        // The change of owner has removed them.
        fs::chmodat(&dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(())
}
