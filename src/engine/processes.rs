//! Workers that are forked processes, seen from the parent: deal, listen, replace.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::fork_server::ForkServer;
use super::{Engine, Event};
use crate::context::Context;
use crate::protocol::error::Death;
use crate::protocol::wire::{LONGEST_REPORT, Wire, WireError};
use crate::protocol::{Job, JobId, Report};

/// How long a worker that closed its socket is given until it is ended by force.
const ENDING: Duration = Duration::from_millis(100);

/// How often to look for ended processes that no closed socket has told of, in waits for
/// reports: each look is a system call.
const REAP_EVERY: u32 = 64;

/// The processes.
pub(crate) struct Processes {
    context: &'static Context,
    fork_server: Option<ForkServer>,
    workers: Vec<Process>,
    limit: usize,
    slots: usize,
    events: VecDeque<Event>,
    /// Left behind: they could not be ended.
    stuck: Vec<Pid>,
    /// Workers in a row that never came to life.
    stillborn: usize,
    waits: u32,
}

struct Process {
    number: usize,
    wire: Wire,
    deals: usize,
    jobs: Vec<JobId>,
}

impl Processes {
    /// Forks the fork_server. No thread must exist yet. Workers are forked when there is work.
    ///
    /// # Errors
    /// Where the fork_server cannot be had.
    pub(crate) fn new(context: &'static Context, limit: usize) -> Result<Self> {
        Ok(Self {
            context,
            fork_server: Some(ForkServer::start(context)?),
            workers: Vec::new(),
            limit,
            slots: 0,
            events: VecDeque::new(),
            stuck: Vec::new(),
            stillborn: 0,
            waits: 0,
        })
    }

    /// Starts a worker. None where that cannot be done any more.
    fn start_one(&mut self) -> Option<usize> {
        if self.slots == self.context.scoreboard.room() || self.stillborn > 2 {
            return None;
        }
        let fork_server = self.fork_server.as_ref()?;
        let (here, there) = Wire::pair().ok()?;
        if fork_server.ask(self.slots, &there).is_err() {
            // It is dead: no more replacements. The workers that live go on.
            let _ = waitpid(Some(fork_server.pid), WaitOptions::NOHANG);
            self.fork_server = None;
            return None;
        }
        self.workers.push(Process {
            number: self.slots,
            wire: Wire::new(here, LONGEST_REPORT),
            deals: 0,
            jobs: Vec::new(),
        });
        self.slots += 1;
        Some(self.workers.len() - 1)
    }

    /// The worker that a deal goes to: an idle one, else a new one, else the least busy.
    fn choose(&mut self) -> Option<usize> {
        let least = (0..self.workers.len()).min_by_key(|&at| {
            let worker = &self.workers[at];
            // One that is stuck comes last.
            (self.is_stuck(worker), worker.deals)
        });
        match least {
            Some(at) if self.workers[at].deals == 0 => Some(at),
            _ if self.workers.len() < self.limit => self.start_one().or(least),
            least => least,
        }
    }

    /// True for a worker that makes no progress, and that others have taken the work of.
    fn is_stuck(&self, worker: &Process) -> bool {
        worker.deals > 0 && self.context.scoreboard.slot(worker.number).is_taken_from()
    }

    /// Reads what a worker has to say, or that it is no more.
    fn listen(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        match worker.wire.receive::<Report>(false) {
            Ok(report) => {
                self.stillborn = 0;
                let over = |id: &JobId| {
                    report.returned.contains(id)
                        || report.news.iter().any(|news| news.ended && news.job == *id)
                };
                worker.jobs.retain(|id| !over(id));
                if report.deal_ended {
                    worker.deals = worker.deals.saturating_sub(1);
                }
                let worker = worker.number;
                self.events.push_back(Event::Report { worker, report });
            }
            Err(WireError::Nothing) => {}
            Err(WireError::Closed) => self.bury(at),
            Err(WireError::Garbage) => {
                // Whatever it is, it must not go on with jobs that others are about to get.
                self.kill(self.workers[at].number);
                self.bury(at);
            }
        }
    }

    /// A worker is no more, or about to be.
    fn bury(&mut self, at: usize) {
        let worker = self.workers.swap_remove(at);
        let pid = self.context.scoreboard.slot(worker.number).pid();
        let death = match pid {
            Some(pid) => self.reap(pid),
            None => {
                self.stillborn += 1;
                Death::Unknown
            }
        };
        self.events.push_back(Event::Lost {
            worker: worker.number,
            jobs: worker.jobs,
            death,
        });
    }

    fn reap(&mut self, pid: Pid) -> Death {
        let since = Instant::now();
        loop {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => return death_of(status),
                Ok(None) if since.elapsed() < ENDING => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                Ok(None) if since.elapsed() < 2 * ENDING => {
                    let _ = kill_process(pid, Signal::KILL);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(None) => {
                    self.stuck.push(pid);
                    return Death::Unknown;
                }
                Err(Errno::INTR) => {}
                Err(_) => return Death::Unknown,
            }
        }
    }

    /// No zombie stays for long: neither a worker that took its time to end nor the fork_server.
    fn reap_late(&mut self) {
        let gone = |pid: Pid| !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None));
        self.stuck.retain(|&pid| !gone(pid));
        if self
            .fork_server
            .as_ref()
            .is_some_and(|fork_server| gone(fork_server.pid))
        {
            self.fork_server = None;
        }
    }
}

fn death_of(status: WaitStatus) -> Death {
    let signal = status.terminating_signal().map(Death::Signal);
    let exit = status.exit_status().map(Death::Exit);
    signal.or(exit).unwrap_or(Death::Unknown)
}

impl Engine for Processes {
    fn room(&self) -> usize {
        // None for a worker that is stuck: it would wait with it.
        let able = self.workers.iter().filter(|worker| !self.is_stuck(worker));
        let stuck = self.workers.len() - able.clone().count();
        let deals: usize = able.map(|worker| worker.deals).sum();
        (2 * self.limit.saturating_sub(stuck)).saturating_sub(deals)
    }

    fn idle(&self) -> usize {
        let busy = self.workers.iter().filter(|worker| worker.deals > 0);
        self.limit.saturating_sub(busy.count())
    }

    fn busy(&self) -> usize {
        self.workers.iter().map(|worker| worker.deals).sum()
    }

    fn deal(&mut self, jobs: Vec<Arc<Job>>) {
        let Some(at) = self.choose() else {
            let jobs = jobs.iter().map(|job| job.id).collect();
            self.events.push_back(Event::NoWorkers { jobs });
            return;
        };
        let worker = &mut self.workers[at];
        worker.deals += 1;
        worker.jobs.extend(jobs.iter().map(|job| job.id));
        let jobs: Vec<&Job> = jobs.iter().map(AsRef::as_ref).collect();
        if worker.wire.send(&jobs, false).is_err() {
            // It may have closed its socket; what it said before is read first.
            self.kill(self.workers[at].number);
        }
    }

    fn waiting(&self, worker: usize) -> Vec<JobId> {
        let process = self.workers.iter().find(|process| process.number == worker);
        process.map_or_else(Vec::new, |process| process.jobs.clone())
    }

    fn next(&mut self, patience: Duration) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        for at in 0..self.workers.len() {
            if self.workers[at].wire.send_rest(false).is_err() {
                self.kill(self.workers[at].number);
            }
        }
        let mut fds: Vec<PollFd<'_>> = self
            .workers
            .iter()
            .map(|worker| {
                let mut flags = PollFlags::IN;
                flags.set(PollFlags::OUT, worker.wire.has_unsent());
                PollFd::from_borrowed_fd(worker.wire.as_fd(), flags)
            })
            .collect();
        let timeout = Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        // Interrupted by a signal: the caller looks at it.
        let ready = poll(&mut fds, Some(&timeout)).ok()?;
        self.waits += 1;
        if ready == 0 || self.waits.is_multiple_of(REAP_EVERY) {
            self.reap_late();
            return None;
        }
        let ready: Vec<usize> = (0..fds.len())
            .rev()
            .filter(|&at| !fds[at].revents().is_empty())
            .collect();
        // From the last one: burying a worker moves the last one to its place.
        for at in ready {
            self.listen(at);
        }
        self.events.pop_front()
    }

    fn set_limit(&mut self, workers: usize) {
        self.limit = workers;
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn label(&self, worker: usize) -> String {
        match self.context.scoreboard.slot(worker).pid() {
            Some(pid) => format!("[pid {}]", pid.as_raw_nonzero()),
            None => format!("[worker {}]", worker + 1),
        }
    }

    fn kill(&mut self, worker: usize) -> bool {
        // The number of one that is no more may be somebody else's by now.
        let lives = self.workers.iter().any(|process| process.number == worker);
        let pid = self.context.scoreboard.slot(worker).pid().filter(|_| lives);
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    }

    fn abandon(&mut self, worker: usize) {
        let Some(at) = self.workers.iter().position(|w| w.number == worker) else {
            return;
        };
        let worker = self.workers.swap_remove(at);
        self.stuck
            .extend(self.context.scoreboard.slot(worker.number).pid());
        self.events.push_back(Event::Lost {
            worker: worker.number,
            jobs: worker.jobs,
            death: Death::Unknown,
        });
    }

    fn shut_down(&mut self, patience: Duration) -> bool {
        let board = self.context.scoreboard;
        let fork_server = self.fork_server.take();
        let mut left = std::mem::take(&mut self.stuck);
        left.extend(fork_server.as_ref().map(|fork_server| fork_server.pid));
        // Closed sockets tell the fork_server and the workers to end.
        drop(fork_server);
        for worker in self.workers.drain(..) {
            left.extend(board.slot(worker.number).pid());
        }
        let since = Instant::now();
        let mut forced = false;
        loop {
            left.retain(|&pid| matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)));
            if left.is_empty() {
                return true;
            }
            if since.elapsed() > patience && !forced {
                for &pid in &left {
                    let _ = kill_process(pid, Signal::KILL);
                }
                forced = true;
            }
            if since.elapsed() > patience + ENDING {
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
