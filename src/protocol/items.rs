//! The changes of an entry, in the eleven letters of rsync.

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::fs::stat::FileStat;

/// The letters `YXcstpoguax`: how an entry is updated, its type, and which properties differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Items {
    letters: [u8; 11],
}

/// How an entry is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// Its contents are copied.
    Copy,
    /// It is made or changed without a copy of contents.
    Local,
    /// It becomes a hard link.
    HardLink,
    /// Its metadata alone changes.
    Metadata,
}

/// The properties that differ, in the order of the letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// The text of a link, or the number of a device.
    pub(crate) value: bool,
    pub(crate) size: bool,
    pub(crate) time: bool,
    pub(crate) mode: bool,
    pub(crate) owner: bool,
    pub(crate) group: bool,
    pub(crate) acl: bool,
    pub(crate) attributes: bool,
}

impl Differences {
    pub(crate) fn is_any(&self) -> bool {
        *self != Self::default()
    }
}

fn letter_of(stat: &FileStat) -> u8 {
    match FileType::from_raw_mode(stat.mode) {
        FileType::RegularFile => b'f',
        FileType::Directory => b'd',
        FileType::Symlink => b'L',
        FileType::CharacterDevice | FileType::BlockDevice => b'D',
        _ => b'S',
    }
}

impl Items {
    /// Returns the letters of an entry that is new.
    pub(crate) fn new_entry(update: ChangeKind, stat: &FileStat) -> Self {
        let mut letters = [b'+'; 11];
        letters[0] = update.letter();
        letters[1] = letter_of(stat);
        Self { letters }
    }

    /// Returns the letters of an entry that differs.
    pub(crate) fn changed(update: ChangeKind, stat: &FileStat, of: Differences) -> Self {
        let mark = |is_different: bool, letter| if is_different { letter } else { b'.' };
        Self {
            letters: [
                update.letter(),
                letter_of(stat),
                mark(of.value, b'c'),
                mark(of.size, b's'),
                mark(of.time, b't'),
                mark(of.mode, b'p'),
                mark(of.owner, b'o'),
                mark(of.group, b'g'),
                b'.',
                mark(of.acl, b'a'),
                mark(of.attributes, b'x'),
            ],
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        // A damaged message must not panic.
        std::str::from_utf8(&self.letters).unwrap_or("???????????")
    }
}

impl ChangeKind {
    fn letter(self) -> u8 {
        match self {
            Self::Copy => b'>',
            Self::Local => b'c',
            Self::HardLink => b'h',
            Self::Metadata => b'.',
        }
    }
}
