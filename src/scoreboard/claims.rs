//! Who runs a job: one word of shared memory for each job in flight.
//!
//! **A job is run by the worker that claims it.** The parent publishes a job before it sends it,
//! and a worker begins it with one compare-exchange. So the parent may send the same job to any
//! worker, at any time, and repeatedly. At most one worker runs it.
//!
//! Why this holds: only `publish` stores an open word, and job numbers are never used twice. So a
//! word equals `open(J)` only from `publish(J)` until the first successful compare-exchange. That
//! replaces `open(J)`, so a second one fails. Reusing the word for a later job changes nothing: a
//! late copy of J still compares with `open(J)`. The tests below check this with loom, which tries
//! every interleaving.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crate::protocol::JobId;

/// Bits of a word for the job's number; the worker's number plus one is above them.
const JOB_BITS: u32 = 48;
const FREE: u64 = 0;

/// Who has claimed a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// No worker has claimed it.
    Open,
    By(usize),
    /// The word belongs to another job: this one has ended.
    Ended,
}

/// The table of claims, shared by the parent and all workers.
#[derive(Clone, Copy)]
pub(crate) struct Claims {
    words: &'static [AtomicU64],
}

impl Claims {
    pub(crate) fn new(words: &'static [AtomicU64]) -> Self {
        Self { words }
    }

    /// Returns how many jobs can be in flight at one time.
    pub(crate) fn capacity(&self) -> usize {
        self.words.len()
    }

    /// Opens a job to claims. The parent calls this before it sends the job.
    pub(crate) fn publish(&self, index: u32, job: JobId) {
        self.words[index as usize].put(open(job));
    }

    /// Claims a job for a worker. Returns false if another worker has it, or had it and it has
    /// ended. An index from a damaged message claims nothing.
    pub(crate) fn claim(&self, index: u32, job: JobId, worker: usize) -> bool {
        let word = self.words.get(index as usize);
        word.is_some_and(|word| try_claim(word, job, worker))
    }

    /// Returns who has claimed a job.
    pub(crate) fn read(&self, index: u32, job: JobId) -> Claim {
        claim_of(self.words[index as usize].get(), job)
    }

    /// Hands a claimed job over to another worker. Returns false if `from` has not claimed it.
    ///
    /// Only for a table that no worker claims from: that of a lead, whose nodes have their own.
    pub(crate) fn hand_over(&self, index: u32, job: JobId, from: usize, to: usize) -> bool {
        self.words[index as usize].replace(claimed(job, from), claimed(job, to))
    }

    /// Frees the word of a job that has ended.
    pub(crate) fn release(&self, index: u32) {
        self.words[index as usize].put(FREE);
    }
}

const fn open(job: JobId) -> u64 {
    job
}

const fn claimed(job: JobId, worker: usize) -> u64 {
    (worker as u64 + 1) << JOB_BITS | job
}

fn try_claim(word: &impl Word, job: JobId, worker: usize) -> bool {
    word.replace(open(job), claimed(job, worker))
}

fn claim_of(word: u64, job: JobId) -> Claim {
    let (owner, claimed_job) = (word >> JOB_BITS, word & ((1 << JOB_BITS) - 1));
    match owner {
        _ if claimed_job != job => Claim::Ended,
        0 => Claim::Open,
        owner => Claim::By(owner as usize - 1),
    }
}

/// An atomic word: the one of std, or loom's in the model.
trait Word {
    fn get(&self) -> u64;
    fn put(&self, value: u64);
    /// Replaces `from` by `to`. Returns false if the word had another value.
    fn replace(&self, from: u64, to: u64) -> bool;
}

macro_rules! word {
    ($type:ty) => {
        impl Word for $type {
            fn get(&self) -> u64 {
                self.load(Acquire)
            }
            fn put(&self, value: u64) {
                self.store(value, Release);
            }
            fn replace(&self, from: u64, to: u64) -> bool {
                self.compare_exchange(from, to, AcqRel, Acquire).is_ok()
            }
        }
    };
}

word!(AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    word!(loom::sync::atomic::AtomicU64);

    fn published(job: JobId) -> Arc<loom::sync::atomic::AtomicU64> {
        let word = Arc::new(loom::sync::atomic::AtomicU64::new(FREE));
        word.put(open(job));
        word
    }

    #[test]
    fn two_workers_never_run_the_same_job() {
        loom::model(|| {
            let word = published(7);
            let claims: Vec<_> = (0..2)
                .map(|worker| {
                    let word = Arc::clone(&word);
                    thread::spawn(move || try_claim(&*word, 7, worker))
                })
                .collect();
            let claims = claims.into_iter().map(|claim| claim.join().unwrap());
            assert_eq!(claims.filter(|&claimed| claimed).count(), 1);
        });
    }

    /// A slow worker still holds a copy of job 7 that another one has run. Its word is in use
    /// for job 8.
    #[test]
    fn a_late_copy_of_a_job_claims_nothing_in_a_reused_word() {
        loom::model(|| {
            let word = published(7);
            let late = {
                let word = Arc::clone(&word);
                thread::spawn(move || try_claim(&*word, 7, 0))
            };
            let first = try_claim(&*word, 7, 1);
            if first {
                // The parent has the report of worker 1, and reuses the word.
                word.put(FREE);
                word.put(open(8));
            }
            let late = late.join().unwrap();
            assert_ne!(first, late, "exactly one runs job 7");
            if first {
                assert_eq!(claim_of(word.get(), 8), Claim::Open);
                assert!(try_claim(&*word, 8, 2));
            }
        });
    }

    #[test]
    fn the_parent_sees_who_has_a_job() {
        let words: &'static [AtomicU64] = Box::leak(Box::new([const { AtomicU64::new(0) }; 2]));
        let claims = Claims::new(words);
        claims.publish(1, 7);
        assert_eq!(claims.read(1, 7), Claim::Open);
        assert!(claims.claim(1, 7, 65_000));
        assert!(!claims.claim(1, 7, 2));
        assert_eq!(claims.read(1, 7), Claim::By(65_000));
        assert_eq!(claims.read(1, 6), Claim::Ended);
        claims.release(1);
        assert_eq!(claims.read(1, 7), Claim::Ended);
        assert!(!claims.claim(9, 7, 0), "an index from a damaged message");
        claims.publish(1, 8);
        assert!(claims.claim(1, 8, 3));
        assert!(!claims.hand_over(1, 8, 4, 5) && !claims.hand_over(1, 7, 3, 5));
        assert!(claims.hand_over(1, 8, 3, 5));
        assert_eq!(claims.read(1, 8), Claim::By(5));
    }
}
