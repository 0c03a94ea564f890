//! A node: runs jobs that the lead sends with an engine of its own, and passes on what its workers
//! report.
//!
//! The node has a scoreboard of its own, with the claims, the gate and the number of workers. It
//! knows nothing of the tree. What is its own affair it decides itself: it passes over a stuck
//! worker, and starts more workers if these pay. Losses and timeouts are the lead's affair.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::getpid;

use super::held::{HeldJobs, divide};
use super::start;
use crate::config::{Config, Mode};
use crate::context::{Context, Identity};
use crate::engine::mpi::{HEARTBEAT, WORKERS_OF_NODE};
use crate::engine::processes::Processes;
use crate::engine::threads::Threads;
use crate::engine::{Engine, Event, Sent};
use crate::killed::Presence;
use crate::protocol::frames::{Link, Numbers, RELAY};
use crate::protocol::nodes::{FromNode, Room, Row, Start, ToNode};
use crate::protocol::{Job, JobId, JobKind};
use crate::scheduler::autoscale::{PERIOD, WorkerLimit};
use crate::scheduler::watchdog::{Stall, Watchdog};
use crate::scoreboard::Scoreboard;

/// How often the lead gets what the scoreboard shows.
const SHOW: Duration = Duration::from_millis(100);
/// How long to wait for the lead before looking at what the workers report. They have more batches
/// meanwhile.
const LOOK: Duration = Duration::from_millis(1);
/// The same, if the lead has said nothing for a while: the workers hang, or copy a large file.
const LOOK_IDLE: Duration = Duration::from_millis(4);
const IDLE_AFTER: Duration = Duration::from_millis(100);
/// Bytes for the lead that wait, above which the workers wait too.
const MOST_UNSENT: usize = 4 << 20;
/// Rows in one message, which must not be too long.
const ROWS: usize = 256;
/// How long workers may take to end, and to die.
const END_TIMEOUT: Duration = Duration::from_millis(300);
/// Part of the time after which the lead gives up a silent node. By then the node must be dead.
const LEAD_TIMEOUT: f64 = 2.0 / 3.0;

/// The node's side of a run.
pub(super) struct Node {
    context: &'static Context,
    engine: Box<dyn Engine>,
    limit: WorkerLimit,
    watchdog: Watchdog,
    link: Link,
    numbers: Numbers,
    rank: u32,
    held: HeldJobs,
    /// What the lead knows of each worker.
    shown: Vec<Row>,
    shown_at: Instant,
    said: Instant,
    heard: Instant,
    /// After this time without a word from the lead, the node ends.
    timeout: Duration,
    room: Room,
    has_said_stopping: bool,
}

/// Whether the run goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    End,
}

/// Runs a node to its end.
///
/// # Errors
/// If it could not start. The lead knows why.
pub(super) fn serve(mut link: Link, rank: u32, config: Config) -> Result<()> {
    let mut numbers = Numbers::default();
    let Some(start) = start::wait_for_start(&mut link, &mut numbers)? else {
        return Ok(());
    };
    match prepare(&start, rank, config) {
        Ok(Prepared {
            presence: _presence,
            context,
            limit,
            engine,
        }) => {
            let mut node = Node::new(context, engine, limit, link, numbers, rank, &start);
            node.run();
            Ok(())
        }
        Err(error) => {
            let host = start::host();
            let why = format!("{error:#}");
            let message = numbers.number(FromNode::Refused { host, why });
            let _ = link.send(0, &message);
            // The lead ends the run.
            let deadline = Instant::now() + Duration::from_millis(start.timeout);
            while Instant::now() < deadline {
                match link.receive() {
                    Ok(Some(_)) => {}
                    Ok(None) => link.wait(SHOW),
                    Err(_) => break,
                }
            }
            Ok(())
        }
    }
}

/// What a node needs before it begins.
struct Prepared {
    presence: Option<Presence>,
    context: &'static Context,
    limit: WorkerLimit,
    engine: Box<dyn Engine>,
}

/// Checks that this node is like the lead, and opens everything.
fn prepare(start: &Start, rank: u32, mut config: Config) -> Result<Prepared> {
    start::check(start, &config)?;
    config.adopt(start.decided.clone());
    // Each host has an equal share.
    config.limits.bwlimit = config.limits.bwlimit.map(|rate| {
        let share = rate.get() / u64::from(start.nodes.max(1));
        NonZeroU64::new(share).unwrap_or(NonZeroU64::MIN)
    });
    let targets = start::open(start, &config, rank)?;
    let presence = Presence::begin(&targets, &config);
    let identity = Identity {
        umask: start.umask,
        parent: getpid(),
        ..Identity::read()
    };
    Identity::clear_umask(&config);
    let limit = WorkerLimit::new(config.jobs);
    let workers = WORKERS_OF_NODE as usize;
    if limit.limit() + limit.max() > workers {
        bail!("too many workers");
    }
    let scoreboard = Scoreboard::new(workers, start.claims as usize, limit.max())?;
    scoreboard.set_first_named(u64::from(rank) * WORKERS_OF_NODE);
    scoreboard.run_number(|| start.run);
    if limit.is_automatic() {
        scoreboard.gate.begin();
    }
    let context: &'static Context = Box::leak(Box::new(Context {
        config,
        identity,
        targets,
        scoreboard,
    }));
    let engine: Box<dyn Engine> = match context.config.mpi.workers {
        // This forks the fork server, so no thread may exist yet.
        Mode::Process => Box::new(Processes::new(context, limit.limit(), &[])?),
        _ => Box::new(Threads::new(context, limit.max(), limit.limit())?),
    };
    Ok(Prepared {
        presence,
        context,
        limit,
        engine,
    })
}

impl Node {
    fn new(
        context: &'static Context,
        engine: Box<dyn Engine>,
        limit: WorkerLimit,
        link: Link,
        numbers: Numbers,
        rank: u32,
        start: &Start,
    ) -> Self {
        let now = Instant::now();
        let timeout = Duration::from_millis(start.timeout).mul_f64(LEAD_TIMEOUT);
        Self {
            context,
            engine,
            limit,
            // The lead warns of stuck workers, and has them killed.
            watchdog: Watchdog::new(now, None, Duration::MAX),
            link,
            numbers,
            rank,
            held: HeldJobs::new(context.scoreboard.claims),
            shown: Vec::new(),
            shown_at: now,
            said: now,
            heard: now,
            timeout,
            room: Room::default(),
            has_said_stopping: false,
        }
    }

    fn run(&mut self) {
        let host = start::host();
        self.room = self.room();
        let room = self.room;
        let is_bound = self.context.config.jobs != Some(1) && start::is_bound();
        self.say(FromNode::Ready {
            host,
            room,
            is_bound,
        });
        let mut ticked = Instant::now();
        loop {
            if self.listen() == Next::End {
                return;
            }
            let mut has_events = false;
            if self.link.unsent() < MOST_UNSENT {
                // Bounded, so that the lead's messages are read too.
                for _ in 0..64 {
                    let Some(event) = self.engine.next(Duration::ZERO) else {
                        break;
                    };
                    self.handle_event(event);
                    has_events = true;
                }
                let _ = self.link.flush();
            }
            self.relieve();
            let now = Instant::now();
            if now.saturating_duration_since(ticked) >= PERIOD {
                // If this process was stopped, what the lead has sent meanwhile has not been read.
                let unheard = (now - ticked).saturating_sub(2 * HEARTBEAT);
                self.heard = (self.heard + unheard).min(now);
                ticked = now;
                self.tick(now);
            }
            let wait = if self.engine.busy() == 0 || self.link.unsent() >= MOST_UNSENT {
                SHOW
            } else if has_events {
                continue;
            } else if self.heard.elapsed() > IDLE_AFTER {
                LOOK_IDLE
            } else {
                LOOK
            };
            self.link.wait(wait);
        }
    }

    fn say(&mut self, message: FromNode) {
        self.said = Instant::now();
        let message = self.numbers.number(message);
        // A closed connection is noticed when it is read.
        let _ = self.link.queue(0, &message);
    }

    /// Handles what the lead has sent.
    fn listen(&mut self) -> Next {
        let _ = self.link.flush();
        for _ in 0..64 {
            match self.link.receive() {
                Ok(Some((RELAY, _))) => {}
                Ok(Some((_, bytes))) => match self.numbers.read::<ToNode>(&bytes) {
                    Ok(Some(message)) => {
                        self.heard = Instant::now();
                        if self.handle(message) == Next::End {
                            return Next::End;
                        }
                    }
                    Ok(None) => {}
                    // Something is lost. The lead does this node's work again.
                    Err(_) => return Next::End,
                },
                Ok(None) => break,
                // The lead or the relay is dead.
                Err(_) => return Next::End,
            }
        }
        Next::Go
    }

    fn handle(&mut self, message: ToNode) -> Next {
        let scoreboard = self.context.scoreboard;
        match message {
            ToNode::Start(_) => return Next::End,
            ToNode::Jobs(jobs) => {
                if !jobs.iter().all(|job| self.is_possible(job)) {
                    return Next::End;
                }
                for job in &jobs {
                    scoreboard.claims.publish(job.claim, job.id);
                }
                for part in divide(&jobs, self.engine.idle()) {
                    self.send(part);
                }
            }
            ToNode::Wanted(jobs) => self.share(jobs as usize),
            ToNode::ChunkedEnded => scoreboard.end_chunked(),
            ToNode::Kill { worker } => {
                if (worker as usize) < self.engine.started() {
                    self.engine.kill(worker as usize);
                }
            }
            ToNode::Abandon { worker } => {
                if (worker as usize) < self.engine.started() {
                    self.engine.abandon(worker as usize);
                }
            }
            ToNode::Finish => scoreboard.finish(),
            ToNode::KeepRest => scoreboard.end_deletions(),
            ToNode::Stop => {
                self.has_said_stopping = true;
                scoreboard.stop();
            }
            ToNode::Heartbeat => {}
            ToNode::Quit => {
                self.quit();
                return Next::End;
            }
        }
        Next::Go
    }

    /// Returns true unless a job names what does not exist here.
    fn is_possible(&self, job: &Job) -> bool {
        let targets = self.context.targets.list.len();
        let leader = match &job.kind {
            JobKind::HardLinks { leader, .. } => leader.target,
            _ => 0,
        };
        (job.target as usize) < targets
            && (leader as usize) < targets
            && (job.claim as usize) < self.context.scoreboard.claims.capacity()
    }

    /// Gives idle workers the jobs that wait behind others. The first worker to claim a job runs it.
    fn relieve(&mut self) {
        for _ in 0..self.engine.idle() {
            let Some(job) = self.held.pop_behind() else {
                break;
            };
            self.send(&[job]);
        }
    }

    /// Sends jobs to a worker. If there is none, gives them back.
    fn send(&mut self, jobs: &[Arc<Job>]) {
        let was_idle = self.engine.idle() > 0;
        let sent = self.engine.send(jobs.to_vec());
        self.held.on_sent(jobs, sent, was_idle);
        if sent == Sent::NoWorkers {
            self.give_back(jobs.iter().map(|job| job.id).collect());
            self.room.batches = 0;
            self.say(FromNode::Room(self.room));
        }
    }

    /// Gives jobs back that no worker has claimed.
    fn give_back(&mut self, ids: Vec<JobId>) {
        let returned = self.held.take_back(ids);
        if !returned.is_empty() {
            self.say(FromNode::Returned(returned));
        }
    }

    /// Returns jobs for idle workers on other nodes, and asks the busy ones here to share the rest.
    fn share(&mut self, wanted: usize) {
        let mut returned = Vec::new();
        // If a worker is idle here, it is about to take a job.
        if wanted > 0 && self.engine.idle() == 0 && !self.context.scoreboard.is_stopping() {
            returned = self.held.last_open(wanted);
        }
        let rest = wanted - returned.len();
        self.give_back(returned);
        self.context.scoreboard.set_wanted(rest);
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Report { worker, report } => {
                for update in report.updates.iter().filter(|update| update.is_done) {
                    self.held.end(update.job);
                }
                let worker = worker as u32;
                self.say(FromNode::Report { worker, report });
            }
            Event::Lost {
                worker,
                death,
                is_left_behind,
            } => {
                self.context.scoreboard.gate.revoke(worker);
                self.watchdog.forget(worker, Instant::now());
                let claimed = self.held.take_claimed(worker);
                let row = Row {
                    has_work: false,
                    ..self.row(worker)
                };
                self.say(FromNode::Lost {
                    row,
                    claimed,
                    death,
                    is_left_behind,
                });
                self.resend_unclaimed(worker, None);
            }
            // Engines of one host do not have these.
            Event::Returned { .. } | Event::NodeLost(_) => {}
        }
    }

    /// Sends jobs again that wait with a stuck or lost worker.
    fn resend_unclaimed(&mut self, worker: usize, batch: Option<u64>) {
        for job in self.held.open_with(worker, batch) {
            self.send(&[job]);
        }
    }

    fn tick(&mut self, now: Instant) {
        let scoreboard = self.context.scoreboard;
        if !self.has_said_stopping && scoreboard.is_stopping() {
            self.has_said_stopping = true;
            self.say(FromNode::Stopping);
        }
        let (busy, started) = (self.engine.busy(), self.engine.started());
        let changes = self.limit.update(now, busy, scoreboard, started);
        if let Some(limit) = changes.workers {
            self.engine.set_limit(limit);
        }
        let has_work = |worker| self.engine.has_work(worker);
        for (worker, stall) in self.watchdog.check(now, scoreboard, started, has_work) {
            match stall {
                Stall::Slow => {
                    scoreboard.gate.revoke(worker);
                    self.engine.set_stuck(worker, true);
                    if let Some(limit) = self.limit.replace_stuck() {
                        self.engine.set_limit(limit);
                    }
                    let current = scoreboard.slot(worker).job();
                    let batch = current.and_then(|id| self.held.batch(id));
                    self.resend_unclaimed(worker, batch);
                }
                Stall::Over => self.engine.set_stuck(worker, false),
                Stall::Warn { .. } | Stall::Kill | Stall::Unkillable => {}
            }
        }
        let room = self.room();
        if room != self.room && self.room.batches > 0 {
            self.room = room;
            self.say(FromNode::Room(room));
        }
        self.show(now);
        // The lead's own machine has no clock that runs apart from the lead's.
        if self.rank != 0 && now.saturating_duration_since(self.heard) > self.timeout {
            crate::fs::sys::exit_now(1);
        }
    }

    /// Returns how many batches the engine takes.
    fn room(&self) -> Room {
        Room {
            workers: self.limit.limit() as u32,
            batches: (self.engine.free_slots() + self.engine.busy()) as u32,
            can_kill: self.context.config.mpi.workers == Mode::Process,
        }
    }

    fn row(&self, worker: usize) -> Row {
        Row {
            worker: worker as u32,
            has_work: self.engine.has_work(worker),
            words: self.context.scoreboard.slot(worker).to_words(),
        }
    }

    /// Tells the lead what has changed on the scoreboard, or that this node lives.
    fn show(&mut self, now: Instant) {
        if now.saturating_duration_since(self.shown_at) < SHOW {
            return;
        }
        self.shown_at = now;
        let mut changed = Vec::new();
        for worker in 0..self.engine.started() {
            let row = self.row(worker);
            match self.shown.get_mut(worker) {
                Some(shown) if *shown == row => {}
                Some(shown) => {
                    shown.clone_from(&row);
                    changed.push(row);
                }
                None => {
                    self.shown.push(row.clone());
                    changed.push(row);
                }
            }
        }
        for rows in changed.chunks(ROWS) {
            self.say(FromNode::Rows(rows.to_vec()));
        }
        if now.saturating_duration_since(self.said) >= HEARTBEAT {
            self.say(FromNode::Rows(Vec::new()));
        }
    }

    /// Ends all workers and says goodbye.
    fn quit(&mut self) {
        let left_behind = self.engine.shut_down(END_TIMEOUT, END_TIMEOUT) as u32;
        self.say(FromNode::Bye { left_behind });
        let deadline = Instant::now() + END_TIMEOUT;
        while self.link.unsent() > 0 && Instant::now() < deadline {
            self.link.wait(Duration::from_millis(10));
            if self.link.flush().is_err() {
                break;
            }
        }
    }
}
