//! The faults, and the entries that have them.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{self, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io;

use crate::inodes::Inode;

/// All faults of a mount.
#[derive(Default)]
pub(crate) struct Faults {
    list: Vec<Fault>,
    /// The number of bytes that can still be written; `None` means no limit.
    space: Option<Mutex<u64>>,
}

/// One kind of fault, for the entries of one name.
pub(crate) struct Fault {
    /// The name, or its beginning if `is_prefix`.
    name: Vec<u8>,
    is_prefix: bool,
    pub(crate) kind: Kind,
    /// The inodes to which a fault that happens once has happened.
    spent: Mutex<HashSet<u64>>,
}

/// The kinds of faults; offsets and sizes are in bytes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Eio(u64),
    EioOpen(u64),
    HangRead,
    DeadRead,
    HangList,
    SlowRead(Duration),
    Shrink(u64),
    Grow(u64),
    Log(u64),
    HideHoles,
    Touch,
    ChangeOnce,
    Vanish,
    EioWrite(u64),
    Flip(u64),
    FlipOnce(u64),
    EioClose,
    LieChmod,
    LieChown,
    LieUtimens,
    RefuseRename,
    NoRename,
}

impl Kind {
    /// Returns true if the file changes without the kernel, which then must not cache it.
    pub(crate) fn changes(self) -> bool {
        matches!(
            self,
            Kind::Shrink(_) | Kind::Grow(_) | Kind::Log(_) | Kind::Touch | Kind::ChangeOnce
        )
    }

    /// Changes the file in the source directory.
    pub(crate) fn change(self, inode: &Inode) -> io::Result<()> {
        let file = inode.open(OFlags::RDWR)?;
        match self {
            Kind::Shrink(size) => fs::ftruncate(&file, size),
            Kind::Grow(bytes) | Kind::Log(bytes) => {
                fs::ftruncate(&file, fs::fstat(&file)?.st_size as u64 + bytes)
            }
            _ => rewrite(&file),
        }
    }
}

impl Fault {
    fn applies_to(&self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        if self.is_prefix { name.starts_with(&self.name) } else { name == self.name }
    }

    /// Records that the fault happens, and returns true if this is the first time.
    ///
    /// The first time counts for each inode, but for the whole mount with [`Kind::ChangeOnce`] and
    /// [`Kind::FlipOnce`].
    pub(crate) fn is_first(&self, inode: u64) -> bool {
        let is_for_all = matches!(self.kind, Kind::ChangeOnce | Kind::FlipOnce(_));
        let inode = if is_for_all { 0 } else { inode };
        self.spent.lock().unwrap().insert(inode)
    }
}

impl Fault {
    /// Records an open, and returns true if it must fail.
    pub(crate) fn fails_to_open(&self) -> bool {
        let Kind::EioOpen(times) = self.kind else {
            return false;
        };
        let mut spent = self.spent.lock().unwrap();
        let opens = spent.len() as u64;
        opens < times && spent.insert(opens)
    }
}

impl Faults {
    pub(crate) fn parse(texts: &[OsString]) -> anyhow::Result<Self> {
        let mut faults = Faults::default();
        for text in texts {
            faults
                .add(text.as_bytes())
                .with_context(|| format!("in --fault {}", text.display()))?;
        }
        Ok(faults)
    }

    fn add(&mut self, text: &[u8]) -> anyhow::Result<()> {
        let colon = text.iter().position(|&byte| byte == b':');
        let (kind, rest) = text.split_at(colon.context("KIND:NAME expected")?);
        let rest = &rest[1..];
        if kind == b"enospc" {
            self.space = Some(Mutex::new(number(rest)?));
            return Ok(());
        }
        // A name may contain colons, but a number may not.
        let with_number = || {
            let colon = rest.iter().rposition(|&byte| byte == b':');
            let (name, argument) = rest.split_at(colon.context("KIND:NAME:NUMBER expected")?);
            anyhow::Ok((name, number(&argument[1..])?))
        };
        let (name, kind) = match kind {
            b"hang-read" => (rest, Kind::HangRead),
            b"dead-read" => (rest, Kind::DeadRead),
            b"hang-list" => (rest, Kind::HangList),
            b"log" => with_number().map(|(name, n)| (name, Kind::Log(n)))?,
            b"hide-holes" => (rest, Kind::HideHoles),
            b"touch" => (rest, Kind::Touch),
            b"change-once" => (rest, Kind::ChangeOnce),
            b"eio-close" => (rest, Kind::EioClose),
            b"lie-chmod" => (rest, Kind::LieChmod),
            b"lie-chown" => (rest, Kind::LieChown),
            b"lie-utimens" => (rest, Kind::LieUtimens),
            b"refuse-rename" => (rest, Kind::RefuseRename),
            b"no-rename" => (rest, Kind::NoRename),
            b"vanish" => (rest, Kind::Vanish),
            b"eio-open" => with_number().map(|(name, n)| (name, Kind::EioOpen(n)))?,
            b"eio" => with_number().map(|(name, n)| (name, Kind::Eio(n)))?,
            b"slow-read" => {
                with_number().map(|(name, n)| (name, Kind::SlowRead(Duration::from_millis(n))))?
            }
            b"shrink" => with_number().map(|(name, n)| (name, Kind::Shrink(n)))?,
            b"grow" => with_number().map(|(name, n)| (name, Kind::Grow(n)))?,
            b"flip" => with_number().map(|(name, n)| (name, Kind::Flip(n)))?,
            b"flip-once" => with_number().map(|(name, n)| (name, Kind::FlipOnce(n)))?,
            b"eio-write" => with_number().map(|(name, n)| (name, Kind::EioWrite(n)))?,
            _ => bail!("unknown kind"),
        };
        let prefix = name.strip_suffix(b"*");
        self.list.push(Fault {
            name: prefix.unwrap_or(name).to_owned(),
            is_prefix: prefix.is_some(),
            kind,
            spent: Mutex::default(),
        });
        Ok(())
    }

    /// Returns the faults of the entries with this name.
    pub(crate) fn of(&self, name: &OsStr) -> impl Iterator<Item = &Fault> {
        self.list.iter().filter(move |fault| fault.applies_to(name))
    }

    /// Subtracts from the remaining space, and returns false if there is not enough.
    pub(crate) fn take_space(&self, bytes: u64) -> bool {
        let Some(space) = &self.space else {
            return true;
        };
        let mut space = space.lock().unwrap();
        let remaining = space.checked_sub(bytes);
        *space = remaining.unwrap_or(*space);
        remaining.is_some()
    }
}

fn number(digits: &[u8]) -> anyhow::Result<u64> {
    Ok(std::str::from_utf8(digits)?.parse()?)
}

/// Replaces the content of a file by other bytes of the same size.
fn rewrite(file: &OwnedFd) -> io::Result<()> {
    let before = fs::fstat(file)?;
    let mut buffer = vec![0; 1 << 16];
    let mut offset = 0;
    loop {
        let length = io::pread(file, &mut buffer[..], offset)?;
        if length == 0 {
            break;
        }
        for byte in &mut buffer[..length] {
            *byte = byte.wrapping_add(1);
        }
        io::pwrite(file, &buffer[..length], offset)?;
        offset += length as u64;
    }
    // The clock of file times is coarse. Make sure that the time differs.
    let after = fs::fstat(file)?;
    if (after.st_mtime, after.st_mtime_nsec) == (before.st_mtime, before.st_mtime_nsec) {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: before.st_mtime,
                tv_nsec: (before.st_mtime_nsec as i64 + 1_000_000) % 1_000_000_000,
            },
        };
        fs::futimens(file, &times)?;
    }
    Ok(())
}
