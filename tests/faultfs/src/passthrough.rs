//! The file system: names and inodes of the source directory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use fuser::{FileAttr, Generation, INodeNo, ReplyAttr, ReplyEntry, Request};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat, openat, statat};
use rustix::io::{self, Result};

use crate::convert::{attributes, errno};
use crate::delay::Delayed;
use crate::faults::{Faults, Kind};
use crate::head::Head;
use crate::inodes::{Inode, Inodes};
use crate::metadata::give_away;
use crate::open_files::Handle;
use crate::settings::Settings;

/// The file system.
pub(crate) struct Passthrough {
    pub(crate) settings: Settings,
    /// Only root may change the owner of new entries.
    is_root: bool,
    pub(crate) faults: Faults,
    pub(crate) delayed: Delayed,
    pub(crate) head: Option<Head>,
    /// When the last sync ends.
    pub(crate) flushed: Mutex<Instant>,
    pub(crate) inodes: Inodes,
    pub(crate) handles: RwLock<HashMap<u64, Arc<Handle>>>,
    pub(crate) next_handle: AtomicU64,
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
        let inodes = Inodes::new(source, settings.volatile_inodes)?;
        Ok(Passthrough {
            head: settings.head.map(Head::new),
            flushed: Mutex::new(Instant::now()),
            settings,
            is_root: rustix::process::geteuid().is_root(),
            faults,
            delayed: Delayed::start(),
            inodes,
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    pub(crate) fn has_fault(&self, inode: &Inode, which: impl Fn(Kind) -> bool) -> bool {
        self.faults.of(&inode.name()).any(|fault| which(fault.kind))
    }

    pub(crate) fn fails_to_open(&self, inode: &Inode) -> bool {
        self.faults.of(&inode.name()).any(|fault| fault.fails_to_open())
    }

    /// Returns how long the kernel may cache an inode's attributes.
    pub(crate) fn ttl(&self, inode: &Inode) -> Duration {
        let changes = self.settings.mtime_at_flush || self.has_fault(inode, Kind::changes);
        if changes { Duration::ZERO } else { self.settings.ttl }
    }

    /// Returns how long the kernel may cache a name.
    pub(crate) fn name_ttl(&self) -> Duration {
        let Settings { fold_case, volatile_inodes, .. } = self.settings;
        // The kernel does not know that two names are one, nor that a number will change.
        if fold_case || volatile_inodes { Duration::ZERO } else { self.settings.ttl }
    }

    /// Returns the attributes of an inode, which the kernel knows by the number `ino`.
    pub(crate) fn attributes(&self, ino: u64, stat: &Stat) -> FileAttr {
        let mut attributes = attributes(ino, stat);
        if self.settings.fill_holes {
            attributes.blocks = attributes.size.div_ceil(512);
        }
        attributes
    }

    pub(crate) fn fd(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        self.inodes.get(ino)?.fd()
    }

    /// Returns how much longer than other calls a read takes.
    pub(crate) fn read_delay(&self, inode: &Inode) -> Duration {
        let delay = |kind| if let Kind::SlowRead(time) = kind { time } else { Duration::ZERO };
        self.faults.of(&inode.name()).map(|fault| delay(fault.kind)).sum()
    }

    pub(crate) fn vanishes(&self, name: &OsStr) -> bool {
        self.faults.of(name).any(|it| it.kind == Kind::Vanish)
    }

    pub(crate) fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<(Arc<Inode>, Stat)> {
        if self.vanishes(name) {
            return Err(io::Errno::NOENT);
        }
        let parent = self.inodes.get(parent)?;
        self.inodes.look_up(&parent, &self.stored_name(&parent, name)?)
    }

    /// Returns the spelling in which the directory stores a name.
    pub(crate) fn stored_name<'a>(
        &self, parent: &Inode, name: &'a OsStr,
    ) -> Result<Cow<'a, OsStr>> {
        if !self.settings.fold_case {
            return Ok(name.into());
        }
        Ok(find_folded(parent, name)?.map_or(name.into(), Cow::from))
    }

    /// Refuses a new name if the directory has one that differs only in case.
    pub(crate) fn check_new_name(&self, parent: &Inode, name: &OsStr) -> Result<()> {
        let is_checked = self.settings.hide_twins;
        match is_checked.then(|| find_folded(parent, name)).transpose()?.flatten() {
            Some(stored) if stored != name => Err(io::Errno::EXIST),
            _ => Ok(()),
        }
    }

    pub(crate) fn answer_entry(&self, reply: ReplyEntry, found: Result<(Arc<Inode>, Stat)>) {
        let found = found.map(|(inode, stat)| (self.ttl(&inode), self.attributes(inode.id, &stat)));
        let name_ttl = self.name_ttl();
        answer!(self, reply, found, (ttl, attributes) => {
            reply.entry_with_ttls(&ttl, &name_ttl, &attributes, Generation(0));
        });
    }

    pub(crate) fn answer_attributes(&self, reply: ReplyAttr, inode: Result<Arc<Inode>>) {
        let found = inode.and_then(|inode| {
            let stat = inode.stat()?;
            // The kernel knows the root by a fixed number, but users must see the real one.
            let shown = if inode.id == INodeNo::ROOT.0 { stat.st_ino } else { inode.id };
            Ok((self.ttl(&inode), self.attributes(shown, &stat)))
        });
        answer!(self, reply, found, (ttl, attributes) => reply.attr(&ttl, &attributes));
    }

    /// Creates an entry by `make` with the owner that it would have in the source.
    pub(crate) fn create_entry<T>(
        &self, request: &Request, parent: INodeNo, name: &OsStr,
        make: impl FnOnce(&OwnedFd, &OsStr) -> Result<T>,
    ) -> Result<(T, (Arc<Inode>, Stat))> {
        let parent = self.inodes.get(parent)?;
        self.check_new_name(&parent, name)?;
        let name = &*self.stored_name(&parent, name)?;
        let created = make(&*parent.fd()?, name)?;
        if self.is_root && (request.uid(), request.gid()) != (0, 0) {
            give_away(&parent, name, request)?;
        }
        Ok((created, self.inodes.look_up(&parent, name)?))
    }
}

/// Returns the entry of a directory whose name is this one, or differs from it only in case.
fn find_folded(parent: &Inode, name: &OsStr) -> Result<Option<OsString>> {
    let dir = parent.fd()?;
    if statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(Some(name.to_owned()));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = Dir::new(openat(&dir, ".", flags, Mode::empty())?)?;
    let folded = fold(name);
    for entry in listed {
        let stored = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if fold(&stored) == folded {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

/// Makes names equal that differ only in case.
fn fold(name: &OsStr) -> Vec<u8> {
    match name.to_str() {
        Some(text) => text.to_lowercase().into_bytes(),
        None => name.as_bytes().to_ascii_lowercase(),
    }
}
