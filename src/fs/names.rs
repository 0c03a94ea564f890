//! Names that some file systems refuse: FAT, exFAT, NTFS, SMB.

use std::fmt;
use std::io::Read as _;
use std::os::fd::AsFd;

use rustix::fs;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::file_system::FileSystem;

/// Why a file system refuses a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusedName {
    pub(crate) by: Refuser,
    pub(crate) offence: Offence,
}

impl fmt::Display for RefusedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            Refuser::Fat => "fat",
            Refuser::ExFat => "exfat",
            Refuser::Ntfs => "ntfs",
            Refuser::Smb => "smb",
            Refuser::Other => "the destination",
        };
        match self.offence {
            Offence::Character(c) => write!(f, "{by} allows no {c} in names"),
            Offence::Control => write!(f, "{by} allows no control characters in names"),
            Offence::NotUtf8 => write!(f, "{by} allows only UTF-8 in names"),
            Offence::End => write!(f, "{by} allows no dot or space at the end of names"),
            Offence::Reserved => write!(f, "{by} reserves this name for a device"),
            Offence::Unknown => write!(f, "{by} does not allow this name"),
        }
    }
}

/// A file system that refuses names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refuser {
    Fat,
    ExFat,
    Ntfs,
    Smb,
    Other,
}

impl Refuser {
    /// Returns the file system that a directory is on.
    pub(crate) fn of(dir: impl AsFd) -> Self {
        let dir = dir.as_fd();
        match FileSystem::of(dir) {
            Some(FileSystem::Fat) => Self::Fat,
            Some(FileSystem::ExFat) => Self::ExFat,
            Some(FileSystem::Ntfs3) => Self::Ntfs,
            Some(FileSystem::Smb) => Self::Smb,
            // FUSE, which may be any.
            _ => fs::fstat(dir)
                .ok()
                .and_then(|stat| Self::of_device(stat.st_dev))
                .unwrap_or(Self::Other),
        }
    }

    /// Asks udev, the table of mounts, and the device itself if that may be read.
    fn of_device(device: u64) -> Option<Self> {
        let (major, minor) = (fs::major(device), fs::minor(device));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let udev = read(&format!("/run/udev/data/b{major}:{minor}"));
        let udev = udev
            .lines()
            .find_map(|line| line.strip_prefix("E:ID_FS_TYPE="));
        if let Some(known) = udev.and_then(Self::of_name) {
            return Some(known);
        }
        let mounts = read("/proc/self/mountinfo");
        let number = format!("{major}:{minor}");
        let mut lines = mounts.lines();
        let line = lines.find(|line| line.split(' ').nth(2) == Some(&number))?;
        let (_, rest) = line.split_once(" - ")?;
        let (kind, rest) = rest.split_once(' ')?;
        Self::of_name(kind).or_else(|| {
            let mut boot_sector = [0; 512];
            let mut device = std::fs::File::open(rest.split(' ').next()?).ok()?;
            device.read_exact(&mut boot_sector).ok()?;
            Self::of_boot_sector(&boot_sector)
        })
    }

    /// Returns the file system with this name: `vfat`, `fuse.exfat`, `ntfs3`.
    fn of_name(name: &str) -> Option<Self> {
        [
            ("exfat", Self::ExFat),
            ("fat", Self::Fat),
            ("msdos", Self::Fat),
            ("ntfs", Self::Ntfs),
        ]
        .into_iter()
        .find_map(|(part, refuser)| name.contains(part).then_some(refuser))
    }

    fn of_boot_sector(sector: &[u8; 512]) -> Option<Self> {
        match &sector[3..11] {
            b"EXFAT   " => Some(Self::ExFat),
            b"NTFS    " => Some(Self::Ntfs),
            _ if sector[54..].starts_with(b"FAT") || sector[82..].starts_with(b"FAT") => {
                Some(Self::Fat)
            }
            _ => None,
        }
    }
}

/// What in a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Offence {
    Character(char),
    Control,
    NotUtf8,
    End,
    Reserved,
    Unknown,
}

impl Offence {
    /// Returns what FAT, exFAT or NTFS could refuse in this name.
    pub(crate) fn find(name: &[u8]) -> Option<Self> {
        let Ok(text) = std::str::from_utf8(name) else {
            return Some(Self::NotUtf8);
        };
        if let Some(c) = text.chars().find(|c| "\"*/:<>?\\|".contains(*c)) {
            return Some(Self::Character(c));
        }
        if text.chars().any(|c| c.is_ascii_control()) {
            return Some(Self::Control);
        }
        if text.ends_with(['.', ' ']) {
            return Some(Self::End);
        }
        if is_device_name(text) {
            return Some(Self::Reserved);
        }
        // Some drivers store names in one encoding that does not have all characters.
        (!text.is_ascii()).then_some(Self::Unknown)
    }
}

/// Returns true for what MS-DOS takes for a device, whatever ending it has: `CON`, `aux.txt`.
fn is_device_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let stem = stem.to_ascii_uppercase();
    let is_numbered = |prefix| {
        stem.strip_prefix(prefix)
            .is_some_and(|rest: &str| rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL")
        || is_numbered("COM")
        || is_numbered("LPT")
}

/// Returns true for the errors with which file systems refuse a name: EINVAL from the kernel,
/// ENOENT from exfat-fuse, EILSEQ for the encoding, EPERM from fusefat. All have other meanings too.
pub(crate) fn may_be_refusal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::INVAL | Errno::NOENT | Errno::ILSEQ | Errno::PERM
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_found_in_the_name() {
        for (name, offence) in [
            (&b"12:30.txt"[..], Some(Offence::Character(':'))),
            (b"what?", Some(Offence::Character('?'))),
            (b"a\\b", Some(Offence::Character('\\'))),
            (b"a\x01b", Some(Offence::Control)),
            (b"caf\xe9", Some(Offence::NotUtf8)),
            (b"etc.", Some(Offence::End)),
            (b"space ", Some(Offence::End)),
            (b"aux.txt", Some(Offence::Reserved)),
            (b"Com1", Some(Offence::Reserved)),
            ("ü".as_bytes(), Some(Offence::Unknown)),
            (b"com", None),
            (b"console.log", None),
            (b".hidden", None),
            (b"IMG_0001 (copy).JPG", None),
        ] {
            assert_eq!(Offence::find(name), offence, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_file_system_is_known_by_its_name_or_boot_sector() {
        assert_eq!(Refuser::of_name("fuse.fusefat"), Some(Refuser::Fat));
        assert_eq!(Refuser::of_name("fuse.exfat-fuse"), Some(Refuser::ExFat));
        assert_eq!(Refuser::of_name("ntfs3"), Some(Refuser::Ntfs));
        assert_eq!(Refuser::of_name("fuseblk"), None);
        let of = |at: usize, text: &[u8]| {
            let mut sector = [0; 512];
            sector[at..at + text.len()].copy_from_slice(text);
            Refuser::of_boot_sector(&sector)
        };
        assert_eq!(of(3, b"EXFAT   "), Some(Refuser::ExFat));
        assert_eq!(of(3, b"NTFS    "), Some(Refuser::Ntfs));
        assert_eq!(of(54, b"FAT16   "), Some(Refuser::Fat));
        assert_eq!(of(82, b"FAT32   "), Some(Refuser::Fat));
        assert_eq!(of(0, b"x"), None);
    }

    #[test]
    fn the_reason_names_the_file_system_and_the_character() {
        let text = |by, offence| RefusedName { by, offence }.to_string();
        assert_eq!(
            text(Refuser::ExFat, Offence::Character(':')),
            "exfat allows no : in names"
        );
        assert_eq!(
            text(Refuser::Other, Offence::End),
            "the destination allows no dot or space at the end of names"
        );
    }
}
