//! Inode flags, as chattr(1) sets them. They are kept with `--preserve=flags` only.
//!
//! Some say how data is stored, so they must be set before the first byte: btrfs ignores a change
//! of "no copy on write" afterwards. Immutable and append-only refuse everything that would follow,
//! even the rename into place, so they come last of all. The rest comes with the other metadata.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

use super::dir::DirPair;
use super::issues::Problem;
use super::{Copier, Entry, file_type};
use crate::config::{Config, Keep};
use crate::fs::stat::FileStat;
use crate::protocol::error::{Reason, Step};
use crate::protocol::metadata::{Attribute, AttributeClass, Property};

/// The flags that are kept (FS_*_FL of linux/fs.h), and their letters in chattr(1). Others belong
/// to one file system, say what an inode is, or need a key.
const FLAGS: [(u32, &str); 11] = [
    (0x0000_0004, "+c"), // compressed
    (0x0000_0400, "+m"), // not compressed
    (0x0080_0000, "+C"), // no copy on write
    (0x0000_0008, "+S"), // synchronous
    (0x0000_0040, "+d"), // no dump
    (0x0000_0080, "+A"), // no access time
    (0x0000_4000, "+j"), // data in the journal
    (0x0001_0000, "+D"), // synchronous directory
    (0x0002_0000, "+T"), // top of a hierarchy of directories
    (0x0000_0010, "+i"), // immutable
    (0x0000_0020, "+a"), // append-only
];

/// Those that say how data is stored.
const STORAGE: u32 = 0x0080_0404;
/// Immutable and append-only.
const SEAL: u32 = 0x30;
/// Those that can be set on a file whose contents are there, before it is renamed.
const UNSEALED: u32 = STORAGE | 0x0003_40c8;
const ALL: u32 = UNSEALED | SEAL;

/// How often a sealed file is opened for a new link, if other workers seal it again meanwhile.
const MAX_LINKS: u32 = 100;

fn get(entry: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    fs::ioctl_getflags(entry).map(|flags| flags.bits())
}

fn put(entry: BorrowedFd<'_>, flags: u32) -> rustix::io::Result<()> {
    fs::ioctl_setflags(entry, IFlags::from_bits_retain(flags))
}

/// Returns the flags of an open entry. Where there are none, none is set.
fn read(entry: BorrowedFd<'_>) -> u32 {
    get(entry).map_or(0, |flags| flags & ALL)
}

/// Gives an entry those flags of `mask` that are wanted, and no others of `mask`. If they are
/// refused together, it tries each. Returns those that were refused.
fn change(entry: BorrowedFd<'_>, wanted: u32, mask: u32) -> Vec<(&'static str, Reason)> {
    let errno = match get(entry) {
        Ok(old) if (old ^ wanted) & mask == 0 => return Vec::new(),
        Ok(old) => {
            let new = old & !mask | wanted & mask;
            if put(entry, new).is_ok() && get(entry) == Ok(new) {
                return Vec::new();
            }
            None
        }
        Err(errno) => Some(errno),
    };
    let mut refused = Vec::new();
    for (flag, letter) in FLAGS.into_iter().filter(|(flag, _)| flag & mask != 0) {
        let result = match errno {
            // There are no flags at all, so none has to be cleared.
            Some(errno) if wanted & flag != 0 => Err(errno.into()),
            Some(_) => Ok(()),
            None => change_one(entry, wanted, flag),
        };
        if let Err(reason) = result {
            refused.push((letter, reason));
        }
    }
    refused
}

fn change_one(entry: BorrowedFd<'_>, wanted: u32, flag: u32) -> Result<(), Reason> {
    let old = get(entry)?;
    if (old ^ wanted) & flag == 0 {
        return Ok(());
    }
    put(entry, old & !flag | wanted & flag)?;
    if (get(entry)? ^ wanted) & flag == 0 {
        Ok(())
    } else {
        Err(Reason::Ineffective)
    }
}

/// Makes an entry of the destination changeable, if it is sealed as its source is: an earlier run
/// has done that. Its flags are set again at the end.
fn unseal(source: BorrowedFd<'_>, destination: BorrowedFd<'_>) {
    if let Ok(old) = get(destination)
        && old & SEAL & read(source) != 0
    {
        // If this fails, whatever follows is refused and reported.
        let _ = put(destination, old & !SEAL);
    }
}

/// A file that is not sealed for a while. Dropping it seals the file again.
pub(super) struct Unsealed {
    file: OwnedFd,
    old: u32,
}

impl Unsealed {
    /// Takes the seal off a file. `None` if it has none, or cannot be changed.
    pub(super) fn new(dir: BorrowedFd<'_>, name: &CStr) -> Option<Self> {
        let file = open(dir, name).ok()?;
        let old = get(file.as_fd()).ok()?;
        if old & SEAL == 0 {
            return None;
        }
        put(file.as_fd(), old & !SEAL).ok()?;
        Some(Self { file, old })
    }

    /// Leaves the file without a seal: it is about to be replaced.
    pub(super) fn keep(mut self) {
        self.old &= !SEAL;
    }
}

impl Drop for Unsealed {
    fn drop(&mut self) {
        if self.old & SEAL != 0 {
            // If this fails, the next run finds that the flags differ.
            let _ = put(self.file.as_fd(), self.old);
        }
    }
}

/// Makes a hard link to a file that is sealed, and so refuses links.
pub(super) fn link_sealed(
    dir: BorrowedFd<'_>,
    name: &CStr,
    link: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let denied = |_| Errno::PERM;
    let file = open(dir, name).map_err(denied)?;
    for _ in 0..MAX_LINKS {
        // A file without flags refuses links for another reason.
        let old = get(file.as_fd()).map_err(denied)?;
        let is_sealed = old & SEAL != 0;
        if is_sealed {
            put(file.as_fd(), old & !SEAL)?;
        }
        let result = link();
        if is_sealed {
            put(file.as_fd(), old)?;
        }
        // Another worker that links to the file may have sealed it before this link was made.
        let may_succeed = is_sealed || get(file.as_fd()).map_err(denied)? & SEAL != 0;
        if result != Err(Errno::PERM) || !may_succeed {
            return result;
        }
    }
    Err(Errno::PERM)
}

/// Opens a regular file for its flags. O_PATH would not do for an ioctl.
fn open(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = fs::openat(dir, name, flags, Mode::empty())?;
    match FileType::from_raw_mode(fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::PERM),
    }
}

pub(super) fn keeps_flags(config: &Config) -> bool {
    config.preserve.flags.is_wanted()
}

/// An existing file whose flags are brought up to date.
pub(super) struct Flagged {
    source: OwnedFd,
    destination: OwnedFd,
    /// The flags that the destination had.
    old: u32,
}

impl Copier {
    /// Makes a directory changeable that an earlier run has made immutable or append-only.
    pub(crate) fn unseal_dir(&self, dir: &DirPair) {
        let config = &self.context.config;
        if keeps_flags(config)
            && !(config.dry_run || dir.is_known_empty())
            && let Ok(destination) = dir.destination()
        {
            unseal(dir.source(), destination);
        }
    }

    /// Returns the flags of a source entry to keep.
    pub(super) fn source_flags(&self, source: BorrowedFd<'_>) -> u32 {
        if keeps_flags(&self.context.config) {
            read(source)
        } else {
            0
        }
    }

    /// Sets the flags that say how a file's data is stored, while it is empty. Flags that are
    /// refused are noted when the file is finished.
    pub(super) fn set_storage_flags(&self, file: BorrowedFd<'_>, wanted: u32) {
        if keeps_flags(&self.context.config) {
            change(file, wanted, STORAGE);
        }
    }

    /// Sets all flags of a complete file but those that seal it.
    pub(super) fn set_unsealed_flags(&mut self, file: BorrowedFd<'_>, wanted: u32) {
        self.set_flags(file, wanted, UNSEALED);
    }

    /// Sets the flags that refuse further changes, if there are any. A new file has none.
    pub(super) fn seal(&mut self, file: BorrowedFd<'_>, wanted: u32) {
        self.set_flags(file, wanted, wanted & SEAL);
    }

    /// Returns true if a file has to be sealed once it has its name.
    pub(super) fn is_sealed(wanted: u32) -> bool {
        wanted & SEAL != 0
    }

    /// Gives a directory the flags of its source.
    pub(super) fn set_dir_flags(&mut self, dir: BorrowedFd<'_>, source: BorrowedFd<'_>) {
        if keeps_flags(&self.context.config) {
            self.set_flags(dir, read(source), ALL);
        }
    }

    fn set_flags(&mut self, entry: BorrowedFd<'_>, wanted: u32, mask: u32) {
        if mask == 0 || !keeps_flags(&self.context.config) {
            return;
        }
        for (letter, reason) in change(entry, wanted, mask) {
            let problem = Problem {
                keep: Keep::Required,
                property: Property::Attribute(AttributeClass::Other),
                step: Step::SetFlags,
                attribute: Some(Attribute {
                    name: letter.as_bytes().to_vec(),
                    size: None,
                }),
            };
            self.fail(problem, reason);
        }
    }

    /// Opens both sides of an existing file for their flags. `None` if flags are not kept, or it
    /// is no regular file.
    pub(super) fn open_flagged(
        &self,
        dir: &DirPair,
        entry: Entry<'_>,
        stat: &FileStat,
    ) -> Option<Flagged> {
        if !keeps_flags(&self.context.config) || file_type(stat) != FileType::RegularFile {
            return None;
        }
        let source = self.open_source(dir, entry.from).ok()?;
        let destination = open(dir.destination().ok()?, entry.to).ok()?;
        let old = read(destination.as_fd());
        Some(Flagged {
            source,
            destination,
            old,
        })
    }

    /// Brings the flags of an existing file up to date. Returns true if some have changed.
    pub(super) fn update_flags(&mut self, file: &Flagged) -> bool {
        let destination = file.destination.as_fd();
        self.set_flags(destination, read(file.source.as_fd()), ALL);
        read(destination) != file.old
    }
}

impl Flagged {
    pub(super) fn is_different(&self) -> bool {
        read(self.source.as_fd()) != self.old
    }

    pub(super) fn unseal(&self) {
        unseal(self.source.as_fd(), self.destination.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_has_one_moment() {
        let all = FLAGS.iter().fold(0, |all, (flag, _)| all | flag);
        assert_eq!(all, ALL);
        assert_eq!(UNSEALED & SEAL, 0);
        assert_eq!(UNSEALED & STORAGE, STORAGE);
    }
}
