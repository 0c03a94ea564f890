//! Predicts what the destination can hold without writing to it: which metadata, and which names it
//! treats as one. Mainly for dry runs.
//!
//! A real run tries and checks the result. A dry run has the type of the file system, its mount
//! options, and lookups. The limits of a server or a FUSE program stay unknown. Then the dry run
//! assumes that the destination holds everything and keeps names apart.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;

use super::Copier;
use super::dir::DirPair;
use super::twins::{has_casefold_flag, source_names, stored_names, swap_case};
use crate::fs::file_system::FileSystem;
use crate::fs::list::{self, Listing};
use crate::fs::open::{DIRECTORY, open_dir};
use crate::fs::path::{Name, RelPath};
use crate::fs::spelling::{Folding, Spellings};
use crate::targets::mount_options;

/// The maximum number of entries that are read to find a name with letters.
const MOST_NAMES: usize = 100;

/// The owners and modes that a file system can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holds {
    pub(super) owners: bool,
    modes: Modes,
    /// Its client may invent inode numbers, so that two names of one file show different ones.
    pub(super) invents_numbers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Modes {
    All,
    /// One bit says whether the file can be written. Other changes are ignored.
    ReadOnly {
        /// A change is ignored altogether unless all bits to read and execute stay, as on FAT.
        is_strict: bool,
    },
}

impl Holds {
    const ALL: Self = Self {
        owners: true,
        modes: Modes::All,
        invents_numbers: false,
    };

    /// Returns what a file system with these mount options can hold.
    fn of(file_system: FileSystem, options: &[u8]) -> Self {
        let has = |option: &str| has_option(options, option);
        match file_system {
            FileSystem::Fat | FileSystem::ExFat => Self {
                owners: false,
                modes: Modes::ReadOnly { is_strict: true },
                invents_numbers: false,
            },
            FileSystem::Smb => {
                let is_unix = has("posix") || has("unix");
                let holds_modes = is_unix || has("cifsacl") || has("modefromsid");
                Self {
                    owners: is_unix || has("cifsacl") || has("idsfromsid"),
                    modes: if holds_modes {
                        Modes::All
                    } else {
                        Modes::ReadOnly { is_strict: false }
                    },
                    // The kernel shows this option, and never its opposite.
                    invents_numbers: !has("serverino"),
                }
            }
            FileSystem::Fuse => Self {
                invents_numbers: true,
                ..Self::ALL
            },
            _ => Self::ALL,
        }
    }

    /// Returns true if setting the mode `new` has an effect on a file with the mode `old`.
    pub(super) fn has_mode_effect(self, old: u32, new: u32) -> bool {
        let Modes::ReadOnly { is_strict } = self.modes else {
            return old != new;
        };
        let read_only = |mode| mode & 0o222 == 0;
        let stays = |bits| new & old & bits == old & bits;
        // FAT wants all bits to write that the umask of the mount leaves, or none.
        let is_new_read_only = if is_strict && !read_only(old) {
            new & old & 0o222 == 0
        } else {
            read_only(new)
        };
        read_only(old) != is_new_read_only && (!is_strict || stays(0o555))
    }
}

fn has_option(options: &[u8], wanted: &str) -> bool {
    let mut all = options.split(|&b| b == b',');
    all.any(|option| option == wanted.as_bytes())
}

impl Copier {
    /// Returns what the destination can hold, as far as its type and its mount options show.
    pub(super) fn holds(&mut self, dir: &DirPair) -> Holds {
        let learned = self.learned(dir.devices().destination);
        *learned.holds.get_or_insert_with(|| {
            let Ok(destination) = dir.destination() else {
                return Holds::ALL;
            };
            let Some(file_system) = FileSystem::of(destination) else {
                return Holds::ALL;
            };
            // Other file systems do not need the mount table.
            let options = (file_system == FileSystem::Smb).then(|| mount_options(destination));
            Holds::of(file_system, &options.unwrap_or_default())
        })
    }

    /// Finds another entry of the source directory that would get the same name at the destination.
    /// Returns it if that one stays: it is there, or its name comes first.
    pub(super) fn foresee_twin(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
    ) -> rustix::io::Result<Option<Name>> {
        let folding = match dir.folding {
            Some(folding) => folding,
            None => {
                let folding = self.folding(dir);
                dir.folding = Some(folding);
                folding
            }
        };
        if folding == Folding::Exact {
            return Ok(None);
        }
        let name = to.to_bytes();
        let is_twin =
            |other: &&Name| other.as_bytes() != name && folding.is_same(name, other.as_bytes());
        let source = source_names(self.context, dir)?;
        let twins: Vec<Name> = source.like(name).filter(is_twin).cloned().collect();
        if twins.is_empty() {
            return Ok(None);
        }
        let stored = stored_names(dir, false)?;
        let is_stored = |twin: &&Name| stored.has(twin.as_bytes());
        let is_first = |twin: &&Name| twin.as_bytes() < name;
        let stays = twins.iter().find(is_stored);
        let stays = stays.or_else(|| twins.iter().filter(is_first).min_by_key(|it| it.as_bytes()));
        Ok(stays.cloned())
    }

    /// Returns how names are compared in a destination directory, whether it exists or not.
    fn folding(&mut self, dir: &DirPair) -> Folding {
        let Ok(at) = self.nearest(dir) else {
            return Folding::Exact;
        };
        let device = fs::fstat(&at).map_or(0, |stat| stat.st_dev);
        let known = self.foldings.iter().find(|(known, _)| *known == device);
        if let Some((_, folding)) = known {
            return *folding;
        }
        match has_casefold_flag(at.as_fd()) {
            // It differs between directories, and new ones inherit it.
            Some(true) => Folding::Casefold,
            Some(false) => Folding::Exact,
            None => {
                let folding = folding_of(at.as_fd());
                self.foldings.push((device, folding));
                folding
            }
        }
    }

    /// Opens the destination directory, or the nearest one above it that exists.
    fn nearest(&self, dir: &DirPair) -> rustix::io::Result<OwnedFd> {
        if let Ok(destination) = dir.destination() {
            return rustix::io::fcntl_dupfd_cloexec(destination, 0);
        }
        let target = &self.context.targets.list[dir.target];
        if let Some(root) = &target.destination {
            let mut path: RelPath = dir.missing.clone();
            loop {
                match open_dir(root.as_fd(), &path) {
                    Err(Errno::NOENT) if !path.as_bytes().is_empty() => path = path.split_last().0,
                    result => return result,
                }
            }
        }
        match &target.above {
            Some(above) => rustix::io::fcntl_dupfd_cloexec(above, 0),
            None => Err(Errno::NOENT),
        }
    }
}

/// Returns how names are compared in a directory, by its type or by a lookup.
fn folding_of(dir: BorrowedFd<'_>) -> Folding {
    let file_system = FileSystem::of(dir);
    let options = || mount_options(dir);
    match file_system {
        Some(FileSystem::Fat) => {
            let options = options();
            if has_option(&options, "iocharset=utf8") || has_option(&options, "check=s") {
                Folding::ShortFat
            } else {
                Folding::Fat
            }
        }
        Some(FileSystem::ExFat) => Folding::ExFat,
        _ => match is_case_ignored(dir) {
            Some(true) => Folding::Letters,
            Some(false) => Folding::Exact,
            // Nearly all servers ignore case.
            None if file_system == Some(FileSystem::Smb) => {
                let options = options();
                if has_option(&options, "posix") || has_option(&options, "unix") {
                    Folding::Exact
                } else {
                    Folding::Letters
                }
            }
            None => Folding::Exact,
        },
    }
}

/// Looks for an existing name with swapped case: one in the directory, or its own. `None` if there
/// is none with letters.
fn is_case_ignored(dir: BorrowedFd<'_>) -> Option<bool> {
    let mut listing = Listing::of(list::path_to(dir, false));
    for _ in 0..MOST_NAMES {
        let Some((_, name)) = listing.read() else {
            break;
        };
        if let Some(swapped) = swap_case(name) {
            return is_found_swapped(dir, name, &swapped);
        }
    }
    let path = fs::readlink(list::path_to(dir, false), Vec::new()).ok()?;
    let name = path.as_bytes().rsplit(|&b| b == b'/').next()?;
    let name = CString::new(name).ok()?;
    let parent = fs::openat(dir, c"..", DIRECTORY, Mode::empty()).ok()?;
    if fs::fstat(&parent).ok()?.st_dev != fs::fstat(dir).ok()?.st_dev {
        return None;
    }
    is_found_swapped(parent.as_fd(), &name, &swap_case(&name)?)
}

fn is_found_swapped(dir: BorrowedFd<'_>, name: &CStr, swapped: &CStr) -> Option<bool> {
    match fs::statat(dir, swapped, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Some(false),
        Err(_) => None,
        // Two entries may have these names. Inode numbers do not show that on every file system.
        Ok(_) => {
            let stored = Spellings::list(dir).ok()?;
            Some(!(stored.has(name.to_bytes()) && stored.has(swapped.to_bytes())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_a_whole_word() {
        let options = b"rw,nounix,noserverino,file_mode=0755";
        assert!(has_option(options, "nounix"));
        assert!(!has_option(options, "unix"));
        assert!(!has_option(options, "serverino"));
    }

    #[test]
    fn mount_options_show_what_smb_can_hold() {
        let of = |options: &[u8]| Holds::of(FileSystem::Smb, options);
        assert!(!of(b"rw,nounix,serverino").owners);
        assert!(!of(b"rw,nounix,serverino").invents_numbers);
        assert!(of(b"rw,nounix").invents_numbers);
        assert_eq!(of(b"rw,posix,serverino"), Holds::ALL);
        assert!(of(b"rw,modefromsid").has_mode_effect(0o755, 0o644));
        assert!(!of(b"rw,modefromsid").owners);
        assert!(of(b"rw,idsfromsid").owners);
    }

    #[test]
    fn modes_that_are_ignored_have_no_effect() {
        let smb = Holds::of(FileSystem::Smb, b"rw");
        let fat = Holds::of(FileSystem::Fat, b"rw");
        for (holds, old, new, has_effect) in [
            (smb, 0o755, 0o644, false),
            (smb, 0o755, 0o600, false),
            (smb, 0o755, 0o444, true),
            (smb, 0o555, 0o444, false),
            (smb, 0o555, 0o644, true),
            (fat, 0o755, 0o600, false),
            (fat, 0o755, 0o444, false),
            (fat, 0o755, 0o555, true),
            (fat, 0o555, 0o755, true),
            (fat, 0o555, 0o555, false),
            (Holds::ALL, 0o755, 0o754, true),
            (Holds::ALL, 0o755, 0o755, false),
        ] {
            assert_eq!(
                holds.has_mode_effect(old, new),
                has_effect,
                "{old:o} {new:o}"
            );
        }
    }
}
