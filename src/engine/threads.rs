//! Workers that are threads of a rayon pool.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, fence};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::{Engine, Event, Sent};
use crate::context::Context;
use crate::fs::sys;
use crate::protocol::{Job, Report};
use crate::worker::{ReportSink, Worker};

/// Batches in flight for each thread. They wait in one queue for any free thread, so a long queue
/// delays no job. With two, threads waited 3 % of the time for the parent to be scheduled, with six
/// 0.3 % (kernel tree, 2 cores).
const QUEUE_DEPTH: usize = 6;

/// Reports that may wait for the parent. If the reader of the output is slow, the workers wait,
/// and their lines do not pile up in memory.
const REPORTS: usize = 256;

thread_local! {
    /// This thread's worker, once it has had a job.
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// A rayon pool whose threads are started when there is work for them.
///
/// The spawn handler keeps the threads, and the engine starts them one by one. Starting 64 at once
/// takes as long as copying ten small files. A pool cannot grow, so a larger one replaces it when
/// more workers pay. Batches wait in a queue of the engine's own, which both pools use. (Measured:
/// ten files take 0.91 times as long as with 64 threads from the start.)
pub(crate) struct Threads {
    context: &'static Context,
    pool: ThreadPool,
    /// Threads of the pool that have not been started.
    unstarted: Vec<ThreadBuilder>,
    started: usize,
    /// Slots of the scoreboard that belong to threads of earlier pools.
    retired: usize,
    limit: usize,
    max: usize,
    in_flight: usize,
    queue: Sender<Vec<Arc<Job>>>,
    queued: Receiver<Vec<Arc<Job>>>,
    sender: Sender<(usize, Report)>,
    reports: Receiver<(usize, Report)>,
    waiter: Arc<Waiter>,
}

impl Threads {
    /// Makes a pool for `limit` threads and starts one, without which the run would wait forever. A
    /// later pool may have `max` threads.
    ///
    /// # Errors
    /// If rayon cannot make a pool, or the system allows no thread.
    pub(crate) fn new(context: &'static Context, max: usize, limit: usize) -> Result<Self> {
        let (pool, mut unstarted) = make_pool(limit, 0).context("cannot make a thread pool")?;
        start_one(&mut unstarted).context("cannot start a thread")?;
        let (sender, reports) = bounded(REPORTS);
        // Bounded by the batches in flight, which are bounded by the number of workers.
        let (queue, queued) = unbounded();
        Ok(Self {
            context,
            pool,
            unstarted,
            started: 1,
            retired: 0,
            limit,
            max,
            in_flight: 0,
            queue,
            queued,
            sender,
            reports,
            waiter: Arc::new(Waiter::new()),
        })
    }

    /// Lets a larger pool take over. The threads of this one end when nothing is queued.
    fn grow(&mut self) {
        let retired = self.retired + self.size();
        let Ok((pool, mut unstarted)) = make_pool(self.max, retired) else {
            return;
        };
        // If the system does not allow as many threads as now, the old pool stays.
        if !(0..self.started).all(|_| start_one(&mut unstarted).is_ok()) {
            return;
        }
        self.pool = pool;
        self.unstarted = unstarted;
        self.retired = retired;
        // The old pool's threads may hang, so the new pool must take the queued batches.
        for _ in 0..self.queued.len() {
            self.wake_one();
        }
    }

    /// Makes one thread of the pool run the next batch.
    fn wake_one(&mut self) {
        let (context, retired, sender) = (self.context, self.retired, self.sender.clone());
        let (queued, waiter) = (self.queued.clone(), Arc::clone(&self.waiter));
        self.pool.spawn(move || {
            // Empty if a thread of an earlier pool was faster.
            if let Ok(batch) = queued.try_recv() {
                run_batch(context, retired, &batch, sender, waiter);
            }
        });
    }

    /// Starts one more thread, if the limit allows.
    fn start_another(&mut self) {
        if self.started >= self.limit {
            return;
        }
        if start_one(&mut self.unstarted).is_ok() {
            self.started += 1;
        } else {
            // The system allows no further thread, so the limit stays here.
            self.unstarted.clear();
            self.limit = self.started;
        }
    }

    fn size(&self) -> usize {
        self.started + self.unstarted.len()
    }
}

fn start_one(unstarted: &mut Vec<ThreadBuilder>) -> std::io::Result<()> {
    let Some(thread) = unstarted.pop() else {
        return Ok(());
    };
    let mut builder = std::thread::Builder::new();
    if let Some(name) = thread.name() {
        builder = builder.name(name.to_owned());
    }
    builder.spawn(|| thread.run()).map(drop)
}

/// Makes a pool and returns its unstarted threads, the first one last. Worker numbers below
/// `retired` belong to earlier pools.
fn make_pool(
    threads: usize,
    retired: usize,
) -> Result<(ThreadPool, Vec<ThreadBuilder>), ThreadPoolBuildError> {
    let mut unstarted = Vec::with_capacity(threads);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |number| format!("pcopy worker {}", retired + number + 1))
        .spawn_handler(|thread| {
            unstarted.push(thread);
            Ok(())
        })
        .build()?;
    unstarted.reverse();
    Ok((pool, unstarted))
}

/// The thread that waits for reports. The channel itself yields the processor several times before it
/// sleeps. On a busy machine each yield lets all others go first.
struct Waiter {
    thread: Thread,
    is_waiting: AtomicBool,
}

impl Waiter {
    /// Returns the waiter of this thread.
    fn new() -> Self {
        Self {
            thread: thread::current(),
            is_waiting: AtomicBool::new(false),
        }
    }

    /// Waits for a report. Returns `None` after `timeout`.
    fn wait<T>(&self, reports: &Receiver<T>, timeout: Duration) -> Option<T> {
        if let Ok(report) = reports.try_recv() {
            return Some(report);
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.is_waiting.store(true, Relaxed);
            // Either this thread sees the report, or its sender sees that this thread waits.
            fence(SeqCst);
            let report = reports.try_recv();
            if report.is_err() {
                thread::park_timeout(left);
            }
            self.is_waiting.store(false, Relaxed);
            if let Ok(report) = report {
                return Some(report);
            }
        }
    }

    /// Wakes the thread after a report was sent.
    fn wake(&self) {
        fence(SeqCst);
        if self.is_waiting.load(Relaxed) && self.is_waiting.swap(false, Relaxed) {
            self.thread.unpark();
        }
    }
}

struct Channel {
    worker: usize,
    sender: Sender<(usize, Report)>,
    waiter: Arc<Waiter>,
}

impl ReportSink for Channel {
    fn send(&mut self, report: Report) {
        // The receiver lives as long as the run; after that the process ends.
        let _ = self.sender.send((self.worker, report));
        self.waiter.wake();
    }
}

fn run_batch(
    context: &'static Context,
    retired: usize,
    batch: &[Arc<Job>],
    sender: Sender<(usize, Report)>,
    waiter: Arc<Waiter>,
) {
    let number = retired + rayon::current_thread_index().unwrap_or(0);
    WORKER.with_borrow_mut(|worker| {
        let worker = worker.get_or_insert_with(|| {
            let has_own_cwd = sys::unshare_descriptors().is_ok();
            sys::own_credentials();
            Worker::new(context, number, has_own_cwd)
        });
        let mut sink = Channel {
            worker: number,
            sender,
            waiter,
        };
        worker.run_batch(batch, &mut sink);
    });
}

impl Engine for Threads {
    fn free_slots(&self) -> usize {
        (QUEUE_DEPTH * self.limit).saturating_sub(self.in_flight)
    }

    fn idle(&self) -> usize {
        self.limit.saturating_sub(self.in_flight)
    }

    fn busy(&self) -> usize {
        self.in_flight
    }

    fn send(&mut self, batch: Vec<Arc<Job>>) -> Sent {
        self.in_flight += 1;
        if self.in_flight > self.started {
            self.start_another();
        }
        // This cannot fail: the receiver is in this struct too.
        let _ = self.queue.send(batch);
        self.wake_one();
        Sent::ToAll
    }

    fn next(&mut self, timeout: Duration) -> Option<Event> {
        let (worker, report) = self.waiter.wait(&self.reports, timeout)?;
        if report.is_batch_done {
            self.in_flight -= 1;
        }
        Some(Event::Report { worker, report })
    }

    fn set_limit(&mut self, workers: usize) {
        if workers > self.size() {
            self.grow();
        }
        self.limit = workers.min(self.size());
        // If all threads are stuck, only new threads can take the queued batches, and `send` may
        // not be called again.
        for _ in 0..self.queued.len() {
            self.start_another();
        }
    }

    /// Does nothing: all threads take batches from one queue.
    fn set_stuck(&mut self, _worker: usize, _is_stuck: bool) {}

    /// Returns true while the thread runs a job. It takes a batch only when it is free.
    fn has_work(&self, worker: usize) -> bool {
        self.context.scoreboard.slot(worker).job().is_some()
    }

    fn started(&self) -> usize {
        self.retired + self.started
    }

    fn label(&self, worker: usize) -> String {
        format!("[thread {}]", worker + 1)
    }

    fn kill(&mut self, _worker: usize) -> bool {
        false
    }

    fn abandon(&mut self, _worker: usize) {}

    /// Waits for the batches in flight. The threads end with the process, and one that hangs does
    /// not delay that.
    fn shut_down(&mut self, timeout: Duration, _kill_timeout: Duration) -> usize {
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        while self.in_flight > 0 && self.next(left()).is_some() {}
        self.in_flight
    }
}
