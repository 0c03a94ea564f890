//! The slot in which a worker shows its state to the parent.
//!
//! The parent reads it for the bar, for signs of progress, and to find the entry of a crash. Only
//! reports decide whether an entry was copied. A report's counts are differences of the counters
//! here (`worker/current.rs`).

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use rustix::process::Pid;

use crate::fs::path::Name;
use crate::protocol::entry::Outcome;
use crate::protocol::{Counts, JobId};

/// Words of a slot: 1 KiB, so that two workers never write to the same cache line.
pub(super) const SLOT_WORDS: usize = 128;

const PID: usize = 0;
const JOB: usize = 1;
const HEARTBEAT: usize = 2;
const WRITING: usize = 3;
/// Entries of this job that the worker is done with.
const ENTRIES_DONE: usize = 4;
const NAME_LENGTH: usize = 5;
/// The counters, in the order of [`Counts::to_array`].
const COUNTS: usize = 6;
const NAME: usize = 16;
/// Words for an entry's name: at most 255 bytes on file systems of Linux, and 255 UTF-16 units on
/// NTFS, exFAT and SMB, which are up to 765 bytes.
const NAME_WORDS: usize = 96;
/// The thread that the worker is.
const THREAD: usize = NAME + NAME_WORDS;
const GATE: usize = THREAD + 1;
/// Nanoseconds in which it waited at the gate.
const WAITED: usize = THREAD + 2;
/// Requests that have copied contents.
const REQUESTS: usize = THREAD + 3;
/// Bytes that were copied, and [`WORK_PER_FILE`] for each file.
const WORK: usize = THREAD + 4;
/// The listing of this job's directory has ended.
const LISTED: usize = THREAD + 5;
/// It waits until the disk has everything (`--fsync`).
const SYNCING: usize = THREAD + 6;
/// The worker's number in temporary names, plus one. Only rows that mirror a worker of another
/// machine have it.
const NAMED: usize = THREAD + 7;
/// A file costs as much as so many bytes.
const WORK_PER_FILE: u64 = 64 << 10;

/// The name under which a worker is writing at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteTarget {
    None,
    /// The entry's own name, which did not exist before.
    Final,
    /// The worker's temporary name of this number.
    Temp(u32),
    /// The same, for a file that is prepared to be copied in chunks. It holds one of the places
    /// for such files, and the parent does not know of it yet.
    Chunked(u32),
}

/// Where a worker is that copies contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    /// It does something else.
    Outside,
    /// It waits for a permit.
    Waiting,
    /// It copies without a permit.
    Open,
    /// It copies with this permit, unless the parent has taken it away.
    Permit(usize),
}

/// One worker's slot. Only that worker writes to it.
#[derive(Clone, Copy)]
pub(crate) struct WorkerSlot {
    words: &'static [AtomicU64],
}

impl WorkerSlot {
    pub(super) fn new(words: &'static [AtomicU64]) -> Self {
        debug_assert_eq!(words.len(), SLOT_WORDS);
        Self { words }
    }

    /// Publishes the PID of a worker process.
    pub(crate) fn set_pid(&self, pid: Pid) {
        self.words[PID].store(pid.as_raw_nonzero().get() as u64, Release);
    }

    /// Returns the worker's process number once it lives; `None` for a thread, or if the worker's
    /// memory is damaged.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let pid = i32::try_from(self.words[PID].load(Acquire)).ok()?;
        // To kill a negative number is to kill a process group.
        (pid > 0).then(|| Pid::from_raw(pid)).flatten()
    }

    /// Says which thread the worker is, to read its processor time.
    pub(crate) fn set_thread(&self, thread: Pid) {
        self.words[THREAD].store(thread.as_raw_nonzero().get() as u64, Release);
    }

    /// Returns the worker's thread once it lives.
    pub(crate) fn thread(&self) -> Option<Pid> {
        let thread = i32::try_from(self.words[THREAD].load(Acquire)).ok()?;
        (thread > 0).then(|| Pid::from_raw(thread)).flatten()
    }

    pub(super) fn set_gate(&self, state: GateState) {
        let word = match state {
            GateState::Outside => 0,
            GateState::Waiting => 1,
            GateState::Open => 2,
            GateState::Permit(permit) => 3 + permit as u64,
        };
        self.words[GATE].store(word, Relaxed);
    }

    pub(crate) fn gate(&self) -> GateState {
        match self.words[GATE].load(Relaxed) {
            0 => GateState::Outside,
            1 => GateState::Waiting,
            2 => GateState::Open,
            permit => GateState::Permit(permit as usize - 3),
        }
    }

    pub(super) fn add_waited(&self, time: Duration) {
        self.add(WAITED, time.as_nanos() as u64);
    }

    /// Returns how long the worker has waited at the gate so far.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.words[WAITED].load(Relaxed))
    }

    /// Counts a file, or a part of one, whose contents are copied.
    pub(crate) fn end_contents(&self) {
        self.add(WORK, WORK_PER_FILE);
    }

    /// Returns how many requests have copied contents, and how much work that was.
    pub(crate) fn work(&self) -> (u64, u64) {
        let word = |index: usize| self.words[index].load(Relaxed);
        (word(REQUESTS), word(WORK))
    }

    /// Says whether the worker waits until the disk has everything.
    pub(crate) fn set_syncing(&self, is_syncing: bool) {
        self.words[SYNCING].store(u64::from(is_syncing), Relaxed);
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.words[SYNCING].load(Relaxed) != 0
    }

    /// Says that the worker has claimed this job and begins it.
    pub(crate) fn begin_job(&self, job: JobId) {
        // Before the job's number: the parent must not see the last job's entry in this one.
        self.words[NAME_LENGTH].store(0, Relaxed);
        self.words[WRITING].store(0, Relaxed);
        self.words[ENTRIES_DONE].store(0, Relaxed);
        self.words[LISTED].store(0, Relaxed);
        self.words[JOB].store(job, Release);
        self.heartbeat();
    }

    /// Says that the worker has nothing to do.
    pub(crate) fn become_idle(&self) {
        self.words[JOB].store(0, Release);
        self.words[NAME_LENGTH].store(0, Release);
        self.heartbeat();
    }

    /// Returns the job that the worker runs.
    pub(crate) fn job(&self) -> Option<JobId> {
        Some(self.words[JOB].load(Acquire)).filter(|&job| job != 0)
    }

    /// Says that the worker is busy with the directory itself.
    pub(crate) fn begin_dir(&self) {
        self.words[NAME_LENGTH].store(0, Release);
        self.heartbeat();
    }

    /// Says that the worker has read the listing of its job's directory to the end.
    pub(crate) fn end_listing(&self) {
        self.words[LISTED].store(1, Relaxed);
    }

    /// Returns true if the worker has read that listing to the end.
    pub(crate) fn has_listed(&self) -> bool {
        self.words[LISTED].load(Relaxed) != 0
    }

    /// Says that the worker begins an entry of its job.
    pub(crate) fn begin_entry(&self, name: &[u8]) {
        self.words[NAME_LENGTH].store(0, Relaxed);
        for (word, bytes) in self.words[NAME..NAME + NAME_WORDS]
            .iter()
            .zip(name.chunks(8))
        {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Relaxed);
        }
        self.words[NAME_LENGTH].store(name.len() as u64, Release);
        self.heartbeat();
    }

    /// Returns the entry that the worker is at; `None` at the directory itself, or if the
    /// worker's memory is damaged. For a running worker this may be a mix of two names.
    pub(crate) fn entry(&self) -> Option<Name> {
        let length = self.words[NAME_LENGTH]
            .load(Acquire)
            .min(8 * NAME_WORDS as u64) as usize;
        let mut name: Vec<u8> = self.words[NAME..NAME + length.div_ceil(8)]
            .iter()
            .flat_map(|word| word.load(Relaxed).to_ne_bytes())
            .collect();
        name.truncate(length);
        Name::checked(name)
    }

    /// Shows progress: the worker is not stuck.
    pub(crate) fn heartbeat(&self) {
        self.add(HEARTBEAT, 1);
    }

    /// Returns a number that changes whenever the worker makes progress.
    pub(crate) fn heartbeats(&self) -> u64 {
        self.words[HEARTBEAT].load(Relaxed)
    }

    /// Says under which name the worker writes from now on.
    pub(crate) fn set_writing(&self, target: WriteTarget) {
        let word = match target {
            WriteTarget::None => 0,
            WriteTarget::Final => 1,
            WriteTarget::Temp(number) => 2 | u64::from(number) << 8,
            WriteTarget::Chunked(number) => 3 | u64::from(number) << 8,
        };
        self.words[WRITING].store(word, Release);
    }

    pub(crate) fn writing(&self) -> WriteTarget {
        let word = self.words[WRITING].load(Acquire);
        let number = (word >> 8) as u32;
        match word & 0xff {
            1 => WriteTarget::Final,
            2 => WriteTarget::Temp(number),
            3 => WriteTarget::Chunked(number),
            _ => WriteTarget::None,
        }
    }

    /// Says that the worker is done with an entry, however it ended. If it crashes now, that is
    /// not because of this entry.
    pub(crate) fn end_entry(&self) {
        self.words[NAME_LENGTH].store(0, Release);
        self.add(ENTRIES_DONE, 1);
    }

    /// Returns how many entries of its job the worker is done with.
    pub(crate) fn entries_done(&self) -> u64 {
        self.words[ENTRIES_DONE].load(Relaxed)
    }

    /// Counts an entry that was listed.
    pub(crate) fn add_found(&self) {
        self.add(COUNTS, 1);
    }

    /// Counts a regular file whose size is known now, in bytes.
    pub(crate) fn add_size(&self, bytes: u64) {
        self.add(COUNTS + 1, 1);
        self.add(COUNTS + 2, bytes);
    }

    /// Counts a finished entry.
    pub(crate) fn add_outcome(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Copied => 3,
            Outcome::Unchanged => 4,
            Outcome::Skipped => 5,
            Outcome::Deleted => 9,
        };
        self.add(COUNTS + counter, 1);
    }

    /// Counts an entry that was copied because it could not become a hard link.
    pub(crate) fn add_unlinked(&self) {
        self.add(COUNTS + 7, 1);
    }

    /// Counts bytes that were copied. That is progress.
    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.add(COUNTS + 6, bytes);
        self.add(WORK, bytes);
        self.add(REQUESTS, 1);
        self.heartbeat();
    }

    /// Counts bytes that were read to compare them. That is progress.
    pub(crate) fn add_read(&self, bytes: u64) {
        self.add(WORK, bytes);
        self.add(REQUESTS, 1);
        self.heartbeat();
    }

    /// Counts bytes that do not have to be copied.
    pub(crate) fn add_spared(&self, bytes: u64) {
        self.add(COUNTS + 8, bytes);
    }

    /// Returns how many bytes the worker has copied since it began.
    pub(crate) fn bytes(&self) -> u64 {
        self.words[COUNTS + 6].load(Relaxed)
    }

    /// Returns what the worker has counted since it began.
    pub(crate) fn counts(&self) -> Counts {
        let word = |index: usize| self.words[COUNTS + index].load(Relaxed);
        Counts::from_array(std::array::from_fn(word))
    }

    /// Resets the counters to an earlier state.
    pub(crate) fn reset_counts(&self, counts: Counts) {
        for (index, count) in counts.to_array().into_iter().enumerate() {
            self.words[COUNTS + index].store(count, Relaxed);
        }
    }

    /// Returns what the worker shows to the parent, to be shown elsewhere too. Without the words that
    /// mean something on this machine only.
    pub(crate) fn to_words(self) -> Vec<u64> {
        let name = self.words[NAME_LENGTH]
            .load(Acquire)
            .min(8 * NAME_WORDS as u64);
        let used = NAME + (name as usize).div_ceil(8);
        let words = [LISTED, SYNCING].into_iter().chain(0..used);
        let words = words.map(|index| self.words[index].load(Relaxed));
        words.collect()
    }

    /// Shows what [`WorkerSlot::to_words`] has returned elsewhere. Ignores words that are too many.
    pub(crate) fn mirror(self, words: &[u64]) {
        let shown = [LISTED, SYNCING].into_iter().chain(0..NAME + NAME_WORDS);
        for (index, value) in shown.zip(words) {
            self.words[index].store(*value, Relaxed);
        }
    }

    /// Sets the number that the worker has in temporary names.
    pub(super) fn set_named(&self, number: u64) {
        self.words[NAMED].store(number + 1, Relaxed);
    }

    pub(super) fn named(&self) -> Option<u64> {
        self.words[NAMED].load(Relaxed).checked_sub(1)
    }

    /// Adds without a locked instruction: each word has one writer.
    fn add(&self, index: usize, number: u64) {
        let word = &self.words[index];
        word.store(word.load(Relaxed).wrapping_add(number), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_reads_what_a_worker_writes() {
        let words: &'static [AtomicU64] =
            Box::leak(Box::new([const { AtomicU64::new(0) }; SLOT_WORDS]));
        let slot = WorkerSlot::new(words);
        assert_eq!(slot.entry(), None);
        for damaged in [0, u64::MAX, 1 << 32, u64::from(u32::MAX)] {
            words[PID].store(damaged, Release);
            assert_eq!(slot.pid(), None);
        }
        slot.begin_job(7);
        for name in [&[b'x'; 255][..], b"short", b"12345678"] {
            slot.begin_entry(name);
            assert_eq!(slot.entry(), Some(Name::new(name)));
        }
        for target in [
            WriteTarget::Final,
            WriteTarget::Temp(7),
            WriteTarget::Chunked(u32::MAX),
        ] {
            slot.set_writing(target);
            assert_eq!(slot.writing(), target);
        }
        slot.add_outcome(Outcome::Copied);
        slot.add_bytes(10);
        slot.end_entry();
        assert_eq!((slot.job(), slot.entry()), (Some(7), None));
        assert_eq!(slot.entries_done(), 1);
        let counts = slot.counts();
        assert_eq!((counts.copied, counts.bytes), (1, 10));
        slot.add_outcome(Outcome::Skipped);
        slot.reset_counts(counts);
        assert_eq!(slot.counts(), counts);
        slot.become_idle();
        assert_eq!(slot.job(), None);
    }
}
