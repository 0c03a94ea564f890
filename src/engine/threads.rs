//! Workers that are threads of a rayon pool.

use std::cell::RefCell;
use std::sync::Arc;
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
/// delays nobody. With two, threads waited 3 % of the time for the parent to be scheduled, with
/// six 0.3 % (kernel tree, 2 cores).
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
/// A pool's threads are started one by one, through its spawn handler, because 64 of them at once
/// take as long as ten small files. A pool cannot grow, so a larger one takes over when more
/// workers pay; batches are in a queue of the engine's own, which the larger pool inherits.
/// (Measured: ten files take 0.91 times as long as with 64 threads from the start.)
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
}

impl Threads {
    /// Makes a pool for `limit` threads and starts one: without any the run would wait for ever.
    /// There may be `max` later.
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
        })
    }

    /// Lets a larger pool take over. The threads of this one end when nothing is queued.
    fn grow(&mut self) {
        let retired = self.retired + self.size();
        let Ok((pool, mut unstarted)) = make_pool(self.max, retired) else {
            return;
        };
        // Fewer threads than now would be a loss, if the system allows no more of them.
        if !(0..self.started).all(|_| start_one(&mut unstarted).is_ok()) {
            return;
        }
        self.pool = pool;
        self.unstarted = unstarted;
        self.retired = retired;
        // The threads of the earlier pool may hang and never come to these.
        for _ in 0..self.queued.len() {
            self.wake_one();
        }
    }

    /// Makes one more thread, or one that is free, run the next batch.
    fn wake_one(&mut self) {
        let (context, retired, sender) = (self.context, self.retired, self.sender.clone());
        let queued = self.queued.clone();
        self.pool.spawn(move || {
            // Empty if a thread of an earlier pool was faster.
            if let Ok(batch) = queued.try_recv() {
                run_batch(context, retired, &batch, sender);
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
            // The system allows no further thread: these must do.
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

/// Makes a pool whose threads are to be started by hand; the first one is the last in the list.
/// Slots of the scoreboard up to `retired` belong to other threads.
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

struct Channel {
    worker: usize,
    sender: Sender<(usize, Report)>,
}

impl ReportSink for Channel {
    fn send(&mut self, report: Report) {
        // The receiver lives as long as the run; after that the process ends.
        let _ = self.sender.send((self.worker, report));
    }
}

fn run_batch(
    context: &'static Context,
    retired: usize,
    batch: &[Arc<Job>],
    sender: Sender<(usize, Report)>,
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
        // The other end of the queue is here too, so it is open.
        let _ = self.queue.send(batch);
        self.wake_one();
        Sent::ToAll
    }

    fn next(&mut self, timeout: Duration) -> Option<Event> {
        let (worker, report) = self.reports.recv_timeout(timeout).ok()?;
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
        // If all threads are stuck, nobody else comes for what is queued, and nothing more may be
        // sent.
        for _ in 0..self.queued.len() {
            self.start_another();
        }
    }

    /// Nothing is sent to a thread by name.
    fn set_stuck(&mut self, _worker: usize, _is_stuck: bool) {}

    /// A thread takes a batch when it is free, so it has work only while it runs a job.
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
