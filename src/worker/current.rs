//! A worker's current job, and its pending update.

use std::ffi::CStr;

use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::DirIds;
use crate::protocol::entry::Decision;
use crate::protocol::error::CopyError;
use crate::protocol::items::Items;
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{Counts, EntryError, Job, JobProgress, JobUpdate, Line};
use crate::scoreboard::WorkerSlot;

/// State of the job that is being run.
#[derive(Default)]
pub(super) struct CurrentJob {
    /// The pending update: everything since the last one.
    pub(super) update: JobUpdate,
    /// The slot's counters at the last update.
    counts: Counts,
    /// An update named work for other jobs.
    has_reported_children: bool,
    /// The directory's ids, until they are reported.
    pub(super) dir_ids: Option<DirIds>,
    /// The job's files that are neither synced nor committed.
    pub(super) unsynced: Vec<Unsynced>,
    pub(super) unsynced_bytes: u64,
    /// Something may be tried again at the end of the run, so the directory is not finished yet.
    pub(super) may_be_retried: bool,
    /// Other jobs of the directory are pending.
    pub(super) is_shared: bool,
    suspects: Vec<Name>,
    /// Complete entries were copied by a worker of this run that crashed.
    complete_is_copied: bool,
}

impl CurrentJob {
    /// Begins a job. Everything that the slot counts from now on belongs to it.
    pub(super) fn new(job: &Job, slot: WorkerSlot) -> Self {
        Self {
            update: JobUpdate {
                job: job.id,
                ..JobUpdate::default()
            },
            counts: slot.counts(),
            suspects: job.suspects.clone(),
            complete_is_copied: job.origin.created && !job.origin.known_empty,
            ..Self::default()
        }
    }

    /// Returns true for an entry at which a worker crashed.
    pub(super) fn is_suspect(&self, name: &CStr) -> bool {
        let mut suspects = self.suspects.iter();
        suspects.any(|suspect| suspect.as_bytes() == name.to_bytes())
    }

    /// Notes that an entry was examined and nothing incomplete is left of it.
    pub(super) fn settle_suspect(&mut self, name: &CStr) {
        if self.is_suspect(name) {
            let name = Name::new(name.to_bytes());
            self.suspects.retain(|suspect| *suspect != name);
            self.update.settled_suspects.push(name);
        }
    }

    pub(super) fn take_suspects(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.suspects)
    }

    pub(super) fn set_suspects(&mut self, suspects: Vec<Name>) {
        self.suspects = suspects;
    }

    /// Returns the decision as it is counted and printed. If this run has made the directory, an
    /// entry that is complete was copied by a worker that crashed before it could report that.
    pub(super) fn as_counted(&self, decision: Decision) -> Decision {
        if self.complete_is_copied && decision == Decision::LeaveUnchanged {
            Decision::Create
        } else {
            decision
        }
    }

    /// Returns true if other jobs do a part of this directory.
    pub(super) fn has_children(&self) -> bool {
        self.has_reported_children
            || self.may_be_retried
            || self.is_shared
            || self.update.has_children()
    }

    /// Returns true if there are subdirectories that the parent does not know of.
    pub(super) fn has_unreported_subdirs(&self) -> bool {
        !self.update.subdirs.is_empty()
    }

    /// Adds an error of an entry, or of the directory.
    pub(super) fn add_error(
        &mut self,
        entry: Option<(Kind, &CStr)>,
        error: CopyError,
        twin: Option<Name>,
    ) {
        self.update.errors.push(EntryError {
            name: entry.map(|(_, name)| Name::new(name.to_bytes())),
            kind: entry.map(|(kind, _)| kind),
            error,
            twin,
        });
    }

    pub(super) fn add_line(
        &mut self,
        name: Option<&CStr>,
        decision: Decision,
        items: Option<Items>,
        size: Option<u64>,
    ) {
        let name = name.map(|name| Name::new(name.to_bytes()));
        self.update.lines.push(Line {
            name,
            decision,
            items,
            size,
        });
    }

    /// Takes the pending update. `None` if it is empty.
    pub(super) fn take_update(&mut self, slot: WorkerSlot) -> Option<JobUpdate> {
        let counts = slot.counts();
        self.update.counts = counts - self.counts;
        let update = self.update.take()?;
        self.counts = counts;
        self.has_reported_children |= update.has_children();
        Some(update)
    }
}

/// A job's entries, from the first one that is not settled.
#[derive(Default)]
pub(super) struct Remaining {
    names: Names,
    /// Where the first of them begins in `names`.
    offset: usize,
    count: usize,
    settled: u64,
}

impl Remaining {
    pub(super) fn new(names: Names) -> Self {
        Self {
            count: names.len(),
            names,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Returns the first of them, with the offset to [`settle`](Self::settle) it.
    pub(super) fn first(&self) -> Option<(Kind, &CStr, usize)> {
        let is_left = self.count > 0;
        is_left.then(|| self.names.at(self.offset)).flatten()
    }

    /// Marks the first one as settled.
    pub(super) fn settle(&mut self, next: usize) {
        self.offset = next;
        self.count -= 1;
        self.settled += 1;
    }

    /// Adds entries that were listed.
    pub(super) fn extend(&mut self, list: impl FnOnce(&mut Names)) {
        let before = self.names.len();
        list(&mut self.names);
        self.count += self.names.len() - before;
    }

    /// Sorts the last entries by these keys: one for each.
    pub(super) fn sort_last(&mut self, keys: &[u64]) {
        if !keys.is_sorted() {
            let mut last = self.names.split_off(keys.len());
            last.sort_by_keys(keys);
            self.names.append(&last);
        }
    }

    /// Removes and returns the second half.
    pub(super) fn split_half(&mut self) -> Names {
        let half = self.count / 2;
        self.count -= half;
        self.names.split_off(half)
    }

    /// Forgets all entries and keeps the memory. All of them are settled.
    pub(super) fn clear(&mut self) {
        self.names.clear();
        self.offset = 0;
        self.count = 0;
    }

    /// Returns the progress of a list of names.
    pub(super) fn progress(&self) -> JobProgress {
        JobProgress::Settled(self.settled)
    }

    /// Returns the progress of a listing that has shown this many entries. These names remain.
    pub(super) fn progress_of_listing(&self, entries: u64) -> JobProgress {
        let own = self.names.clone().split_off(self.count);
        JobProgress::Listed { entries, own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_entries_are_those_that_are_neither_settled_nor_given_away() {
        let mut names = Names::default();
        for name in [b"a", b"b", b"c", b"d"] {
            names.push(Kind::File, name);
        }
        let mut remaining = Remaining::new(names);
        let (_, name, next) = remaining.first().unwrap();
        assert_eq!(name, c"a");
        remaining.settle(next);
        assert_eq!(remaining.split_half().len(), 1);
        let own = |progress| match progress {
            JobProgress::Listed { entries: 4, own } => {
                own.iter().map(|(_, name)| name.to_owned()).collect()
            }
            other => panic!("{other:?}"),
        };
        let listed: Vec<_> = own(remaining.progress_of_listing(4));
        assert_eq!(listed, [c"b".to_owned(), c"c".to_owned()]);
        assert_eq!(remaining.progress(), JobProgress::Settled(1));
        remaining.extend(|names| names.push(Kind::File, b"e"));
        assert_eq!(remaining.len(), 3);
        remaining.sort_last(&[2, 1]);
        let own: Vec<_> = own(remaining.progress_of_listing(4));
        assert_eq!(own, [c"b".to_owned(), c"e".to_owned(), c"c".to_owned()]);
    }
}
