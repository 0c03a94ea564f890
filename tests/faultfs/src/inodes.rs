//! The inodes that the kernel knows, each with its number and a way to open it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use fuser::INodeNo;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, Result};

/// Opens an inode itself, even if it is a symbolic link.
const REACH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The first number for entries on another device than the root's. Real numbers are lower.
const FOREIGN: u64 = 1 << 62;

/// Device and inode number in the source directory.
type Key = (u64, u64);

/// An inode of the source directory.
pub(crate) struct Inode {
    /// The number for the kernel: the inode number in the source, if that is unique.
    pub(crate) id: u64,
    key: Key,
    /// A directory stays open. Files are too many for that and are opened by their names.
    dir: Option<Arc<OwnedFd>>,
    /// The names by which the kernel has found it, the latest last. The root has none.
    links: Mutex<Vec<(Arc<Inode>, OsString)>>,
    /// The latest open file, for the time after its last name was removed.
    opened: Mutex<Weak<OwnedFd>>,
}

/// Returns a path to an open file, which is not followed even if it is a symbolic link.
pub(crate) fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn key_of(stat: &Stat) -> Key {
    (stat.st_dev, stat.st_ino)
}

impl Inode {
    fn new(id: u64, key: Key, dir: Option<OwnedFd>) -> Arc<Self> {
        let dir = dir.map(Arc::new);
        Arc::new(Inode { id, key, dir, links: Mutex::default(), opened: Mutex::default() })
    }

    /// Returns the name by which it was last found, which decides about faults.
    pub(crate) fn name(&self) -> OsString {
        let links = self.links.lock().unwrap();
        links.last().map_or_else(|| "/".into(), |(_, name)| name.clone())
    }

    /// Returns a descriptor, which can do everything but read and write.
    pub(crate) fn fd(&self) -> Result<Arc<OwnedFd>> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let found = self.links.lock().unwrap().iter().rev().find_map(|(parent, name)| {
            let fd = openat(parent.fd().ok()?, name, REACH, Mode::empty()).ok()?;
            // Another file may have the name by now.
            (key_of(&fstat(&fd).ok()?) == self.key).then(|| Arc::new(fd))
        });
        found.or_else(|| self.opened.lock().unwrap().upgrade()).ok_or(Errno::STALE)
    }

    pub(crate) fn stat(&self) -> Result<Stat> {
        fstat(self.fd()?)
    }

    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = (flags | OFlags::CLOEXEC) - OFlags::NOFOLLOW;
        openat(CWD, path_of(&*self.fd()?), flags, Mode::empty())
    }

    /// Records that it is open.
    pub(crate) fn set_opened(&self, file: &Arc<OwnedFd>) {
        *self.opened.lock().unwrap() = Arc::downgrade(file);
    }

    fn add_link(&self, parent: &Arc<Inode>, name: &OsStr) {
        let mut links = self.links.lock().unwrap();
        if self.dir.is_some() {
            // A directory has one name, so an older one is out of date.
            links.clear();
        } else {
            links.retain(|link| link.1 != name || !Arc::ptr_eq(&link.0, parent));
        }
        links.push((parent.clone(), name.to_owned()));
    }
}

/// The inodes that the kernel knows.
pub(crate) struct Inodes {
    root_device: u64,
    /// Each lookup returns another number.
    volatile: bool,
    table: Mutex<Table>,
}

struct Table {
    by_id: HashMap<u64, Known>,
    ids: HashMap<Key, u64>,
    next_foreign: u64,
}

/// An inode, and the number of lookups that the kernel has not yet forgotten.
struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

impl Inodes {
    pub(crate) fn new(source: &Path, volatile: bool) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, source, flags, Mode::empty())?;
        let (id, key) = (INodeNo::ROOT.0, key_of(&fstat(&fd)?));
        // The kernel knows the root without a lookup and never forgets it.
        let known = Known { inode: Inode::new(id, key, Some(fd)), lookups: 1 };
        let (by_id, ids) = (HashMap::from([(id, known)]), HashMap::from([(key, id)]));
        let table = Mutex::new(Table { by_id, ids, next_foreign: FOREIGN });
        Ok(Inodes { root_device: key.0, volatile, table })
    }

    pub(crate) fn get(&self, id: INodeNo) -> Result<Arc<Inode>> {
        let table = self.table.lock().unwrap();
        table.by_id.get(&id.0).map(|known| known.inode.clone()).ok_or(Errno::STALE)
    }

    /// Finds an entry and counts one lookup, until the kernel calls [`Inodes::forget`].
    pub(crate) fn look_up(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<(Arc<Inode>, Stat)> {
        let parent_fd = parent.fd()?;
        let mut stat = statat(&parent_fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut dir = None;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let fd = openat(&parent_fd, name, REACH | OFlags::DIRECTORY, Mode::empty())?;
            stat = fstat(&fd)?;
            dir = Some(fd);
        }
        let key = key_of(&stat);

        let mut table = self.table.lock().unwrap();
        let Table { by_id, ids, next_foreign } = &mut *table;
        if self.volatile {
            ids.remove(&key);
        }
        let id = *ids.entry(key).or_insert_with(|| {
            if !self.volatile && key.0 == self.root_device && (2..FOREIGN).contains(&key.1) {
                return key.1;
            }
            *next_foreign += 1;
            *next_foreign
        });
        let new = || Known { inode: Inode::new(id, key, dir), lookups: 0 };
        let known = by_id.entry(id).or_insert_with(new);
        known.lookups += 1;
        known.inode.add_link(parent, name);
        Ok((known.inode.clone(), stat))
    }

    pub(crate) fn forget(&self, id: INodeNo, lookups: u64) {
        let mut table = self.table.lock().unwrap();
        let Some(known) = table.by_id.get_mut(&id.0) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 {
            let key = known.inode.key;
            // A volatile inode may have a later number too.
            if table.ids.get(&key) == Some(&id.0) {
                table.ids.remove(&key);
            }
            table.by_id.remove(&id.0);
        }
    }

    /// Records the new name of an entry if the kernel knows it, as the kernel will not look it up.
    pub(crate) fn renamed(&self, parent: &Arc<Inode>, name: &OsStr) {
        let stat = parent.fd().and_then(|fd| statat(fd, name, AtFlags::SYMLINK_NOFOLLOW));
        let Ok(stat) = stat else { return };
        let key = key_of(&stat);
        let table = self.table.lock().unwrap();
        if self.volatile {
            let same = table.by_id.values().filter(|known| known.inode.key == key);
            return same.for_each(|known| known.inode.add_link(parent, name));
        }
        if let Some(known) = table.ids.get(&key).and_then(|id| table.by_id.get(id)) {
            known.inode.add_link(parent, name);
        }
    }
}
