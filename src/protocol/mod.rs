//! Messages between the parent and the workers: jobs one way, reports the other. Both modes use the
//! same types; in process mode they cross a socket ([`wire`]).
//!
//! **What has not been reported has not happened.** Counters, `-v` lines and errors travel
//! together in a [`JobUpdate`], and the parent applies each update once. If a worker crashes, its
//! unreported work is done again, and counted then.

pub(crate) mod entry;
pub(crate) mod error;
pub(crate) mod frames;
pub(crate) mod items;
pub(crate) mod job_map;
pub(crate) mod metadata;
pub(crate) mod nodes;
pub(crate) mod unsynced;
pub(crate) mod wire;

use std::collections::HashSet;
use std::ops::{Add, AddAssign, Range, Sub};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fs::path::{Kind, Name, Names, RelPath};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::quote::quote;
use entry::{Checksum, Chunk, ChunkedFile, Decision, DirOrigin, HardLinks};
use error::CopyError;
use items::Items;
use metadata::{Grant, MissingMetadata};
use unsynced::Unsynced;

/// A job's number: never 0, never used twice in a run.
pub(crate) type JobId = u64;

/// A unit of work in one directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    /// Index of its word in the table of claims.
    pub(crate) claim: u32,
    /// Which target the path is below.
    pub(crate) target: u32,
    /// The directory, on both sides.
    pub(crate) path: RelPath,
    pub(crate) origin: DirOrigin,
    pub(crate) kind: JobKind,
    /// Entries of the directory at which workers crashed, and that no worker has examined since.
    ///
    /// **A retry needs no cleaning first.** Times are set last, so an incomplete entry differs from
    /// its source and is replaced. Only the entry that the worker was writing could look complete.
    /// It is always treated as different.
    pub(crate) suspects: Vec<Name>,
}

/// The kind of work in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobKind {
    /// List the source directory, make its subdirectories, copy its entries.
    Directory {
        /// The directories above this one, to notice loops.
        ancestors: Arc<[DirIds]>,
        /// The progress that an earlier worker reported of the listing.
        resume: Resume,
    },
    /// Copy these entries.
    Entries { names: Names, hard_links: HardLinks },
    /// Make these entries hard links to a file that this run has copied.
    HardLinks { names: Names, leader: Leader },
    /// Copy a part of a file that another job has prepared.
    Chunk { file: ChunkedFile, chunk: Chunk },
    /// Every chunk is there: set the file's metadata and rename it into place.
    Commit {
        file: ChunkedFile,
        /// A worker saw the source change, so the whole file is copied again.
        changed: bool,
    },
    /// A chunk failed: remove the file.
    Discard { file: ChunkedFile },
    /// Write everything on the destination's device to disk. Belongs to no directory.
    Sync {
        /// Which of the target's descriptors to use (`targets/batch.rs`).
        root: usize,
    },
    /// These files are on disk: set their times, and rename them into place.
    CommitSynced { files: Vec<Unsynced> },
    /// These files could not be written to disk: remove them.
    DiscardUnsynced { files: Vec<Unsynced> },
    /// Remove an incomplete file that a crashed worker left.
    Remove { name: Name },
    /// Remove the temporary files of workers that were lost with their machine. Nobody knows which
    /// there are.
    RemoveTemps {
        /// The workers' numbers in temporary names.
        workers: Range<u64>,
        /// Files in progress.
        keep: Vec<Name>,
    },
    /// Remove these entries, which the source did not have when its directory was listed.
    Delete {
        names: Names,
        /// The directory then, on both sides.
        ids: DirIds,
    },
    /// Remove these entries of the destination: they are in the way of a directory, or are
    /// directories in the way of something else.
    MakeRoom { names: Names },
    /// Remove the entries of a directory that only the destination has.
    EmptyDirectory,
    /// Everything below is removed: remove the directory itself.
    RemoveDirectory {
        /// Something else gets its name.
        is_in_the_way: bool,
    },
    /// Everything below is done: set the directory's owner, attributes, mode and times.
    FinishDirectory {
        /// The source directory's stat before it was listed.
        stat: FileStat,
    },
}

impl Job {
    /// Returns true if the job removes entries of the destination.
    pub(crate) fn removes(&self) -> bool {
        matches!(
            self.kind,
            JobKind::Delete { .. }
                | JobKind::MakeRoom { .. }
                | JobKind::EmptyDirectory
                | JobKind::RemoveDirectory { .. }
        )
    }

    /// Returns the file that the job copies a chunk of.
    pub(crate) fn chunked_file(&self) -> Option<&ChunkedFile> {
        match &self.kind {
            JobKind::Chunk { file, .. } => Some(file),
            _ => None,
        }
    }
}

/// The reported progress of a listing that is repeated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resume {
    /// How many entries at the start of the listing were handed out or reported. They are examined
    /// again but not counted. One of them is uncopied only if the source directory has changed
    /// meanwhile.
    pub(crate) reported: u64,
    /// Entries to leave out: other jobs have them, or they failed.
    pub(crate) skip: HashSet<Name>,
    /// The directory's own `-v` line was reported.
    pub(crate) is_announced: bool,
    /// Something else of the directory is pending, so this job must not finish it.
    pub(crate) is_shared: bool,
}

/// The copied file that the other names of its group become links to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub(crate) target: u32,
    pub(crate) dir: RelPath,
    pub(crate) name: Name,
    /// The checksum of its contents, with `--manifest`.
    pub(crate) checksum: Option<Checksum>,
}

/// A message from a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// In the order in which they happened.
    pub(crate) updates: Vec<JobUpdate>,
    /// Metadata that this worker has seen granted for the first time. Valid even if the updates are
    /// rejected.
    pub(crate) granted: Vec<Grant>,
    /// The last report of a batch of jobs.
    pub(crate) is_batch_done: bool,
}

/// The events of a job since its last update.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobUpdate {
    pub(crate) job: JobId,
    /// 0 for the job's first update, then 1, 2 and so on. The parent takes each number once.
    pub(crate) number: u32,
    pub(crate) is_done: bool,
    pub(crate) counts: Counts,
    /// The job ended early, because the run ends.
    pub(crate) is_cut: bool,
    /// The job's progress. If the job is done, set only if it may be retried.
    pub(crate) progress: JobProgress,
    /// The directory's ids, with the first of its subdirectories.
    pub(crate) dir_ids: Option<DirIds>,
    pub(crate) subdirs: Subdirs,
    /// Entries handed over to another worker: the last ones of the job's list.
    pub(crate) shared: Names,
    pub(crate) hard_links: Vec<HardLinkEntry>,
    /// The first entry that was copied although it should be a hard link ([`Counts::unlinked`]).
    pub(crate) unlinked: Option<Name>,
    /// The copied entry that leads from now on, because the leader can take no more links.
    pub(crate) next_leader: Option<Name>,
    /// Files that are ready to be copied in chunks.
    pub(crate) chunked: Vec<ChunkedFile>,
    /// Files to be synced and then committed. They belong to the worker until the job ends.
    pub(crate) unsynced: Vec<Unsynced>,
    /// How many of the job's unsynced files, from the first one, the worker has settled itself.
    pub(crate) settled_unsynced: usize,
    /// The worker has tried to sync its files, and failed. So these files have failed.
    pub(crate) sync_error: Option<CopyError>,
    pub(crate) errors: Vec<EntryError>,
    /// Suspects that were examined and are complete now.
    pub(crate) settled_suspects: Vec<Name>,
    /// Entries that were copied without all of their metadata.
    pub(crate) missing_metadata: Vec<MissingMetadata>,
    /// Files whose contents are at the destination, with `--manifest`.
    pub(crate) checksums: Vec<FileChecksum>,
    /// Files whose first copy was wrong (`--verify`), and whose second copy was right.
    pub(crate) repeated: Vec<Name>,
    /// Lines for `-v` or `-n`.
    pub(crate) lines: Vec<Line>,
    /// Entries that a filter leaves out, with `-n -v`.
    pub(crate) excluded: Vec<Excluded>,
    /// Entries that only the destination has.
    pub(crate) extraneous: Names,
    /// Entries whose names are taken by another type of entry at the destination. They are copied
    /// once that is removed.
    pub(crate) obstructed: Names,
    /// Directories of the destination to remove with everything in them.
    pub(crate) doomed: Names,
    /// An entry of the directory that is being removed must stay.
    pub(crate) has_kept: bool,
    /// Entries that stay because of `--max-delete`.
    pub(crate) over_limit: u64,
    /// The source has no entry at all, so nothing of the destination is named as extraneous.
    pub(crate) is_source_empty: bool,
    /// The directory's stat, if other jobs must end before it can be finished. `None` once the
    /// worker has finished it itself.
    pub(crate) stat_to_finish: Option<Box<FileStat>>,
}

impl JobUpdate {
    /// Takes the update, and leaves an empty one that follows it. `None` if there is nothing to
    /// report.
    pub(crate) fn take(&mut self) -> Option<Self> {
        if self.is_empty() {
            return None;
        }
        let next = Self {
            job: self.job,
            number: self.number + 1,
            ..Self::default()
        };
        Some(std::mem::replace(self, next))
    }

    fn is_empty(&self) -> bool {
        !self.is_done
            && self.counts == Counts::default()
            && !self.has_children()
            && self.errors.is_empty()
            && self.unsynced.is_empty()
            && self.settled_unsynced == 0
            && self.sync_error.is_none()
            && self.missing_metadata.is_empty()
            && self.lines.is_empty()
            && self.excluded.is_empty()
            && !self.is_about_deletion()
            && self.checksums.is_empty()
            && self.repeated.is_empty()
            && self.stat_to_finish.is_none()
    }

    /// Returns true if the update is about entries that only the destination has.
    pub(crate) fn is_about_deletion(&self) -> bool {
        !(self.extraneous.is_empty() && self.obstructed.is_empty())
            || self.has_kept
            || self.over_limit > 0
            || self.is_source_empty
    }

    /// Returns true if the update adds jobs in the same directory.
    pub(crate) fn has_children(&self) -> bool {
        !(self.subdirs.is_empty()
            && self.shared.is_empty()
            && self.hard_links.is_empty()
            && self.chunked.is_empty()
            && self.doomed.is_empty())
    }
}

/// The progress of an unfinished job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobProgress {
    #[default]
    Unknown,
    /// Of a listing.
    Listed {
        /// Entries that were listed, in the order of the listing.
        entries: u64,
        /// Of these, the ones that the worker copies itself and has not reported.
        own: Names,
    },
    /// Of a list of names: how many at its start are settled.
    Settled(u64),
}

/// Subdirectories that exist at the destination now, by origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subdirs {
    /// Made by this job.
    pub(crate) new: Names,
    /// Made by a worker of this run that crashed.
    pub(crate) resumed: Names,
    /// There before the run.
    pub(crate) merged: Names,
}

impl Subdirs {
    pub(crate) fn is_empty(&self) -> bool {
        self.new.is_empty() && self.resumed.is_empty() && self.merged.is_empty()
    }

    /// Returns each list with the origin of its directories.
    pub(crate) fn into_lists(self) -> [(Names, DirOrigin); 3] {
        let origin = |created, known_empty| DirOrigin {
            created,
            known_empty,
        };
        [
            (self.new, origin(true, true)),
            (self.resumed, origin(true, false)),
            (self.merged, origin(false, false)),
        ]
    }
}

/// One name of a file that has several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HardLinkEntry {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    pub(crate) id: FileId,
    /// How many names the file has in all.
    pub(crate) links: u64,
}

/// An entry that was not copied, or not faithfully.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryError {
    /// `None` stands for the job's directory.
    pub(crate) name: Option<Name>,
    /// The kind of the entry, if it is one.
    pub(crate) kind: Option<Kind>,
    pub(crate) error: CopyError,
    /// The entry that has the same name at the destination, with [`Reason::SameName`].
    ///
    /// [`Reason::SameName`]: error::Reason::SameName
    pub(crate) twin: Option<Name>,
}

impl EntryError {
    pub(crate) fn new(name: Option<Name>, error: CopyError) -> Self {
        Self {
            name,
            kind: None,
            error,
            twin: None,
        }
    }

    /// Returns the operation and the reason.
    pub(crate) fn message(&self) -> String {
        match &self.twin {
            Some(twin) => format!(
                "{}: same name as {} at the destination",
                self.error.step,
                quote(twin.as_bytes())
            ),
            None => self.error.to_string(),
        }
    }
}

/// A file and the checksum of its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileChecksum {
    pub(crate) name: Name,
    pub(crate) checksum: Checksum,
}

/// One line of output about an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// `None` stands for the job's directory.
    pub(crate) name: Option<Name>,
    pub(crate) decision: Decision,
    /// The changes, with `--itemize-changes`.
    pub(crate) items: Option<Items>,
    /// Bytes of a regular file, if they are known.
    pub(crate) size: Option<u64>,
}

/// An entry that a filter leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Excluded {
    pub(crate) name: Name,
    pub(crate) is_dir: bool,
    /// The option or rule that decided.
    pub(crate) by: String,
}

/// Counters of a worker, or of the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Entries that listings have shown so far, without directories.
    pub(crate) found: u64,
    /// Regular files whose sizes are known so far.
    pub(crate) sized: u64,
    /// Bytes of these.
    pub(crate) bytes_found: u64,
    /// Entries that were made or replaced at the destination.
    pub(crate) copied: u64,
    /// Entries that were left alone because they were the same.
    pub(crate) unchanged: u64,
    /// Entries that `--overwrite` said to leave alone.
    pub(crate) skipped: u64,
    /// Bytes that were copied.
    pub(crate) bytes: u64,
    /// Entries that were copied because they could not become hard links.
    pub(crate) unlinked: u64,
    /// Bytes that did not have to be copied: those of unchanged files, and holes.
    pub(crate) spared: u64,
    /// Entries that were removed from the destination, directories included.
    pub(crate) deleted: u64,
}

impl Counts {
    /// Returns how many entries have ended without an error.
    pub(crate) fn done(&self) -> u64 {
        self.copied + self.unchanged + self.skipped
    }

    pub(crate) const fn to_array(self) -> [u64; 10] {
        [
            self.found,
            self.sized,
            self.bytes_found,
            self.copied,
            self.unchanged,
            self.skipped,
            self.bytes,
            self.unlinked,
            self.spared,
            self.deleted,
        ]
    }

    pub(crate) const fn from_array(counts: [u64; 10]) -> Self {
        let [
            found,
            sized,
            bytes_found,
            copied,
            unchanged,
            skipped,
            bytes,
            unlinked,
            spared,
            deleted,
        ] = counts;
        Self {
            found,
            sized,
            bytes_found,
            copied,
            unchanged,
            skipped,
            bytes,
            unlinked,
            spared,
            deleted,
        }
    }

    /// Combines two counts field by field. Figures from a damaged worker must not panic.
    fn zip(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        let (this, other) = (self.to_array(), other.to_array());
        Self::from_array(std::array::from_fn(|at| combine(this[at], other[at])))
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.zip(other, u64::wrapping_add)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }
}
