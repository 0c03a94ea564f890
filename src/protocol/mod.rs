//! What the parent and the workers say to each other: jobs one way, reports the other. The same
//! types in both modes; in process mode they cross a socket (`engine::wire`).

pub(crate) mod entry;
pub(crate) mod error;
pub(crate) mod wire;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use entry::{Chunk, ChunkedFile, Decision, HardLinks};
use error::CopyError;

use crate::fs::path::{Name, Names, RelPath};
use crate::fs::stat::{DirIds, FileId, FileStat};

/// A job's number, never used twice in a run and never 0.
pub(crate) type JobId = u64;

/// Some work in one folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Its number.
    pub(crate) id: JobId,
    /// Which pair of source and destination root the path is below.
    pub(crate) root: u32,
    /// The folder, on both sides.
    pub(crate) path: RelPath,
    /// What to do there.
    pub(crate) task: JobKind,
    /// What a worker that died at this job leaves to know.
    pub(crate) again: Option<Again>,
}

/// What to do in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobKind {
    /// List the source folder, make its subfolders at the destination, copy its entries.
    Directory {
        /// The destination folder was made by this run, so nothing is in it.
        fresh: bool,
        /// The folders above this one, to notice loops.
        above: Vec<DirIds>,
        /// Entries to leave out, where a worker died at it: given up, failed or handed on to
        /// others.
        skip: HashSet<Name>,
    },
    /// Copy these entries.
    Entries {
        /// Their names.
        names: Names,
        /// As in [`JobKind::Directory`].
        fresh: bool,
        hard_links: HardLinks,
    },
    /// Make these entries hard links to a file that this run has copied.
    HardLinks {
        /// Their names.
        names: Names,
        /// As in [`JobKind::Directory`].
        fresh: bool,
        /// Target of the entry to link to.
        to_root: u32,
        /// DirPair of the entry to link to.
        to_folder: RelPath,
        /// Name of the entry to link to.
        to_name: Name,
    },
    /// Copy a part of a large file that is prepared at the destination.
    Chunk {
        /// The file.
        large: ChunkedFile,
        /// The part.
        chunk: Chunk,
    },
    /// Every part of a large file is there: set its metadata and give it its name.
    Commit {
        /// The file.
        large: ChunkedFile,
        /// The source was seen to change, so the pieces are worth nothing.
        changed: bool,
    },
    /// Remove what there is of a large file: a part of it failed.
    Discard {
        /// The file.
        large: ChunkedFile,
    },
    /// Everything below the folder is done: set its owner, attributes, mode and times.
    FinishDirectory {
        /// What the source folder had when it was opened.
        stamp: FileStat,
        /// As in [`JobKind::Directory`].
        fresh: bool,
    },
}

/// What is known from workers that died at the same job before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Again {
    /// Names at the destination under which something incomplete was left: remove them first.
    pub(crate) clear: Vec<Name>,
    /// So many entries are done and counted already; they will look unchanged.
    pub(crate) counted: u64,
}

/// What a worker says, some of it about each job that it had to do with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// In the order in which it happened.
    pub(crate) news: Vec<JobUpdate>,
    /// Jobs that the worker did not begin and gives back, since others are idle.
    pub(crate) returned: Vec<JobId>,
    /// What the destination file system could not hold.
    pub(crate) not_kept: NotKept,
    /// The last report of a deal.
    pub(crate) deal_ended: bool,
}

impl Report {
    /// True when there is nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.news.is_empty() && self.returned.is_empty() && !self.deal_ended
    }
}

/// What happened in a job since the last news of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobUpdate {
    /// The job.
    pub(crate) job: JobId,
    /// It has ended.
    pub(crate) ended: bool,
    /// The folder, told with the first of its subfolders.
    pub(crate) pair: Option<DirIds>,
    /// Subfolders that the destination has now, made by this run.
    pub(crate) made: Names,
    /// Subfolders that the destination had already.
    pub(crate) merged: Names,
    /// Entries of the folder that another worker shall copy: the last ones of the job's list,
    /// where it came with one.
    pub(crate) shared: Names,
    /// Entries with several hard links.
    pub(crate) links: Vec<HardLink>,
    /// Files that are ready to be copied in pieces.
    pub(crate) large: Vec<ChunkedFile>,
    /// What went wrong.
    pub(crate) failures: Vec<EntryError>,
    /// What `-v` or `--dry-run` prints.
    pub(crate) lines: Vec<Line>,
    /// The folder's stamp, where its subfolders or other jobs still have to end before it can be
    /// finished. Absent once the worker has finished it itself.
    pub(crate) unfinished: Option<Box<FileStat>>,
}

impl JobUpdate {
    /// True when there is nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        !self.ended
            && !self.has_children()
            && self.failures.is_empty()
            && self.lines.is_empty()
            && self.unfinished.is_none()
    }

    /// True when it names work for other jobs in the same folder.
    pub(crate) fn has_children(&self) -> bool {
        !(self.made.is_empty()
            && self.merged.is_empty()
            && self.shared.is_empty()
            && self.links.is_empty()
            && self.large.is_empty())
    }
}

/// One name of a file that has several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HardLink {
    /// The name, with its kind.
    pub(crate) names: Names,
    /// The file.
    pub(crate) inode: FileId,
    /// How many names it has in all.
    pub(crate) count: u64,
}

/// One line of output about an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The entry; none stands for the folder.
    pub(crate) name: Option<Name>,
    /// What was done, or would be.
    pub(crate) action: Decision,
}

/// What the destination could not hold although nobody is to blame: told once for the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotKept {
    /// Owners.
    pub(crate) ownership: bool,
    /// Mode bits.
    pub(crate) mode: bool,
    /// Extended attributes, ACLs and capabilities among them.
    pub(crate) xattr: bool,
    /// Times.
    pub(crate) timestamps: bool,
}

impl NotKept {
    /// Both together.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            ownership: self.ownership || other.ownership,
            mode: self.mode || other.mode,
            xattr: self.xattr || other.xattr,
            timestamps: self.timestamps || other.timestamps,
        }
    }
}

/// An entry that was not copied, or not faithfully.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryError {
    /// The entry; none stands for the job's directory.
    pub(crate) name: Option<Name>,
    pub(crate) error: CopyError,
}
