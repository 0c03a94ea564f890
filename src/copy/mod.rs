//! Copies one entry: decide, write, apply metadata, commit. Workers of both modes call this.

mod attributes;
mod backup;
mod batched;
mod checksum;
mod chunked;
mod content;
mod decide;
pub(crate) mod delete;
mod digest;
pub(crate) mod dir;
mod file;
mod flags;
mod foresight;
mod handle;
mod hard_link;
mod in_place;
mod issues;
mod itemize;
mod learned;
mod links;
mod metadata;
mod names;
mod origin;
mod partial;
mod special;
mod stream;
pub(crate) mod temp;
#[cfg(test)]
mod tests;
mod times;
mod turn;
mod twins;
mod update;
mod verify;

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::context::Context;
use crate::fs::granularity::Granularity;
use crate::fs::path::{Kind, Name};
use crate::fs::spelling::{Folding, Naming};
use crate::fs::stat::FileStat;
use crate::protocol::entry::{Checksum, ChunkedFile, Decision, HardLinks};
use crate::protocol::error::{CopyError, Reason, Step};
use crate::protocol::items::Items;
use crate::protocol::metadata::Grant;
use crate::protocol::unsynced::Unsynced;
use crate::scoreboard::WorkerSlot;
use digest::Digest;
use dir::{Devices, DirPair};
use learned::Learned;
use turn::FirstRequest;

pub(crate) use delete::Fate;
pub(crate) use hard_link::{OpenLeader, Unlinkable};
pub(crate) use issues::Issues;
pub(crate) use stream::Stream;

/// An entry to copy.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// Its kind as listed, which may have changed since.
    pub(crate) kind: Kind,
    /// The name at the source.
    pub(crate) from: &'a CStr,
    /// The name at the destination: a single file may get another one.
    pub(crate) to: &'a CStr,
    pub(crate) hard_links: HardLinks,
    /// A worker crashed while it wrote this entry. An existing copy may be incomplete although its
    /// size and time look right, so it is always replaced. Under `--overwrite=older` and `never`
    /// this has no effect: they never write under the final name.
    pub(crate) suspect: bool,
    pub(crate) attempt: Attempt,
    /// Set if the source is a pipe, to be read to its end.
    pub(crate) stream: Option<Stream<'a>>,
}

impl<'a> Entry<'a> {
    /// Returns a file that is copied outside of its listing, whatever other names it has.
    fn file(from: &'a CStr, to: &'a CStr) -> Self {
        Self {
            kind: Kind::File,
            from,
            to,
            hard_links: HardLinks::Copy,
            suspect: false,
            attempt: Attempt::First,
            stream: None,
        }
    }
}

/// Whether a copy is tried again if its source changes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The entry is tried once more.
    First,
    /// The entry fails.
    Last,
}

/// The result of copying an entry.
#[derive(Debug)]
pub(crate) enum EntryResult {
    /// It is finished.
    Done(Decision),
    /// It has several hard links, so the parent decides whether to copy or to link it.
    HardLink(FileStat),
    /// It has been created at the destination, to be copied in chunks. The worker's slot shows its
    /// temporary name until the parent knows of it.
    Chunked(ChunkedFile),
    /// It is complete but for its times and perhaps its name. It must be synced before it gets
    /// them. If it has a temporary name, the worker's slot shows that until the parent knows it.
    Unsynced(Unsynced),
}

/// Copies entries for one worker.
pub(crate) struct Copier {
    context: &'static Context,
    slot: WorkerSlot,
    worker: usize,
    /// The number of temporary names this worker has used.
    temps: u32,
    /// The first request for a file, until it has ended, while nothing is known of the devices.
    first_request: Cell<Option<FirstRequest>>,
    buffer: Vec<u8>,
    /// For the other side of a comparison.
    other_buffer: Vec<u8>,
    /// The digest of the data that is being read from the source, with `--verify` or `--manifest`.
    digest: Option<Digest>,
    /// The checksum of the last file, with `--manifest`. `None` for other entries, and for hard links:
    /// it is that of their leader.
    pub(crate) checksum: Option<Checksum>,
    /// The contents of the next file are known to differ from the existing ones.
    is_known_different: bool,
    /// The last file was copied again because its first copy was wrong.
    pub(crate) was_repeated: bool,
    /// Devices between which copy_file_range(2) does not work.
    no_copy_range: Vec<Devices>,
    /// How exactly the destination's file systems store times, by device.
    granularities: Vec<(u64, Granularity)>,
    /// How the destination's file systems treat names, by device.
    namings: Vec<(u64, Naming)>,
    /// Devices of sources that keep names apart that differ in case.
    exact_sources: Vec<u64>,
    /// How the destination's file systems compare names, as far as a dry run can know, by device.
    foldings: Vec<(u64, Folding)>,
    /// The changes of the current entry, with `--itemize-changes`.
    pub(crate) items: Option<Items>,
    /// The directories of `--link-dest` for the directory that was used last.
    snapshots: links::Snapshots,
    /// The numbers of backups in the directory that was used last.
    numbers: backup::Numbers,
    /// The directory below `--backup-dir` that was opened last.
    backup_dir: Option<backup::OpenBackupDir>,
    /// The other entry, after an error with [`Reason::SameName`].
    pub(crate) twin: Option<Name>,
    /// The next file is not divided into chunks, even if it is large.
    is_undivided: bool,
    /// Each file is synced alone, even if batches are possible (`--fsync`).
    pub(crate) is_synced_alone: bool,
    /// Directories to sync devices by, with their devices ([`Copier::sync_own`]).
    sync_roots: Vec<(u64, OwnedFd)>,
    /// Bytes of the current entry, if it is a regular file that was examined.
    size: Option<u64>,
    /// Why the last entry was copied although it should have become a hard link.
    pub(crate) unlinked: Option<Unlinkable>,
    /// Observed behaviour of the destination's file systems.
    learned: Vec<Learned>,
    /// Whether two devices hold file systems of one kind.
    same_kind: Vec<(Devices, bool)>,
    /// The groups of this process, once they are needed.
    own_groups: Option<Vec<u32>>,
    /// Metadata of the current entry that could not be kept.
    issues: Issues,
    /// Metadata changes granted so far, and those not yet reported.
    granted: Vec<Grant>,
    newly_granted: Vec<Grant>,
}

impl Copier {
    pub(crate) fn new(context: &'static Context, worker: usize) -> Self {
        Self {
            context,
            slot: context.scoreboard.slot(worker),
            worker,
            temps: 0,
            first_request: Cell::new(None),
            buffer: Vec::new(),
            other_buffer: Vec::new(),
            digest: None,
            checksum: None,
            is_known_different: false,
            was_repeated: false,
            no_copy_range: Vec::new(),
            granularities: Vec::new(),
            namings: Vec::new(),
            exact_sources: Vec::new(),
            foldings: Vec::new(),
            items: None,
            snapshots: links::Snapshots::default(),
            numbers: backup::Numbers::default(),
            backup_dir: None,
            twin: None,
            is_undivided: false,
            is_synced_alone: false,
            sync_roots: Vec::new(),
            size: None,
            unlinked: None,
            learned: Vec::new(),
            same_kind: Vec::new(),
            own_groups: None,
            issues: Issues::default(),
            granted: Vec::new(),
            newly_granted: Vec::new(),
        }
    }

    /// Copies an entry, unless the destination has it already. If this fails, nothing incomplete
    /// is left behind.
    pub(crate) fn copy_entry(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        let (mut entry, mut taken) = (entry, 0);
        let mut is_repeated = false;
        loop {
            match self.try_entry(dir, entry) {
                // A pipe can be read only once.
                Err(error)
                    if error.reason == Reason::Differs
                        && !is_repeated
                        && entry.stream.is_none() =>
                {
                    is_repeated = true;
                }
                Err(error)
                    if error.reason == Reason::Changed && entry.attempt == Attempt::First =>
                {
                    entry.attempt = Attempt::Last;
                }
                Err(error) if is_name_taken(&error) && taken < MAX_TAKEN => {
                    // Another entry has the name now, so the next attempt examines it first.
                    dir.expect_others();
                    taken += 1;
                }
                Err(error) => {
                    let error = self.explain_taken(dir, entry.to, error);
                    return Err(self.explain_name(dir, entry.to, error));
                }
                Ok(EntryResult::Done(decision)) => {
                    self.was_repeated = is_repeated;
                    self.add_checksum(dir, entry.to, decision)?;
                    return Ok(EntryResult::Done(decision));
                }
                done => return done,
            }
        }
    }

    /// Counts a regular file whose size is known now.
    fn note_size(&mut self, bytes: u64) {
        self.slot.add_size(bytes);
        self.size = Some(bytes);
    }

    /// Returns the size of the last entry, if it is known.
    pub(crate) fn take_size(&mut self) -> Option<u64> {
        self.size.take()
    }

    fn try_entry(&mut self, dir: &mut DirPair, entry: Entry<'_>) -> Result<EntryResult, CopyError> {
        self.issues = Issues::default();
        (self.digest, self.checksum) = (None, None);
        self.items = None;
        if let Some(stream) = entry.stream {
            return Ok(EntryResult::Done(self.copy_stream(dir, entry, stream)?));
        }
        match entry.kind {
            Kind::File => self.copy_file(dir, entry),
            Kind::Directory | Kind::Symlink | Kind::Special => self.copy_special(dir, entry),
        }
    }
}

/// How often an entry is tried again because its name was taken meanwhile.
const MAX_TAKEN: u32 = 3;

/// Returns true if the name was taken after it was found free. Another run may copy to the same
/// destination, or the destination may treat two names as one.
fn is_name_taken(error: &CopyError) -> bool {
    matches!(error.step, Step::Create | Step::Link | Step::Rename)
        && error.reason == Errno::EXIST.into()
}

fn file_type(stat: &FileStat) -> FileType {
    FileType::from_raw_mode(stat.mode)
}
