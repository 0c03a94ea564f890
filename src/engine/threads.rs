//! Workers that are threads of a rayon pool.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::{Engine, Event};
use crate::context::Context;
use crate::fs::sys;
use crate::protocol::{Job, JobId, Report};
use crate::worker::{Port, Worker};

/// Deals that are out for each thread. They wait in one queue for whoever is free, so a long one
/// holds nobody up; with two, threads waited 3 % of the time for the parent to be scheduled, with
/// six 0.3 % (kernel tree, 2 cores).
const AHEAD: usize = 6;

/// Reports that wait for the parent.
const REPORTS: usize = 256;

thread_local! {
    /// This thread's worker, once it has had a job.
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// A rayon pool whose threads are started when there is work for them.
pub(crate) struct Threads {
    context: &'static Context,
    pool: ThreadPool,
    /// Threads of the pool that have not been started.
    waiting: Vec<ThreadBuilder>,
    started: usize,
    /// Slots that the threads of an earlier pool have.
    taken: usize,
    limit: usize,
    most: usize,
    deals: usize,
    /// Deals that no thread has begun, first in, first out: whatever a thread gets after a deal
    /// is newer. They are not in a pool's own queue, which a larger pool could not take over.
    queue: Sender<Vec<Arc<Job>>>,
    queued: Receiver<Vec<Arc<Job>>>,
    sender: Sender<(usize, Report)>,
    reports: Receiver<(usize, Report)>,
}

impl Threads {
    /// A pool for `limit` threads, one of which runs: without any the run would wait for ever.
    /// There may be `most` later.
    ///
    /// # Errors
    /// Where rayon cannot make a pool, or the system allows no thread.
    pub(crate) fn new(context: &'static Context, most: usize, limit: usize) -> Result<Self> {
        let (pool, mut waiting) = make_pool(limit, 0).context("cannot make a thread pool")?;
        start_one(&mut waiting).context("cannot start a thread")?;
        // A reader of the output who takes his time holds the workers up, not all of their lines.
        let (sender, reports) = bounded(REPORTS);
        // Bounded by the deals that are out, which are bounded by the number of workers.
        let (queue, queued) = unbounded();
        Ok(Self {
            context,
            pool,
            waiting,
            started: 1,
            taken: 0,
            limit,
            most,
            deals: 0,
            queue,
            queued,
            sender,
            reports,
        })
    }

    /// InitialMeta a larger pool take over, for a pool cannot grow. The threads that there are end when
    /// nothing is queued. (All that there may ever be would cost 2.5 µs each at the start, too
    /// much for ten small files.)
    fn grow(&mut self) {
        let taken = self.taken + self.size();
        let Ok((pool, mut waiting)) = make_pool(self.most, taken) else {
            return;
        };
        // Fewer than there are would be a loss, where the system allows no more of them.
        if !(0..self.started).all(|_| start_one(&mut waiting).is_ok()) {
            return;
        }
        self.pool = pool;
        self.waiting = waiting;
        self.taken = taken;
        // Threads of the pool before may hang, and not come to these.
        for _ in 0..self.queued.len() {
            self.have_one_run();
        }
    }

    /// InitialMeta one more thread, or one of those that are free, run the next deal.
    fn have_one_run(&mut self) {
        let (context, taken, sender) = (self.context, self.taken, self.sender.clone());
        let queued = self.queued.clone();
        self.pool.spawn(move || {
            // None where an earlier pool's thread was faster.
            if let Ok(jobs) = queued.try_recv() {
                run(context, taken, &jobs, &sender);
            }
        });
    }

    fn size(&self) -> usize {
        self.started + self.waiting.len()
    }
}

fn start_one(waiting: &mut Vec<ThreadBuilder>) -> std::io::Result<()> {
    let Some(thread) = waiting.pop() else {
        return Ok(());
    };
    let mut builder = std::thread::Builder::new();
    if let Some(name) = thread.name() {
        builder = builder.name(name.to_owned());
    }
    builder.spawn(|| thread.run()).map(drop)
}

/// A pool and its threads, the first one last. The slots of the board up to `taken` are others'.
fn make_pool(
    threads: usize,
    taken: usize,
) -> Result<(ThreadPool, Vec<ThreadBuilder>), ThreadPoolBuildError> {
    let mut waiting = Vec::with_capacity(threads);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |number| format!("pcopy worker {}", taken + number + 1))
        .spawn_handler(|thread| {
            waiting.push(thread);
            Ok(())
        })
        .build()?;
    waiting.reverse();
    Ok((pool, waiting))
}

struct Channel<'a> {
    worker: usize,
    sender: &'a Sender<(usize, Report)>,
}

impl Port for Channel<'_> {
    fn send(&mut self, report: Report) -> bool {
        self.sender.send((self.worker, report)).is_ok()
    }
}

fn run(
    context: &'static Context,
    taken: usize,
    jobs: &[Arc<Job>],
    sender: &Sender<(usize, Report)>,
) {
    let number = taken + rayon::current_thread_index().unwrap_or(0);
    WORKER.with_borrow_mut(|worker| {
        let worker = worker.get_or_insert_with(|| {
            let own_tables = sys::unshare_descriptors().is_ok();
            sys::own_credentials();
            Worker::new(context, number, own_tables)
        });
        worker.run(
            jobs,
            &mut Channel {
                worker: number,
                sender,
            },
        );
    });
}

impl Engine for Threads {
    fn room(&self) -> usize {
        (AHEAD * self.limit).saturating_sub(self.deals)
    }

    fn idle(&self) -> usize {
        self.limit.saturating_sub(self.deals)
    }

    fn busy(&self) -> usize {
        self.deals
    }

    fn deal(&mut self, jobs: Vec<Arc<Job>>) {
        self.deals += 1;
        if self.deals > self.started && self.started < self.limit {
            if start_one(&mut self.waiting).is_ok() {
                self.started += 1;
            } else {
                // The system allows no further thread: these have to do.
                self.waiting.clear();
                self.limit = self.started;
            }
        }
        // The queue ends with its other end, which is here.
        let _ = self.queue.send(jobs);
        self.have_one_run();
    }

    fn waiting(&self, _worker: usize) -> Vec<JobId> {
        // Deals that no thread has begun wait for all.
        Vec::new()
    }

    fn next(&mut self, patience: Duration) -> Option<Event> {
        let (worker, report) = self.reports.recv_timeout(patience).ok()?;
        if report.deal_ended {
            self.deals -= 1;
        }
        Some(Event::Report { worker, report })
    }

    fn set_limit(&mut self, workers: usize) {
        if workers > self.size() {
            self.grow();
        }
        self.limit = workers.min(self.size());
    }

    fn slots(&self) -> usize {
        self.taken + self.started
    }

    fn label(&self, worker: usize) -> String {
        format!("[thread {}]", worker + 1)
    }

    fn kill(&mut self, _worker: usize) -> bool {
        false
    }

    fn abandon(&mut self, _worker: usize) {}

    fn shut_down(&mut self, patience: Duration) -> bool {
        // The threads end with the process; one that is stuck does not hold it up. Others have
        // yet to say that their deal has ended.
        let deadline = Instant::now() + patience;
        let left = || deadline.saturating_duration_since(Instant::now());
        while self.deals > 0 && self.next(left()).is_some() {}
        self.deals == 0
    }
}
