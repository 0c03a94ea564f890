//! The simulated engine. It chooses the worker that steps next, the time at which the parent gets
//! an event, and the faults.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::env::{Env, SLOTS};
use super::worker::Worker;
use crate::engine::{Choice, Engine, Event, Sent, choose};
use crate::protocol::Job;
use crate::protocol::error::Death;

/// Steps of all workers, and waits for nothing, after which a run counts as hung.
pub(super) const MOST_STEPS: u64 = 200_000;
pub(super) const MOST_WAITS: u64 = 20_000;

/// A run that does not end.
pub(super) struct Hung;

pub(super) struct SimEngine {
    env: Rc<RefCell<Env>>,
    workers: Vec<Worker>,
    /// Threads: batches that none of them has begun.
    queue: VecDeque<Vec<Arc<Job>>>,
    in_flight_of_threads: usize,
    limit: usize,
    started: usize,
    events: VecDeque<Event>,
    signal: Arc<AtomicUsize>,
    waits: u64,
    is_left_behind: Rc<RefCell<bool>>,
}

impl SimEngine {
    pub(super) fn new(
        env: &Rc<RefCell<Env>>,
        limit: usize,
        signal: &Arc<AtomicUsize>,
        is_left_behind: &Rc<RefCell<bool>>,
    ) -> Self {
        Self {
            env: Rc::clone(env),
            workers: Vec::new(),
            queue: VecDeque::new(),
            in_flight_of_threads: 0,
            limit,
            started: 0,
            events: VecDeque::new(),
            signal: Arc::clone(signal),
            waits: 0,
            is_left_behind: Rc::clone(is_left_behind),
        }
    }

    fn start_one(&mut self) -> Option<usize> {
        let env = self.env.borrow();
        if self.started >= env.faults.starts.min(SLOTS) {
            return None;
        }
        self.workers.push(Worker::new(self.started, env.context));
        self.started += 1;
        Some(self.workers.len() - 1)
    }

    /// Chooses the worker for a batch, and starts one if need be.
    fn choose(&mut self) -> Option<usize> {
        let load = |worker: &Worker| (worker.is_stuck, worker.in_flight);
        match choose(self.workers.iter().map(load), self.limit)? {
            Choice::Existing(at) => Some(at),
            Choice::New(otherwise) => self.start_one().or(otherwise),
        }
    }

    fn position(&self, worker: usize) -> Option<usize> {
        self.workers.iter().position(|w| w.number == worker)
    }

    /// Returns the workers with an event for the parent: a report, or their end.
    fn ready(&self) -> Vec<usize> {
        let env = self.env.borrow();
        if !env.is_process {
            return env
                .sent
                .front()
                .map(|(worker, _)| *worker)
                .into_iter()
                .collect();
        }
        let says = |number| env.sent.iter().any(|(worker, _)| *worker == number);
        let workers = self.workers.iter();
        let ready = workers.filter(|worker| worker.death.is_some() || says(worker.number));
        ready.map(|worker| worker.number).collect()
    }

    fn receive(&mut self, number: usize) -> Event {
        let event = self.take_event(number);
        let env = self.env.borrow();
        env.world.borrow().trace(|| match &event {
            Event::Report { worker, report } => format!("{worker} reports {report:?}"),
            Event::Lost { worker, death, .. } => format!("{worker} is lost: {death}"),
            Event::Returned { jobs } => format!("{jobs:?} are returned"),
            Event::NodeLost(node) => format!("node {} is lost", node.node),
        });
        drop(env);
        event
    }

    fn take_event(&mut self, number: usize) -> Event {
        let mut env = self.env.borrow_mut();
        let at = self
            .workers
            .iter()
            .position(|w| w.number == number)
            .unwrap();
        let Some(first) = env.sent.iter().position(|(worker, _)| *worker == number) else {
            let worker = self.workers.swap_remove(at);
            return Event::Lost {
                worker: number,
                death: worker.death.unwrap_or(Death::Unknown),
                is_left_behind: false,
            };
        };
        let (_, report) = env.sent.remove(first).unwrap();
        let worker = &mut self.workers[at];
        if report.is_batch_done {
            worker.in_flight = worker.in_flight.saturating_sub(1);
            self.in_flight_of_threads = self.in_flight_of_threads.saturating_sub(1);
        }
        Event::Report {
            worker: number,
            report,
        }
    }

    /// Advances one worker by a few steps.
    fn step(&mut self, at: usize) {
        let mut env = self.env.borrow_mut();
        let env = &mut *env;
        for _ in 0..env.rng.range(1, 12) {
            let worker = &mut self.workers[at];
            if worker.is_idle(env.now)
                && !env.is_process
                && let Some(jobs) = self.queue.pop_front()
            {
                worker.inbox.push_back(jobs);
            }
            if !worker.is_runnable(env.now) {
                return;
            }
            worker.step(env);
            env.steps += 1;
            env.now += Duration::from_micros(env.rng.range(5, 60) as u64);
            if env.faults.signal_at == Some(env.steps) {
                self.signal.store(15, Ordering::Relaxed);
            }
            if env.rng.chance(env.faults.stall) {
                let longest = env.faults.longest_stall.as_millis() as usize;
                let stall = Duration::from_millis(env.rng.range(200, longest) as u64);
                worker.stalled_until = Some(env.now + stall);
                worker.is_unkillable = env.faults.unkillable && env.rng.chance(0.5);
                return;
            }
            if env.rng.chance(env.faults.crash) {
                let victim = env.rng.below(self.workers.len());
                if self.workers[victim].death.is_none() {
                    self.workers[victim].kill(env);
                }
            }
        }
    }
}

impl Engine for SimEngine {
    fn free_slots(&self) -> usize {
        if !self.env.borrow().is_process {
            return (6 * self.limit).saturating_sub(self.in_flight_of_threads);
        }
        let able = self.workers.iter().filter(|worker| !worker.is_stuck);
        let stuck = self.workers.len() - able.clone().count();
        let in_flight: usize = able.map(|worker| worker.in_flight).sum();
        (2 * self.limit.saturating_sub(stuck)).saturating_sub(in_flight)
    }

    fn idle(&self) -> usize {
        if !self.env.borrow().is_process {
            return self.limit.saturating_sub(self.in_flight_of_threads);
        }
        let busy = self.workers.iter().filter(|worker| worker.in_flight > 0);
        self.limit.saturating_sub(busy.count())
    }

    fn busy(&self) -> usize {
        if !self.env.borrow().is_process {
            return self.in_flight_of_threads;
        }
        let is_dead = |worker: &Worker| usize::from(worker.death.is_some());
        let workers = self.workers.iter();
        workers
            .map(|worker| worker.in_flight.max(is_dead(worker)))
            .sum()
    }

    fn send(&mut self, batch: Vec<Arc<Job>>) -> Sent {
        if !self.env.borrow().is_process {
            self.in_flight_of_threads += 1;
            if self.in_flight_of_threads > self.started && self.started < self.limit {
                self.start_one();
            }
            self.queue.push_back(batch);
            return Sent::ToAll;
        }
        let Some(at) = self.choose() else {
            return Sent::NoWorkers;
        };
        let worker = &mut self.workers[at];
        worker.in_flight += 1;
        let env = self.env.borrow();
        let number = worker.number;
        env.world
            .borrow()
            .trace(|| format!("to {number}: {batch:?}"));
        worker.inbox.push_back(batch);
        Sent::To(number)
    }

    fn next(&mut self, timeout: Duration) -> Option<Event> {
        self.waits += 1;
        if self.waits > MOST_WAITS {
            resume_unwind(Box::new(Hung));
        }
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let until = self.env.borrow().now + timeout;
        loop {
            let ready = self.ready();
            let env = self.env.borrow();
            if env.steps > MOST_STEPS {
                resume_unwind(Box::new(Hung));
            }
            let scoreboard = env.context.scoreboard;
            if scoreboard.is_finishing() {
                let destination = env.context.targets.list[0].destination_path.clone();
                env.world.borrow_mut().begin_mirror(destination);
            }
            let (now, has_queue) = (env.now, !self.queue.is_empty());
            let workers = self.workers.iter().enumerate();
            let runnable: Vec<usize> = workers
                .filter(|(_, worker)| worker.is_runnable(now) || has_queue && worker.is_idle(now))
                .map(|(at, _)| at)
                .collect();
            drop(env);
            let mut env = self.env.borrow_mut();
            let is_over = now >= until;
            if !ready.is_empty() && (is_over || runnable.is_empty() || env.rng.chance(0.3)) {
                let number = env.rng.pick(&ready);
                drop(env);
                self.waits = 0;
                return Some(self.receive(number));
            }
            if is_over {
                return None;
            }
            if runnable.is_empty() {
                // Until a stall ends.
                let stalled = self.workers.iter().filter(|w| w.death.is_none());
                let wakes = stalled.filter_map(|worker| worker.stalled_until);
                let wakes = wakes.filter(|&wakes| wakes > now).min();
                env.now = wakes.map_or(until, |wakes| wakes.min(until));
                continue;
            }
            let at = env.rng.pick(&runnable);
            drop(env);
            self.waits = 0;
            self.step(at);
        }
    }

    fn set_limit(&mut self, workers: usize) {
        self.limit = workers;
    }

    fn set_stuck(&mut self, worker: usize, is_stuck: bool) {
        if let Some(at) = self.position(worker) {
            self.workers[at].is_stuck = is_stuck;
        }
    }

    fn has_work(&self, worker: usize) -> bool {
        let env = self.env.borrow();
        match self.position(worker) {
            Some(at) if env.is_process => self.workers[at].in_flight > 0,
            _ => env.context.scoreboard.slot(worker).job().is_some(),
        }
    }

    fn started(&self) -> usize {
        self.started
    }

    fn label(&self, worker: usize) -> String {
        format!("[worker {worker}]")
    }

    fn kill(&mut self, worker: usize) -> bool {
        let mut env = self.env.borrow_mut();
        if !env.is_process {
            return false;
        }
        match self.workers.iter_mut().find(|w| w.number == worker) {
            Some(worker) => worker.kill(&mut env),
            None => return false,
        }
        true
    }

    fn abandon(&mut self, worker: usize) {
        if !self.env.borrow().is_process {
            return;
        }
        let Some(at) = self.position(worker) else {
            return;
        };
        // It is killed, so it will never do anything again.
        let mut worker = self.workers.swap_remove(at);
        let mut env = self.env.borrow_mut();
        worker.die(&mut env, Death::Unknown);
        env.sent.retain(|(number, _)| *number != worker.number);
        self.events.push_back(Event::Lost {
            worker: worker.number,
            death: Death::Unknown,
            is_left_behind: true,
        });
    }

    fn shut_down(&mut self, _timeout: Duration, _kill_timeout: Duration) -> usize {
        let env = self.env.borrow();
        let is_stuck = |worker: &&Worker| {
            worker.death.is_none()
                && worker.stalled_until.is_some()
                && (worker.is_unkillable || !env.is_process)
        };
        let stuck = self.workers.iter().filter(is_stuck).count();
        *self.is_left_behind.borrow_mut() |= stuck > 0 || self.busy() > 0;
        stuck
    }

    fn now(&self) -> Instant {
        self.env.borrow().now
    }
}
