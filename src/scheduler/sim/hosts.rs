//! The simulated engine of a run on many machines: hosts that are lost with all their workers, jobs
//! that they give back, and slots that the lead sees late.
//!
//! It keeps the rules of `engine/mpi`: a job is at one host at a time, the lead's table of claims
//! names the host and then the worker that has reported, and what a host has said before it was lost
//! arrives in order, up to some point.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::engine::{Hung, MOST_STEPS, MOST_WAITS};
use super::env::Env;
use super::worker::Worker;
use crate::engine::{Engine, Event, LostNode, Sent};
use crate::fs::path::Name;
use crate::protocol::{Job, JobId, Report};
use crate::scoreboard::Scoreboard;

/// Workers of each host.
const WORKERS: usize = 3;
/// The number that stands for no worker in claims of jobs that are given back.
const NOBODY: usize = 60_000;

/// What a host says, in order.
enum Message {
    Report(usize, Report),
    Row(usize, Vec<u64>),
    Returned(Vec<JobId>),
    /// It is dead.
    Gone,
}

struct Host {
    /// Its workers' first row.
    first: usize,
    workers: Vec<Worker>,
    board: Scoreboard,
    /// Batches that no worker has begun.
    queue: VecDeque<Vec<Arc<Job>>>,
    stream: VecDeque<Message>,
    /// As the lead knows it: the jobs that are there, and the batch that each came in.
    jobs: HashMap<JobId, (Arc<Job>, u64)>,
    is_dead: bool,
    /// The lead knows that it is dead.
    is_lost: bool,
}

impl Host {
    fn batches(&self) -> usize {
        let batches: BTreeSet<u64> = self.jobs.values().map(|(_, batch)| *batch).collect();
        batches.len()
    }

    fn free(&self) -> usize {
        if self.is_lost {
            return 0;
        }
        (2 * WORKERS).saturating_sub(self.batches())
    }
}

pub(super) struct HostsEngine {
    env: Rc<RefCell<Env>>,
    hosts: Vec<Host>,
    events: VecDeque<Event>,
    signal: Arc<AtomicUsize>,
    waits: u64,
    last_batch: u64,
}

/// Returns the host of the worker in a row, if it is one.
pub(super) fn host_of(row: usize, hosts: usize) -> Option<usize> {
    Some(row.checked_sub(hosts)? / WORKERS)
}

impl HostsEngine {
    /// Makes an engine with a host for each of these scoreboards.
    pub(super) fn new(env: &Rc<RefCell<Env>>, signal: &Arc<AtomicUsize>) -> Self {
        let boards = env.borrow().boards.clone();
        let count = boards.len();
        let hosts = boards.into_iter().enumerate().map(|(host, board)| {
            let first = count + host * WORKERS;
            let worker = |number| Worker::of_host(first + number, board.slot(number));
            Host {
                first,
                workers: (0..WORKERS).map(worker).collect(),
                board,
                queue: VecDeque::new(),
                stream: VecDeque::new(),
                jobs: HashMap::new(),
                is_dead: false,
                is_lost: false,
            }
        });
        Self {
            hosts: hosts.collect(),
            env: Rc::clone(env),
            events: VecDeque::new(),
            signal: Arc::clone(signal),
            waits: 0,
            last_batch: 0,
        }
    }

    /// Lets one worker of a host do a few steps.
    fn step(&mut self, host: usize, at: usize) {
        let env = Rc::clone(&self.env);
        let mut env = env.borrow_mut();
        let env = &mut *env;
        let Host {
            workers,
            queue,
            stream,
            ..
        } = &mut self.hosts[host];
        let worker = &mut workers[at];
        for _ in 0..env.rng.range(1, 12) {
            if worker.is_idle(env.now)
                && let Some(jobs) = queue.pop_front()
            {
                worker.inbox.push_back(jobs);
            }
            if !worker.is_runnable(env.now) {
                break;
            }
            worker.step(env);
            env.steps += 1;
            env.now += Duration::from_micros(env.rng.range(5, 60) as u64);
            if env.faults.signal_at == Some(env.steps) {
                self.signal.store(15, Ordering::Relaxed);
            }
            let reports = env.sent.drain(..);
            stream.extend(reports.map(|(row, report)| Message::Report(row, report)));
            if env.rng.chance(0.1) {
                stream.push_back(Message::Row(worker.number, worker.slot.to_words()));
            }
        }
        if env.rng.chance(0.02) {
            self.give_back(host, env);
        }
        if env.rng.chance(env.faults.host_loss) {
            let victim = env.rng.below(self.hosts.len());
            self.kill(victim, env);
        }
    }

    /// Gives a batch back that no worker has begun.
    fn give_back(&mut self, host: usize, env: &Env) {
        let host = &mut self.hosts[host];
        if let Some(batch) = host.queue.pop_back() {
            let claims = host.board.claims;
            let ids = batch
                .iter()
                .filter(|job| claims.claim(job.claim, job.id, NOBODY));
            let ids: Vec<JobId> = ids.map(|job| job.id).collect();
            env.world.borrow().trace(|| format!("gives back {ids:?}"));
            host.stream.push_back(Message::Returned(ids));
        }
    }

    /// Kills a host. Some of what it has said never arrives.
    fn kill(&mut self, host: usize, env: &mut Env) {
        let host = &mut self.hosts[host];
        if host.is_dead {
            return;
        }
        host.is_dead = true;
        for worker in &mut host.workers {
            worker.vanish(env);
        }
        host.queue.clear();
        host.stream.truncate(env.rng.range(0, host.stream.len()));
        host.stream.push_back(Message::Gone);
        env.world.borrow_mut().has_lost_host = true;
    }

    /// Handles the next message of a host, as the lead does.
    fn receive(&mut self, at: usize) {
        let env = self.env.borrow();
        let scoreboard = env.context.scoreboard;
        let claims = scoreboard.claims;
        let host = &mut self.hosts[at];
        let Some(message) = host.stream.pop_front() else {
            return;
        };
        match message {
            Message::Report(row, mut report) => {
                let world = env.world.borrow();
                world.trace(|| format!("{row} on {at} reports {report:?}"));
                report
                    .updates
                    .retain(|update| host.jobs.contains_key(&update.job));
                for update in &report.updates {
                    let Some((job, _)) = host.jobs.get(&update.job) else {
                        continue;
                    };
                    claims.hand_over(job.claim, update.job, at, row);
                    if update.is_done {
                        host.jobs.remove(&update.job);
                    }
                }
                self.events.push_back(Event::Report {
                    worker: row,
                    report,
                });
            }
            Message::Row(row, words) => scoreboard.slot(row).mirror(&words),
            Message::Returned(ids) => {
                let mut jobs = Vec::new();
                for id in ids {
                    if let Some((job, _)) = host.jobs.remove(&id) {
                        claims.publish(job.claim, id);
                        jobs.push(id);
                    }
                }
                self.events.push_back(Event::Returned { jobs });
            }
            Message::Gone => {
                env.world.borrow().trace(|| format!("{at} is lost"));
                host.is_lost = true;
                let rows = host.first..host.first + WORKERS;
                for row in rows.clone() {
                    let current = scoreboard.slot(row).job();
                    if let Some((id, (job, _))) =
                        current.and_then(|id| Some((id, host.jobs.get(&id)?)))
                    {
                        claims.hand_over(job.claim, id, at, row);
                    }
                }
                host.jobs.clear();
                self.events.push_back(Event::NodeLost(LostNode {
                    node: at,
                    workers: rows.clone().collect(),
                    names: rows.start as u64..rows.end as u64,
                    why: format!("host {at}: lost"),
                }));
            }
        }
    }
}

impl Engine for HostsEngine {
    fn free_slots(&self) -> usize {
        if self.hosts.iter().all(|host| host.is_lost) {
            return 1;
        }
        self.hosts.iter().map(Host::free).sum()
    }

    fn idle(&self) -> usize {
        let able = self.hosts.iter().filter(|host| !host.is_lost);
        able.map(|host| WORKERS.saturating_sub(host.batches()))
            .sum()
    }

    fn busy(&self) -> usize {
        let is_ending = |host: &Host| usize::from(host.is_dead && !host.is_lost);
        let hosts = self.hosts.iter();
        hosts.map(|host| host.batches().max(is_ending(host))).sum()
    }

    fn send(&mut self, mut batch: Vec<Arc<Job>>) -> Sent {
        let able = self.hosts.iter().enumerate().filter(|(_, it)| !it.is_lost);
        let Some((at, _)) = able.min_by_key(|(_, host)| host.batches()) else {
            return Sent::NoWorkers;
        };
        let env = self.env.borrow();
        let claims = env.context.scoreboard.claims;
        batch.retain(|job| claims.claim(job.claim, job.id, at));
        env.world.borrow().trace(|| format!("to {at}: {batch:?}"));
        self.last_batch += 1;
        let host = &mut self.hosts[at];
        for job in &batch {
            host.jobs.insert(job.id, (Arc::clone(job), self.last_batch));
            host.board.claims.publish(job.claim, job.id);
        }
        if !host.is_dead && !batch.is_empty() {
            host.queue.push_back(batch);
        }
        Sent::To(at)
    }

    fn next(&mut self, timeout: Duration) -> Option<Event> {
        self.waits += 1;
        if self.waits > MOST_WAITS {
            resume_unwind(Box::new(Hung));
        }
        let until = self.env.borrow().now + timeout;
        loop {
            if let Some(event) = self.events.pop_front() {
                self.waits = 0;
                return Some(event);
            }
            let mut env = self.env.borrow_mut();
            if env.steps > MOST_STEPS {
                resume_unwind(Box::new(Hung));
            }
            if env.context.scoreboard.is_finishing() {
                let destination = env.context.targets.list[0].destination_path.clone();
                env.world.borrow_mut().begin_mirror(destination);
            }
            let now = env.now;
            let mut runnable = Vec::new();
            for (host, it) in self.hosts.iter().enumerate().filter(|(_, it)| !it.is_dead) {
                let has_queue = !it.queue.is_empty();
                for (at, worker) in it.workers.iter().enumerate() {
                    if worker.is_runnable(now) || has_queue && worker.is_idle(now) {
                        runnable.push((host, at));
                    }
                }
            }
            let hosts = self.hosts.iter().enumerate();
            let talking = hosts.filter(|(_, host)| !host.stream.is_empty());
            let talking: Vec<usize> = talking.map(|(host, _)| host).collect();
            let is_over = now >= until;
            if !talking.is_empty() && (is_over || runnable.is_empty() || env.rng.chance(0.3)) {
                let host = env.rng.pick(&talking);
                drop(env);
                self.receive(host);
                continue;
            }
            if is_over {
                return None;
            }
            if runnable.is_empty() {
                env.now = until;
                continue;
            }
            let (host, at) = env.rng.pick(&runnable);
            drop(env);
            self.waits = 0;
            self.step(host, at);
        }
    }

    fn set_limit(&mut self, _workers: usize) {}

    fn set_stuck(&mut self, _worker: usize, _is_stuck: bool) {}

    fn has_work(&self, _worker: usize) -> bool {
        false
    }

    fn started(&self) -> usize {
        self.hosts.len() * (1 + WORKERS)
    }

    fn label(&self, worker: usize) -> String {
        format!("[worker {worker}]")
    }

    fn kill(&mut self, _worker: usize) -> bool {
        false
    }

    fn abandon(&mut self, _worker: usize) {}

    fn end_chunked(&mut self, temp: &Name) {
        let row = temp.as_bytes().split(|&b| b == b'.').nth(3);
        let row = row.and_then(|row| std::str::from_utf8(row).ok()?.parse().ok());
        let host = row.and_then(|row| host_of(row, self.hosts.len()));
        if let Some(host) = host.and_then(|host| self.hosts.get(host)) {
            host.board.end_chunked();
        }
    }

    fn shut_down(&mut self, _timeout: Duration, _kill_timeout: Duration) -> usize {
        0
    }

    fn now(&self) -> Instant {
        self.env.borrow().now
    }
}
