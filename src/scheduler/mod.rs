//! The parent's side of a run: sends jobs to the engine and applies reports until every directory
//! is finished.
//!
//! Four rules keep a run correct. Each is explained in the file where it is kept:
//!
//! 1. A job is run by the worker that claims it (`scoreboard/claims.rs`). So any job may be sent
//!    again at any time: [`dispatch`].
//! 2. What has not been reported has not happened (`protocol/mod.rs`): [`report`].
//! 3. A retry needs no cleaning first (`protocol/mod.rs`, `Job::suspects`): [`retry`].
//! 4. A node completes when nothing of it is pending ([`tree`]).

pub(crate) mod autoscale;
mod batched;
pub(crate) mod behind;
mod deferred;
mod delete;
mod dispatch;
mod extraneous;
mod failures;
mod hard_links;
#[cfg(test)]
mod many_nodes;
mod nodes;
mod refusals;
mod report;
mod retry;
mod roots;
mod shutdown;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod throughput;
mod tree;
pub(crate) mod watchdog;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::engine::{Engine, Event};
use crate::fs::path::{Name, Names, RelPath};
use crate::protocol::entry::{DirOrigin, HardLinks};
use crate::protocol::job_map::JobMap;
use crate::protocol::{Counts, Job, JobKind};
use crate::quote::quote;
use crate::signals::Signals;
use crate::ui::{About, Activity, Manifest, MessageKind, Outputs, Side, Status, Summary, Ui};
use autoscale::WorkerLimit;
use batched::Batches;
use deferred::Deferred;
use delete::Deleting;
use dispatch::{Queue, Running};
use hard_links::HardLinkGroups;
use refusals::Refusals;
use roots::Roots;
use shutdown::IncompleteFile;
use tree::{ListingProgress, ListingState, Tree};
use watchdog::{Stall, Watchdog};

/// How long the loop waits for a report before it checks signals, workers and the bar.
const TICK: Duration = Duration::from_millis(100);
/// After this long without progress, the bar names a worker.
const SHOW_STALL_AFTER: Duration = Duration::from_secs(3);
/// How long the first worker works alone: ten small files take less time than starting a second
/// worker.
const SOLO_START: Duration = Duration::from_millis(2);
/// Words in the table of claims for each worker: more jobs than an engine takes at one time.
pub(crate) const JOBS_PER_WORKER: usize = 128;

/// A run in progress.
pub(crate) struct Scheduler {
    context: &'static Context,
    engine: Box<dyn Engine>,
    limit: WorkerLimit,
    signals: Signals,
    ui: Ui,
    summary: Summary,
    manifest: Option<Manifest>,
    refusals: Refusals,
    /// Directories and chunked files in progress.
    tree: Tree,
    hard_links: HardLinkGroups,
    /// The path of the first entry that was copied because it could not become a hard link.
    first_unlinked: Option<Vec<u8>>,
    queue: Queue,
    /// Files that wait to be synced.
    batches: Batches,
    /// Jobs that were sent and are not reported done.
    running: JobMap<Running>,
    /// The counts that each worker has reported. `None` once it is lost.
    reported: Vec<Option<Counts>>,
    watchdog: Watchdog,
    roots: Roots,
    /// The side that hung, for each worker that was killed because it made no progress.
    hung: HashMap<usize, Side>,
    phase: Phase,
    deleting: Deleting,
    deferred: Deferred,
    /// Some work was not begun because the run ends.
    has_cut: bool,
    /// That work included a directory, so the number of entries is not known.
    has_unlisted: bool,
    /// Incomplete files that a stopped run removes.
    incomplete_files: Vec<IncompleteFile>,
    started: Instant,
    is_solo: bool,
}

/// Whether the run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The time is over: what was begun is finished.
    Finishing,
    /// After a signal, or when the destination is full.
    Stopping {
        since: Instant,
    },
}

impl Scheduler {
    /// Prepares a run over all targets.
    pub(crate) fn new(
        context: &'static Context,
        engine: Box<dyn Engine>,
        limit: WorkerLimit,
        signals: Signals,
        outputs: Outputs,
    ) -> Self {
        let now = engine.now();
        let config = &context.config;
        let mut scheduler = Self {
            context,
            engine,
            limit,
            signals,
            ui: Ui::new(context, outputs),
            summary: Summary::default(),
            manifest: None,
            refusals: Refusals::default(),
            tree: Tree::default(),
            hard_links: HardLinkGroups::default(),
            first_unlinked: None,
            batches: Batches::default(),
            queue: Queue::new(context.scoreboard.claims.capacity()),
            running: JobMap::default(),
            reported: Vec::new(),
            watchdog: Watchdog::new(now, config.stall_timeout, config.stall_warning),
            roots: Roots::default(),
            hung: HashMap::new(),
            phase: Phase::Running,
            deleting: Deleting::default(),
            deferred: Deferred::default(),
            has_cut: false,
            has_unlisted: false,
            incomplete_files: Vec::new(),
            started: now,
            is_solo: true,
        };
        let mut left_out = Vec::new();
        // In reverse: the queue is last in, first out.
        for (index, target) in context.targets.list.iter().enumerate().rev() {
            if let Some(excluded) = context.targets.exclusion_of(target) {
                if config.prints_exclusions() {
                    left_out.push((index as u32, excluded));
                }
                continue;
            }
            let origin = DirOrigin {
                created: target.created,
                known_empty: target.created,
            };
            let tree = &mut scheduler.tree;
            match &target.single {
                None => {
                    let listing = ListingState::Running(ListingProgress::default());
                    let node = tree.open_target(index as u32, origin, listing);
                    scheduler.push_listing(node);
                }
                Some(single) => {
                    let node = tree.open_target(index as u32, origin, ListingState::Done);
                    let names = Names::one(single.kind, single.from.as_bytes());
                    let hard_links = HardLinks::Report;
                    scheduler.summary.counts.found += 1;
                    scheduler.push(node, JobKind::Entries { names, hard_links });
                }
            }
        }
        for (index, excluded) in left_out.into_iter().rev() {
            scheduler.print_excluded(index, &RelPath::default(), &[excluded]);
        }
        scheduler
    }

    /// Sets the list that is written beside the copy.
    pub(crate) fn with_manifest(mut self, manifest: Option<Manifest>) -> Self {
        self.manifest = manifest;
        self
    }

    /// Runs to the end and returns the exit status.
    pub(crate) fn run(mut self) -> i32 {
        for path in self.context.targets.missing_snapshots() {
            self.ui.warn_no_snapshot(path);
        }
        self.run_jobs();
        self.delete_extraneous();
        self.end()
    }

    /// Sends jobs and handles events until everything is done, or the run has stopped.
    fn run_jobs(&mut self) {
        while !self.tree.is_empty() || self.begin_final_sync() {
            self.sync_batches();
            self.dispatch();
            let event = self.engine.next(self.timeout());
            self.handle_event(event);
            self.tick();
            if self.has_stopped() {
                self.tidy_up();
                return;
            }
        }
    }

    fn handle_event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Report { worker, report }) => self.handle_report(worker, report),
            Some(Event::Lost {
                worker,
                death,
                is_left_behind,
            }) => {
                self.summary.left_behind += u64::from(is_left_behind);
                self.on_worker_lost(worker, death);
            }
            Some(Event::Returned { jobs }) => self.on_returned(&jobs),
            Some(Event::NodeLost(node)) => self.on_node_lost(&node),
            None => {}
        }
    }

    /// Returns how long the loop may wait for an event.
    fn timeout(&self) -> Duration {
        let mut timeout = self.ui.period().map_or(TICK, |period| period.min(TICK));
        let scoreboard = self.context.scoreboard;
        if let Some(period) = self.limit.period(self.engine.now(), scoreboard) {
            timeout = timeout.min(period);
        } else if self.phase != Phase::Running {
            timeout = timeout.min(autoscale::PERIOD);
        }
        if self.is_solo {
            timeout = timeout.min(SOLO_START);
        }
        timeout
    }

    /// Checks signals, the worker limit and stalls, and updates the bar.
    fn tick(&mut self) {
        if self.summary.signal.is_none()
            && let Some(signal) = self.signals.caught()
        {
            self.summary.signal = Some(signal);
            self.stop();
        }
        if !self.is_stopping() && self.context.scoreboard.is_stopping() {
            // A worker found the destination full. It may have died before it could report that.
            self.summary.is_full = true;
            self.stop();
        }
        let now = self.engine.now();
        self.is_solo = self.is_solo && now - self.started < SOLO_START;
        let (scoreboard, workers) = (self.context.scoreboard, self.engine.started());
        let busy = self.engine.busy();
        let changes = self.limit.update(now, busy, scoreboard, workers);
        if let Some(limit) = changes.workers {
            self.engine.set_limit(limit);
        }
        if let Some(line) = changes.decision.filter(|_| self.context.config.debug) {
            self.ui.say(MessageKind::Note, &line, &About::default());
        }
        let has_work = |worker| self.engine.has_work(worker);
        for (worker, stall) in self.watchdog.check(now, scoreboard, workers, has_work) {
            self.handle_stall(worker, stall);
        }
        self.try_again();
        self.check_time();
        self.update_bar();
    }

    fn update_bar(&self) {
        if self.ui.period().is_some() {
            self.ui.update(|| self.status(), || self.activity());
        }
    }

    fn status(&self) -> Status {
        let workers = 0..self.engine.started();
        let is_lost = |&worker: &usize| self.reported.get(worker) == Some(&None);
        let alive = workers.filter(|worker| !is_lost(worker));
        // A listing has ended before its directory's files are copied and its end is reported.
        let has_listed = |&worker: &usize| {
            let slot = self.context.scoreboard.slot(worker);
            slot.has_listed()
                && slot
                    .job()
                    .is_some_and(|job| self.running.contains_key(&job))
        };
        let listed = alive.clone().filter(has_listed).count();
        Status {
            counts: self.summary.counts + self.unreported(),
            failed: self.summary.failed,
            is_listed: !self.tree.has_more_listings_than(listed),
            workers: alive.count(),
        }
    }

    /// Returns what the bar names: a worker that waits, or an entry that is being copied.
    fn activity(&self) -> Activity {
        let path = |worker: usize| {
            let slot = self.context.scoreboard.slot(worker);
            let running = self.running.get(&slot.job()?)?;
            let entry = slot.entry();
            Some((
                self.source_path(&running.job, entry.as_ref()),
                entry.is_some(),
            ))
        };
        if let Some((worker, time)) = self.watchdog.longest_stall(self.engine.now())
            && time >= SHOW_STALL_AFTER
            && let Some((path, _)) = path(worker)
        {
            return Activity::Waiting {
                worker: worker + 1,
                time,
                path,
            };
        }
        let entries = (0..self.engine.started()).filter_map(path);
        let entry = entries
            .filter(|(_, is_entry)| *is_entry)
            .map(|(path, _)| path)
            .next();
        Activity::Copying(entry.unwrap_or_default())
    }

    /// Returns the counts that live workers have not reported yet.
    fn unreported(&self) -> Counts {
        let mut sum = Counts::default();
        for worker in 0..self.engine.started() {
            let reported = self.reported.get(worker).copied();
            if let Some(reported) = reported.unwrap_or(Some(Counts::default())) {
                sum += self.context.scoreboard.slot(worker).counts() - reported;
            }
        }
        sum
    }

    /// Returns the counts that a worker has reported. `None` if it is lost.
    fn reported_by(&mut self, worker: usize) -> &mut Option<Counts> {
        if self.reported.len() <= worker {
            self.reported.resize(worker + 1, Some(Counts::default()));
        }
        &mut self.reported[worker]
    }

    fn handle_stall(&mut self, worker: usize, stall: Stall) {
        match stall {
            Stall::Slow => {
                // Others copy meanwhile: it may hang in a dead server.
                self.context.scoreboard.gate.revoke(worker);
                self.engine.set_stuck(worker, true);
                if !self.is_stopping() {
                    self.resend_unclaimed(worker);
                    // A sync is slow, and no reason for one more worker each time.
                    if !self.context.scoreboard.slot(worker).is_syncing()
                        && let Some(limit) = self.limit.replace_stuck()
                    {
                        self.engine.set_limit(limit);
                    }
                }
            }
            Stall::Over => self.engine.set_stuck(worker, false),
            Stall::Warn { after } => self.warn_stalled(worker, after),
            Stall::Kill => {
                let side = self.hanging_side(worker);
                self.hung.insert(worker, side);
                if !self.engine.kill(worker) {
                    self.engine.abandon(worker);
                }
            }
            Stall::Unkillable => self.engine.abandon(worker),
        }
    }

    /// Returns the side that keeps a worker waiting.
    fn hanging_side(&mut self, worker: usize) -> Side {
        let job = self.context.scoreboard.slot(worker).job();
        match job.and_then(|id| self.running.get(&id)) {
            Some(running) => self.roots.hanging_side(self.context, running.job.target),
            None => Side::Source,
        }
    }

    fn warn_stalled(&mut self, worker: usize, after: Duration) {
        let side = self.hanging_side(worker);
        let slot = self.context.scoreboard.slot(worker);
        let Some(running) = slot.job().and_then(|id| self.running.get(&id)) else {
            return;
        };
        let (job, entry) = (&running.job, slot.entry());
        let path = self.ui.path(side, job.target, &job.path, entry.as_ref());
        let (seconds, label) = (after.as_secs(), self.engine.label(worker));
        let line = format!(
            "{}: no progress for {seconds} s ({label}); still waiting",
            quote(&path)
        );
        let about = About {
            path: Some(&path),
            worker: Some(&label),
            ..About::default()
        };
        self.ui.say(MessageKind::Warning, &line, &about);
    }

    /// Returns the path of an entry of a job, as the user knows it.
    fn source_path(&self, job: &Job, entry: Option<&Name>) -> String {
        self.ui.show(Side::Source, job.target, &job.path, entry)
    }

    fn end(&mut self) -> i32 {
        self.note_workers();
        self.summary.left_behind = self.summary.left_behind.max(self.shut_down());
        self.ui.end();
        if self.phase != Phase::Running && self.tree.is_empty() && !self.has_cut {
            // Everything was begun before the time was over.
            self.summary.time_limit = None;
        }
        self.summary.is_listed = !self.has_unlisted && !self.tree.has_more_listings_than(0);
        self.conclude_refusals();
        if let Some(first) = &self.first_unlinked {
            self.ui.warn_unlinked(self.summary.counts.unlinked, first);
        }
        if let Some(manifest) = self.manifest.take()
            && let Err(error) = manifest.end(self.context, self.phase == Phase::Running)
        {
            self.summary.failed += 1;
            self.ui.say(MessageKind::Error, &error, &About::default());
        }
        self.ui.conclude(&mut self.summary)
    }
}
