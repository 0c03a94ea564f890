//! The board: memory that all workers and the parent share, whether the workers are threads or
//! processes. Workers write on it what they are at, the parent reads it; nothing here costs a
//! system call, and what a dead worker wrote last can still be read.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use rustix::process::Pid;

use crate::fs::path::Name;
use crate::fs::sys;
use crate::protocol::entry::Outcome;

/// Words for an entry's name: at most 255 bytes on file systems of Linux, and 255 UTF-16 units on
/// NTFS, exFAT and shares, which are up to 765 bytes.
const NAME_WORDS: usize = 3 * 32;

/// Files that are copied in pieces at one time.
const LARGE_AT_ONCE: u64 = 16;

/// Set in the word of a slot that says what the worker is at: the parent has taken back what was
/// dealt to it, up to the job that `taken` says.
const TAKEN: u64 = 1 << 63;

/// What the parent tells all workers.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Common {
    stop: AtomicU64,
    wanted: AtomicU64,
    large: AtomicU64,
}

/// What one worker tells the parent. Slots are 1 KiB apart, so that two workers never write to
/// the same cache line.
#[derive(Default)]
#[repr(C, align(1024))]
pub(crate) struct WorkerSlot {
    pid: AtomicU64,
    job: AtomicU64,
    taken: AtomicU64,
    is_open: AtomicU64,
    done_in_job: AtomicU64,
    beat: AtomicU64,
    found: AtomicU64,
    sized: AtomicU64,
    bytes_found: AtomicU64,
    copied: AtomicU64,
    unchanged: AtomicU64,
    skipped: AtomicU64,
    bytes: AtomicU64,
    making: AtomicU64,
    name_length: AtomicU64,
    name: [[AtomicU64; 32]; NAME_WORDS / 32],
}

/// Under which name a worker is writing an entry at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteTarget {
    /// Nothing is being written.
    None,
    /// Under the entry's own name, which did not exist before.
    Final,
    /// Under the worker's temporary name of this number.
    Temp(u32),
}

/// Sums over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Entries that listings have shown so far, without folders.
    pub(crate) found: u64,
    /// Regular files that are to be copied and whose sizes are known so far.
    pub(crate) sized: u64,
    /// Bytes of these.
    pub(crate) bytes_found: u64,
    /// Entries that were made or replaced at the destination.
    pub(crate) copied: u64,
    /// Entries that were left alone because they were the same.
    pub(crate) unchanged: u64,
    /// Entries that `--overwrite` said to leave alone.
    pub(crate) skipped: u64,
    /// Bytes that were copied.
    pub(crate) bytes: u64,
}

impl Counts {
    /// Entries that are done with, but for those that failed.
    pub(crate) fn done(&self) -> u64 {
        self.copied + self.unchanged + self.skipped
    }
}

impl WorkerSlot {
    /// The worker is a process and lives.
    pub(crate) fn set_pid(&self, pid: Pid) {
        self.pid.store(pid.as_raw_nonzero().get() as u64, Release);
    }

    /// The worker's process number, once it lives; none for a thread.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.pid.load(Acquire) as i32)
    }

    /// The worker begins a job. False where the parent has taken that back: it is somebody
    /// else's.
    pub(crate) fn begin_job(&self, job: u64) -> bool {
        let is_taken = |word| word & TAKEN != 0 && job <= self.taken.load(Acquire);
        if is_taken(self.job.load(Acquire)) {
            return false;
        }
        // Before the word: who sees the new job must not see what was of the last one.
        self.name_length.store(0, Relaxed);
        self.making.store(0, Relaxed);
        self.is_open.store(0, Relaxed);
        self.done_in_job.store(0, Relaxed);
        let begun = self
            .job
            .fetch_update(AcqRel, Acquire, |word| (!is_taken(word)).then_some(job));
        self.heartbeat();
        begun.is_ok()
    }

    /// The worker has nothing to do.
    pub(crate) fn idle(&self) {
        self.job.fetch_and(TAKEN, AcqRel);
        self.name_length.store(0, Release);
        self.heartbeat();
    }

    /// The parent takes back what was dealt to the worker, up to a job, while it is at another
    /// one. False where it has gone on meanwhile, or was taken from before: then nothing has
    /// changed.
    pub(crate) fn take_back(&self, current: u64, up_to: u64) -> bool {
        if self.is_taken_from() {
            return false;
        }
        // Without the mark nobody looks at it.
        self.taken.store(up_to, Release);
        let marked = |word| (word == current).then_some(word | TAKEN);
        self.job.fetch_update(AcqRel, Acquire, marked).is_ok()
    }

    /// True from when the worker was taken from until it begins a job.
    pub(crate) fn is_taken_from(&self) -> bool {
        self.job.load(Acquire) & TAKEN != 0
    }

    /// The worker has opened the folder of its job and removed what was to be.
    pub(crate) fn opened(&self) {
        self.is_open.store(1, Release);
    }

    /// The worker turns to the folder as such.
    pub(crate) fn begin_folder(&self) {
        self.name_length.store(0, Release);
        self.heartbeat();
    }

    /// The worker turns to an entry of its job.
    pub(crate) fn begin_entry(&self, name: &[u8]) {
        self.name_length.store(0, Relaxed);
        for (word, bytes) in self.name.as_flattened().iter().zip(name.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Relaxed);
        }
        self.name_length.store(name.len() as u64, Release);
        self.heartbeat();
    }

    /// Progress was made: the worker is not stuck.
    pub(crate) fn heartbeat(&self) {
        add(&self.beat, 1);
    }

    /// The worker writes under this name from now on.
    pub(crate) fn set_writing(&self, what: WriteTarget) {
        let word = match what {
            WriteTarget::None => 0,
            WriteTarget::Final => 1,
            WriteTarget::Temp(number) => 2 + u64::from(number),
        };
        self.making.store(word, Release);
    }

    /// An entry is done.
    pub(crate) fn end_entry(&self, ending: Outcome) {
        let counter = match ending {
            Outcome::Copied => &self.copied,
            Outcome::Unchanged => &self.unchanged,
            Outcome::Skipped => &self.skipped,
        };
        add(counter, 1);
        add(&self.done_in_job, 1);
    }

    /// An entry is done that an earlier worker had counted before it died.
    pub(crate) fn end_counted_entry(&self) {
        add(&self.done_in_job, 1);
    }

    /// Entries were found.
    pub(crate) fn found(&self, entries: u64) {
        add(&self.found, entries);
    }

    /// The size of a regular file is known.
    pub(crate) fn add_size(&self, bytes: u64) {
        add(&self.sized, 1);
        add(&self.bytes_found, bytes);
    }

    /// Bytes were copied. That is progress.
    pub(crate) fn add_bytes(&self, bytes: u64) {
        add(&self.bytes, bytes);
        self.heartbeat();
    }

    /// The job that the worker is at.
    pub(crate) fn job(&self) -> Option<u64> {
        Some(self.job.load(Acquire) & !TAKEN).filter(|&job| job != 0)
    }

    /// True when the worker has opened the folder of its job, and removed what was to be.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Acquire) != 0
    }

    /// How many entries of its job the worker has done and counted.
    pub(crate) fn done_in_job(&self) -> u64 {
        self.done_in_job.load(Relaxed)
    }

    /// A number that changes whenever the worker makes progress.
    pub(crate) fn beats(&self) -> u64 {
        self.beat.load(Relaxed)
    }

    /// What the worker is writing under.
    pub(crate) fn writing(&self) -> WriteTarget {
        match self.making.load(Acquire) {
            0 => WriteTarget::None,
            1 => WriteTarget::Final,
            word => WriteTarget::Temp((word - 2) as u32),
        }
    }

    /// The entry that the worker is at; none where it is at the folder as such, or where its
    /// memory is damaged. Of a worker that is running this is a snapshot that may be torn; it is
    /// for people then.
    pub(crate) fn entry(&self) -> Option<Name> {
        let length = self.name_length.load(Acquire).min(8 * NAME_WORDS as u64) as usize;
        let mut name: Vec<u8> = self
            .name
            .as_flattened()
            .iter()
            .take(length.div_ceil(8))
            .flat_map(|word| word.load(Relaxed).to_ne_bytes())
            .collect();
        name.truncate(length);
        Name::checked(name)
    }
}

/// Adds without a locked instruction: each counter has one writer.
fn add(counter: &AtomicU64, number: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(number), Relaxed);
}

/// The shared memory of one run.
#[derive(Clone, Copy)]
pub(crate) struct Scoreboard {
    common: &'static Common,
    slots: &'static [WorkerSlot],
}

impl Scoreboard {
    /// A board for at most `workers` workers, the replaced ones included. Pages that no worker
    /// touches cost nothing.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn new(workers: usize) -> io::Result<Self> {
        Ok(Self {
            common: &sys::shared_memory(1)?[0],
            slots: sys::shared_memory(workers)?,
        })
    }

    /// One worker's slot.
    pub(crate) fn slot(&self, worker: usize) -> &'static WorkerSlot {
        &self.slots[worker]
    }

    /// A file is to be copied in pieces. False where there are enough of them.
    pub(crate) fn begin_chunked(&self) -> bool {
        let more = |files| (files < LARGE_AT_ONCE).then_some(files + 1);
        let large = &self.common.large;
        large.fetch_update(AcqRel, Acquire, more).is_ok()
    }

    /// A file that was copied in pieces is complete, or given up.
    pub(crate) fn end_chunked(&self) {
        let less = |files: u64| files.checked_sub(1);
        let _ = self.common.large.fetch_update(AcqRel, Acquire, less);
    }

    /// How many workers there is room for.
    pub(crate) fn room(&self) -> usize {
        self.slots.len()
    }

    /// Tells all workers to leave what they are doing.
    pub(crate) fn stop(&self) {
        self.common.stop.store(1, Release);
    }

    /// True once the run is to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.common.stop.load(Relaxed) != 0
    }

    /// The parent says how many more deals idle workers would take at once.
    pub(crate) fn want(&self, deals: usize) {
        self.common.wanted.store(deals as u64, Relaxed);
    }

    /// A worker asks whether it should give away a part of its work. Each `true` stands for one
    /// deal that is wanted.
    pub(crate) fn take_wanted(&self) -> bool {
        self.common.wanted.load(Relaxed) != 0
            && self
                .common
                .wanted
                .fetch_update(Relaxed, Relaxed, |wanted| wanted.checked_sub(1))
                .is_ok()
    }

    /// Sums over the slots of the first `workers` workers.
    pub(crate) fn counts(&self, workers: usize) -> Counts {
        let mut sum = Counts::default();
        for slot in &self.slots[..workers.min(self.slots.len())] {
            sum.found += slot.found.load(Relaxed);
            sum.sized += slot.sized.load(Relaxed);
            sum.bytes_found += slot.bytes_found.load(Relaxed);
            sum.copied += slot.copied.load(Relaxed);
            sum.unchanged += slot.unchanged.load(Relaxed);
            sum.skipped += slot.skipped.load(Relaxed);
            sum.bytes += slot.bytes.load(Relaxed);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn what_a_worker_writes_the_parent_reads() {
        let board = Scoreboard::new(3).unwrap();
        let slot = board.slot(2);
        assert_eq!(slot.entry(), None);
        slot.begin_job(7);
        for name in [&[b'x'; 255][..], b"short", b"12345678"] {
            slot.begin_entry(name);
            assert_eq!(slot.entry(), Some(Name::new(name)));
        }
        slot.set_writing(WriteTarget::Temp(7));
        assert_eq!(slot.writing(), WriteTarget::Temp(7));
        slot.end_entry(Outcome::Copied);
        slot.add_bytes(10);
        assert_eq!((slot.job(), slot.done_in_job()), (Some(7), 1));
        let counts = board.counts(3);
        assert_eq!((counts.copied, counts.bytes), (1, 10));
        slot.idle();
        assert_eq!(slot.job(), None);
    }

    #[test]
    fn a_job_is_begun_or_taken_back_never_both() {
        let board = Scoreboard::new(1).unwrap();
        let slot = board.slot(0);
        let last = 200_000;
        let ended = AtomicBool::new(false);
        let taken = std::thread::scope(|scope| {
            let parent = scope.spawn(|| {
                let mut taken = BTreeSet::new();
                while !ended.load(Acquire) {
                    if let Some(job) = slot.job()
                        && slot.take_back(job, job + 3)
                    {
                        taken.extend(job + 1..=job + 3);
                    }
                }
                taken
            });
            let begun: BTreeSet<u64> = (1..=last).filter(|&job| slot.begin_job(job)).collect();
            ended.store(true, Release);
            let taken = parent.join().unwrap();
            assert!(begun.is_disjoint(&taken));
            assert_eq!(
                begun.len() + taken.iter().filter(|&&job| job <= last).count(),
                last as usize
            );
            taken
        });
        assert!(!taken.is_empty(), "nothing was tried");
        // What it was at last stays marked while it has nothing to do.
        assert!(slot.begin_job(last + 10));
        assert!(slot.take_back(last + 10, last + 20));
        assert!(!slot.take_back(last + 10, last + 30));
        slot.idle();
        assert_eq!(slot.job(), None);
        assert!(!slot.begin_job(last + 20));
        assert!(slot.begin_job(last + 21));
        assert!(!slot.is_taken_from());
    }

    #[test]
    fn each_wanted_deal_is_given_once() {
        let board = Scoreboard::new(1).unwrap();
        assert!(!board.take_wanted());
        board.want(2);
        assert!(board.take_wanted());
        assert!(board.take_wanted());
        assert!(!board.take_wanted());
    }
}
