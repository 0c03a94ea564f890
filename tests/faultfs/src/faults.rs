//! What goes wrong, and with which entries.

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
    /// How many bytes may still be written; `None` is without limit.
    space: Option<Mutex<u64>>,
}

/// One kind of fault, for the entries of one name.
pub(crate) struct Fault {
    /// The name, or its beginning if `any_rest`.
    name: Vec<u8>,
    any_rest: bool,
    pub(crate) kind: Kind,
    /// The inodes to which a fault that happens only once has happened.
    spent: Mutex<HashSet<u64>>,
}

/// The kinds of faults; offsets and sizes are in bytes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Eio(u64),
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
    EioClose,
    LieChmod,
    LieChown,
    LieUtimens,
    RefuseRename,
    NoRename,
}

impl Kind {
    /// Whether the file changes behind the kernel's back, so that nothing about it may be cached.
    pub(crate) fn changes(self) -> bool {
        matches!(
            self,
            Kind::Shrink(_) | Kind::Grow(_) | Kind::Log(_) | Kind::Touch | Kind::ChangeOnce
        )
    }

    /// Makes the change to the file in the source folder.
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
    fn concerns(&self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        if self.any_rest { name.starts_with(&self.name) } else { name == self.name }
    }

    /// Whether this is the first time that the fault happens: to the inode, or at all for
    /// [`Kind::ChangeOnce`].
    pub(crate) fn is_first(&self, inode: u64) -> bool {
        let inode = if self.kind == Kind::ChangeOnce { 0 } else { inode };
        self.spent.lock().unwrap().insert(inode)
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
        // A name may contain colons, a number does not.
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
            b"eio" => with_number().map(|(name, n)| (name, Kind::Eio(n)))?,
            b"slow-read" => {
                with_number().map(|(name, n)| (name, Kind::SlowRead(Duration::from_millis(n))))?
            }
            b"shrink" => with_number().map(|(name, n)| (name, Kind::Shrink(n)))?,
            b"grow" => with_number().map(|(name, n)| (name, Kind::Grow(n)))?,
            b"eio-write" => with_number().map(|(name, n)| (name, Kind::EioWrite(n)))?,
            _ => bail!("unknown kind"),
        };
        let prefix = name.strip_suffix(b"*");
        self.list.push(Fault {
            name: prefix.unwrap_or(name).to_owned(),
            any_rest: prefix.is_some(),
            kind,
            spent: Mutex::default(),
        });
        Ok(())
    }

    /// The faults of the entries called `name`.
    pub(crate) fn of(&self, name: &OsStr) -> impl Iterator<Item = &Fault> {
        self.list.iter().filter(move |fault| fault.concerns(name))
    }

    /// Takes `bytes` of the space that is left; false if there is not enough.
    pub(crate) fn take_space(&self, bytes: u64) -> bool {
        let Some(space) = &self.space else {
            return true;
        };
        let mut space = space.lock().unwrap();
        let left = space.checked_sub(bytes);
        *space = left.unwrap_or(*space);
        left.is_some()
    }
}

fn number(digits: &[u8]) -> anyhow::Result<u64> {
    Ok(std::str::from_utf8(digits)?.parse()?)
}

/// Gives a file other content of the same size.
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
    // The clock of file times is coarse: make sure that this one differs.
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
