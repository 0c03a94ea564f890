//! Two names of one source directory that the destination takes for one: `README` and `readme` on
//! FAT, exFAT, NTFS and SMB, Unicode normal forms, dots at the end that a server strips.
//!
//! If the destination has something of an entry's name, it must be the same entry, and not another
//! one of this run. The listing of the destination shows under which spelling it is stored there:
//!
//! - The entry's own spelling: it is the same entry.
//! - Another spelling, and it belongs to another source name, exactly or as the destination sees it:
//!   a twin. It fails and names the other one. So what is there stays at every run, in whatever order
//!   and by whichever workers the two are copied.
//! - Another spelling that the source does not have, such as the capitals of FAT: the same entry.
//!
//! On file systems that keep names apart, this must cost nothing. Whether one does is known from
//! its type, from a directory's casefold flag, or from one lookup of an existing name with swapped
//! case. That is done once for each worker and device, or directory.

use std::ffi::{CStr, CString};

use rustix::fs::{self, AtFlags, Stat};

use super::Copier;
use super::dir::{DirPair, Made};
use crate::context::Context;
use crate::fs::path::Name;
use crate::fs::spelling::Spellings;
use crate::fs::stat::{FileId, file_system_type};
use crate::protocol::error::{At, CopyError, Reason, Step};

/// How a file system treats names that differ in case or spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// It keeps them apart.
    Exact,
    /// Each directory has a flag that says so (FS_CASEFOLD_FL).
    PerDirectory,
    /// Not known from its type. A lookup has not been possible yet.
    Unknown,
    /// A lookup has shown that it keeps names apart that differ only in case. So those of plain
    /// letters and digits are kept apart.
    PlainExact,
    /// It takes some names for others.
    Folding,
}

/// Set by FS_IOC_GETFLAGS for a directory that ignores case.
const CASEFOLD: u32 = 0x4000_0000;

/// Types of statfs(2) that never ignore case: btrfs, ramfs.
const EXACT: [u64; 2] = [0x9123_683E, 0x8584_58F6];
/// Those of which some directories do: ext4, F2FS, tmpfs, bcachefs, overlayfs.
const PER_DIRECTORY: [u64; 5] = [0xEF53, 0xF2F5_2010, 0x0102_1994, 0xCA45_1A4E, 0x794C_7630];

/// Returns true for a name that only its case can make equal to another one.
fn is_plain(name: &[u8]) -> bool {
    let is_plain = |&b: &u8| b.is_ascii_alphanumeric() || b"._-+=,@#%&()[]{}!$^ ".contains(&b);
    name.iter().all(is_plain) && !name.ends_with(b".") && !name.ends_with(b" ")
}

/// Returns the name with swapped case; `None` if it has no letters.
fn swap_case(name: &CStr) -> Option<CString> {
    let swap = |&b: &u8| {
        if b.is_ascii_lowercase() {
            b.to_ascii_uppercase()
        } else {
            b.to_ascii_lowercase()
        }
    };
    let swapped: Vec<u8> = name.to_bytes().iter().map(swap).collect();
    let has_letters = swapped != name.to_bytes();
    CString::new(swapped).ok().filter(|_| has_letters)
}

impl Copier {
    /// Returns the stat of an entry that the destination has under this name, if any. Fails if
    /// that is another entry of the source directory.
    pub(super) fn existing(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
    ) -> Result<Option<Stat>, CopyError> {
        let old = dir.existing(to).at(Step::LookAtDestination)?;
        if old.is_some() {
            self.refuse_twin(dir, to, Step::Create)?;
        }
        Ok(old)
    }

    /// Makes a subdirectory at the destination, or finds out what a dry run would do.
    pub(crate) fn make_subdir(
        &mut self,
        dir: &mut DirPair,
        name: &CStr,
    ) -> Result<Made, CopyError> {
        let made = dir.make_subdir(name, self.context);
        let made = made.map_err(|error| self.explain_name(dir, name, error))?;
        if made != Made::New {
            self.refuse_twin(dir, name, Step::MakeDirectory)?;
        }
        Ok(made)
    }

    /// Fails if the destination's entry of this name is another entry of the source directory.
    /// [`Copier::twin`] names that one then.
    fn refuse_twin(&mut self, dir: &mut DirPair, to: &CStr, step: Step) -> Result<(), CopyError> {
        if !self.may_fold(dir, to) {
            return Ok(());
        }
        match find_twin(self.context, dir, to).at(Step::LookAtDestination)? {
            None => Ok(()),
            Some(twin) => {
                self.twin = Some(twin);
                Err(CopyError::new(step, Reason::SameName))
            }
        }
    }

    /// Returns false if the destination keeps this existing name apart from all others.
    fn may_fold(&mut self, dir: &mut DirPair, name: &CStr) -> bool {
        let naming = match dir.naming {
            Some(naming) => naming,
            None => {
                let naming = self.naming(dir, name);
                // An unknown one is looked at again with the next name.
                dir.naming = (naming != Naming::Unknown).then_some(naming);
                naming
            }
        };
        match naming {
            Naming::Exact | Naming::PerDirectory => false,
            Naming::Unknown | Naming::PlainExact => !is_plain(name.to_bytes()),
            Naming::Folding => true,
        }
    }

    /// Finds out how the destination directory treats names. It has an entry of this name.
    fn naming(&mut self, dir: &mut DirPair, name: &CStr) -> Naming {
        let device = dir.devices().destination;
        let known = self.namings.iter().find(|(known, _)| *known == device);
        let mut naming = known.map_or(Naming::Unknown, |(_, naming)| *naming);
        if naming == Naming::Unknown {
            naming = naming_of_type(dir);
            if naming == Naming::Unknown {
                naming = look_up_swapped(dir, name);
            }
            if naming != Naming::Unknown {
                self.namings.push((device, naming));
            }
        }
        if naming == Naming::PerDirectory {
            let flags = dir.destination().ok().map(fs::ioctl_getflags);
            match flags {
                Some(Ok(flags)) if flags.bits() & CASEFOLD != 0 => Naming::Folding,
                _ => Naming::Exact,
            }
        } else {
            naming
        }
    }
}

fn naming_of_type(dir: &DirPair) -> Naming {
    match dir.destination().ok().and_then(file_system_type) {
        Some(kind) if EXACT.contains(&kind) => Naming::Exact,
        Some(kind) if PER_DIRECTORY.contains(&kind) => Naming::PerDirectory,
        _ => Naming::Unknown,
    }
}

/// Looks for an existing name with swapped case.
fn look_up_swapped(dir: &mut DirPair, name: &CStr) -> Naming {
    let Some(swapped) = swap_case(name) else {
        return Naming::Unknown;
    };
    match dir.stat_destination(&swapped) {
        Ok(None) => Naming::PlainExact,
        Ok(Some(_)) => match stored_names(dir, true) {
            // Two entries, side by side.
            Ok(stored) if stored.has(name.to_bytes()) && stored.has(swapped.to_bytes()) => {
                Naming::PlainExact
            }
            _ => Naming::Folding,
        },
        Err(_) => Naming::Unknown,
    }
}

/// Returns the names of the destination directory as they are stored there.
fn stored_names(dir: &mut DirPair, again: bool) -> rustix::io::Result<&Spellings> {
    if dir.stored.is_none() || again {
        let listed = match dir.destination() {
            Ok(destination) => Spellings::list(destination)?,
            Err(_) => Spellings::default(),
        };
        dir.stored = Some(listed);
    }
    Ok(dir.stored.get_or_insert_default())
}

/// Returns the entry of the source directory, or at least of the destination, that the destination
/// takes this one for. `None` if the destination's entry is this one.
fn find_twin(context: &Context, dir: &mut DirPair, to: &CStr) -> rustix::io::Result<Option<Name>> {
    let name = to.to_bytes();
    let mut stored = stored_names(dir, false)?;
    if stored.like(name).next().is_none() {
        // It was made after the listing.
        stored = stored_names(dir, true)?;
    }
    if stored.has(name) {
        return Ok(None);
    }
    let alike: Vec<Name> = stored.like(name).cloned().collect();
    if dir.source_names.is_none() {
        dir.source_names = Some(match context.targets.names_beside(dir.target) {
            // Files of the command line come from any directories.
            Some(names) => {
                let mut spellings = Spellings::default();
                names.for_each(|name| spellings.add(name));
                spellings
            }
            None => Spellings::list(dir.source())?,
        });
    }
    let source = dir.source_names.get_or_insert_default();
    let is_in_source = |other: &&Name| source.has(other.as_bytes());
    let twin = alike.iter().find(is_in_source);
    // The spelling may be no source's: a server may have stripped the dots of both.
    let twin = twin.or_else(|| source.like(name).find(|other| other.as_bytes() != name));
    if twin.is_some() || !alike.is_empty() {
        return Ok(twin.cloned());
    }
    // A short name of FAT, or some other rule. The inode number says whose it is.
    let Some(stat) = dir.stat_destination(to)? else {
        return Ok(None);
    };
    let id = FileId::of(&stat);
    let Ok(destination) = dir.destination() else {
        return Ok(None);
    };
    let is_same = |other: &&Name| {
        fs::statat(destination, other.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileId::of(&stat) == id)
    };
    Ok(dir
        .stored
        .as_ref()
        .and_then(|stored| stored.iter().find(is_same))
        .cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_can_only_differ_in_case() {
        for name in ["a", "IMG_0001.JPG", "a b"] {
            assert!(is_plain(name.as_bytes()), "{name}");
        }
        for name in ["a.", "a ", "a:b", "PROGRA~1", "ä", "a\\b"] {
            assert!(!is_plain(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn case_is_swapped_if_there_is_any() {
        assert_eq!(swap_case(c"aB1").as_deref(), Some(c"Ab1"));
        assert_eq!(swap_case(c"12.3"), None);
    }
}
