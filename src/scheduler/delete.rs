//! `--delete`: the last step of a run, after everything else is done.
//!
//! **Nothing is deleted before the run has seen its whole source.** While directories are copied,
//! workers report the entries that only the destination has, and this file keeps their names. That
//! takes memory for each entry to delete, and none for the rest of the tree. When all directories
//! are complete, the run decides once:
//!
//! - If it was stopped, or a side is full or gone, nothing is deleted.
//! - If an entry failed or a directory could not be listed, nothing is deleted, anywhere. A failed
//!   entry may be one that was moved. Then the destination may have its only copy, under the old
//!   name.
//! - Files that vanished or changed meanwhile (exit status 3) prevent nothing: their directories
//!   were listed, so their names were seen, and no name that was seen is deleted. But if a
//!   directory vanished, nothing is deleted: its entries are unknown.
//! - If a file system below the source was unmounted meanwhile, nothing is deleted: the empty
//!   directory below it may have been listed in its place. (The lead looks, so on other machines
//!   nobody does.)
//! - Metadata that could not be kept prevents nothing: the contents were copied.
//!
//! Then two rounds follow. The first removes entries that are in the way of one of another type,
//! and copies that one. The second removes the rest. A worker examines the source once more before
//! each removal (`copy/delete.rs`). With `--fsync` a sync follows each round, so what was copied is on
//! disk before anything is deleted. A directory is removed by the tree of pending counters too: its
//! entries first, and at zero the directory itself.

use std::collections::BTreeMap;

use super::extraneous::{Deletion, Found};
use super::tree::NodeKey;
use super::{Phase, Scheduler};
use crate::fs::path::{Kind, Name, Names, RelPath};
use crate::fs::stat::DirIds;
use crate::protocol::error::{CopyError, Reason, Step};
use crate::protocol::{EntryError, Job, JobKind, JobUpdate};
use crate::quote::quote;
use crate::ui::{About, MessageKind, Side};
use crate::worker::ENTRIES_PER_JOB;

/// With `--delete` there is one target.
const TARGET: u32 = 0;

/// The round that a run with `--delete` is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Round {
    /// The source is being copied.
    #[default]
    Copy,
    /// Entries that are in the way are removed, and the obstructed ones are copied.
    MakeRoom,
    Delete,
}

/// The state of deletion in a run.
#[derive(Default)]
pub(super) struct Deleting {
    round: Round,
    /// Not all of the source was copied.
    is_incomplete: bool,
    is_source_empty: bool,
    /// Entries that stay because of `--max-delete`.
    over_limit: u64,
}

impl Scheduler {
    /// Removes the entries that only the destination has, if this run has seen its whole source.
    pub(super) fn delete_extraneous(&mut self) {
        if self.context.config.mirror.is_none() {
            return;
        }
        let found = std::mem::take(&mut self.tree.found);
        self.tick();
        if !self.may_delete() {
            if self.phase == Phase::Running {
                self.fail_obstructed(&found);
            }
            return self.note_cut_deletion(!found.is_empty());
        }
        self.deleting.round = Round::MakeRoom;
        let mut extraneous = Vec::new();
        let mut obstructed: BTreeMap<Vec<u8>, (RelPath, Names)> = BTreeMap::new();
        for found in found {
            if !found.obstructed.is_empty() {
                let path = found.path.as_bytes().to_vec();
                let (_, names) = obstructed
                    .entry(path)
                    .or_insert_with(|| (found.path.clone(), Names::default()));
                names.append(&found.obstructed);
            }
            if !found.extraneous.is_empty() {
                extraneous.push(found);
            }
        }
        if !obstructed.is_empty() {
            self.batches.expect_changes();
        }
        for (path, names) in obstructed.into_values() {
            self.queue_room(path, names);
        }
        self.run_jobs();
        self.tick();
        if extraneous.is_empty() || !self.may_delete() {
            self.note_cut_deletion(!extraneous.is_empty());
            return self.warn_over_limit();
        }
        self.deleting.round = Round::Delete;
        self.batches.expect_changes();
        for found in extraneous {
            // The names come with the ids.
            if let Some(ids) = found.ids {
                self.queue_deletion(found.path, found.extraneous, ids);
            }
        }
        self.run_jobs();
        self.warn_over_limit();
    }

    /// Returns true if the run has seen its whole source. Otherwise says why nothing is deleted.
    fn may_delete(&mut self) -> bool {
        if self.phase != Phase::Running {
            return false;
        }
        let more = match self.deleting.round {
            Round::Copy => "nothing",
            Round::MakeRoom | Round::Delete => "nothing more",
        };
        let line = if self.deleting.is_incomplete {
            format!("{more} was deleted, because not everything could be copied (named above)")
        } else if let Some(mount) = self.context.targets.lost_mount() {
            let path = self.ui.path(Side::Source, TARGET, &mount, None);
            format!(
                "{}: was unmounted meanwhile, so {more} was deleted",
                quote(&path)
            )
        } else if self.deleting.is_source_empty {
            let source = self
                .ui
                .path(Side::Source, TARGET, &RelPath::default(), None);
            let source = quote(&source);
            format!("{source}: is empty, so nothing was deleted (--delete=force allows that)")
        } else {
            return true;
        };
        self.ui.say(MessageKind::Error, &line, &About::default());
        self.summary.has_kept = true;
        false
    }

    /// Notes that something is left to be deleted in a run that ends early.
    fn note_cut_deletion(&mut self, has_more: bool) {
        self.has_cut |= has_more && self.phase != Phase::Running;
    }

    /// Reports the entries that something of another type is in the way of, and stays.
    fn fail_obstructed(&mut self, found: &[Found]) {
        for found in found {
            for (kind, name) in found.obstructed.iter() {
                let name = name.to_bytes();
                let (step, dir) = (Step::OpenDestinationDirectory, found.path.join(name));
                if kind == Kind::Directory {
                    let error = EntryError::new(None, CopyError::new(step, Reason::FileInTheWay));
                    self.fail(None, TARGET, &dir, &error);
                } else {
                    let error = CopyError::new(Step::Create, Reason::DirectoryInTheWay);
                    let error = EntryError::new(Some(Name::new(name)), error);
                    self.fail(None, TARGET, &found.path, &error);
                }
            }
        }
    }

    fn warn_over_limit(&mut self) {
        let over = self.deleting.over_limit;
        if let Some(limit) = self.context.config.mirror.and_then(|mirror| mirror.limit)
            && over > 0
        {
            let verb = if over == 1 {
                "entry stays"
            } else {
                "entries stay"
            };
            let line = format!("--max-delete={limit} is reached: {over} more {verb}");
            self.ui.say(MessageKind::Error, &line, &About::default());
            self.summary.has_kept = true;
        }
    }

    fn queue_room(&mut self, path: RelPath, mut names: Names) {
        let mut deletion = Deletion::making_room();
        if !self.context.config.dry_run {
            for (kind, name) in names.iter().filter(|(kind, _)| *kind != Kind::Directory) {
                deletion.obstructed.push(kind, name.to_bytes());
            }
        }
        let batches = names.len().div_ceil(ENTRIES_PER_JOB);
        let node = self.tree.open_again(TARGET, path, batches, deletion);
        while !names.is_empty() {
            let names = names.take_last(ENTRIES_PER_JOB);
            self.push(node, JobKind::MakeRoom { names });
        }
    }

    fn queue_deletion(&mut self, path: RelPath, names: Names, ids: DirIds) {
        let batches = names.len().div_ceil(ENTRIES_PER_JOB);
        let deletion = Deletion::default();
        let node = self.tree.open_again(TARGET, path, batches, deletion);
        self.push_deletion(node, names, ids);
    }

    /// Notes that files have not arrived.
    pub(super) fn note_missing_files(&mut self) {
        self.deleting.is_incomplete = true;
    }

    /// Notes an error that shows that not all of the source was copied.
    pub(super) fn note_incomplete_source(&mut self, error: &EntryError) {
        let is_directory = error.name.is_none();
        self.deleting.is_incomplete |= is_directory || !error.error.is_moving_source();
    }

    /// Returns true if an error is only that something else is in a directory's way, and that can
    /// be removed at the end.
    pub(super) fn will_make_room(&mut self, job: &Job, error: &EntryError) -> bool {
        let is_obstructed = error.name.is_none()
            && matches!(job.kind, JobKind::Directory { .. })
            && matches!(
                error.error.reason,
                Reason::FileInTheWay | Reason::LinkInTheWay
            );
        if !is_obstructed || !self.context.config.makes_room() || self.deleting.round != Round::Copy
        {
            return false;
        }
        let (path, name) = job.path.split_last();
        if name.is_empty() {
            return false;
        }
        self.tree.found.push(Found {
            path,
            ids: None,
            extraneous: Names::default(),
            obstructed: Names::one(Kind::Directory, name),
        });
        true
    }

    /// Notes the entries of an update that only the destination has.
    pub(super) fn note_deletion(
        &mut self,
        worker: usize,
        dir: NodeKey,
        job: &Job,
        update: &mut JobUpdate,
    ) {
        self.deleting.is_source_empty |= update.is_source_empty;
        self.deleting.over_limit += update.over_limit;
        let obstructed = std::mem::take(&mut update.obstructed);
        if self.deleting.round == Round::Copy {
            let deletion = self.tree.dir_mut(dir).deletion();
            deletion.extraneous.append(&update.extraneous);
            deletion.obstructed.append(&obstructed);
        } else {
            for (_, name) in obstructed.iter() {
                let error = CopyError::new(Step::Create, Reason::DirectoryInTheWay);
                let name = Some(Name::new(name.to_bytes()));
                self.report_error(worker, job, &EntryError::new(name, error));
            }
        }
        if update.has_kept {
            self.tree.dir_mut(dir).deletion().keep();
        }
        let doomed = std::mem::take(&mut update.doomed);
        if !doomed.is_empty() {
            let names = self.tree.dir_mut(dir).deletion().begin_emptying(doomed);
            if !names.is_empty() {
                self.tree.add_pending(dir, names.len());
                self.push_doomed(dir, names);
            }
        }
    }
}
