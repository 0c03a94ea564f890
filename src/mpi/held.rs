//! The jobs at a node: the lead has sent them, and no worker here has reported them done.

use std::sync::Arc;

use crate::engine::Sent;
use crate::protocol::job_map::JobMap;
use crate::protocol::{Job, JobId};
use crate::scheduler::behind::Behind;
use crate::scoreboard::claims::{Claim, Claims};

/// The number that stands for no worker in claims of jobs that are given back.
const NOBODY: usize = 65_000;

struct Held {
    job: Arc<Job>,
    /// The worker that got it last, if it was sent to a certain one.
    sent_to: Option<usize>,
    batch: u64,
}

pub(super) struct HeldJobs {
    claims: Claims,
    jobs: JobMap<Held>,
    behind: Behind,
    last_batch: u64,
}

/// Divides jobs into a batch for each idle worker. If all are busy, there is one batch.
pub(super) fn divide(jobs: &[Arc<Job>], idle: usize) -> impl Iterator<Item = &[Arc<Job>]> {
    jobs.chunks(jobs.len().div_ceil(idle.max(1)).max(1))
}

impl HeldJobs {
    pub(super) fn new(claims: Claims) -> Self {
        Self {
            claims,
            jobs: JobMap::default(),
            behind: Behind::default(),
            last_batch: 0,
        }
    }

    /// Notes a batch that was sent. If a worker was idle, it is about to take the first job.
    pub(super) fn on_sent(&mut self, batch: &[Arc<Job>], sent: Sent, was_idle: bool) {
        self.last_batch += 1;
        let sent_to = match sent {
            Sent::To(worker) => Some(worker),
            Sent::ToAll | Sent::NoWorkers => None,
        };
        self.behind.add(batch, was_idle);
        for job in batch {
            let held = Held {
                sent_to,
                batch: self.last_batch,
                job: Arc::clone(job),
            };
            self.jobs.insert(job.id, held);
        }
        self.behind.forget_claimed(self.claims, self.jobs.len());
    }

    /// Notes that a job is done.
    pub(super) fn end(&mut self, id: JobId) {
        self.jobs.remove(&id);
    }

    /// Returns the batch that a job was last sent in.
    pub(super) fn batch(&self, id: JobId) -> Option<u64> {
        Some(self.jobs.get(&id)?.batch)
    }

    /// Takes the job that would be the last one to run, from those that wait behind others.
    pub(super) fn pop_behind(&mut self) -> Option<Arc<Job>> {
        while let Some(job) = self.behind.pop(self.claims) {
            // A worker may say that a job is done which it has not claimed.
            if self.jobs.contains_key(&job.id) {
                return Some(job);
            }
        }
        None
    }

    /// Claims jobs for nobody, and forgets them. Returns those that no worker had claimed.
    pub(super) fn take_back(&mut self, ids: Vec<JobId>) -> Vec<JobId> {
        let mut taken = ids;
        taken.retain(|&id| {
            let held = self.jobs.get(&id);
            held.is_some_and(|held| self.claims.claim(held.job.claim, id, NOBODY))
        });
        for id in &taken {
            self.jobs.remove(id);
        }
        taken
    }

    /// Returns up to `most` jobs that no worker has claimed. What came last would be done last, so it
    /// is the first one here.
    pub(super) fn last_open(&self, most: usize) -> Vec<JobId> {
        let mut ids: Vec<JobId> = self.all_open().map(|held| held.job.id).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(most);
        ids
    }

    /// Returns the jobs that no worker has claimed and that wait with this one. Workers that share a
    /// queue have the rest of `batch`.
    pub(super) fn open_with(&self, worker: usize, batch: Option<u64>) -> Vec<Arc<Job>> {
        let is_with_it = |held: &&Held| match held.sent_to {
            Some(sent_to) => sent_to == worker,
            None => batch == Some(held.batch),
        };
        let open = self.all_open().filter(is_with_it);
        let mut jobs: Vec<Arc<Job>> = open.map(|held| Arc::clone(&held.job)).collect();
        jobs.sort_unstable_by_key(|job| job.id);
        jobs
    }

    /// Forgets the jobs that a lost worker had claimed, and returns them.
    pub(super) fn take_claimed(&mut self, worker: usize) -> Vec<JobId> {
        let is_its = |held: &&Held| self.claim(held) == Claim::By(worker);
        let claimed = self.jobs.values().filter(is_its);
        let claimed: Vec<JobId> = claimed.map(|held| held.job.id).collect();
        for id in &claimed {
            self.jobs.remove(id);
        }
        claimed
    }

    fn claim(&self, held: &Held) -> Claim {
        self.claims.read(held.job.claim, held.job.id)
    }

    fn all_open(&self) -> impl Iterator<Item = &Held> {
        let held = self.jobs.values();
        held.filter(|held| self.claim(held) == Claim::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::RelPath;
    use crate::fs::sys;
    use crate::protocol::JobKind;
    use crate::protocol::entry::DirOrigin;

    const JOBS: usize = 16;

    fn job(id: JobId) -> Arc<Job> {
        Arc::new(Job {
            id,
            claim: id as u32,
            target: 0,
            path: RelPath::default(),
            origin: DirOrigin::default(),
            kind: JobKind::EmptyDirectory,
            suspects: Vec::new(),
        })
    }

    /// Makes the table of claims, and jobs with the numbers 1, 2 and so on.
    fn jobs(count: usize) -> (Claims, Vec<Arc<Job>>) {
        let claims = Claims::new(sys::shared_words(JOBS).unwrap());
        let jobs: Vec<_> = (1..=count as JobId).map(job).collect();
        for job in &jobs {
            claims.publish(job.claim, job.id);
        }
        (claims, jobs)
    }

    fn ids(jobs: &[Arc<Job>]) -> Vec<JobId> {
        jobs.iter().map(|job| job.id).collect()
    }

    #[test]
    fn each_idle_worker_gets_a_part() {
        let (_, jobs) = jobs(7);
        let sizes = |idle| divide(&jobs, idle).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(0), [7], "all are busy");
        assert_eq!(sizes(1), [7]);
        assert_eq!(sizes(3), [3, 3, 1]);
        assert_eq!(sizes(16), [1; 7]);
        assert_eq!(divide(&[], 3).count(), 0);
    }

    #[test]
    fn jobs_behind_others_go_to_idle_workers_if_nobody_has_claimed_them() {
        let (claims, jobs) = jobs(5);
        let mut held = HeldJobs::new(claims);
        held.on_sent(&jobs, Sent::To(0), true);
        assert!(claims.claim(4, 4, 0));
        held.end(3);
        let waiting: Vec<_> = std::iter::from_fn(|| held.pop_behind()).collect();
        // The idle worker is about to take the first one.
        assert_eq!(ids(&waiting), [5, 2]);
    }

    #[test]
    fn a_job_that_a_worker_has_claimed_is_not_given_back() {
        let (claims, jobs) = jobs(4);
        let mut held = HeldJobs::new(claims);
        held.on_sent(&jobs, Sent::ToAll, false);
        assert!(claims.claim(2, 2, 7));
        assert_eq!(held.last_open(2), [4, 3]);
        assert_eq!(held.take_back(vec![1, 2, 9]), [1]);
        assert!(!claims.claim(1, 1, 7), "a worker would still run it");
        assert_eq!(held.last_open(9), [4, 3]);
        assert_eq!(held.take_claimed(7), [2]);
    }

    #[test]
    fn what_waits_with_a_stuck_worker_is_found() {
        let (claims, jobs) = jobs(6);
        let mut held = HeldJobs::new(claims);
        held.on_sent(&jobs[..2], Sent::To(3), false);
        held.on_sent(&jobs[2..5], Sent::ToAll, false);
        held.on_sent(&jobs[5..], Sent::To(4), false);
        assert!(claims.claim(1, 1, 3) && claims.claim(3, 3, 3));
        assert_eq!(ids(&held.open_with(3, held.batch(3))), [2, 4, 5]);
        assert_eq!(ids(&held.open_with(4, None)), [6]);
    }
}
