//! Stops a run and tidies up: removes incomplete files, and applies the metadata of directories in
//! progress.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::dispatch::{Popped, Running};
use super::tree::{Directory, NodeKey};
use super::{Phase, Scheduler};
use crate::copy::temp;
use crate::engine::{Event, KILL_TIMEOUT, Sent};
use crate::fs::path::{Name, RelPath};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{Job, JobId, JobKind, JobUpdate};
use crate::scoreboard::WriteTarget;
use crate::scoreboard::claims::Claim;
use crate::ui::{About, MessageKind};

/// How long a stopped run waits for its workers. They check whether to stop after each chunk of
/// a file.
const STOP_TIMEOUT: Duration = Duration::from_millis(600);
/// How long it then waits for a worker to begin to tidy up, and for all workers to end.
const TIDY_TIMEOUT: Duration = Duration::from_millis(300);
/// How long it tidies up once that has begun. On a network file system tidying up can take seconds.
/// A second signal ends it at once.
const LONGEST_TIDY: Duration = Duration::from_secs(5);
/// A run whose time is over does not wait for workers that have made no progress for so long.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);
/// Factor for [`STOP_TIMEOUT`] if the destination is full, because no user waits for the prompt.
const PATIENCE_IF_FULL: u32 = 100;

/// An incomplete file at the destination.
pub(super) struct IncompleteFile {
    target: u32,
    dir: RelPath,
    name: Name,
}

impl IncompleteFile {
    fn in_directory(directory: &Directory, name: Name) -> Self {
        Self {
            target: directory.target,
            dir: directory.path.clone(),
            name,
        }
    }

    fn of_job(job: &Job, name: Name) -> Self {
        Self {
            target: job.target,
            dir: job.path.clone(),
            name,
        }
    }
}

impl Scheduler {
    pub(super) fn stop(&mut self) {
        if !self.is_stopping() {
            let since = self.engine.now();
            self.phase = Phase::Stopping { since };
            self.context.scoreboard.stop();
            self.give_up_deferred();
            self.drop_queue();
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    /// Begins no more entries once the time of `--stop-after` is over, and stops when those that were
    /// begun are done.
    pub(super) fn check_time(&mut self) {
        let now = self.engine.now();
        let limit = self.context.config.limits.stop_after;
        if self.phase == Phase::Running
            && let Some(limit) = limit.filter(|limit| now - self.started >= *limit)
        {
            self.phase = Phase::Finishing;
            self.summary.time_limit = Some(limit);
            self.context.scoreboard.finish();
            self.give_up_deferred();
            self.drop_queue();
        }
        let scoreboard = self.context.scoreboard;
        let working = (0..self.engine.started()).filter(|&it| scoreboard.slot(it).job().is_some());
        if self.phase == Phase::Finishing && self.queue.is_empty() {
            // One that hangs is not waited for.
            let hanging = self.watchdog.stalled(now, FINISH_TIMEOUT);
            if self.engine.busy() == 0 || hanging > 0 && hanging >= working.count() {
                self.stop();
            }
        }
    }

    /// Drops the queue, except for directories that only need their metadata. A run that finishes
    /// what it has begun keeps that work too.
    pub(super) fn drop_queue(&mut self) {
        self.has_unlisted |= self.queue.has_listings();
        if self.phase == Phase::Finishing {
            self.has_cut |= self.queue.drop_new();
            return;
        }
        for job in self.queue.drop_rest() {
            let names = match job.kind {
                JobKind::Remove { name } => vec![name],
                JobKind::CommitSynced { files } | JobKind::DiscardUnsynced { files } => {
                    let files = files.into_iter();
                    files
                        .map(|file| self.unsynced_name(job.node, file))
                        .collect()
                }
                _ => Vec::new(),
            };
            let directory = self.tree.dir(job.node);
            let incomplete_files = names
                .into_iter()
                .map(|name| IncompleteFile::in_directory(directory, name));
            self.incomplete_files.extend(incomplete_files);
        }
    }

    /// Notes the files that a job of a stopped run has not committed.
    pub(super) fn note_uncommitted(&mut self, running: &Running) {
        if let JobKind::CommitSynced { files } = &running.job.kind
            && self.phase != Phase::Running
        {
            for file in files.iter().skip(running.settled) {
                let name = self.unsynced_name(running.node, file.clone());
                self.incomplete_files
                    .push(IncompleteFile::of_job(&running.job, name));
            }
        }
    }

    /// Returns the name that an unsynced file has at the destination.
    fn unsynced_name(&self, dir: NodeKey, file: Unsynced) -> Name {
        let target = self.tree.dir(dir).target;
        let own_name = || self.name_at_destination(target, &file.name);
        file.temp.unwrap_or_else(own_name)
    }

    pub(super) fn fail_without_workers(&mut self) {
        if !self.is_stopping() {
            self.summary.has_no_workers = true;
            let what = "all workers died and none can be started; run pcopy again to resume";
            self.ui.say(MessageKind::Error, what, &About::default());
            self.stop();
        }
    }

    /// Returns true once a stopped run has waited for its workers.
    pub(super) fn has_stopped(&mut self) -> bool {
        let Phase::Stopping { since } = self.phase else {
            return false;
        };
        let timeout = if self.summary.is_full && self.summary.signal.is_none() {
            STOP_TIMEOUT * PATIENCE_IF_FULL
        } else {
            STOP_TIMEOUT
        };
        if self.engine.busy() > 0 && self.engine.now() - since <= timeout {
            return false;
        }
        // Handle reports that arrived meanwhile.
        while self.engine.busy() == 0
            && let Some(event) = self.engine.next(Duration::ZERO)
        {
            self.handle_event(Some(event));
        }
        true
    }

    /// Removes incomplete files and finishes the directories in progress, for a short time.
    pub(super) fn tidy_up(&mut self) {
        let deadline = self.engine.now() + LONGEST_TIDY;
        self.drop_queue();
        let busy = self.kill_busy();
        self.note_incomplete_files(&busy);
        self.remove_incomplete_files();
        // The deepest directory is queued last, and sent first.
        for (node, stat) in self.tree.take_unfinished().into_iter().rev() {
            self.push(node, JobKind::FinishDirectory { stat });
        }
        // Send again the jobs that wait with a stuck worker.
        let is_last =
            |running: &&Running| matches!(running.job.kind, JobKind::FinishDirectory { .. });
        let mut waiting: Vec<JobId> = self
            .running
            .values()
            .filter(is_last)
            .map(|running| running.job.id)
            .collect();
        waiting.sort_unstable();
        for id in waiting {
            self.queue.push_resend(id);
        }
        self.finish_directories(deadline);
        // Those of workers that were slow to stop.
        self.remove_incomplete_files();
    }

    /// Sends the last jobs and waits for them.
    fn finish_directories(&mut self, deadline: Instant) {
        let mut tidying = HashSet::new();
        let mut begin_by = self.engine.now() + TIDY_TIMEOUT;
        while self.engine.now() < deadline && !(self.queue.is_empty() && tidying.is_empty()) {
            while self.engine.free_slots() > 0
                && let Some(popped) = self.pop()
            {
                let job = match popped {
                    Popped::New(job) => Some(self.begin(job)),
                    Popped::Resend(id) => self.unclaimed(id),
                };
                if let Some(job) = job {
                    tidying.insert(job.id);
                    if self.engine.send(vec![job]) == Sent::NoWorkers {
                        return;
                    }
                }
            }
            let now = self.engine.now();
            if now >= begin_by && !tidying.iter().any(|&id| self.is_claimed(id)) {
                // All workers hang.
                return;
            }
            let left = deadline.saturating_duration_since(now).min(TIDY_TIMEOUT);
            match self.engine.next(left) {
                Some(Event::Report { report, .. }) => {
                    for update in report.updates {
                        self.note_late(&update);
                        if update.is_done {
                            self.end_job(update.job);
                            tidying.remove(&update.job);
                            begin_by = self.engine.now() + TIDY_TIMEOUT;
                        }
                    }
                }
                Some(Event::Lost { worker, .. }) => {
                    tidying.retain(|&id| self.claim_of(id) != Some(Claim::By(worker)));
                }
                Some(Event::NodeLost(node)) => {
                    let is_its = |claim| match claim {
                        Some(Claim::By(by)) => by == node.node || node.workers.contains(&by),
                        _ => false,
                    };
                    tidying.retain(|&id| !is_its(self.claim_of(id)));
                }
                Some(Event::Returned { jobs }) => {
                    for id in jobs.into_iter().filter(|id| tidying.contains(id)) {
                        self.queue.push_resend(id);
                    }
                }
                None => {}
            }
        }
    }

    /// Notes the unsynced files of a worker that was so slow that they were not known before.
    fn note_late(&mut self, update: &JobUpdate) {
        if let Some(running) = self.running.get(&update.job) {
            let node = running.node;
            for file in update.unsynced.clone() {
                let name = self.unsynced_name(node, file);
                let job = &self.running[&update.job].job;
                self.incomplete_files
                    .push(IncompleteFile::of_job(job, name));
            }
        }
    }

    fn is_claimed(&self, id: JobId) -> bool {
        matches!(self.claim_of(id), Some(Claim::By(_)))
    }

    /// Kills the workers that have not stopped, if that can be done. Returns them.
    fn kill_busy(&mut self) -> Vec<usize> {
        let is_busy = |&worker: &usize| self.context.scoreboard.slot(worker).job().is_some();
        let busy: Vec<usize> = (0..self.engine.started()).filter(is_busy).collect();
        for &worker in &busy {
            self.engine.kill(worker);
        }
        busy
    }

    /// Notes incomplete files: those that these workers are writing, and chunked files.
    fn note_incomplete_files(&mut self, workers: &[usize]) {
        for &worker in workers {
            let job = self.context.scoreboard.slot(worker).job();
            let running = job.and_then(|id| self.running.get(&id));
            if let Some(running) = running
                && let Some(name) = self.name_being_written(worker, &running.job)
            {
                self.incomplete_files
                    .push(IncompleteFile::of_job(&running.job, name));
            }
        }
        // Removals that were sent, or for which no worker was found.
        for running in self.running.values() {
            if let JobKind::Remove { name } = &running.job.kind {
                self.incomplete_files
                    .push(IncompleteFile::of_job(&running.job, name.clone()));
            }
        }
        for (node, file) in self.unsynced_files() {
            let name = self.unsynced_name(node, file);
            let directory = self.tree.dir(node);
            self.incomplete_files
                .push(IncompleteFile::in_directory(directory, name));
        }
        let mut incomplete_files = Vec::new();
        for directory in self.tree.directories() {
            for suspect in directory.suspects.iter().filter(|it| it.is_incomplete) {
                let name = self.name_at_destination(directory.target, &suspect.name);
                incomplete_files.push(IncompleteFile::in_directory(directory, name));
            }
        }
        self.incomplete_files.append(&mut incomplete_files);
        // With `--partial` the next run goes on with them, unless there is no space for them.
        if self.context.config.contents.partial && !self.summary.is_full {
            return;
        }
        let chunked = self
            .tree
            .chunked_files()
            .filter_map(|(directory, chunked)| {
                let temp = chunked.file.temp.clone()?;
                Some(IncompleteFile::in_directory(directory, temp))
            });
        self.incomplete_files.extend(chunked);
    }

    /// Returns the name at the destination under which a worker is writing.
    fn name_being_written(&self, worker: usize, job: &Job) -> Option<Name> {
        let slot = self.context.scoreboard.slot(worker);
        match slot.writing() {
            WriteTarget::None => None,
            WriteTarget::Temp(number) | WriteTarget::Chunked(number) => Some(Name::new(
                temp::name(self.context, worker, number).to_bytes(),
            )),
            WriteTarget::Final => Some(self.name_at_destination(job.target, &slot.entry()?)),
        }
    }

    /// Removes incomplete files. A separate thread does it, because the file system may hang.
    /// Workers do not, because none may be free in time.
    fn remove_incomplete_files(&mut self) {
        let incomplete_files = std::mem::take(&mut self.incomplete_files);
        if incomplete_files.is_empty() {
            return;
        }
        let context = self.context;
        let deadline = self.engine.now() + LONGEST_TIDY;
        let (done, wait) = crossbeam_channel::bounded::<()>(1);
        let thread = std::thread::Builder::new().spawn(move || {
            for file in incomplete_files {
                let target = file.target as usize;
                context
                    .targets
                    .remove(target, &file.dir, file.name.as_bytes());
            }
            drop(done);
        });
        if thread.is_ok() {
            let _ = wait.recv_deadline(deadline);
        }
    }

    /// Ends all workers. Returns how many do not die, without those that are only slow on a busy
    /// machine.
    pub(super) fn shut_down(&mut self) -> u64 {
        let is_impatient = self.summary.signal.is_some();
        let timeout = match self.phase {
            Phase::Running | Phase::Finishing => STOP_TIMEOUT,
            Phase::Stopping { .. } => TIDY_TIMEOUT,
        };
        let kill_timeout = if is_impatient {
            TIDY_TIMEOUT
        } else {
            KILL_TIMEOUT
        };
        let left = self.engine.shut_down(timeout, kill_timeout);
        if is_impatient {
            let stalled = self.watchdog.stalled(self.engine.now(), KILL_TIMEOUT);
            left.min(stalled) as u64
        } else {
            left as u64
        }
    }
}
