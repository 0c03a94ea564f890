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
use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, Stat};
use rustix::io::Errno;

use super::dir::{DirPair, Made};
use super::{Copier, is_name_taken};
use crate::context::Context;
use crate::fs::file_system::FileSystem;
use crate::fs::path::{Name, RelPath};
use crate::fs::spelling::{Naming, Spellings};
use crate::fs::stat::FileId;
use crate::protocol::entry::DirOrigin;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// Set by FS_IOC_GETFLAGS for a directory that ignores case.
const CASEFOLD: u32 = 0x4000_0000;

/// Returns true for a name that file systems can only confuse by its case.
fn is_plain(name: &[u8]) -> bool {
    let is_plain = |&b: &u8| b.is_ascii_alphanumeric() || b"._-+=,@#%&()[]{}!$^ ".contains(&b);
    name.iter().all(is_plain) && !name.ends_with(b".") && !name.ends_with(b" ")
}

/// Returns the name with swapped case; `None` if it has no letters.
pub(super) fn swap_case(name: &CStr) -> Option<CString> {
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
    pub(super) fn find_existing(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
    ) -> Result<Option<Stat>, CopyError> {
        let old = dir.existing(to).at(Step::LookAtDestination)?;
        if old.is_some() {
            self.refuse_twin(dir, to, Step::Create)?;
        } else if self.context.config.dry_run {
            self.refuse_foreseen_twin(dir, to, Step::Create)?;
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
        Ok(is_asked && self.find_existing(dir, name)?.is_none())
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
        } else if self.context.config.dry_run {
            self.refuse_foreseen_twin(dir, name, Step::MakeDirectory)?;
        }
        Ok(made)
    }

    /// Fails in a dry run if another entry will have the name first (`foresight.rs`).
    fn refuse_foreseen_twin(
        &mut self,
        dir: &mut DirPair,
        to: &CStr,
        step: Step,
    ) -> Result<(), CopyError> {
        match self.foresee_twin(dir, to).at(Step::LookAtDestination)? {
            None => Ok(()),
            Some(twin) => {
                self.twin = Some(twin);
                Err(CopyError::new(step, Reason::SameName))
            }
        }
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

    /// Explains why a directory does not exist although its name was taken when this run tried to
    /// make it.
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

    /// Returns true if the source has an entry that the destination takes for this existing one,
    /// although its name is spelled differently.
    pub(super) fn is_source_spelling(
        &mut self,
        dir: &mut DirPair,
        name: &CStr,
    ) -> rustix::io::Result<bool> {
        if !self.is_possibly_folded(dir, name) {
            return Ok(false);
        }
        let source = source_names(self.context, dir)?;
        Ok(source.like(name.to_bytes()).next().is_some())
    }

    /// Returns true if the source finds an entry under this name, and lists it under another one
    /// only: the source does not tell the two apart, but the destination does.
    pub(super) fn is_listed_otherwise(
        &mut self,
        dir: &mut DirPair,
        name: &CStr,
    ) -> rustix::io::Result<bool> {
        let mut naming = naming_of_kind(dir.source());
        if naming == Naming::PerDirectory {
            naming = naming_of_flag(dir.source());
        }
        if naming == Naming::Exact {
            return Ok(false);
        }
        if self.is_possibly_folded(dir, name) || self.is_plain_at_exact_source(dir, name) {
            return Ok(false);
        }
        Ok(!source_names(self.context, dir)?.has(name.to_bytes()))
    }

    /// Returns true for a name that the source keeps apart from those that differ in case. One
    /// lookup shows that for a device.
    fn is_plain_at_exact_source(&mut self, dir: &DirPair, name: &CStr) -> bool {
        if !is_plain(name.to_bytes()) {
            return false;
        }
        let device = dir.devices().source;
        let is_known = self.exact_sources.contains(&device);
        if !is_known
            && let Some(swapped) = swap_case(name)
            && fs::statat(dir.source(), &*swapped, AtFlags::SYMLINK_NOFOLLOW).err()
                == Some(Errno::NOENT)
        {
            self.exact_sources.push(device);
            return true;
        }
        is_known
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
            naming = dir.destination().map_or(Naming::Unknown, naming_of_kind);
            if naming == Naming::Unknown {
                naming = look_up_swapped(dir, name);
            }
            if naming != Naming::Unknown {
                self.namings.push((device, naming));
            }
        }
        if naming == Naming::PerDirectory {
            dir.destination().map_or(Naming::Exact, naming_of_flag)
        } else {
            naming
        }
    }
}

/// Returns how a file system of this kind treats names.
fn naming_of_kind(dir: BorrowedFd<'_>) -> Naming {
    use FileSystem::{Bcachefs, Btrfs, Ext, F2fs, Overlayfs, Ramfs, Tmpfs};
    match FileSystem::of(dir) {
        Some(Btrfs | Ramfs) => Naming::Exact,
        Some(Bcachefs | Ext | F2fs | Overlayfs | Tmpfs) => Naming::PerDirectory,
        _ => Naming::Unknown,
    }
}

/// Returns how a directory treats names on a file system where its flag decides.
fn naming_of_flag(dir: BorrowedFd<'_>) -> Naming {
    if is_casefold(dir) {
        Naming::Folding
    } else {
        Naming::Exact
    }
}

fn is_casefold(dir: BorrowedFd<'_>) -> bool {
    fs::ioctl_getflags(dir).is_ok_and(|flags| flags.bits() & CASEFOLD != 0)
}

/// Returns whether a directory has the flag to ignore case. `None` if its file system has no such
/// flag.
pub(super) fn has_casefold_flag(dir: BorrowedFd<'_>) -> Option<bool> {
    (naming_of_kind(dir) == Naming::PerDirectory).then(|| is_casefold(dir))
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
pub(super) fn stored_names(dir: &mut DirPair, again: bool) -> rustix::io::Result<&Spellings> {
    if dir.stored.is_none() || again {
        let listed = match dir.destination() {
            Ok(destination) => Spellings::list(destination)?,
            Err(_) => Spellings::default(),
        };
        dir.stored = Some(listed);
    }
    Ok(dir.stored.get_or_insert_default())
}

/// Returns the names that the source's entries have at the destination.
pub(super) fn source_names<'a>(
    context: &Context,
    dir: &'a mut DirPair,
) -> rustix::io::Result<&'a Spellings> {
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
    Ok(dir.source_names.get_or_insert_default())
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
    let source = source_names(context, dir)?;
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
