//! The queue, and sending jobs.
//!
//! A batch is only transport. An unclaimed job can be sent again to any worker: to an idle one,
//! past a stuck one, or after a loss. The first worker to claim it runs it, and the others skip it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::behind::Behind;
use super::tree::NodeKey;
use super::{Phase, Scheduler};
use crate::engine::Sent;
use crate::fs::path::{Name, Names};
use crate::fs::stat::{DirIds, FileId};
use crate::protocol::entry::{Chunk, DirOrigin};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{Job, JobId, JobKind};
use crate::scoreboard::claims::Claim;
use crate::worker::ENTRIES_PER_JOB;

/// The maximum number of jobs in one batch. If small directories were sent one by one, each would
/// wake the parent.
const JOBS_PER_BATCH: usize = 16;

/// The same for a node, which divides a batch among its workers. The larger a batch, the less the
/// lead does for each job.
const JOBS_PER_NODE_BATCH: usize = 32;

/// A job that has not been sent.
pub(super) struct NewJob {
    pub(super) node: NodeKey,
    pub(super) kind: JobKind,
    /// The groups of hard links that the job's entries lead, in the order of the entries.
    pub(super) leads: VecDeque<(Name, FileId)>,
}

/// A job that was sent and is not reported done.
pub(super) struct Running {
    pub(super) job: Arc<Job>,
    pub(super) node: NodeKey,
    pub(super) leads: VecDeque<(Name, FileId)>,
    /// The worker that it was last sent to; `None` for the queue of all workers.
    sent_to: Option<usize>,
    batch: u64,
    /// The number of the next update.
    pub(super) next_update: u32,
    /// How many names at the start of the job's list are settled.
    pub(super) settled: usize,
    /// How many names at the end of its list were given to other jobs.
    pub(super) shared: usize,
    /// Files that the job has written, and that are neither synced nor committed.
    pub(super) written: Vec<Written>,
}

/// An unsynced file of a job that is running.
pub(super) struct Written {
    pub(super) file: Unsynced,
    pub(super) leads: Option<FileId>,
}

/// Work that has not been sent. The last in is the first out, so the tree is copied depth first,
/// which keeps memory bounded.
pub(super) struct Queue {
    entries: Vec<Queued>,
    /// Syncs and what follows from them. They are sent before anything else.
    urgent: Vec<NewJob>,
    /// About how many jobs the entries stand for.
    jobs: usize,
    last_job: JobId,
    last_batch: u64,
    /// Words of the table of claims that are free again. All words from `unused_from` on are free
    /// too.
    free_claims: Vec<u32>,
    unused_from: usize,
    claims: usize,
    behind: Behind,
}

enum Queued {
    Job(NewJob),
    /// A job that was sent before.
    Resend(JobId),
    /// Subdirectories, to be listed from the last one.
    Subdirs {
        parent: NodeKey,
        names: Names,
        origin: DirOrigin,
    },
    /// Directories that only the destination has, to be removed from the last one.
    Doomed {
        parent: NodeKey,
        names: Names,
    },
    /// Entries that only the destination has, from the last one.
    Deletion {
        node: NodeKey,
        names: Names,
        ids: DirIds,
    },
    /// Chunks of a file, in reverse.
    Chunks {
        node: NodeKey,
        rest: Vec<Chunk>,
    },
}

impl Queue {
    /// Makes an empty queue. The table of claims has `claims` words.
    pub(super) fn new(claims: usize) -> Self {
        Self {
            entries: Vec::new(),
            urgent: Vec::new(),
            jobs: 0,
            last_job: 0,
            last_batch: 0,
            free_claims: Vec::new(),
            unused_from: 0,
            claims,
            behind: Behind::default(),
        }
    }

    fn push(&mut self, queued: Queued, jobs: usize) {
        self.jobs += jobs;
        self.entries.push(queued);
    }

    /// Returns how many more jobs the table of claims has room for.
    fn free_claims(&self) -> usize {
        self.free_claims.len() + (self.claims - self.unused_from)
    }

    fn take_claim(&mut self) -> u32 {
        self.free_claims.pop().unwrap_or_else(|| {
            self.unused_from += 1;
            self.unused_from as u32 - 1
        })
    }

    /// Takes back the claim word of a job that has ended.
    pub(super) fn return_claim(&mut self, index: u32) {
        self.free_claims.push(index);
    }

    /// Removes the chunks of a file that were not sent. Returns how many there were.
    pub(super) fn drop_chunks(&mut self, of: NodeKey) -> usize {
        let is_of = |queued: &Queued| matches!(queued, Queued::Chunks { node, .. } if *node == of);
        let at = self.entries.iter().position(is_of);
        let Some(Queued::Chunks { rest, .. }) = at.map(|at| self.entries.remove(at)) else {
            return 0;
        };
        self.jobs = self.jobs.saturating_sub(rest.len());
        rest.len()
    }

    /// Drops the work that would begin an entry or a directory. Returns true if anything was
    /// dropped.
    pub(super) fn drop_new(&mut self) -> bool {
        let before = self.entries.len();
        self.entries.retain(|queued| match queued {
            Queued::Resend(_) | Queued::Chunks { .. } => true,
            Queued::Subdirs { .. } | Queued::Doomed { .. } | Queued::Deletion { .. } => false,
            Queued::Job(job) => !matches!(
                job.kind,
                JobKind::Directory { .. } | JobKind::Entries { .. } | JobKind::HardLinks { .. }
            ),
        });
        self.entries.len() < before
    }

    /// Returns true if a directory is queued that was not listed.
    pub(super) fn has_listings(&self) -> bool {
        self.entries.iter().any(|queued| match queued {
            Queued::Subdirs { .. } => true,
            Queued::Job(job) => matches!(job.kind, JobKind::Directory { .. }),
            _ => false,
        })
    }

    /// Drops all queued work except tidying up directories and finishing them. Returns the jobs whose files must be
    /// removed.
    pub(super) fn drop_rest(&mut self) -> Vec<NewJob> {
        let mut removals = std::mem::take(&mut self.urgent);
        for queued in std::mem::take(&mut self.entries) {
            match queued {
                Queued::Job(job)
                    if matches!(
                        job.kind,
                        JobKind::FinishDirectory { .. } | JobKind::RemoveTemps { .. }
                    ) =>
                {
                    self.entries.push(Queued::Job(job));
                }
                Queued::Job(job) if matches!(job.kind, JobKind::Remove { .. }) => {
                    removals.push(job);
                }
                _ => {}
            }
        }
        self.jobs = self.entries.len();
        removals
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.urgent.is_empty()
    }

    /// Returns true if an urgent job has such a file.
    pub(super) fn has_urgent(&self, is_it: impl Fn(&Unsynced) -> bool) -> bool {
        self.urgent.iter().any(|job| match &job.kind {
            JobKind::CommitSynced { files } | JobKind::DiscardUnsynced { files } => {
                files.iter().any(&is_it)
            }
            _ => false,
        })
    }

    /// Queues a sent job again. It is skipped if a worker has claimed it by then.
    pub(super) fn push_resend(&mut self, id: JobId) {
        self.push(Queued::Resend(id), 1);
    }
}

impl Scheduler {
    /// Queues a job that is counted as pending in its node.
    pub(super) fn push(&mut self, node: NodeKey, kind: JobKind) {
        self.push_job(NewJob::new(node, kind));
    }

    pub(super) fn push_job(&mut self, job: NewJob) {
        self.queue.push(Queued::Job(job), 1);
    }

    /// Queues a job that is sent before all others.
    pub(super) fn push_urgent(&mut self, job: NewJob) {
        self.queue.jobs += 1;
        self.queue.urgent.push(job);
    }

    /// Queues subdirectories that are counted as pending in their parent.
    pub(super) fn push_subdirs(&mut self, parent: NodeKey, names: Names, origin: DirOrigin) {
        let jobs = names.len();
        let queued = Queued::Subdirs {
            parent,
            names,
            origin,
        };
        self.queue.push(queued, jobs);
    }

    /// Queues directories to remove that are counted as pending in their parent.
    pub(super) fn push_doomed(&mut self, parent: NodeKey, names: Names) {
        let jobs = names.len();
        self.queue.push(Queued::Doomed { parent, names }, jobs);
    }

    /// Queues entries to remove. Each batch of them is counted as pending in their directory.
    pub(super) fn push_deletion(&mut self, node: NodeKey, names: Names, ids: DirIds) {
        let jobs = names.len().div_ceil(ENTRIES_PER_JOB);
        self.queue.push(Queued::Deletion { node, names, ids }, jobs);
    }

    /// Queues the chunks of a file.
    pub(super) fn push_chunks(&mut self, node: NodeKey, mut chunks: Vec<Chunk>) {
        chunks.reverse();
        let jobs = chunks.len();
        self.queue.push(Queued::Chunks { node, rest: chunks }, jobs);
    }

    /// Queues a directory to be listed, or listed again.
    pub(super) fn push_listing(&mut self, node: NodeKey) {
        let kind = self.tree.listing_job(node);
        self.push(node, kind);
    }

    /// Sends as many jobs as the engine takes.
    pub(super) fn dispatch(&mut self) {
        let is_behind = self.is_disk_behind();
        while self.may_send()
            && self.engine.free_slots() > 0
            && !(is_behind && self.queue.urgent.is_empty())
        {
            let nodes = self.engine.nodes();
            let (receivers, most) = match nodes {
                Some(nodes) => (nodes, JOBS_PER_NODE_BATCH),
                None => (self.limit.limit(), JOBS_PER_BATCH),
            };
            let share = self.queue.jobs / (4 * receivers.max(1));
            let batch = self.take_batch(share.clamp(1, most));
            if batch.is_empty() {
                break;
            }
            // A node looks after the jobs that wait there.
            if nodes.is_none() {
                self.queue.behind.add(&batch, self.engine.idle() > 0);
            }
            if !self.send(batch) {
                break;
            }
        }
        let claims = self.context.scoreboard.claims;
        self.queue.behind.forget_claimed(claims, self.running.len());
        let is_idle = self.queue.is_empty() && !self.is_solo;
        let mut idle = if is_idle { self.engine.idle() } else { 0 };
        while idle > 0
            && self.may_send()
            && let Some(job) = self.queue.behind.pop(claims)
        {
            if !self.send(vec![job]) {
                break;
            }
            idle -= 1;
        }
        self.context.scoreboard.set_wanted(idle);
    }

    fn may_send(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Finishing)
    }

    /// Sends a batch. Returns false if there is no worker.
    pub(super) fn send(&mut self, batch: Vec<Arc<Job>>) -> bool {
        self.queue.last_batch += 1;
        let ids: Vec<JobId> = batch.iter().map(|job| job.id).collect();
        let sent = self.engine.send(batch);
        for &id in &ids {
            if let Some(running) = self.running.get_mut(&id) {
                running.batch = self.queue.last_batch;
                running.sent_to = match sent {
                    Sent::To(worker) => Some(worker),
                    Sent::ToAll | Sent::NoWorkers => None,
                };
            }
        }
        if sent != Sent::NoWorkers {
            return true;
        }
        for id in ids.into_iter().rev() {
            self.queue.push_resend(id);
        }
        if self.engine.busy() == 0 {
            self.fail_without_workers();
        }
        false
    }

    /// Takes one job, or up to `most` small ones.
    fn take_batch(&mut self, most: usize) -> Vec<Arc<Job>> {
        let mut batch = Vec::new();
        while batch.len() < most && self.queue.free_claims() > 0 {
            let is_small = match self.queue.entries.last() {
                _ if !self.queue.urgent.is_empty() => true,
                Some(Queued::Subdirs { .. } | Queued::Doomed { .. } | Queued::Resend(_)) => true,
                Some(Queued::Job(job)) => matches!(
                    job.kind,
                    JobKind::FinishDirectory { .. }
                        | JobKind::Remove { .. }
                        | JobKind::RemoveDirectory { .. }
                ),
                _ => false,
            };
            if !batch.is_empty() && !is_small {
                break;
            }
            match self.pop() {
                Some(Popped::New(job)) => batch.push(self.begin(job)),
                Some(Popped::Resend(id)) => batch.extend(self.unclaimed(id)),
                None => break,
            }
            if !is_small {
                break;
            }
        }
        batch
    }

    pub(super) fn pop(&mut self) -> Option<Popped> {
        self.queue.jobs = self.queue.jobs.saturating_sub(1);
        if let Some(job) = self.queue.urgent.pop() {
            return Some(Popped::New(job));
        }
        let (job, is_last) = match self.queue.entries.last_mut()? {
            Queued::Job(_) | Queued::Resend(_) => match self.queue.entries.pop() {
                Some(Queued::Job(job)) => return Some(Popped::New(job)),
                Some(Queued::Resend(id)) => return Some(Popped::Resend(id)),
                _ => return None,
            },
            Queued::Subdirs {
                parent,
                names,
                origin,
            } => {
                let (_, name) = names.pop()?;
                let is_last = names.is_empty();
                let node = self.tree.open_subdir(*parent, &name, *origin);
                let kind = self.tree.dir_mut(node).listing_job();
                (NewJob::new(node, kind), is_last)
            }
            Queued::Doomed { parent, names } => {
                let (_, name) = names.pop()?;
                let is_last = names.is_empty();
                let node = self.tree.open_doomed(*parent, &name);
                let kind = self.tree.dir_mut(node).listing_job();
                (NewJob::new(node, kind), is_last)
            }
            Queued::Deletion { node, names, ids } => {
                let kind = JobKind::Delete {
                    names: names.take_last(ENTRIES_PER_JOB),
                    ids: *ids,
                };
                (NewJob::new(*node, kind), names.is_empty())
            }
            Queued::Chunks { node, rest } => {
                let chunk = rest.pop()?;
                let is_last = rest.is_empty();
                let file = self.tree.chunked_mut(*node)?.file.clone();
                (NewJob::new(*node, JobKind::Chunk { file, chunk }), is_last)
            }
        };
        if is_last {
            self.queue.entries.pop();
        }
        Some(Popped::New(job))
    }

    /// Numbers a job and publishes it for claims.
    pub(super) fn begin(&mut self, mut new: NewJob) -> Arc<Job> {
        if let JobKind::HardLinks { leader, .. } = &mut new.kind
            && let Some(next) = self.hard_links.successor(leader)
        {
            *leader = next;
        }
        self.queue.last_job += 1;
        let directory = self.tree.dir(new.node);
        let job = Arc::new(Job {
            id: self.queue.last_job,
            claim: self.queue.take_claim(),
            target: directory.target,
            path: directory.path.clone(),
            origin: directory.origin,
            kind: new.kind,
            suspects: directory
                .suspects
                .iter()
                .map(|it| it.name.clone())
                .collect(),
        });
        self.context.scoreboard.claims.publish(job.claim, job.id);
        let running = Running {
            job: Arc::clone(&job),
            node: new.node,
            leads: new.leads,
            sent_to: None,
            batch: 0,
            next_update: 0,
            settled: 0,
            shared: 0,
            written: Vec::new(),
        };
        self.running.insert(job.id, running);
        job
    }

    /// Ends a job: its word in the table of claims may be used again.
    pub(super) fn end_job(&mut self, id: JobId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        self.context.scoreboard.claims.release(running.job.claim);
        self.queue.return_claim(running.job.claim);
        Some(running)
    }

    /// Returns who has claimed a sent job.
    pub(super) fn claim_of(&self, id: JobId) -> Option<Claim> {
        let running = self.running.get(&id)?;
        Some(self.context.scoreboard.claims.read(running.job.claim, id))
    }

    /// Returns a job that was sent, if no worker has claimed it.
    pub(super) fn unclaimed(&self, id: JobId) -> Option<Arc<Job>> {
        let running = self.running.get(&id)?;
        (self.claim_of(id)? == Claim::Open).then(|| Arc::clone(&running.job))
    }

    /// Queues again the jobs that a stuck or lost worker got and has not claimed.
    pub(super) fn resend_unclaimed(&mut self, worker: usize) {
        let current = self.context.scoreboard.slot(worker).job();
        let batch = current.and_then(|id| Some(self.running.get(&id)?.batch));
        let is_with_it = |running: &Running| {
            // Workers that share a queue: the rest of the batch that this one took.
            running.sent_to == Some(worker)
                || running.sent_to.is_none() && batch == Some(running.batch)
        };
        let with_it = self
            .running
            .iter()
            .filter(|(_, running)| is_with_it(running));
        let mut ids: Vec<JobId> = with_it.map(|(&id, _)| id).collect();
        ids.retain(|&id| self.unclaimed(id).is_some());
        // The queue is last in, first out.
        ids.sort_unstable_by_key(|&id| std::cmp::Reverse(id));
        for id in ids {
            self.queue.push_resend(id);
        }
    }
}

/// A job taken from the queue.
pub(super) enum Popped {
    New(NewJob),
    Resend(JobId),
}

impl NewJob {
    pub(super) fn new(node: NodeKey, kind: JobKind) -> Self {
        Self::leading(node, kind, VecDeque::new())
    }

    /// Makes a job whose entries lead these groups of hard links.
    pub(super) fn leading(node: NodeKey, kind: JobKind, leads: VecDeque<(Name, FileId)>) -> Self {
        Self { node, kind, leads }
    }
}
