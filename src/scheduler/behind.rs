//! Jobs that wait behind others, for workers that become idle.

use std::sync::Arc;

use crate::protocol::Job;
use crate::scoreboard::claims::{Claim, Claims};

/// How long the list may be before it is cleared, if no job is running.
const MOST: usize = 16;

/// Jobs that were sent behind others and may not have been claimed yet.
#[derive(Default)]
pub(crate) struct Behind {
    jobs: Vec<Arc<Job>>,
}

impl Behind {
    /// Adds the jobs of a batch that was sent. If a worker was idle, it is about to take the first one.
    pub(crate) fn add(&mut self, batch: &[Arc<Job>], was_idle: bool) {
        let waiting = batch.iter().skip(usize::from(was_idle));
        self.jobs.extend(waiting.cloned());
    }

    /// Takes the job that would be the last one to run. A worker may claim it meanwhile: then who gets
    /// it again skips it.
    pub(crate) fn pop(&mut self, claims: Claims) -> Option<Arc<Job>> {
        while let Some(job) = self.jobs.pop() {
            if is_open(&job, claims) {
                return Some(job);
            }
        }
        None
    }

    /// Keeps the list as short as the number of running jobs.
    pub(crate) fn forget_claimed(&mut self, claims: Claims, running: usize) {
        if self.jobs.len() > 2 * running + MOST {
            self.jobs.retain(|job| is_open(job, claims));
        }
    }
}

/// The word of a job that has ended is free, or another job's. So it is not open.
fn is_open(job: &Job, claims: Claims) -> bool {
    claims.read(job.claim, job.id) == Claim::Open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::RelPath;
    use crate::fs::sys;
    use crate::protocol::entry::DirOrigin;
    use crate::protocol::{JobId, JobKind};

    #[test]
    fn the_list_stays_short() {
        let count: JobId = 512;
        let claims = Claims::new(sys::shared_words(count as usize).unwrap());
        let mut behind = Behind::default();
        for id in 0..count {
            let job = Arc::new(Job {
                id,
                claim: id as u32,
                target: 0,
                path: RelPath::default(),
                origin: DirOrigin::default(),
                kind: JobKind::EmptyDirectory,
                suspects: Vec::new(),
            });
            claims.publish(job.claim, id);
            behind.add(&[job], false);
            assert!(claims.claim(id as u32, id, 0));
            behind.forget_claimed(claims, 0);
        }
        assert!(behind.jobs.len() <= MOST);
        assert!(behind.pop(claims).is_none());
    }
}
