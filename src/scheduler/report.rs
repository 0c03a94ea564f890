//! Applies the reports of workers, and queues the jobs that follow.
//!
//! **What has not been reported has not happened.** An update carries counters, lines and errors of
//! the same entries, and the job's progress. It is applied as a whole, once, and only from the
//! worker that has claimed the job. So the counts are exact at any time, and a retry counts nothing
//! twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::dispatch::{NewJob, Running};
use super::failures::Failed;
use super::hard_links::{Follower, Role};
use super::tree::{ListingState, Next, NodeKey};
use super::{Phase, Scheduler};
use crate::fs::path::{Name, Names, RelPath};
use crate::fs::stat::FileId;
use crate::protocol::entry::{Checksum, ChunkedFile, HardLinks};
use crate::protocol::{
    Counts, EntryError, Excluded, FileChecksum, HardLinkEntry, Job, JobKind, JobProgress,
    JobUpdate, Leader, Line, Report,
};
use crate::scoreboard::claims::Claim;
use crate::ui::Side;

impl Scheduler {
    pub(super) fn handle_report(&mut self, worker: usize, mut report: Report) {
        self.refusals.grant(&report.granted);
        for update in &mut report.updates {
            if self.accept(worker, update) {
                self.apply(worker, update);
            }
        }
        if self.phase != Phase::Running {
            self.drop_queue();
        }
    }

    /// Returns true if an update must be applied: once, and only from the worker that claimed the
    /// job.
    fn accept(&mut self, worker: usize, update: &JobUpdate) -> bool {
        let claim = self.claim_of(update.job);
        let Some(running) = self.running.get_mut(&update.job) else {
            return false;
        };
        if claim != Some(Claim::By(worker)) || update.number < running.next_update {
            return false;
        }
        if update.number > running.next_update {
            // An update is missing. Another worker does the job again.
            self.engine.kill(worker);
            return false;
        }
        running.next_update += 1;
        true
    }

    fn apply(&mut self, worker: usize, update: &mut JobUpdate) {
        let Some(running) = self.running.get(&update.job) else {
            return;
        };
        let (node, job) = (running.node, Arc::clone(&running.job));
        let dir = self.tree.dir_key(node);
        if let Some(reported) = self.reported_by(worker) {
            *reported += update.counts;
        }
        self.summary.counts += update.counts;
        self.print_lines(worker, &job, &update.lines);
        self.print_excluded(job.target, &job.path, &update.excluded);
        self.list_checksums(&job, &update.checksums);
        for name in &update.repeated {
            let side = Side::Destination;
            let path = self.ui.path(side, job.target, &job.path, Some(name));
            self.ui.warn_repeated(&path);
        }
        self.note_unlinked(&job, update);
        self.note_progress(node, update);
        self.note_cut(&job, update);
        let deferred = self.deferred_error(&job, update);
        let is_listed = update.is_done && matches!(job.kind, JobKind::Directory { .. });
        if !is_listed || deferred.is_some() {
            self.tree.dir_mut(dir).hand_out(handed_out(update));
        }

        let mut leads = self.take_settled_leads(update);
        self.note_unsynced(dir, update, &mut leads);
        if let Some(error) = update.sync_error.take() {
            self.note_sync_error(dir, &job, error);
        }
        let directory = self.tree.dir_mut(dir);
        if let Some(stat) = update.stat_to_finish.take() {
            directory.stat_to_finish = Some(stat);
        }
        directory.ids = directory.ids.or(update.dir_ids);
        for name in &update.settled_suspects {
            directory.take_suspect(name);
        }
        let is_sync = matches!(job.kind, JobKind::Sync { .. });
        let mut failed = Failed::default();
        for error in update.errors.iter().filter(|_| !is_sync) {
            if deferred.is_none() || error.name.is_some() {
                let is_deferred = self.handle_error(worker, node, &job, error);
                failed.add(error, is_deferred);
            } else {
                failed.add(error, true);
            }
        }
        if update.is_about_deletion() || !update.doomed.is_empty() {
            self.note_deletion(worker, dir, &job, update);
        }
        if !update.errors.is_empty() && self.tree.dir(dir).is_doomed() {
            self.tree.dir_mut(dir).deletion().keep();
        }
        for missing in std::mem::take(&mut update.missing_metadata) {
            self.handle_missing_metadata(worker, node, &job, missing);
        }
        for (names, origin) in std::mem::take(&mut update.subdirs).into_lists() {
            if !names.is_empty() {
                self.tree.add_pending(dir, names.len());
                self.push_subdirs(dir, names, origin);
            }
        }
        if !update.shared.is_empty() {
            self.tree.add_pending(dir, 1);
            let names = std::mem::take(&mut update.shared);
            let hard_links = HardLinks::Report;
            self.push(dir, JobKind::Entries { names, hard_links });
        }
        self.add_hard_links(dir, std::mem::take(&mut update.hard_links));
        for file in update.chunked.drain(..) {
            let lead = leads.iter().position(|(name, _)| *name == file.name);
            let lead = lead.and_then(|at| leads.remove(at)).map(|(_, id)| id);
            // A comparison that found a difference leads no more. The copy does.
            let lead = lead.or_else(|| self.tree.chunked_mut(node)?.leads.take());
            self.begin_chunked(dir, file, lead);
        }
        self.settle_leads(dir, leads, &failed, &update.checksums);
        if update.is_done
            && let Some(mut running) = self.end_job(update.job)
        {
            self.take_unsynced(&mut running);
            self.note_uncommitted(&running);
            if is_sync {
                self.end_sync(&job, update.errors.first().map(|error| error.error));
            }
            if let Some(error) = deferred {
                return self.defer_job(worker, &running, error);
            }
            self.on_job_done(running, &update.errors, &update.checksums);
        }
    }

    /// Returns the error that kept a job from being done, if the job must be retried later.
    fn deferred_error(&mut self, job: &Job, update: &JobUpdate) -> Option<EntryError> {
        let whole = || update.errors.iter().filter(|error| error.name.is_none());
        let first = whole().next().filter(|_| update.is_done)?;
        // A list of names is deferred if the job could not even begin. What is settled counts.
        let is_listing = matches!(
            job.kind,
            JobKind::Directory { .. } | JobKind::FinishDirectory { .. }
        );
        let is_untouched = update.number == 0
            && update.errors.len() == 1
            && update.counts == Counts::default()
            && !update.has_children();
        if !is_listing && !is_untouched {
            return None;
        }
        let may_defer = whole().all(|error| self.may_defer_job(job, error));
        may_defer.then(|| first.clone())
    }

    /// Notes that a job ended early, because the run ends.
    fn note_cut(&mut self, job: &Job, update: &JobUpdate) {
        if update.is_cut {
            self.has_cut = true;
            self.has_unlisted |= matches!(job.kind, JobKind::Directory { .. });
        }
    }

    fn note_progress(&mut self, node: NodeKey, update: &JobUpdate) {
        let Some(running) = self.running.get_mut(&update.job) else {
            return;
        };
        running.shared += update.shared.len();
        if let (JobProgress::Listed { entries, own }, ListingState::Running(listed)) =
            (&update.progress, &mut self.tree.dir_mut(node).listing)
        {
            listed.entries = listed.entries.max(*entries);
            listed.own = own.clone();
            listed.is_announced = true;
        }
    }

    /// Notes entries that could not become hard links.
    fn note_unlinked(&mut self, job: &Job, update: &JobUpdate) {
        if let (Some(name), None) = (&update.unlinked, &self.first_unlinked) {
            let path = self
                .ui
                .path(Side::Source, job.target, &job.path, Some(name));
            self.first_unlinked = Some(path);
        }
        if let (Some(name), JobKind::HardLinks { leader, .. }) = (&update.next_leader, &job.kind) {
            let next = Leader {
                target: job.target,
                dir: job.path.clone(),
                name: name.clone(),
                checksum: checksum_of(&update.checksums, name),
            };
            self.hard_links.leader_full(leader, &next);
        }
    }

    /// Adds files to the list of `--manifest`.
    fn list_checksums(&mut self, job: &Job, checksums: &[FileChecksum]) {
        if let Some(manifest) = &mut self.manifest {
            for FileChecksum { name, checksum } in checksums {
                let name = self.context.targets.list[job.target as usize].to_destination(name);
                manifest.add(job.target, &job.path, name, checksum);
            }
        }
    }

    /// Prints a job's lines for `-v` or `-n`.
    fn print_lines(&mut self, worker: usize, job: &Job, lines: &[Line]) {
        self.summary.is_different |= lines.iter().any(|line| line.decision.changes());
        if lines.is_empty() {
            return;
        }
        let label = self.engine.label(worker);
        self.ui.print_entries(&label, job.target, &job.path, lines);
    }

    /// Prints the entries that filters leave out.
    pub(super) fn print_excluded(&mut self, target: u32, dir: &RelPath, excluded: &[Excluded]) {
        self.ui.print_excluded(target, dir, excluded);
    }

    fn on_job_done(&mut self, running: Running, errors: &[EntryError], checksums: &[FileChecksum]) {
        let node = running.node;
        match &running.job.kind {
            JobKind::Directory { .. } => {
                // A directory that was listed is not the cause of a crash.
                self.tree.forgive(node);
                self.tree.dir_mut(node).listing = ListingState::Done;
            }
            JobKind::Commit { .. } => {
                let is_copied = errors.iter().all(|error| error.error.is_copied());
                self.end_chunked(node, is_copied, checksums);
            }
            JobKind::Discard { .. } => self.end_chunked(node, false, checksums),
            _ => {}
        }
        self.complete_one(node);
    }

    /// Completes one pending item of a node, and each node that becomes complete.
    pub(super) fn complete_one(&mut self, node: NodeKey) {
        let next = self.tree.complete_one(node);
        self.follow(node, next);
    }

    pub(super) fn follow(&mut self, mut node: NodeKey, mut next: Next) {
        loop {
            match next {
                Next::Wait => return,
                Next::RepeatListing => return self.push_listing(node),
                Next::Finish(job) => return self.push(node, job),
                Next::Closed(None) => return,
                Next::Closed(Some(parent)) => {
                    node = parent;
                    next = self.tree.complete_one(parent);
                }
            }
        }
    }

    fn add_hard_links(&mut self, dir: NodeKey, entries: Vec<HardLinkEntry>) {
        let mut copies = Names::default();
        let mut leads = VecDeque::new();
        let mut linked: Vec<(Leader, Names)> = Vec::new();
        for entry in entries {
            let follower = Follower {
                dir,
                kind: entry.kind,
                name: entry.name,
            };
            match self.hard_links.add(entry.id, entry.links, &follower) {
                Role::Lead => {
                    copies.push(follower.kind, follower.name.as_bytes());
                    leads.push_back((follower.name, entry.id));
                }
                Role::LinkTo(leader) => {
                    let name = follower.name.as_bytes();
                    linked.push((leader, Names::one(follower.kind, name)));
                }
                Role::Wait => self.tree.add_pending(dir, 1),
            }
        }
        for (leader, names) in linked {
            self.tree.add_pending(dir, 1);
            self.push(dir, JobKind::HardLinks { names, leader });
        }
        if !copies.is_empty() {
            self.tree.add_pending(dir, 1);
            self.push_leaders(dir, copies, leads);
        }
    }

    /// Queues the copying of entries that lead their groups.
    fn push_leaders(&mut self, dir: NodeKey, names: Names, leads: VecDeque<(Name, FileId)>) {
        let hard_links = HardLinks::Copy;
        self.push_job(NewJob {
            node: dir,
            kind: JobKind::Entries { names, hard_links },
            leads,
        });
    }

    /// Takes the leaders that are settled now. Either all entries of a job are leaders, or none.
    fn take_settled_leads(&mut self, update: &JobUpdate) -> VecDeque<(Name, FileId)> {
        let Some(running) = self.running.get_mut(&update.job) else {
            return VecDeque::new();
        };
        let settled = match update.progress {
            _ if update.is_done => running.leads.len(),
            JobProgress::Settled(settled) => (settled as usize).saturating_sub(running.settled),
            _ => 0,
        };
        if let JobProgress::Settled(settled) = update.progress {
            running.settled = running.settled.max(settled as usize);
        }
        running
            .leads
            .drain(..settled.min(running.leads.len()))
            .collect()
    }

    /// Continues the groups of these leaders. A leader without an error was copied.
    pub(super) fn settle_leads(
        &mut self,
        dir: NodeKey,
        leads: VecDeque<(Name, FileId)>,
        failed: &Failed,
        checksums: &[FileChecksum],
    ) {
        for (name, id) in leads {
            if let Some(is_deferred) = failed.has(&name) {
                self.on_leader_failed(id, is_deferred);
            } else {
                let checksum = checksum_of(checksums, &name);
                self.on_leader_copied(dir, name, id, checksum);
            }
        }
    }

    /// Lets the next name of the group lead. It was counted as pending while it waited.
    pub(super) fn on_leader_failed(&mut self, id: FileId, is_deferred: bool) {
        if let Some(next) = self.hard_links.leader_failed(id, is_deferred) {
            let names = Names::one(next.kind, next.name.as_bytes());
            self.push_leaders(next.dir, names, VecDeque::from([(next.name, id)]));
        }
    }

    /// Queues links to the leader for the names that wait.
    fn on_leader_copied(
        &mut self,
        dir: NodeKey,
        name: Name,
        id: FileId,
        checksum: Option<Checksum>,
    ) {
        let directory = self.tree.dir(dir);
        let leader = Leader {
            target: directory.target,
            dir: directory.path.clone(),
            name,
            checksum,
        };
        // In a fixed order, so that a simulation can be repeated.
        let mut waiting: BTreeMap<NodeKey, Names> = BTreeMap::new();
        for follower in self.hard_links.leader_copied(id, leader.clone()) {
            let names = waiting.entry(follower.dir).or_default();
            names.push(follower.kind, follower.name.as_bytes());
        }
        for (dir, names) in waiting {
            // One job is pending now instead of several names that wait.
            let waited = names.len();
            self.tree.add_pending(dir, 1);
            let leader = leader.clone();
            self.push(dir, JobKind::HardLinks { names, leader });
            for _ in 0..waited {
                self.complete_one(dir);
            }
        }
    }

    fn begin_chunked(&mut self, dir: NodeKey, file: ChunkedFile, leads: Option<FileId>) {
        let chunks = file.chunks(self.engine.chunk_size());
        let node = self.tree.open_chunked(dir, file, chunks.len(), leads);
        self.push_chunks(node, chunks);
    }

    /// Gives up a chunked file, and drops its chunks that were not sent. Returns false if it was
    /// given up before.
    pub(super) fn fail_chunked(&mut self, node: NodeKey) -> bool {
        let Some(file) = self.tree.chunked_mut(node) else {
            return false;
        };
        if std::mem::replace(&mut file.has_failed, true) {
            return false;
        }
        // The chunk that failed is still pending, so the node does not complete here.
        for _ in 0..self.queue.drop_chunks(node) {
            self.complete_one(node);
        }
        true
    }

    /// Notes that a chunked file was committed or discarded.
    pub(super) fn end_chunked(
        &mut self,
        node: NodeKey,
        is_copied: bool,
        checksums: &[FileChecksum],
    ) {
        let dir = self.tree.dir_key(node);
        let Some(file) = self.tree.chunked_mut(node) else {
            return;
        };
        if !file.file.is_comparison() {
            self.context.scoreboard.end_chunked();
        }
        if let Some(temp) = &file.file.temp {
            self.engine.end_chunked(temp);
        }
        let is_deferred = file.is_deferred;
        match file.leads.take() {
            Some(id) if is_copied => {
                let name = file.file.name.clone();
                let checksum = checksum_of(checksums, &name);
                self.on_leader_copied(dir, name, id, checksum);
            }
            Some(id) => self.on_leader_failed(id, is_deferred),
            None => {}
        }
    }
}

/// Returns the checksum of a file, if it was reported.
fn checksum_of(checksums: &[FileChecksum], name: &Name) -> Option<Checksum> {
    let mut checksums = checksums.iter();
    let found = checksums.find(|it| it.name == *name)?;
    Some(found.checksum)
}

/// Returns the entries of an update that failed or were handed to other jobs.
fn handed_out(update: &JobUpdate) -> Vec<Name> {
    let subdirs = [
        &update.subdirs.new,
        &update.subdirs.resumed,
        &update.subdirs.merged,
    ];
    let subdirs = subdirs.into_iter().flat_map(|names| names.iter());
    let subdirs = subdirs.map(|(_, name)| Name::new(name.to_bytes()));
    let hard_links = update.hard_links.iter().map(|entry| entry.name.clone());
    let chunked = update.chunked.iter().map(|file| file.name.clone());
    let obstructed = update.obstructed.iter();
    let obstructed = obstructed.map(|(_, name)| Name::new(name.to_bytes()));
    let unsynced = update.unsynced.iter().map(|file| file.name.clone());
    let failed = update.errors.iter().filter_map(|error| error.name.clone());
    subdirs
        .chain(hard_links)
        .chain(chunked)
        .chain(obstructed)
        .chain(unsynced)
        .chain(failed)
        .collect()
}
