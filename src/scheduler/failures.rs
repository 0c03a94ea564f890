//! Prints and counts failures, once for each entry.

use super::Scheduler;
use super::refusals::FailedEntry;
use super::tree::NodeKey;
use crate::fs::path::{Name, RelPath};
use crate::protocol::entry::Outcome;
use crate::protocol::error::{CopyError, Reason};
use crate::protocol::metadata::MissingMetadata;
use crate::protocol::{EntryError, Job, JobKind};
use crate::ui::{About, MessageKind, Side};

impl Scheduler {
    /// Handles an error of an entry or of its directory. Returns true if the entry is tried again
    /// later.
    pub(super) fn handle_error(
        &mut self,
        worker: usize,
        node: NodeKey,
        job: &Job,
        error: &EntryError,
    ) -> bool {
        if let Some(name) = &error.name {
            self.give_up_suspect(node, name);
        }
        if error.error.reason == Reason::Stopped {
            self.has_cut = true;
            return false;
        }
        if let JobKind::Chunk { .. } = job.kind
            && let Some(file) = self.tree.chunked_mut(node)
        {
            if error.error.reason == Reason::Changed {
                // The commit examines the source once more.
                file.has_changed = true;
                return false;
            }
            if error.error.reason == Reason::Differs && file.file.is_comparison() {
                file.has_changed = true;
                // The chunk that differs is still pending, so the node does not complete here.
                for _ in 0..self.queue.drop_chunks(node) {
                    self.complete_one(node);
                }
                return false;
            }
            if !self.fail_chunked(node) {
                return false;
            }
        }
        if self.will_make_room(job, error) {
            return false;
        }
        if self.defer_entry(worker, node, job, error) {
            return true;
        }
        if error.name.is_some() || self.tree.dir_mut(node).add_error(error.error) {
            self.report_error(worker, job, error);
        }
        false
    }

    /// Prints and counts an error, unless a whole root is gone.
    pub(super) fn report_error(&mut self, worker: usize, job: &Job, error: &EntryError) {
        if self.is_root_gone(job, &error.error) {
            return;
        }
        let label = self.engine.label(worker);
        self.fail(Some(&label), job.target, &job.path, error);
    }

    /// Prints and counts an error.
    pub(super) fn fail(
        &mut self,
        worker: Option<&str>,
        target: u32,
        dir: &RelPath,
        error: &EntryError,
    ) {
        self.note_incomplete_source(error);
        self.summary.failed += 1;
        self.summary.moved += u64::from(error.error.is_moving_source());
        self.ui.print_entry_error(worker, target, dir, error);
        if error.error.is_full_destination() {
            self.summary.is_full = true;
            self.stop();
        }
    }

    /// Reports metadata that an entry lacks, if that is known to be its own failure.
    pub(super) fn handle_missing_metadata(
        &mut self,
        worker: usize,
        node: NodeKey,
        job: &Job,
        mut missing: MissingMetadata,
    ) {
        self.refusals.take_known_failures(&mut missing);
        let is_gone = missing
            .errors()
            .any(|error| self.is_root_gone(job, &CopyError::new(error.step, error.reason)));
        if is_gone {
            self.uncount(missing.outcome, 1);
            return;
        }
        if let Some(missing) = self.defer_missing_metadata(worker, node, job, missing) {
            let label = self.engine.label(worker);
            self.fail_missing_metadata(Some(&label), job.target, &job.path, missing);
        }
    }

    /// Prints and counts the failures of an entry that was copied, and remembers its refusals.
    pub(super) fn fail_missing_metadata(
        &mut self,
        worker: Option<&str>,
        target: u32,
        dir: &RelPath,
        mut missing: MissingMetadata,
    ) {
        if !missing.failures.is_empty() {
            self.fail_counted(missing.outcome.take(), 1);
            let name = missing.name.as_ref();
            self.ui
                .print_missing_metadata(worker, target, dir, name, &missing.failures);
        }
        self.refusals.add(target, dir, missing);
    }

    /// Counts entries as failed that were counted otherwise before.
    fn fail_counted(&mut self, outcome: Option<Outcome>, entries: u64) {
        self.summary.failed += entries;
        self.uncount(outcome, entries);
    }

    /// Takes entries out of the count that they are in.
    fn uncount(&mut self, outcome: Option<Outcome>, entries: u64) {
        let counts = &mut self.summary.counts;
        let counted = match outcome {
            Some(Outcome::Copied) => &mut counts.copied,
            Some(Outcome::Unchanged) => &mut counts.unchanged,
            Some(Outcome::Skipped) => &mut counts.skipped,
            Some(Outcome::Deleted) => &mut counts.deleted,
            None => return,
        };
        *counted = counted.saturating_sub(entries);
    }

    /// Judges the refusals at the end of the run, and prints and counts them.
    pub(super) fn conclude_refusals(&mut self) {
        let verdict = self.refusals.decide();
        for FailedEntry { entry, errors } in &verdict.failures {
            let name = entry.name.as_ref();
            self.ui
                .print_missing_metadata(None, entry.target, &entry.dir, name, errors);
        }
        let mut failed = 0;
        for (outcome, entries) in verdict.failed {
            self.fail_counted(outcome, entries);
            failed += entries;
        }
        let more = failed.saturating_sub(verdict.failures.len() as u64);
        if more > 0 {
            let unlisted = if self.ui.has_failed_list() {
                "; they are not in the list of --failed-to"
            } else {
                ""
            };
            let line = format!("and {more} more entries whose metadata could not be set{unlisted}");
            self.ui.say(MessageKind::Error, &line, &About::default());
        }
        for (kind, lack) in verdict.lacking {
            let first = self.ui.path(
                Side::Destination,
                lack.target,
                &lack.dir,
                lack.name.as_ref(),
            );
            self.ui.warn_lacking(kind, lack.entries, &first);
        }
    }
}

/// The entries of an update that were not copied, each with whether it is tried again later.
#[derive(Default)]
pub(super) struct Failed {
    list: Vec<(Option<Name>, bool)>,
}

impl Failed {
    /// The entries of these errors, none of which is tried again.
    pub(super) fn of(errors: &[EntryError]) -> Self {
        let mut failed = Self::default();
        for error in errors {
            failed.add(error, false);
        }
        failed
    }

    pub(super) fn add(&mut self, error: &EntryError, is_deferred: bool) {
        if !error.error.is_copied() {
            self.list.push((error.name.clone(), is_deferred));
        }
    }

    /// Returns whether an entry that failed is tried again. An error of the directory is one of each
    /// entry.
    pub(super) fn has(&self, name: &Name) -> Option<bool> {
        let mut list = self.list.iter();
        let is_of = |failed: &&Option<Name>| failed.as_ref().is_none_or(|it| it == name);
        list.find(|(failed, _)| is_of(&failed)).map(|(_, it)| *it)
    }
}
