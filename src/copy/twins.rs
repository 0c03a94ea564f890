//! Detects two names of a source directory that the destination treats as one. Examples: `README`
//! and `readme` on FAT, exFAT, NTFS and SMB; Unicode normal forms; dots at the end that a server
//! strips.
//!
//! If the destination has an entry's name, that must be the same entry, not another one of this
//! run. The destination's listing shows the stored spelling:
//!
//! - The entry's own spelling: it is the same entry.
//! - The spelling of another source name, exactly or as the destination compares names: a twin. The
//!   entry fails, and its error names the twin. So the existing entry stays at every run, in any
//!   order of copying.
//! - Another spelling that the source does not have, such as the capitals of FAT: the same entry.
//!
//! On file systems that keep names apart, this must cost nothing. The type shows it, or a
//! directory's casefold flag, or one lookup of an existing name with swapped case. Each worker
//! checks once for a device or directory.

use std::ffi::{CStr, CString};

use rustix::fs::{self, AtFlags, Stat};
use rustix::io::Errno;

use super::dir::{DirPair, Made};
use super::{Copier, is_name_taken};
use crate::context::Context;
use crate::fs::path::{Name, RelPath};
use crate::fs::spelling::Spellings;
use crate::fs::stat::{FileId, file_system_type};
use crate::protocol::entry::DirOrigin;
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
    /// A lookup has shown that it keeps names apart that differ only in case. So plain names are
    /// kept apart ([`is_plain`]).
    PlainExact,
    /// It takes some names for others.
    Folding,
}

/// Set by FS_IOC_GETFLAGS for a directory that ignores case.
const CASEFOLD: u32 = 0x4000_0000;

/// Types of statfs(2) that never ignore case: btrfs, ramfs.
const EXACT: [u64; 2] = [0x9123_683E, 0x8584_58F6];
/// Types on which single directories may ignore case: ext4, F2FS, tmpfs, bcachefs, overlayfs.
const PER_DIRECTORY: [u64; 5] = [0xEF53, 0xF2F5_2010, 0x0102_1994, 0xCA45_1A4E, 0x794C_7630];

/// Returns true for a name that file systems can only confuse by its case.
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

    /// Returns true for a directory that `--existing` leaves out: the destination does not have it.
    pub(crate) fn is_left_out(
        &mut self,
        dir: &mut DirPair,
        name: &CStr,
    ) -> Result<bool, CopyError> {
        let is_asked = self.context.config.filter.existing;
        Ok(is_asked && self.existing(dir, name)?.is_none())
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
        if !self.is_possibly_folded(dir, to) {
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

    /// Explains why the name of an entry is taken although no lookup finds it. FAT with
    /// `iocharset=utf8` is like that: it looks up long names as they are, and makes short names of
    /// them that ignore case.
    pub(super) fn explain_taken(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
        error: CopyError,
    ) -> CopyError {
        if !is_name_taken(&error) {
            return error;
        }
        self.explain(dir, to, error.step).unwrap_or(error)
    }

    /// Explains why a directory is not there although its name was taken when it was to be made.
    pub(crate) fn explain_missing(
        &mut self,
        target: usize,
        path: &RelPath,
        error: CopyError,
    ) -> CopyError {
        let is_missing =
            error.step == Step::OpenDestinationDirectory && error.reason == Errno::NOENT.into();
        let (parent, name) = path.split_last();
        let (true, Ok(name)) = (is_missing && !name.is_empty(), CString::new(name)) else {
            return error;
        };
        let parent = DirPair::open(self.context, target, &parent, DirOrigin::default());
        let explained =
            parent.map(|mut parent| self.explain(&mut parent, &name, Step::MakeDirectory));
        explained.ok().flatten().unwrap_or(error)
    }

    fn explain(&mut self, dir: &mut DirPair, to: &CStr, step: Step) -> Option<CopyError> {
        self.twin = find_twin(self.context, dir, to).ok()?;
        self.twin.as_ref()?;
        Some(CopyError::new(step, Reason::SameName))
    }

    /// Returns true if the destination may treat this existing name as another one.
    fn is_possibly_folded(&mut self, dir: &mut DirPair, name: &CStr) -> bool {
        let naming = match dir.naming {
            Some(naming) => naming,
            None => {
                let naming = self.naming(dir, name);
                // If unknown, it is determined with the next name.
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

    /// Finds out how the destination treats names. `name` must exist there.
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

/// Returns the other entry that the destination confuses with this one, by its source name if
/// possible. `None` if the existing entry is this one.
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
