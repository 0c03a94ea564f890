//! How many workers copy contents at one time: permits in shared memory.
//!
//! **A permit belongs to the worker whose number is in its word.** There is no counter beside the
//! words that could disagree with them. A worker takes a free permit with one compare-exchange
//! from 0 to its number, and gives it back with one from its number to 0. So a worker that dies,
//! wherever it is, leaves nothing but words with its number, and the parent frees these in the
//! same way. It also frees those of a worker that hangs: a read from a dead server must not keep
//! the only permit. If that worker goes on, its word no longer has its number. It finds that out
//! between two requests, and queues again.
//!
//! The limit says how many permits count, from the first one. If it shrinks, the workers with later
//! ones give them back between two requests. Without a limit ([`Limit::Open`]) no worker takes one.
//!
//! Workers wait in futex(2) on one word. Its lowest bit says that a worker waits, and the rest
//! changes whenever a permit may be free. A waiter sets the bit before it looks for a permit. So
//! the worker that frees one after that look changes the word and wakes it: the tests below check
//! this with loom. A waiter that dies is no harm: a wait is short, and each worker looks again
//! after it.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use rustix::thread::futex;
use rustix::time::Timespec;

use super::slot::{GateState, WorkerSlot};

/// How long a worker waits before it shows a heartbeat and checks whether the run stops.
const WAIT: Duration = Duration::from_millis(50);
/// The limit that stands for none.
const OPEN: u64 = u64::MAX;
/// The limit of a run that has just begun: one permit, and the worker that has it may open the gate.
const NEW: u64 = 1 << 32 | 1;
const FREE: u64 = 0;
/// The lowest bit of that word: a worker waits.
const HAS_WAITERS: u32 = 1;

/// How many workers may copy contents at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Permits(usize),
    /// As many as there are.
    Open,
}

/// The gate, shared by the parent and all workers.
#[derive(Clone, Copy)]
pub(crate) struct Gate {
    /// The limit, and after it the permits.
    words: &'static [AtomicU64],
    wait_word: &'static AtomicU32,
}

impl Gate {
    /// Makes an open gate. There is one word more than there can be permits, and one to wait on.
    pub(super) fn new(words: &'static [AtomicU64], wait_word: &'static AtomicU32) -> Self {
        words[0].store(OPEN, Release);
        Self { words, wait_word }
    }

    pub(crate) fn limit(&self) -> Limit {
        match self.words[0].load(Acquire) {
            OPEN => Limit::Open,
            permits => Limit::Permits(permits as u32 as usize),
        }
    }

    pub(crate) fn set_limit(&self, limit: Limit) {
        let word = match limit {
            Limit::Open => OPEN,
            // With none, the run would wait for ever.
            Limit::Permits(permits) => permits.clamp(1, self.words.len() - 1) as u64,
        };
        self.words[0].store(word, Release);
        self.pass_on(u32::MAX >> 1);
    }

    /// Limits a run that has just begun to one permit. See [`Gate::open_new`].
    pub(crate) fn begin(&self) {
        self.words[0].store(NEW, Release);
    }

    /// Returns true if nothing is known of the devices.
    pub(crate) fn is_new(&self) -> bool {
        self.words[0].load(Acquire) == NEW
    }

    /// Opens the gate, unless the parent has decided anything since [`Gate::begin`].
    pub(crate) fn open_new(&self) {
        if self.words[0].replace(NEW, OPEN) {
            self.pass_on(u32::MAX >> 1);
        }
    }

    /// Lets the parent alone decide from now on.
    pub(crate) fn become_old(&self) {
        self.words[0].replace(NEW, 1);
    }

    /// Returns the permits that count.
    fn permits(&self) -> &'static [AtomicU64] {
        match self.limit() {
            Limit::Open => &[],
            Limit::Permits(limit) => &self.words[1..=limit.min(self.words.len() - 1)],
        }
    }

    /// Waits until the worker may copy contents. Ends early if `should_end`.
    pub(crate) fn enter(&self, worker: usize, slot: WorkerSlot, should_end: impl Fn() -> bool) {
        if self.limit() == Limit::Open {
            slot.set_gate(GateState::Open);
            return;
        }
        let mut since = None;
        loop {
            // Before the search for a permit: freeing one after that wakes this worker.
            let turn = announce(self.wait_word);
            let permits = self.permits();
            let state = match take(permits, worker) {
                Some(permit) => Some(GateState::Permit(permit)),
                None if permits.is_empty() || should_end() => Some(GateState::Open),
                None => None,
            };
            if let Some(state) = state {
                slot.set_gate(state);
                if let Some(since) = since.map(|since: Instant| since.elapsed()) {
                    slot.add_waited(since);
                }
                return;
            }
            since.get_or_insert_with(Instant::now);
            slot.set_gate(GateState::Waiting);
            let most = Timespec {
                tv_sec: 0,
                tv_nsec: WAIT.as_nanos() as i64,
            };
            let _ = futex::wait(self.wait_word, futex::Flags::empty(), turn, Some(&most));
            // It waits for its turn and is not stuck.
            slot.heartbeat();
        }
    }

    /// Between two requests: gives the permit back and queues again if more workers copy than may.
    pub(crate) fn check(&self, worker: usize, slot: WorkerSlot, should_end: impl Fn() -> bool) {
        let has_turn = match slot.gate() {
            GateState::Outside | GateState::Waiting => return,
            GateState::Open => self.limit() == Limit::Open,
            GateState::Permit(permit) => match self.limit() {
                Limit::Open => true,
                Limit::Permits(limit) => {
                    permit < limit && self.words[permit + 1].load(Acquire) == owned_by(worker)
                }
            },
        };
        if !has_turn && !should_end() {
            self.leave(worker, slot);
            self.enter(worker, slot, should_end);
        }
    }

    /// Says that the worker no longer copies contents.
    pub(crate) fn leave(&self, worker: usize, slot: WorkerSlot) {
        let state = slot.gate();
        slot.set_gate(GateState::Outside);
        if let GateState::Permit(permit) = state
            && let Some(word) = self.words.get(permit + 1)
            && word.replace(owned_by(worker), FREE)
        {
            self.pass_on(1);
        }
    }

    /// Frees the permit of a worker that is dead or hangs. Returns true if it had one.
    pub(crate) fn revoke(&self, worker: usize) -> bool {
        let permits = self.words[1..].iter();
        let freed = permits.filter(|word| word.replace(owned_by(worker), FREE));
        let count = freed.count();
        if count > 0 {
            self.pass_on(count as u32);
        }
        count > 0
    }

    fn pass_on(&self, permits: u32) {
        if change(self.wait_word) {
            let _ = futex::wake(self.wait_word, futex::Flags::empty(), permits);
        }
    }
}

const fn owned_by(worker: usize) -> u64 {
    worker as u64 + 1
}

fn take<W: Word>(permits: &[W], worker: usize) -> Option<usize> {
    let mut words = permits.iter();
    words.position(|word| word.get() == FREE && word.replace(FREE, owned_by(worker)))
}

/// Announces that a worker is about to wait. Returns the value that it waits to see changed.
fn announce(word: &impl WaitWord) -> u32 {
    word.set_bits(HAS_WAITERS) | HAS_WAITERS
}

/// Announces that a permit may be free. Returns true if a worker waits for one.
fn change(word: &impl WaitWord) -> bool {
    let next = |turn: u32| (turn & !HAS_WAITERS).wrapping_add(2);
    word.update(next) & HAS_WAITERS != 0
}

/// An atomic word: the one of std, or loom's in the model.
trait Word {
    fn get(&self) -> u64;
    /// Replaces `from` by `to`. Returns false if the word had another value.
    fn replace(&self, from: u64, to: u64) -> bool;
}

/// The word to wait on.
trait WaitWord {
    /// Returns the value before.
    fn set_bits(&self, bits: u32) -> u32;
    /// Returns the value before.
    fn update(&self, next: impl Fn(u32) -> u32) -> u32;
}

macro_rules! atomics {
    ($word:ty, $turn:ty) => {
        impl Word for $word {
            fn get(&self) -> u64 {
                self.load(Acquire)
            }
            fn replace(&self, from: u64, to: u64) -> bool {
                self.compare_exchange(from, to, AcqRel, Acquire).is_ok()
            }
        }
        impl WaitWord for $turn {
            fn set_bits(&self, bits: u32) -> u32 {
                self.fetch_or(bits, AcqRel)
            }
            fn update(&self, next: impl Fn(u32) -> u32) -> u32 {
                let updated = self.fetch_update(AcqRel, Acquire, |turn| Some(next(turn)));
                updated.unwrap_or_default()
            }
        }
    };
}

atomics!(AtomicU64, AtomicU32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::sys;
    use crate::scoreboard::Scoreboard;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    mod in_loom {
        use super::{AcqRel, Acquire, WaitWord, Word};
        atomics!(loom::sync::atomic::AtomicU64, loom::sync::atomic::AtomicU32);
    }

    /// A gate with one permit, and a futex that waits without a limit: if a wake-up could be lost,
    /// loom finds the deadlock.
    struct Model {
        permit: [loom::sync::atomic::AtomicU64; 1],
        wait_word: loom::sync::atomic::AtomicU32,
        futex: Mutex<()>,
        changed: Condvar,
    }

    impl Model {
        fn new(owner: u64) -> Arc<Self> {
            Arc::new(Self {
                permit: [loom::sync::atomic::AtomicU64::new(owner)],
                wait_word: loom::sync::atomic::AtomicU32::new(0),
                futex: Mutex::new(()),
                changed: Condvar::new(),
            })
        }

        fn enter(&self, worker: usize) {
            loop {
                let turn = announce(&self.wait_word);
                if take(&self.permit, worker).is_some() {
                    return;
                }
                // futex(2): the kernel compares and sleeps under one lock.
                let lock = self.futex.lock().unwrap();
                if self.wait_word.load(Acquire) == turn {
                    drop(self.changed.wait(lock).unwrap());
                }
            }
        }

        fn free(&self, worker: usize) -> bool {
            let is_freed = self.permit[0].replace(owned_by(worker), FREE);
            if is_freed && change(&self.wait_word) {
                let _lock = self.futex.lock().unwrap();
                self.changed.notify_one();
            }
            is_freed
        }
    }

    #[test]
    fn a_permit_has_one_owner_and_no_wakeup_is_lost() {
        // All orders with three preemptions: without a bound it takes a minute.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let model = Model::new(FREE);
            let inside = Arc::new(loom::sync::atomic::AtomicU32::new(0));
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let (model, inside) = (Arc::clone(&model), Arc::clone(&inside));
                    thread::spawn(move || {
                        model.enter(worker);
                        assert_eq!(inside.fetch_add(1, AcqRel), 0);
                        inside.fetch_sub(1, AcqRel);
                        assert!(model.free(worker));
                    })
                })
                .collect();
            for worker in workers {
                worker.join().unwrap();
            }
            assert_eq!(model.permit[0].get(), FREE);
        });
    }

    /// Worker 0 hangs with the permit and goes on just when the parent takes the permit from it.
    #[test]
    fn a_permit_that_is_taken_away_is_freed_once() {
        loom::model(|| {
            let model = Model::new(owned_by(0));
            let late = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.free(0))
            };
            let next = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.enter(1))
            };
            let is_revoked = model.free(0);
            assert_ne!(is_revoked, late.join().unwrap());
            next.join().unwrap();
            assert_eq!(model.permit[0].get(), owned_by(1), "it is the next one's");
        });
    }

    fn gate(permits: usize) -> (Gate, Scoreboard) {
        let gate = Gate::new(
            sys::shared_words(permits + 1).unwrap(),
            sys::shared_futex().unwrap(),
        );
        (gate, Scoreboard::new(8, 8, 8).unwrap())
    }

    #[test]
    fn an_open_gate_has_no_permits() {
        let (gate, scoreboard) = gate(4);
        for worker in 0..8 {
            gate.enter(worker, scoreboard.slot(worker), || panic!("it waits"));
            assert_eq!(scoreboard.slot(worker).gate(), GateState::Open);
            gate.leave(worker, scoreboard.slot(worker));
            assert_eq!(scoreboard.slot(worker).gate(), GateState::Outside);
        }
    }

    #[test]
    fn so_many_enter_as_there_are_permits() {
        let (gate, scoreboard) = gate(4);
        let slot = |worker| scoreboard.slot(worker);
        gate.set_limit(Limit::Permits(2));
        gate.enter(0, slot(0), || false);
        gate.enter(1, slot(1), || false);
        // The run stops, or it would wait for ever.
        gate.enter(2, slot(2), || true);
        assert_eq!(slot(2).gate(), GateState::Open);
        gate.leave(2, slot(2));
        gate.leave(0, slot(0));
        gate.enter(2, slot(2), || false);
        assert_eq!(slot(2).gate(), GateState::Permit(0));
        // One permit less: the second worker has it and goes back into the queue.
        gate.set_limit(Limit::Permits(1));
        gate.check(2, slot(2), || panic!("it has its turn"));
        gate.leave(2, slot(2));
        gate.check(1, slot(1), || false);
        assert_eq!(slot(1).gate(), GateState::Permit(0));
    }

    #[test]
    fn a_worker_may_open_the_gate_until_the_parent_decides() {
        let (gate, _) = gate(4);
        gate.begin();
        assert_eq!(gate.limit(), Limit::Permits(1));
        gate.open_new();
        assert_eq!(gate.limit(), Limit::Open);
        gate.begin();
        gate.become_old();
        gate.open_new();
        assert_eq!(gate.limit(), Limit::Permits(1));
        gate.set_limit(Limit::Permits(2));
        gate.become_old();
        assert_eq!(gate.limit(), Limit::Permits(2));
    }

    #[test]
    fn what_a_dead_worker_had_is_free() {
        let (gate, scoreboard) = gate(4);
        let slot = |worker| scoreboard.slot(worker);
        gate.set_limit(Limit::Permits(1));
        gate.enter(0, slot(0), || false);
        assert!(!gate.revoke(1));
        assert!(gate.revoke(0));
        gate.enter(1, slot(1), || false);
        assert_eq!(slot(1).gate(), GateState::Permit(0));
        // It was not dead after all. It may not give back what another worker has.
        gate.leave(0, slot(0));
        assert!(gate.revoke(1));
    }

    #[test]
    fn a_gate_that_opens_lets_those_in_who_wait() {
        let (gate, scoreboard) = gate(4);
        gate.set_limit(Limit::Permits(1));
        gate.enter(0, scoreboard.slot(0), || false);
        std::thread::scope(|scope| {
            scope.spawn(|| gate.enter(1, scoreboard.slot(1), || false));
            while scoreboard.slot(1).gate() != GateState::Waiting {
                std::thread::yield_now();
            }
            gate.set_limit(Limit::Open);
        });
        assert_eq!(scoreboard.slot(1).gate(), GateState::Open);
    }
}
