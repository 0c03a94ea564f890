//! Workers that are forked processes, seen from the parent: send, listen, replace.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};

use super::fork_server::ForkServer;
use super::{Choice, Engine, Event, KILL_TIMEOUT, Sent, choose};
use crate::context::Context;
use crate::protocol::error::Death;
use crate::protocol::wire::{LONGEST_REPORT, Wire, WireError};
use crate::protocol::{Job, Report};

/// Batches in flight for each process: one that runs and one that waits. Four brought nothing.
const QUEUE_DEPTH: usize = 2;
/// How long a worker that closed its socket may take to end before it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_millis(200);
/// Number of waits between two checks for processes that ended without an event. Each check is a
/// system call.
const REAP_EVERY: u32 = 64;
/// How often to check the workers if poll(2) fails.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// No more workers are started after this many in a row never ran.
const MAX_STILLBORN: usize = 3;
/// No more workers are started after this many in a row were lost without a report. Otherwise a run
/// that cannot send reports would never end.
const MAX_SILENT: usize = 100;

/// The engine of `--mode process`.
pub(crate) struct Processes {
    context: &'static Context,
    fork_server: Option<ForkServer>,
    workers: Vec<WorkerHandle>,
    /// Workers that have closed their socket, or were killed, and have not been reaped.
    ending: Vec<Ending>,
    limit: usize,
    started: usize,
    events: VecDeque<Event>,
    /// Processes that do not die. They are reaped if they ever do.
    left_behind: Vec<ChildProcess>,
    stillborn: usize,
    lost_since_report: usize,
    waits: u32,
}

/// A worker that takes jobs.
struct WorkerHandle {
    number: usize,
    wire: Wire,
    in_flight: usize,
    is_stuck: bool,
}

/// A worker that takes no more jobs and is on its way out.
struct Ending {
    number: usize,
    process: ChildProcess,
    since: Instant,
    is_killed: bool,
}

/// A child of this process. Its pidfd (Linux 5.4) identifies exactly this process. So does its PID
/// until the process is reaped, and only this file reaps it.
pub(super) struct ChildProcess {
    pid: Pid,
    pidfd: Option<OwnedFd>,
}

impl ChildProcess {
    /// Opens the process of this number. Returns `None` if it is no child of this process: the
    /// number comes from memory that a damaged worker may have overwritten.
    pub(super) fn open(pid: Pid) -> Option<Self> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(pid), look).is_err_and(|errno| errno == Errno::CHILD) {
            return None;
        }
        // A PID is not reused before the child is reaped.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Some(Self { pid, pidfd })
    }

    pub(super) fn kill(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::KILL).is_ok(),
            None => kill_process(self.pid, Signal::KILL).is_ok(),
        }
    }

    /// Returns how the process ended; `None` if it still runs.
    pub(super) fn reap(&self) -> Option<Death> {
        let ended = match &self.pidfd {
            Some(pidfd) => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let ended = waitid(WaitId::PidFd(pidfd.as_fd()), options);
                ended.map(|ended| ended.map(|it| (it.terminating_signal(), it.exit_status())))
            }
            None => {
                let ended = waitpid(Some(self.pid), WaitOptions::NOHANG);
                ended.map(|ended| ended.map(|(_, it)| (it.terminating_signal(), it.exit_status())))
            }
        };
        match ended {
            Ok(None) | Err(Errno::INTR) => None,
            Ok(Some((Some(signal), _))) => Some(Death::Signal(signal)),
            Ok(Some((_, Some(status)))) => Some(Death::Exit(status)),
            Ok(Some(_)) | Err(_) => Some(Death::Unknown),
        }
    }
}

impl Processes {
    /// Forks the fork server. No thread must exist yet. Workers are forked when there is work.
    ///
    /// # Errors
    /// If the fork server cannot be started.
    pub(crate) fn new(
        context: &'static Context,
        limit: usize,
        private: &[BorrowedFd<'_>],
    ) -> Result<Self> {
        Ok(Self {
            context,
            fork_server: Some(ForkServer::start(context, private)?),
            workers: Vec::new(),
            ending: Vec::new(),
            limit,
            started: 0,
            events: VecDeque::new(),
            left_behind: Vec::new(),
            stillborn: 0,
            lost_since_report: 0,
            waits: 0,
        })
    }

    /// Starts a worker. Returns `None` if no more can be started.
    fn start_one(&mut self) -> Option<usize> {
        let scoreboard = &self.context.scoreboard;
        let is_hopeless = self.stillborn >= MAX_STILLBORN || self.lost_since_report >= MAX_SILENT;
        if self.started == scoreboard.capacity() || is_hopeless {
            return None;
        }
        let fork_server = self.fork_server.as_ref()?;
        let (here, there) = Wire::pair().ok()?;
        if fork_server.start_worker(self.started, &there).is_err() {
            // The fork server is dead, so no more workers can be started. The live ones go on.
            let _ = waitpid(Some(fork_server.pid), WaitOptions::NOHANG);
            self.fork_server = None;
            return None;
        }
        self.workers.push(WorkerHandle {
            number: self.started,
            wire: Wire::new(here, LONGEST_REPORT),
            in_flight: 0,
            is_stuck: false,
        });
        self.started += 1;
        Some(self.workers.len() - 1)
    }

    /// Chooses the worker for a batch, and starts one if need be.
    fn choose(&mut self) -> Option<usize> {
        let load = |worker: &WorkerHandle| (worker.is_stuck, worker.in_flight);
        match choose(self.workers.iter().map(load), self.limit)? {
            Choice::Existing(at) => Some(at),
            Choice::New(otherwise) => self.start_one().or(otherwise),
        }
    }

    /// Reads a worker's report, or notices that it has closed its socket.
    fn listen(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        match worker.wire.receive::<Report>(false) {
            Ok(report) => {
                self.stillborn = 0;
                self.lost_since_report = 0;
                if report.is_batch_done {
                    worker.in_flight = worker.in_flight.saturating_sub(1);
                }
                let worker = worker.number;
                self.events.push_back(Event::Report { worker, report });
            }
            Err(WireError::Nothing) => {}
            Err(WireError::Closed) => self.dismiss(at, false),
            // The worker must stop before other workers get its jobs.
            Err(WireError::Garbage) => self.dismiss(at, true),
        }
    }

    /// Sends nothing more to a worker and waits for its end.
    fn dismiss(&mut self, at: usize, kill: bool) {
        let worker = self.workers.swap_remove(at);
        let number = worker.number;
        let Some(pid) = self.context.scoreboard.slot(number).pid() else {
            self.stillborn += 1;
            return self.push_lost(number, Death::Unknown, false);
        };
        let Some(process) = ChildProcess::open(pid) else {
            return self.push_lost(number, Death::Unknown, false);
        };
        let is_killed = kill && process.kill();
        self.ending.push(Ending {
            number,
            process,
            since: Instant::now(),
            is_killed,
        });
        self.reap_ending();
    }

    fn push_lost(&mut self, worker: usize, death: Death, is_left_behind: bool) {
        self.lost_since_report += 1;
        self.events.push_back(Event::Lost {
            worker,
            death,
            is_left_behind,
        });
    }

    /// Reports the workers that have ended as lost, and gives up those that do not die.
    fn reap_ending(&mut self) {
        let now = Instant::now();
        for mut ending in std::mem::take(&mut self.ending) {
            if let Some(death) = ending.process.reap() {
                self.push_lost(ending.number, death, false);
                continue;
            }
            let waited = now - ending.since;
            if !ending.is_killed && waited > EXIT_TIMEOUT {
                ending.process.kill();
                ending.is_killed = true;
            }
            if waited > KILL_TIMEOUT {
                self.push_lost(ending.number, Death::Unknown, true);
                self.left_behind.push(ending.process);
            } else {
                self.ending.push(ending);
            }
        }
    }

    /// Reaps workers that died late, and the fork server.
    fn reap_late(&mut self) {
        self.left_behind.retain(|process| process.reap().is_none());
        let has_ended = |pid| !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None));
        if self
            .fork_server
            .as_ref()
            .is_some_and(|server| has_ended(server.pid))
        {
            self.fork_server = None;
        }
    }

    fn position(&self, worker: usize) -> Option<usize> {
        self.workers
            .iter()
            .position(|process| process.number == worker)
    }

    /// Waits until a worker says something, has room for more, or has ended.
    fn wait(&mut self, timeout: Duration) {
        let sockets = self.workers.iter().map(|worker| {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, worker.wire.has_unsent());
            PollFd::from_borrowed_fd(worker.wire.as_fd(), flags)
        });
        let pidfds = self
            .ending
            .iter()
            .filter_map(|ending| ending.process.pidfd.as_ref());
        let mut fds: Vec<PollFd<'_>> = sockets
            .chain(pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)))
            .collect();
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let polled = poll(&mut fds, Some(&timeout));
        if polled == Err(Errno::INTR) {
            // The caller handles the signal.
            return;
        }
        let is_ready = |fd: &PollFd<'_>| polled.is_err() || !fd.revents().is_empty();
        let ready_workers: Vec<usize> = (0..self.workers.len())
            .filter(|&at| is_ready(&fds[at]))
            .collect();
        drop(fds);
        let ready = polled.unwrap_or_else(|_| {
            // poll(2) failed, because of memory or the descriptor limit. So every worker is
            // checked.
            std::thread::sleep(POLL_INTERVAL);
            0
        });
        self.waits += 1;
        if ready == 0 || self.waits.is_multiple_of(REAP_EVERY) {
            self.reap_late();
        }
        // From the last one: dismissing a worker moves the last one to its place.
        for at in ready_workers.into_iter().rev() {
            self.listen(at);
        }
    }
}

impl Engine for Processes {
    fn free_slots(&self) -> usize {
        // None for a worker that is stuck: a batch would wait with it.
        let able = self.workers.iter().filter(|worker| !worker.is_stuck);
        let stuck = self.workers.len() - able.clone().count();
        let in_flight: usize = able.map(|worker| worker.in_flight).sum();
        (QUEUE_DEPTH * self.limit.saturating_sub(stuck)).saturating_sub(in_flight)
    }

    fn idle(&self) -> usize {
        let busy = self.workers.iter().filter(|worker| worker.in_flight > 0);
        self.limit.saturating_sub(busy.count())
    }

    /// Returns the batches in flight. A worker that is ending counts as one, because its jobs must
    /// be done again.
    fn busy(&self) -> usize {
        let in_flight: usize = self.workers.iter().map(|worker| worker.in_flight).sum();
        in_flight + self.ending.len()
    }

    fn send(&mut self, batch: Vec<Arc<Job>>) -> Sent {
        let Some(at) = self.choose() else {
            return Sent::NoWorkers;
        };
        let worker = &mut self.workers[at];
        let number = worker.number;
        worker.in_flight += 1;
        let batch: Vec<&Job> = batch.iter().map(AsRef::as_ref).collect();
        if worker.wire.send(&batch, false).is_err() {
            // The worker may have ended. Its earlier reports are read first.
            self.kill(number);
        }
        Sent::To(number)
    }

    fn next(&mut self, timeout: Duration) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        for at in 0..self.workers.len() {
            if self.workers[at].wire.send_rest(false).is_err() {
                self.kill(self.workers[at].number);
            }
        }
        let is_ending = !self.ending.is_empty();
        self.wait(if is_ending {
            timeout.min(EXIT_TIMEOUT)
        } else {
            timeout
        });
        if is_ending {
            self.reap_ending();
        }
        self.events.pop_front()
    }

    fn set_limit(&mut self, workers: usize) {
        self.limit = workers;
    }

    fn set_stuck(&mut self, worker: usize, is_stuck: bool) {
        if let Some(at) = self.position(worker) {
            self.workers[at].is_stuck = is_stuck;
        }
    }

    /// Returns true if a batch is in flight: a process may be stopped before it claims a job of it.
    fn has_work(&self, worker: usize) -> bool {
        let at = self.position(worker);
        at.is_some_and(|at| self.workers[at].in_flight > 0)
    }

    fn started(&self) -> usize {
        self.started
    }

    fn label(&self, worker: usize) -> String {
        match self.context.scoreboard.slot(worker).pid() {
            Some(pid) => format!("[pid {}]", pid.as_raw_nonzero()),
            None => format!("[worker {}]", worker + 1),
        }
    }

    fn kill(&mut self, worker: usize) -> bool {
        // The number of a worker that was reaped may belong to another process by now.
        let is_alive = self.position(worker).is_some();
        let pid = self
            .context
            .scoreboard
            .slot(worker)
            .pid()
            .filter(|_| is_alive);
        pid.and_then(ChildProcess::open)
            .is_some_and(|process| process.kill())
    }

    fn abandon(&mut self, worker: usize) {
        let Some(at) = self.position(worker) else {
            return;
        };
        self.workers.swap_remove(at);
        let pid = self.context.scoreboard.slot(worker).pid();
        self.left_behind.extend(pid.and_then(ChildProcess::open));
        self.push_lost(worker, Death::Unknown, true);
    }

    fn shut_down(&mut self, timeout: Duration, kill_timeout: Duration) -> usize {
        self.reap_late();
        let ending = std::mem::take(&mut self.ending);
        let mut left: Vec<_> = ending.into_iter().map(|ending| ending.process).collect();
        // Closed sockets tell the fork server and the workers to end.
        let fork_server = self.fork_server.take();
        left.extend(fork_server.and_then(|server| ChildProcess::open(server.pid)));
        for worker in self.workers.drain(..) {
            let pid = self.context.scoreboard.slot(worker.number).pid();
            left.extend(pid.and_then(ChildProcess::open));
        }
        let since = Instant::now();
        let mut is_killed = false;
        loop {
            left.retain(|process| process.reap().is_none());
            let waited = since.elapsed();
            if left.is_empty() || waited > timeout + kill_timeout {
                return left.len() + self.left_behind.len();
            }
            if waited > timeout && !is_killed {
                for process in &left {
                    process.kill();
                }
                is_killed = true;
            }
            std::thread::sleep(if is_killed {
                Duration::from_millis(1)
            } else {
                Duration::from_micros(50)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_child_is_opened() {
        let parent = rustix::process::getppid().unwrap();
        assert!(ChildProcess::open(parent).is_none());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let process = ChildProcess::open(pid).unwrap();
        assert!(process.kill());
        child.wait().unwrap();
        assert!(ChildProcess::open(pid).is_none());
    }
}
