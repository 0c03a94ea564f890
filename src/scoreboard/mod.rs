//! Memory that the parent and all workers share, whether the workers are threads or processes.
//!
//! Five things live in it: who has claimed which job ([`claims`]), who may copy contents
//! ([`gate`]) and how fast ([`bandwidth`]), what each worker is doing ([`slot`]), and a few words
//! for all workers. Nothing here costs a system call, and the parent can still read what a dead
//! worker wrote last.

pub(crate) mod bandwidth;
pub(crate) mod claims;
pub(crate) mod gate;
mod slot;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::fs::sys;
use bandwidth::Bandwidth;
use claims::Claims;
use gate::Gate;
use slot::SLOT_WORDS;
pub(crate) use slot::{GateState, WorkerSlot, WriteTarget};

/// Files that are copied in chunks at one time.
const CHUNKED_AT_ONCE: u64 = 16;

const STOP: usize = 0;
const STOPPING: u64 = 1;
const FINISHING: u64 = 2;
const WANTED: usize = 1;
const CHUNKED: usize = 2;
const RUN: usize = 3;
const BANDWIDTH: usize = 4;
const DELETED: usize = 5;
const SYNC_ALONE: usize = 6;
/// What is added to a worker's number in temporary names.
const FIRST_NAMED: usize = 7;
const COMMON_WORDS: usize = 8;

/// The shared memory of one run.
#[derive(Clone, Copy)]
pub(crate) struct Scoreboard {
    common: &'static [AtomicU64],
    slots: &'static [AtomicU64],
    pub(crate) claims: Claims,
    pub(crate) gate: Gate,
    pub(crate) bandwidth: Bandwidth,
}

impl Scoreboard {
    /// Makes a scoreboard for at most `workers` workers, replacements included, `jobs` jobs in
    /// flight, and `permits` workers that copy contents. Untouched pages cost nothing.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn new(workers: usize, jobs: usize, permits: usize) -> io::Result<Self> {
        let common = sys::shared_words(COMMON_WORDS)?;
        Ok(Self {
            common,
            bandwidth: Bandwidth::new(&common[BANDWIDTH]),
            slots: sys::shared_words(workers * SLOT_WORDS)?,
            claims: Claims::new(sys::shared_words(jobs)?),
            gate: Gate::new(sys::shared_words(permits + 1)?, sys::shared_futex()?),
        })
    }

    /// Returns how many workers there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len() / SLOT_WORDS
    }

    pub(crate) fn slot(&self, worker: usize) -> WorkerSlot {
        WorkerSlot::new(&self.slots[worker * SLOT_WORDS..(worker + 1) * SLOT_WORDS])
    }

    /// Tells all workers to stop.
    pub(crate) fn stop(&self) {
        self.common[STOP].store(STOPPING, Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.common[STOP].load(Relaxed) == STOPPING
    }

    /// Tells all workers to begin no more entries.
    pub(crate) fn finish(&self) {
        let _ = self.common[STOP].compare_exchange(0, FINISHING, Release, Relaxed);
    }

    /// Returns true if no more entries may be begun.
    pub(crate) fn is_finishing(&self) -> bool {
        self.common[STOP].load(Relaxed) != 0
    }

    /// Tells all workers to sync each file alone from now on (`--fsync`).
    pub(crate) fn sync_alone(&self) {
        self.common[SYNC_ALONE].store(1, Release);
    }

    pub(crate) fn must_sync_alone(&self) -> bool {
        self.common[SYNC_ALONE].load(Relaxed) != 0
    }

    /// Returns the number of the run. The first caller finds it, and all get the same one.
    pub(crate) fn run_number(&self, find: impl FnOnce() -> u64) -> u64 {
        let run = &self.common[RUN];
        match run.load(Relaxed) {
            0 => {
                let found = find();
                let stored = run.compare_exchange(0, found, Relaxed, Relaxed);
                stored.map_or_else(|earlier| earlier, |_| found)
            }
            number => number,
        }
    }

    /// Says that the workers here have numbers from this one on in temporary names.
    pub(crate) fn set_first_named(&self, number: u64) {
        self.common[FIRST_NAMED].store(number, Relaxed);
    }

    /// Says that this slot mirrors a worker that has another number in temporary names.
    pub(crate) fn set_named(&self, worker: usize, number: u64) {
        self.slot(worker).set_named(number);
    }

    /// Returns a worker's number in temporary names.
    pub(crate) fn named(&self, worker: usize) -> u64 {
        let own = || self.common[FIRST_NAMED].load(Relaxed) + worker as u64;
        self.slot(worker).named().unwrap_or_else(own)
    }

    /// Returns how many more jobs idle workers would take at once.
    pub(crate) fn wanted(&self) -> usize {
        self.common[WANTED].load(Relaxed) as usize
    }

    /// Sets how many more jobs idle workers would take at once.
    pub(crate) fn set_wanted(&self, jobs: usize) {
        self.common[WANTED].store(jobs as u64, Relaxed);
    }

    /// Returns true if the calling worker should give away a part of its work. Each `true`
    /// stands for one job that is wanted.
    pub(crate) fn take_wanted(&self) -> bool {
        let wanted = &self.common[WANTED];
        let one_less = |wanted: u64| wanted.checked_sub(1);
        wanted.load(Relaxed) != 0 && wanted.fetch_update(Relaxed, Relaxed, one_less).is_ok()
    }

    /// Reserves a place for a chunked file. Returns false if all places are taken.
    pub(crate) fn begin_chunked(&self) -> bool {
        let one_more = |files| (files < CHUNKED_AT_ONCE).then_some(files + 1);
        self.common[CHUNKED]
            .fetch_update(AcqRel, Acquire, one_more)
            .is_ok()
    }

    /// Counts an entry that is about to be deleted. Returns false if `limit` entries are.
    pub(crate) fn begin_deletion(&self, limit: u64) -> bool {
        let one_more = |deleted: u64| (deleted < limit).then(|| deleted + 1);
        self.common[DELETED]
            .fetch_update(Relaxed, Relaxed, one_more)
            .is_ok()
    }

    /// Allows no more deletions.
    pub(crate) fn end_deletions(&self) {
        self.common[DELETED].store(u64::MAX, Relaxed);
    }

    /// Takes back [`Scoreboard::begin_deletion`] for an entry that was not deleted.
    pub(crate) fn undo_deletion(&self) {
        self.common[DELETED].fetch_sub(1, Relaxed);
    }

    /// Frees the place of a chunked file.
    pub(crate) fn end_chunked(&self) {
        let one_less = |files: u64| files.checked_sub(1);
        let _ = self.common[CHUNKED].fetch_update(AcqRel, Acquire, one_less);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wanted_job_is_taken_once() {
        let scoreboard = Scoreboard::new(1, 1, 1).unwrap();
        assert!(!scoreboard.take_wanted());
        scoreboard.set_wanted(2);
        assert!(scoreboard.take_wanted());
        assert!(scoreboard.take_wanted());
        assert!(!scoreboard.take_wanted());
    }

    #[test]
    fn each_worker_of_a_run_has_another_number_in_names() {
        let scoreboard = Scoreboard::new(2, 1, 1).unwrap();
        assert_eq!(scoreboard.named(1), 1);
        scoreboard.set_first_named(4096);
        assert_eq!(scoreboard.named(1), 4097);
        scoreboard.set_named(1, 0);
        assert_eq!((scoreboard.named(0), scoreboard.named(1)), (4096, 0));
    }

    #[test]
    fn a_mirror_shows_what_the_worker_shows() {
        let scoreboard = Scoreboard::new(2, 1, 1).unwrap();
        let (worker, mirror) = (scoreboard.slot(0), scoreboard.slot(1));
        worker.begin_job(7);
        worker.begin_entry(b"a name of more than one word");
        worker.set_writing(WriteTarget::Temp(3));
        worker.add_bytes(5);
        mirror.mirror(&worker.to_words());
        assert_eq!(
            (mirror.job(), mirror.entry()),
            (worker.job(), worker.entry())
        );
        assert_eq!(
            (mirror.writing(), mirror.counts()),
            (worker.writing(), worker.counts())
        );
        // From a damaged node.
        mirror.mirror(&[u64::MAX; 500]);
        assert_eq!(mirror.pid(), None);
    }

    #[test]
    fn the_run_has_one_number_whoever_asks_first() {
        let scoreboard = Scoreboard::new(1, 1, 1).unwrap();
        // Another worker is faster.
        let outer = scoreboard.run_number(|| {
            assert_eq!(scoreboard.run_number(|| 7), 7);
            8
        });
        assert_eq!(outer, 7);
        assert_eq!(scoreboard.run_number(|| 9), 7);
    }

    #[test]
    fn a_few_files_are_copied_in_chunks_at_one_time() {
        let scoreboard = Scoreboard::new(1, 1, 1).unwrap();
        assert!((0..CHUNKED_AT_ONCE).all(|_| scoreboard.begin_chunked()));
        assert!(!scoreboard.begin_chunked());
        scoreboard.end_chunked();
        assert!(scoreboard.begin_chunked());
    }
}
