//! Applies the reports of workers, and queues the jobs that follow.
//!
//! **What has not been reported has not happened.** An update carries counters, lines and errors of
//! the same entries, and the job's progress. It is applied as a whole, once, and only from the
//! worker that has claimed the job. So the counts are exact at any time, and a retry counts nothing
//! twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::dispatch::{NewJob, Running};
use super::hard_links::{Follower, Role};
use super::refusals::Failure;
use super::tree::{Listing, Next, NodeKey};
use super::{Phase, Scheduler};
use crate::fs::path::{Name, Names};
use crate::fs::stat::FileId;
use crate::protocol::entry::{ChunkedFile, HardLinks, Outcome};
use crate::protocol::error::{CopyError, Reason};
use crate::protocol::metadata::Incomplete;
use crate::protocol::{
    EntryError, HardLinkEntry, Job, JobKind, JobUpdate, Leader, Line, Progress, Report,
};
use crate::scoreboard::claims::Claim;
use crate::ui::Side;

impl Scheduler {
    pub(super) fn handle_report(&mut self, worker: usize, report: Report) {
        self.refusals.grant(&report.granted);
        for update in report.updates {
            if self.accept(worker, &update) {
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

    fn apply(&mut self, worker: usize, update: JobUpdate) {
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
        self.note_unlinked(&job, &update);
        self.note_progress(node, &update);
        if !update.is_done || !matches!(job.kind, JobKind::Directory { .. }) {
            self.tree.dir_mut(dir).hand_out(handed_out(&update));
        }

        let mut leads = self.take_settled_leads(&update);
        let directory = self.tree.dir_mut(dir);
        if let Some(stat) = update.unfinished {
            directory.unfinished = Some(stat);
        }
        directory.ids = directory.ids.or(update.dir_ids);
        for name in &update.settled_suspects {
            directory.take_suspect(name);
        }
        for error in &update.errors {
            self.handle_error(node, &job, error);
        }
        for incomplete in update.incomplete {
            self.handle_incomplete(&job, incomplete);
        }
        for (names, origin) in update.subdirs.into_lists() {
            if !names.is_empty() {
                self.tree.add_pending(dir, names.len());
                self.push_subdirs(dir, names, origin);
            }
        }
        if !update.shared.is_empty() {
            self.tree.add_pending(dir, 1);
            let names = update.shared;
            let hard_links = HardLinks::Report;
            self.push(dir, JobKind::Entries { names, hard_links });
        }
        self.add_hard_links(dir, update.hard_links);
        for file in update.chunked {
            let lead = leads.iter().position(|(name, _)| *name == file.name);
            let lead = lead.and_then(|at| leads.remove(at)).map(|(_, id)| id);
            self.begin_chunked(dir, file, lead);
        }
        self.settle_leads(dir, leads, &update.errors);
        if update.is_done
            && let Some(running) = self.end_job(update.job)
        {
            self.on_job_done(running, &update.errors);
        }
    }

    fn note_progress(&mut self, node: NodeKey, update: &JobUpdate) {
        let Some(running) = self.running.get_mut(&update.job) else {
            return;
        };
        running.shared += update.shared.len();
        if let (Progress::Listed { entries, own }, Listing::Running(listed)) =
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
            self.first_unlinked = Some(self.source_path(job, Some(name)));
        }
        if let (Some(name), JobKind::HardLinks { leader, .. }) = (&update.next_leader, &job.kind) {
            let next = Leader {
                target: job.target,
                dir: job.path.clone(),
                name: name.clone(),
            };
            self.hard_links.leader_full(leader, &next);
        }
    }

    /// Prints a job's lines for `-v` or `-n`.
    fn print_lines(&mut self, worker: usize, job: &Job, lines: &[Line]) {
        if lines.is_empty() {
            return;
        }
        let label = self.engine.label(worker);
        if let Err(error) = self.ui.print_entries(&label, job.target, &job.path, lines) {
            self.summary.failed += 1;
            self.ui.warn_stdout_failed(&error);
        }
    }

    fn handle_error(&mut self, node: NodeKey, job: &Job, error: &EntryError) {
        if let Some(name) = &error.name {
            self.give_up_suspect(node, name);
        }
        if error.error.reason == Reason::Stopped {
            return;
        }
        if let JobKind::Chunk { .. } = job.kind
            && let Some(file) = self.tree.chunked_mut(node)
        {
            if error.error.reason == Reason::Changed {
                // The commit looks at the source once more.
                file.has_changed = true;
                return;
            }
            if !self.fail_chunked(node) {
                return;
            }
        }
        if error.name.is_some() || self.tree.dir_mut(node).add_error(error.error) {
            self.report_error(job, error);
        }
    }

    /// Prints and counts an error.
    pub(super) fn report_error(&mut self, job: &Job, error: &EntryError) {
        if self.is_root_gone(job, &error.error) {
            return;
        }
        self.summary.failed += 1;
        self.summary.moved += u64::from(error.error.is_moving_source());
        self.ui.print_entry_error(job.target, &job.path, error);
        if error.error.is_full_destination() {
            self.summary.is_full = true;
            self.stop();
        }
    }

    /// Reports metadata that an entry lacks, if that is known to be its own failure.
    fn handle_incomplete(&mut self, job: &Job, mut incomplete: Incomplete) {
        self.refusals.take_known_failures(&mut incomplete);
        let is_gone = incomplete
            .errors()
            .any(|error| self.is_root_gone(job, &CopyError::new(error.step, error.reason)));
        if is_gone {
            self.uncount(incomplete.outcome, 1);
            return;
        }
        if !incomplete.failures.is_empty() {
            self.fail_counted(incomplete.outcome.take(), 1);
            let name = incomplete.name.as_ref();
            self.ui
                .print_incomplete(job.target, &job.path, name, &incomplete.failures);
        }
        self.refusals.add(job, incomplete);
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
            None => return,
        };
        *counted = counted.saturating_sub(entries);
    }

    /// Judges the refusals at the end of the run, and prints and counts them.
    pub(super) fn conclude_refusals(&mut self) {
        let verdict = self.refusals.decide();
        for Failure { entry, errors } in &verdict.failures {
            let name = entry.name.as_ref();
            self.ui
                .print_incomplete(entry.target, &entry.dir, name, errors);
        }
        let mut failed = 0;
        for (outcome, entries) in verdict.failed {
            self.fail_counted(outcome, entries);
            failed += entries;
        }
        let more = failed.saturating_sub(verdict.failures.len() as u64);
        if more > 0 {
            self.ui.error(&format!(
                "and {more} more entries whose metadata could not be set"
            ));
        }
        for (kind, lack) in verdict.lacking {
            let first = self.ui.show(
                Side::Destination,
                lack.target,
                &lack.dir,
                lack.name.as_ref(),
            );
            self.ui.warn_lacking(kind, lack.entries, &first);
        }
    }

    fn on_job_done(&mut self, running: Running, errors: &[EntryError]) {
        let node = running.node;
        match &running.job.kind {
            JobKind::Directory { .. } => {
                // A directory that was listed is not the cause of a crash.
                self.tree.forgive(node);
                self.tree.dir_mut(node).listing = Listing::Done;
            }
            JobKind::Commit { .. } => {
                let is_copied = errors.iter().all(|error| error.error.is_copied());
                self.end_chunked(node, is_copied);
            }
            JobKind::Discard { .. } => self.end_chunked(node, false),
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
            Progress::Settled(settled) => (settled as usize).saturating_sub(running.settled),
            _ => 0,
        };
        if let Progress::Settled(settled) = update.progress {
            running.settled = running.settled.max(settled as usize);
        }
        running
            .leads
            .drain(..settled.min(running.leads.len()))
            .collect()
    }

    /// Continues the groups of these leaders. A leader without an error was copied.
    fn settle_leads(
        &mut self,
        dir: NodeKey,
        leads: VecDeque<(Name, FileId)>,
        errors: &[EntryError],
    ) {
        for (name, id) in leads {
            let is_of = |error: &EntryError| error.name.as_ref().is_none_or(|it| *it == name);
            if errors
                .iter()
                .any(|error| is_of(error) && !error.error.is_copied())
            {
                self.on_leader_failed(id);
            } else {
                self.on_leader_copied(dir, name, id);
            }
        }
    }

    /// Lets the next name of the group lead. It was counted as pending while it waited.
    pub(super) fn on_leader_failed(&mut self, id: FileId) {
        if let Some(next) = self.hard_links.leader_failed(id) {
            let names = Names::one(next.kind, next.name.as_bytes());
            self.push_leaders(next.dir, names, VecDeque::from([(next.name, id)]));
        }
    }

    /// Queues links to the leader for the names that wait.
    fn on_leader_copied(&mut self, dir: NodeKey, name: Name, id: FileId) {
        let directory = self.tree.dir(dir);
        let leader = Leader {
            target: directory.target,
            dir: directory.path.clone(),
            name,
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
    pub(super) fn end_chunked(&mut self, node: NodeKey, is_copied: bool) {
        self.context.scoreboard.end_chunked();
        let dir = self.tree.dir_key(node);
        let Some(file) = self.tree.chunked_mut(node) else {
            return;
        };
        self.engine.end_chunked(&file.file.temp);
        match file.leads.take() {
            Some(id) if is_copied => {
                let name = file.file.name.clone();
                self.on_leader_copied(dir, name, id);
            }
            Some(id) => self.on_leader_failed(id),
            None => {}
        }
    }
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
    let failed = update.errors.iter().filter_map(|error| error.name.clone());
    subdirs
        .chain(hard_links)
        .chain(chunked)
        .chain(failed)
        .collect()
}
