//! Collects files that are to be synced (`--fsync`), and has many of them synced at once. How that
//! is safe is explained in `copy/batched.rs`.
//!
//! - While a job runs, its unsynced files belong to its worker, which may commit them itself. The
//!   parent knows them nevertheless. When the job has ended, or its worker is lost, they are the
//!   parent's, and each is pending in its directory.
//! - If there are enough of them, or some have waited long, or nothing else is to be done, one
//!   worker syncs their device. What arrives meanwhile waits for the next sync.
//! - Then jobs commit the files. They are counted and printed by that, as any other file.
//! - If the sync fails, so has everything that waits for one on that device, and everything that a
//!   worker has written before it noticed. From then on each file is synced alone.
//! - At the end of the run each device is synced once more.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::dispatch::{NewJob, Running, Written};
use super::failures::Failed;
use super::tree::{Listing, NodeKey};
use super::{Phase, Scheduler};
use crate::fs::path::Name;
use crate::fs::stat::FileId;
use crate::protocol::entry::DirOrigin;
use crate::protocol::error::{CopyError, Step};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{Job, JobKind, JobUpdate};
use crate::quote::quote;
use crate::ui::{About, Kind as MessageKind, Side};

/// So many files, or bytes, are synced without waiting for more.
const MOST_FILES: usize = 4096;
const MOST_BYTES: u64 = 256 << 20;
/// No file waits longer for a sync, unless the last one still runs.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// If so many batches wait for the disk, workers get no more to copy.
const MOST_BATCHES: usize = 2;
/// Files in one job.
const JOB_FILES: usize = 256;

/// Files that wait for a sync, by the target whose directory is synced.
#[derive(Default)]
pub(super) struct Batches {
    devices: BTreeMap<u32, Batch>,
    is_final_begun: bool,
    /// Syncs of which it is not known how they ended.
    lost: usize,
}

#[derive(Default)]
struct Batch {
    waiting: Vec<Waiting>,
    bytes: u64,
    /// When the first of them came.
    since: Option<Instant>,
    /// The files that are being synced.
    syncing: Option<Vec<Waiting>>,
    failed: Option<CopyError>,
}

/// A file that is pending in its directory.
struct Waiting {
    dir: NodeKey,
    file: Unsynced,
    /// The group of hard links that it leads.
    leads: Option<FileId>,
}

impl Batches {
    /// Returns true while the disk is so slow that no more should be copied.
    fn is_behind(&self) -> bool {
        self.devices.values().any(|batch| {
            batch.syncing.is_some()
                && (batch.waiting.len() >= MOST_BATCHES * MOST_FILES
                    || batch.bytes >= MOST_BATCHES as u64 * MOST_BYTES)
        })
    }

    /// Has each device synced once more at the end of the jobs that follow.
    pub(super) fn expect_changes(&mut self) {
        self.is_final_begun = false;
    }

    fn files(&self) -> impl Iterator<Item = &Waiting> {
        let batches = self.devices.values();
        batches.flat_map(|batch| batch.waiting.iter().chain(batch.syncing.iter().flatten()))
    }
}

impl Scheduler {
    /// Returns true if workers should copy nothing more until the disk has caught up.
    pub(super) fn is_disk_behind(&self) -> bool {
        self.batches.is_behind()
    }

    /// Notes the unsynced files of an update. `leads` are the groups that files of it lead.
    pub(super) fn note_unsynced(
        &mut self,
        dir: NodeKey,
        update: &mut JobUpdate,
        leads: &mut VecDeque<(Name, FileId)>,
    ) {
        if update.unsynced.is_empty() && update.settled_unsynced == 0 {
            return;
        }
        let Some(running) = self.running.get_mut(&update.job) else {
            return;
        };
        for file in update.unsynced.drain(..) {
            let lead = leads.iter().position(|(name, _)| *name == file.name);
            let lead = lead.and_then(|at| leads.remove(at)).map(|(_, id)| id);
            let lead = lead.or_else(|| self.tree.take_lead(running.node));
            running.written.push(Written { file, leads: lead });
        }
        let settled = update.settled_unsynced.min(running.written.len());
        let settled: Vec<Written> = running.written.drain(..settled).collect();
        let groups = settled
            .into_iter()
            .filter_map(|written| Some((written.file.name, written.leads?)));
        let failed = Failed::of(&update.errors);
        self.settle_leads(dir, groups.collect(), &failed, &update.checksums);
    }

    /// Handles a failed sync of a worker's own files.
    pub(super) fn note_sync_error(&mut self, dir: NodeKey, job: &Job, error: CopyError) {
        self.context.scoreboard.sync_alone();
        if let Some(running) = self.running.get_mut(&job.id) {
            let written = std::mem::take(&mut running.written);
            self.tree.add_pending(dir, written.len());
            let failed = written
                .into_iter()
                .map(|written| Waiting::new(dir, written));
            self.fail_unsynced(job.target, failed.collect(), error);
        }
    }

    /// Takes over the unsynced files of a job that has ended, or whose worker was lost.
    pub(super) fn take_unsynced(&mut self, running: &mut Running) {
        let written = std::mem::take(&mut running.written);
        if written.is_empty() {
            return;
        }
        let target = running.job.target;
        let Some(batch) = self.context.targets.list[target as usize].batch else {
            return;
        };
        let dir = self.tree.dir_key(running.node);
        self.tree.add_pending(dir, written.len());
        let waiting = written
            .into_iter()
            .map(|written| Waiting::new(dir, written));
        let now = self.engine.now();
        let batch = self.batches.devices.entry(batch.leader).or_default();
        if let Some(error) = batch.failed {
            return self.fail_unsynced(target, waiting.collect(), error);
        }
        batch.since.get_or_insert(now);
        for file in waiting {
            batch.bytes = batch.bytes.saturating_add(file.file.stat.size);
            batch.waiting.push(file);
        }
    }

    /// Queues the syncs for which enough files wait.
    pub(super) fn sync_batches(&mut self) {
        if self.phase != Phase::Running || self.batches.devices.is_empty() {
            return;
        }
        let now = self.engine.now();
        let has_nothing_else = self.queue.is_empty() && self.running.is_empty();
        let is_due = |batch: &Batch| {
            batch.syncing.is_none()
                && !batch.waiting.is_empty()
                && (has_nothing_else
                    || batch.waiting.len() >= MOST_FILES
                    || batch.bytes >= MOST_BYTES
                    || batch.since.is_some_and(|since| now - since >= LONGEST_WAIT))
        };
        let due = self.batches.devices.iter_mut();
        let due: Vec<u32> = due
            .filter(|(_, batch)| is_due(batch))
            .map(|(&target, batch)| {
                batch.syncing = Some(std::mem::take(&mut batch.waiting));
                (batch.bytes, batch.since) = (0, None);
                target
            })
            .collect();
        for target in due {
            self.push_sync(target);
        }
    }

    /// Queues the last sync of each device, once after all changes. Returns true if there is one.
    pub(super) fn begin_final_sync(&mut self) -> bool {
        if self.phase != Phase::Running || self.batches.is_final_begun {
            return false;
        }
        self.batches.is_final_begun = true;
        let targets = self.context.targets.list.iter().enumerate();
        let leaders: Vec<u32> = targets
            .filter_map(|(number, target)| Some((number as u32, target.batch?.leader)))
            .filter(|(number, leader)| number == leader)
            .map(|(number, _)| number)
            .collect();
        for &target in &leaders {
            self.push_sync(target);
        }
        !leaders.is_empty()
    }

    fn push_sync(&mut self, target: u32) {
        // A node of its own: the sync is pending in no directory.
        let node = self
            .tree
            .open_target(target, DirOrigin::default(), Listing::Done);
        let root = self.batches.lost;
        self.push_urgent(NewJob::new(node, JobKind::Sync { root }));
    }

    /// Syncs again. The kernel may have reported an error to a worker that is lost.
    pub(super) fn retry_sync(&mut self, job: &Job, node: NodeKey) {
        self.batches.lost += 1;
        let root = self.batches.lost;
        if root
            < self.context.targets.list[job.target as usize]
                .sync_roots
                .len()
        {
            return self.push_urgent(NewJob::new(node, JobKind::Sync { root }));
        }
        self.end_sync(job, Some(CopyError::new(Step::Sync, Errno::IO)));
        self.complete_one(node);
    }

    /// Continues after a sync. `error` says why it failed.
    pub(super) fn end_sync(&mut self, job: &Job, error: Option<CopyError>) {
        let synced = self.batches.devices.get_mut(&job.target);
        let (files, waiting) = match synced {
            Some(batch) => {
                let files = batch.syncing.take().unwrap_or_default();
                let waiting = if error.is_some() {
                    batch.failed = error;
                    std::mem::take(&mut batch.waiting)
                } else {
                    Vec::new()
                };
                (files, waiting)
            }
            None => (Vec::new(), Vec::new()),
        };
        let Some(error) = error else {
            return self.push_commits(files);
        };
        self.context.scoreboard.sync_alone();
        let mut failed = files;
        failed.extend(waiting);
        if failed.is_empty() {
            // The last one: links, directories, times and names.
            let error = crate::protocol::EntryError::new(None, error);
            if !self.is_root_gone(job, &error.error) {
                self.fail(None, job.target, &job.path, &error);
            }
            return;
        }
        self.fail_unsynced(job.target, failed, error);
    }

    fn push_commits(&mut self, files: Vec<Waiting>) {
        // Either all files of a job lead groups of hard links, or none.
        let mut groups: BTreeMap<(NodeKey, bool), Vec<Waiting>> = BTreeMap::new();
        for file in files {
            let key = (file.dir, file.leads.is_some());
            groups.entry(key).or_default().push(file);
        }
        for ((dir, _), mut files) in groups {
            while !files.is_empty() {
                let rest = files.split_off(files.len().min(JOB_FILES));
                let pending = files.len();
                let leads = files.iter();
                let leads = leads.filter_map(|it| Some((it.file.name.clone(), it.leads?)));
                let leads = leads.collect();
                let files_of_job = files.into_iter().map(|it| it.file).collect();
                let kind = JobKind::CommitSynced {
                    files: files_of_job,
                };
                self.push_in_place_of(dir, pending, NewJob::leading(dir, kind, leads));
                files = rest;
            }
        }
    }

    /// Queues one job in the place of several pending files.
    fn push_in_place_of(&mut self, dir: NodeKey, files: usize, job: NewJob) {
        self.tree.add_pending(dir, 1);
        self.push_urgent(job);
        for _ in 0..files {
            self.complete_one(dir);
        }
    }

    /// Reports files that could not be synced, and removes them.
    fn fail_unsynced(&mut self, target: u32, files: Vec<Waiting>, error: CopyError) {
        self.note_missing_files();
        let mut by_dir: BTreeMap<NodeKey, Vec<Waiting>> = BTreeMap::new();
        for file in files {
            by_dir.entry(file.dir).or_default().push(file);
        }
        let mut is_gone = None;
        for (dir, files) in by_dir {
            let (number, of_target) = (files.len(), self.tree.dir(dir).target);
            let path = self.tree.dir(dir).path.clone();
            // Examined once: the roots may hang.
            let is_gone = *is_gone.get_or_insert_with(|| self.is_target_gone(target, &error));
            if !is_gone {
                self.summary.failed += number as u64;
                let path = self.ui.path(Side::Destination, of_target, &path, None);
                let files = if number == 1 { "file" } else { "files" };
                let line = format!("{}: {error} ({number} {files})", quote(&path));
                let about = About {
                    path: Some(&path),
                    ..About::default()
                };
                let about = about.failed(error.step, error.reason);
                self.ui.say(MessageKind::Error, &line, &about);
            }
            for file in &files {
                if let Some(id) = file.leads {
                    self.on_leader_failed(id, false);
                }
            }
            let discarded = files.into_iter().map(|it| it.file).collect();
            let kind = JobKind::DiscardUnsynced { files: discarded };
            self.push_in_place_of(dir, number, NewJob::new(dir, kind));
        }
        if error.is_full_destination() {
            self.summary.is_full = true;
            self.stop();
        }
    }

    /// Gives up an unsynced file at which workers have crashed twice. Returns false if it is none.
    pub(super) fn give_up_unsynced(&mut self, running: &mut Running, name: &Name) -> bool {
        let Some(at) = running.written.iter().position(|it| it.file.name == *name) else {
            return false;
        };
        let Written { file, leads } = running.written.remove(at);
        if let Some(id) = leads {
            self.on_leader_failed(id, false);
        }
        let dir = self.tree.dir_key(running.node);
        self.tree.add_pending(dir, 1);
        let kind = JobKind::DiscardUnsynced { files: vec![file] };
        self.push_urgent(NewJob::new(dir, kind));
        true
    }

    /// Returns true if an unsynced file has this temporary name.
    pub(super) fn is_unsynced_temp(&self, name: &Name) -> bool {
        let is_it = |file: &Unsynced| file.temp.as_ref() == Some(name);
        let of_jobs = self.running.values().any(|running| {
            let in_job = match &running.job.kind {
                JobKind::CommitSynced { files } | JobKind::DiscardUnsynced { files } => {
                    files.iter().any(is_it)
                }
                _ => false,
            };
            in_job || running.written.iter().any(|it| is_it(&it.file))
        });
        of_jobs || self.batches.files().any(|it| is_it(&it.file)) || self.queue.has_urgent(is_it)
    }

    /// Returns the unsynced files of a run that stops, each with its directory.
    pub(super) fn unsynced_files(&self) -> Vec<(NodeKey, Unsynced)> {
        let waiting = self.batches.files().map(|it| (it.dir, it.file.clone()));
        let written = self.running.values().flat_map(|running| {
            let dir = self.tree.dir_key(running.node);
            let in_job: &[Unsynced] = match &running.job.kind {
                JobKind::CommitSynced { files } | JobKind::DiscardUnsynced { files } => files,
                _ => &[],
            };
            let written = running.written.iter().map(|it| &it.file);
            let files = in_job.iter().chain(written);
            files
                .map(move |file| (dir, file.clone()))
                .collect::<Vec<_>>()
        });
        waiting.chain(written).collect()
    }
}

impl Waiting {
    fn new(dir: NodeKey, Written { file, leads }: Written) -> Self {
        Self { dir, file, leads }
    }
}
