//! What the parent and the workers say to each other: jobs one way, reports the other. The same
//! types in both modes; in process mode they cross a socket (`engine::wire`).

pub(crate) mod wire;

use std::collections::HashSet;
use std::fmt;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

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
        /// Copy an entry with several hard links too, instead of reporting it: it is the first
        /// of its group.
        first_link: bool,
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
        /// First byte of the part.
        offset: u64,
        /// Length of the part in bytes.
        length: u64,
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

/// A file that several workers copy in pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkedFile {
    /// Its name.
    pub(crate) name: Name,
    /// The name under which it is being written; its own one where nothing stood there.
    pub(crate) written_as: Name,
    /// The file at the destination.
    pub(crate) prepared: FileId,
    /// What the source file was when it was opened.
    pub(crate) stamp: FileStat,
}

#[cfg(test)]
impl ChunkedFile {
    /// One for tests.
    pub(crate) fn sample(name: &str, size: u64, allocated: u64) -> Self {
        let none = (0, 0);
        Self {
            name: Name::new(name.as_bytes()),
            written_as: Name::new(name.as_bytes()),
            prepared: FileId { dev: 1, ino: 3 },
            stamp: FileStat {
                inode: FileId { dev: 1, ino: 2 },
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
            },
        }
    }
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
    pub(crate) failures: Vec<Failure>,
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
    pub(crate) action: Action,
}

/// What is done with an entry, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the texts below say it
pub(crate) enum Action {
    MakeDirectory,
    MergeDirectory,
    Copy,
    ReplaceOtherKind,
    ReplaceSize,
    ReplaceTime,
    ReplaceTarget,
    ReplaceAlways,
    ReplaceOlder,
    Link,
    LeaveUnchanged,
    LeaveSame,
    SkipExisting,
    SkipNewer,
}

impl Action {
    /// The verb and the reason of a dry run's line.
    pub(crate) const fn plan(self) -> (&'static str, &'static str) {
        match self {
            Self::MakeDirectory => ("make", "new"),
            Self::MergeDirectory => ("merge", "folder exists"),
            Self::Copy => ("copy", "new"),
            Self::ReplaceOtherKind => ("replace", "type differs"),
            Self::ReplaceSize => ("replace", "size differs"),
            Self::ReplaceTime => ("replace", "time differs"),
            Self::ReplaceTarget => ("replace", "target differs"),
            Self::ReplaceAlways => ("replace", "asked for"),
            Self::ReplaceOlder => ("replace", "older"),
            Self::Link => ("link", "hard link"),
            Self::LeaveUnchanged => ("leave", "unchanged"),
            Self::LeaveSame => ("leave", "same file"),
            Self::SkipExisting => ("skip", "exists"),
            Self::SkipNewer => ("skip", "not older"),
        }
    }

    /// True when something is made or replaced.
    pub(crate) const fn changes(self) -> bool {
        !matches!(
            self,
            Self::MergeDirectory
                | Self::LeaveUnchanged
                | Self::LeaveSame
                | Self::SkipExisting
                | Self::SkipNewer
        )
    }
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
pub(crate) struct Failure {
    /// The entry; none stands for the job's folder.
    pub(crate) name: Option<Name>,
    /// What was tried.
    pub(crate) step: Step,
    /// Why it did not work.
    pub(crate) reason: Reason,
}

impl Failure {
    /// True when the destination has no room, so that everything after it would fail too. An
    /// attribute that is too large for its file system is told by the same number.
    pub(crate) fn is_full_destination(&self) -> bool {
        self.step.at_destination() && self.step != Step::SetAttributes && self.reason.is_full()
    }
}

/// What was tried when an entry failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the texts below say it
pub(crate) enum Step {
    OpenDirectory,
    ListDirectory,
    Look,
    Open,
    Read,
    ReadLink,
    ReadAttributes,
    Copy,
    OpenDestinationDirectory,
    MakeDirectory,
    LookAtDestination,
    Create,
    Write,
    Reserve,
    Clone,
    SetOwner,
    SetMode,
    SetTimes,
    SetAttributes,
    Close,
    Sync,
    Rename,
    Link,
    Remove,
}

impl Step {
    /// True for what is done at the destination; the failure is shown with that path.
    pub(crate) const fn at_destination(self) -> bool {
        !matches!(
            self,
            Self::OpenDirectory
                | Self::ListDirectory
                | Self::Look
                | Self::Open
                | Self::Read
                | Self::ReadLink
                | Self::ReadAttributes
                | Self::Copy
        )
    }

    /// For people.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::OpenDirectory | Self::OpenDestinationDirectory => "open folder",
            Self::ListDirectory => "list folder",
            Self::Look | Self::LookAtDestination => "stat",
            Self::Open => "open",
            Self::Read => "read",
            Self::ReadLink => "read link",
            Self::ReadAttributes => "read attributes",
            Self::Copy => "copy",
            Self::MakeDirectory => "make folder",
            Self::Create => "create",
            Self::Write => "write",
            Self::Reserve => "reserve space",
            Self::Clone => "clone (--reflink=always)",
            Self::SetOwner => "set owner",
            Self::SetMode => "set mode",
            Self::SetTimes => "set times",
            Self::SetAttributes => "set attributes",
            Self::Close => "close",
            Self::Sync => "sync to disk",
            Self::Rename => "rename into place",
            Self::Link => "make hard link",
            Self::Remove => "remove incomplete file",
        }
    }
}

/// Why an entry failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// The system's error number.
    System(i32),
    /// The source was not the same at the end of reading, two times.
    Changed,
    /// The destination has a folder of that name, and the source something else.
    DirectoryInTheWay,
    /// The destination has something else of that name, and the source a folder.
    FileInTheWay,
    /// The destination has a link where a folder is needed.
    LinkInTheWay,
    /// Somebody else has put something else where this run was making the entry.
    Replaced,
    /// The source folder is the destination itself, or one that this one is being copied to.
    IsDestination,
    /// What is there is one of the sources.
    IsSource,
    /// The destination folder is the source, or lies in it.
    LandsOnSource,
    /// Following links, a folder was met below itself.
    Loop,
    /// Two workers died while they were at it; the last one by this signal, or with this exit
    /// status where it is negative.
    WorkersDied(i32),
    /// No progress for so many seconds, two times.
    Stalled(u64),
    /// A panic; in thread mode there is a message on stderr before.
    Bug,
    /// The run was stopped. Never shown.
    Stopped,
}

impl Reason {
    /// True for the errors of a full file system or quota.
    pub(crate) fn is_full(self) -> bool {
        [Errno::NOSPC, Errno::DQUOT]
            .iter()
            .any(|full| self == Self::System(full.raw_os_error()))
    }
}

impl From<Errno> for Reason {
    fn from(errno: Errno) -> Self {
        Self::System(errno.raw_os_error())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::System(number) => f.write_str(&error_text(number)),
            Self::Changed => f.write_str("it changed while it was being read, twice; run again"),
            Self::Replaced => f.write_str("somebody else has put something else there; run again"),
            Self::DirectoryInTheWay => f.write_str("a folder of that name is in the way"),
            Self::FileInTheWay => f.write_str("a file of that name is in the way"),
            Self::LinkInTheWay => {
                f.write_str("a symbolic link is in the way; pcopy does not follow it")
            }
            Self::IsDestination => f.write_str("this folder is the destination itself"),
            Self::IsSource => f.write_str("it would replace another source of this run"),
            Self::LandsOnSource => f.write_str("this folder belongs to the source"),
            Self::Loop => f.write_str("symbolic links lead back to a folder above"),
            Self::WorkersDied(signal) if signal > 0 => {
                write!(f, "two workers died at it ({})", signal_text(signal))
            }
            Self::WorkersDied(status) => {
                write!(f, "two workers died at it (exit status {})", -status)
            }
            Self::Stalled(seconds) => write!(f, "no progress for {seconds} s, twice"),
            Self::Bug => f.write_str("internal error, please report it"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// The system's text for an error number, without the number.
pub(crate) fn error_text(number: i32) -> String {
    let text = std::io::Error::from_raw_os_error(number).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// A signal's name.
pub(crate) fn signal_text(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal)
        .map_or_else(|| format!("signal {signal}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_well() {
        let text = |reason: Reason| reason.to_string();
        assert_eq!(text(Errno::ACCESS.into()), "Permission denied");
        assert_eq!(
            text(Reason::WorkersDied(9)),
            "two workers died at it (SIGKILL)"
        );
        assert_eq!(
            text(Reason::WorkersDied(-3)),
            "two workers died at it (exit status 3)"
        );
    }

    #[test]
    fn only_a_full_destination_is_full() {
        assert!(Reason::from(Errno::NOSPC).is_full());
        assert!(Reason::from(Errno::DQUOT).is_full());
        assert!(!Reason::from(Errno::IO).is_full());
    }
}
