//! Parts of jobs and reports that describe one entry or one directory.

use serde::{Deserialize, Serialize};

use super::items::Items;
use crate::fs::path::Name;
use crate::fs::stat::{FileId, FileStat};

/// Bytes of data in one chunk. Large enough that handing it out costs nothing, small enough that
/// all workers end at about the same time.
pub(crate) const CHUNK_SIZE: u64 = 16 << 20;
/// Chunks begin at multiples of this.
pub(crate) const CHUNK_ALIGNMENT: u64 = 1 << 20;

/// A checksum in the list of `--manifest`.
pub(crate) type Checksum = [u8; 32];

/// The action on an entry, planned or done, and its reason. Printed by `-n` and `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decision {
    Create,
    ReplaceOtherKind,
    ReplaceSize,
    ReplaceContents,
    ReplaceTime,
    ReplaceTarget,
    ReplaceAlways,
    ReplaceOlder,
    HardLink,
    /// The same in a directory of `--link-dest`.
    LinkSame,
    /// The contents are the same: owner, mode or attributes are updated.
    UpdateMetadata,
    LeaveUnchanged,
    LeaveSame,
    SkipExisting,
    SkipNewer,
    /// With `--existing`.
    SkipMissing,
    MakeDirectory,
    MergeDirectory,
    /// The source does not have it.
    Delete,
}

impl Decision {
    /// Returns the verb and the reason in a dry run's line.
    pub(crate) const fn plan(self) -> (&'static str, &'static str) {
        match self {
            Self::Create => ("copy", "new"),
            Self::ReplaceOtherKind => ("replace", "type differs"),
            Self::ReplaceSize => ("replace", "size differs"),
            Self::ReplaceContents => ("replace", "contents differ"),
            Self::ReplaceTime => ("replace", "time differs"),
            Self::ReplaceTarget => ("replace", "target differs"),
            Self::ReplaceAlways => ("replace", "asked for"),
            Self::ReplaceOlder => ("replace", "older"),
            Self::HardLink => ("link", "hard link"),
            Self::LinkSame => ("link", "same in --link-dest"),
            Self::UpdateMetadata => ("update", "metadata differs"),
            Self::LeaveUnchanged => ("leave", "unchanged"),
            Self::LeaveSame => ("leave", "same file"),
            Self::SkipExisting => ("skip", "exists"),
            Self::SkipNewer => ("skip", "not older"),
            Self::SkipMissing => ("skip", "not at the destination"),
            Self::MakeDirectory => ("make", "new"),
            Self::MergeDirectory => ("merge", "directory exists"),
            Self::Delete => ("delete", ""),
        }
    }

    /// Returns true if something is made or replaced.
    pub(crate) const fn changes(self) -> bool {
        matches!(self.outcome(), Outcome::Copied | Outcome::Deleted)
    }

    /// Returns how the entry is counted. Directories are not counted.
    pub(crate) const fn outcome(self) -> Outcome {
        match self {
            Self::Create
            | Self::ReplaceOtherKind
            | Self::ReplaceSize
            | Self::ReplaceContents
            | Self::ReplaceTime
            | Self::ReplaceTarget
            | Self::ReplaceAlways
            | Self::ReplaceOlder
            | Self::HardLink
            | Self::LinkSame
            | Self::UpdateMetadata
            | Self::MakeDirectory => Outcome::Copied,
            Self::LeaveUnchanged | Self::LeaveSame | Self::MergeDirectory => Outcome::Unchanged,
            Self::SkipExisting | Self::SkipNewer | Self::SkipMissing => Outcome::Skipped,
            Self::Delete => Outcome::Deleted,
        }
    }
}

/// How a finished entry is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Made, replaced, or given other metadata.
    Copied,
    /// The same already.
    Unchanged,
    /// Left alone because of `--overwrite` or `--existing`.
    Skipped,
    /// Removed from the destination.
    Deleted,
}

/// How a job treats entries with several hard links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HardLinks {
    /// Report them: the parent decides which one is copied and which ones become links.
    Report,
    /// Copy them like any other entry.
    Copy,
}

/// Knowledge about a destination directory from before a job opens it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirOrigin {
    /// This run has made the directory.
    pub(crate) created: bool,
    /// None of the job's entries can be there yet, and the directory still has the metadata that
    /// it was made with. Implies `created`. Never true for a retry.
    pub(crate) known_empty: bool,
}

/// A file that several workers copy in chunks, or compare with an existing one. A copy has a
/// temporary name until all chunks are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkedFile {
    /// The source's name.
    pub(crate) name: Name,
    /// The temporary name at the destination. `None` if the chunks are compared.
    pub(crate) temp: Option<Name>,
    /// The ID of the file at the destination.
    pub(crate) id: FileId,
    /// The source's stat when it was opened. Boxed, because queued jobs should be small.
    pub(crate) stat: Box<FileStat>,
    /// Whether it is new, or replaces something.
    pub(crate) decision: Decision,
    pub(crate) items: Option<Items>,
}

impl ChunkedFile {
    /// Returns true if the chunks are compared with an existing file.
    pub(crate) fn is_comparison(&self) -> bool {
        self.temp.is_none()
    }

    /// Returns the length of each chunk but the last, if `size` bytes are wanted. Those of a sparse
    /// file are longer, so that each holds about as much data.
    pub(crate) fn chunk_length(stat: &FileStat, size: u64) -> u64 {
        let count = stat.allocated.min(stat.size).div_ceil(size).max(1);
        stat.size
            .div_ceil(count)
            .max(1)
            .next_multiple_of(CHUNK_ALIGNMENT)
    }

    /// Divides the file into chunks of about `chunk_size` bytes.
    pub(crate) fn chunks(&self, chunk_size: u64) -> Vec<Chunk> {
        let size = self.stat.size;
        let length = Self::chunk_length(&self.stat, chunk_size);
        (0..size)
            .step_by(length as usize)
            .map(|offset| Chunk {
                offset,
                length: length.min(size - offset),
            })
            .collect()
    }
}

/// A part of a [`ChunkedFile`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

#[cfg(test)]
impl ChunkedFile {
    /// Returns the temporary name of a file that is copied.
    pub(crate) fn temp_name(&self) -> &[u8] {
        self.temp.as_ref().map_or(b"", Name::as_bytes)
    }

    /// Returns one for tests.
    pub(crate) fn sample(name: &str, size: u64, allocated: u64) -> Self {
        let none = (0, 0);
        Self {
            name: Name::new(name.as_bytes()),
            temp: Some(Name::new(format!(".{name}.tmp").as_bytes())),
            id: FileId { dev: 1, ino: 3 },
            stat: Box::new(FileStat {
                id: FileId { dev: 1, ino: 2 },
                mode: 0,
                uid: 0,
                gid: 0,
                size,
                allocated,
                links: 1,
                rdev: 0,
                atime: none,
                mtime: none,
                ctime: none,
            }),
            decision: Decision::Create,
            items: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_cover_the_file_once(size in 1_u64..1 << 40, part in 1_u64..=64) {
            let file = ChunkedFile::sample("n", size, size / part);
            let mut end = 0;
            for chunk in file.chunks(CHUNK_SIZE) {
                prop_assert_eq!(chunk.offset, end);
                prop_assert!(chunk.length > 0);
                end += chunk.length;
            }
            prop_assert_eq!(end, size);
        }
    }
}
