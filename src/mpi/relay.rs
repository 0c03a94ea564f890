//! The relay: the process that mpirun or srun knows. It passes frames on between its child, which is
//! pcopy itself, and the relays of the other ranks. Only it calls MPI, and nothing is copied in it.
//!
//! pcopy is forked before MPI starts, so that MPI and fork never meet. And what may crash or hang is
//! outside of the process whose loss ends an MPI job: a lost pcopy is survived under plain mpirun.
//!
//! MPI has no wait with a timeout for a message and a socket. So the relay looks again and again,
//! with pauses that grow to a few milliseconds. That takes about one percent of a core.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal,
    waitpid,
};

use super::Connection;
use super::ffi::{Mpi, Received};
use crate::fs::sys::{self, Fork};
use crate::protocol::frames::{LONGEST_FROM_LEAD, Link, RELAY};
use crate::protocol::nodes::{FromRelay, ToRelay};
use crate::protocol::wire::decode;
use crate::signals::{self, STOP_SIGNALS};

/// A frame of pcopy.
const FRAME: i32 = 1;
/// Kill your pcopy.
const KILL: i32 = 2;
/// My pcopy has ended.
const ENDED: i32 = 3;
/// The run is over. From rank 0: whether all relays are there. To rank 0: the answer.
const BYE: i32 = 4;
/// My pcopy cannot be heard, but I live.
const ALIVE: i32 = 5;

const SHORTEST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// The same, if nothing has happened for a while.
const IDLE_PAUSE: Duration = Duration::from_millis(4);
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// How long all others may take to end after rank 0.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// A relay without a word from rank 0 for so long kills its pcopy and ends.
const LEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often rank 0 says that it lives.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Bytes for pcopy that wait, above which others wait too.
const MOST_UNSENT: usize = 16 << 20;

/// The variables by which launchers tell how many ranks there are.
const LAUNCHERS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Forks, and relays in the parent. Without a launcher it does neither.
pub(super) fn connect() -> Result<Connection> {
    let is_launched = LAUNCHERS
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if !is_launched && std::env::var_os("PMIX_RANK").is_none() {
        return Ok(Connection::Alone);
    }
    let (here, there) = Link::pair().context("cannot make a socket")?;
    let parent = getpid();
    match signals::fork().context("cannot fork")? {
        Fork::Child => {
            drop(here);
            let died_with = set_parent_process_death_signal(Some(Signal::KILL));
            if died_with.is_err() || getppid() != Some(parent) {
                sys::exit_now(1);
            }
            Ok(Connection::Behind(there))
        }
        Fork::Parent(child) => {
            drop(there);
            relay(child, here).map(Connection::Relayed)
        }
    }
}

/// Returns how many ranks the launcher says there are.
fn announced() -> u32 {
    let numbers = LAUNCHERS.iter().filter_map(|name| {
        let text = std::env::var(name).ok()?;
        text.parse().ok()
    });
    numbers.max().unwrap_or(1)
}

fn relay(child: Pid, socket: OwnedFd) -> Result<i32> {
    let caught = Arc::new(AtomicUsize::new(0));
    for signal in STOP_SIGNALS {
        signal_hook::flag::register_usize(signal, Arc::clone(&caught), signal as usize)
            .context("cannot handle signals")?;
    }
    // If the launcher is killed, nothing is left over.
    let launcher = getppid();
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if getppid() != launcher {
        bail!("the launcher has ended");
    }
    // Without a blank: Slurm's proctrack/linuxproc does not find a process with one in its name, so
    // that it could neither stop nor kill the run.
    let _ = rustix::thread::set_name(c"pcopy-relay");
    let Some(mut mpi) = Mpi::start() else {
        bail!("MPI cannot start");
    };
    let announced = announced();
    if mpi.size == 1 && announced > 1 {
        let _ = kill_process(child, Signal::KILL);
        mpi.end();
        bail!(
            "--mode mpi: {announced} processes were started, but this pcopy's MPI sees only itself: \
             use the mpirun of the MPI that pcopy was built with"
        );
    }
    let size = mpi.size as usize;
    let now = Instant::now();
    let relay = Relay {
        mpi,
        child: Some(child),
        status: 0,
        ended: None,
        link: Some(Link::new(socket, LONGEST_FROM_LEAD)),
        gone: vec![false; size],
        is_silent: vec![false; size],
        heard: now,
        beaten: now,
        byes: 0,
        bye: None,
        bye_sent: None,
        has_said_ended: false,
    };
    Ok(relay.run(&caught))
}

struct Relay {
    mpi: Mpi,
    child: Option<Pid>,
    /// The exit status of the child.
    status: i32,
    ended: Option<Instant>,
    link: Option<Link>,
    /// The ranks whose pcopy has ended.
    gone: Vec<bool>,
    /// The ranks whose relay cannot be reached.
    is_silent: Vec<bool>,
    /// When rank 0 was heard last.
    heard: Instant,
    beaten: Instant,
    byes: u32,
    /// Rank 0 has said that the run is over, and whether to disconnect.
    bye: Option<bool>,
    bye_sent: Option<Instant>,
    has_said_ended: bool,
}

impl Relay {
    fn run(mut self, caught: &AtomicUsize) -> i32 {
        let hello = FromRelay::Hello {
            rank: self.mpi.rank,
            size: self.mpi.size,
        };
        self.tell(&hello);
        let mut pause = SHORTEST_PAUSE;
        let mut active = Instant::now();
        loop {
            let signal = caught.swap(0, Ordering::Relaxed);
            if signal != 0 {
                self.pass_signal(signal as i32);
            }
            let mut is_active = self.receive();
            if let Some(to) = self.mpi.finish_sends() {
                self.lose(to, "it cannot be reached");
            }
            is_active |= self.read_child();
            self.look_at_child();
            self.beat();
            if let Some(status) = self.end() {
                return status;
            }
            if is_active {
                pause = SHORTEST_PAUSE;
                active = Instant::now();
                continue;
            }
            match &self.link {
                Some(link) => link.wait(pause),
                None => std::thread::sleep(pause),
            }
            let is_idle = active.elapsed() > IDLE_AFTER;
            pause = (pause * 2).min(if is_idle { IDLE_PAUSE } else { LONGEST_PAUSE });
        }
    }

    fn is_lead(&self) -> bool {
        self.mpi.rank == 0
    }

    /// A signal is for rank 0's pcopy, which decides what it means.
    fn pass_signal(&self, signal: i32) {
        if let (true, Some(child)) = (self.is_lead(), self.child)
            && let Some(signal) = Signal::from_named_raw(signal)
        {
            let _ = kill_process(child, signal);
        }
    }

    fn tell(&mut self, message: &FromRelay) {
        if let Some(link) = &mut self.link {
            let _ = link.send(RELAY, message);
        }
    }

    /// Handles what the other relays have sent. Returns true if there was anything.
    fn receive(&mut self) -> bool {
        let mut is_active = false;
        for _ in 0..256 {
            let unsent = self.link.as_ref().map_or(0, Link::unsent);
            if unsent > MOST_UNSENT {
                break;
            }
            let Some(Received { from, tag, bytes }) = self.mpi.receive() else {
                break;
            };
            is_active = true;
            if from == 0 {
                self.heard = Instant::now();
            }
            match tag {
                FRAME => {
                    if let Some(link) = &mut self.link {
                        let _ = link.queue_bytes(from, &bytes);
                    }
                }
                KILL if from == 0 => {
                    if let Some(child) = self.child {
                        let _ = kill_process(child, Signal::KILL);
                    }
                }
                ENDED => self.lose(from, "its pcopy has ended"),
                BYE if self.is_lead() => self.byes += 1,
                BYE => self.bye = Some(bytes == [1]),
                _ => {}
            }
        }
        if let Some(link) = &mut self.link {
            let _ = link.flush();
        }
        is_active
    }

    /// Tells rank 0 that it cannot count on a rank any more.
    fn lose(&mut self, rank: u32, why: &str) {
        let Some(gone) = self.gone.get_mut(rank as usize) else {
            return;
        };
        if why.starts_with("it") && !why.starts_with("its") {
            self.is_silent[rank as usize] = true;
        }
        if !std::mem::replace(gone, true) && self.is_lead() {
            let why = why.to_owned();
            self.tell(&FromRelay::Gone { rank, why });
        }
    }

    /// Passes on what the child has sent. Returns true if there was anything.
    fn read_child(&mut self) -> bool {
        let mut is_active = false;
        for _ in 0..256 {
            let Some(link) = &mut self.link else { break };
            match link.receive() {
                Ok(Some((RELAY, bytes))) => {
                    if let Ok(ToRelay::Kill { rank }) = decode(&bytes)
                        && self.is_lead()
                        && rank < self.mpi.size
                    {
                        self.mpi.send(rank, KILL, Vec::new());
                    }
                }
                Ok(Some((rank, bytes))) => {
                    let is_known = rank < self.mpi.size && !self.is_silent[rank as usize];
                    if is_known && !self.mpi.send(rank, FRAME, bytes) {
                        self.lose(rank, "it cannot be reached");
                    }
                }
                Ok(None) => break,
                Err(_) => self.link = None,
            }
            is_active = true;
        }
        is_active
    }

    /// Notices the end of the child.
    fn look_at_child(&mut self) {
        let Some(child) = self.child else { return };
        let status = match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(None) => return,
            Ok(Some((_, status))) => status
                .exit_status()
                .or(status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(1),
            Err(rustix::io::Errno::INTR) => return,
            Err(_) => 1,
        };
        (self.child, self.status) = (None, status);
        self.ended = Some(Instant::now());
    }

    /// Returns true once the child has ended, and its workers too: they hold its socket.
    fn has_ended(&self) -> bool {
        let is_late = |since: Instant| since.elapsed() > END_TIMEOUT;
        self.child.is_none() && (self.link.is_none() || self.ended.is_some_and(is_late))
    }

    fn beat(&mut self) {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.beaten);
        if since < HEARTBEAT {
            return;
        }
        self.beaten = now;
        if self.is_lead() {
            for rank in 1..self.mpi.size {
                if !self.is_silent[rank as usize] {
                    self.mpi.send(rank, ALIVE, Vec::new());
                }
            }
            return;
        }
        // If this process was stopped, what rank 0 has sent meanwhile has not been read.
        self.heard = (self.heard + since.saturating_sub(2 * HEARTBEAT)).min(now);
        if now.saturating_duration_since(self.heard) > LEAD_TIMEOUT {
            if let Some(child) = self.child {
                let _ = kill_process(child, Signal::KILL);
            }
            sys::exit_now(3);
        }
    }

    /// Says goodbye once the child has ended. Returns the exit status at the end.
    fn end(&mut self) -> Option<i32> {
        if !self.has_ended() {
            if let (Some(_), Some(since)) = (self.bye, self.bye_sent)
                && since.elapsed() > END_TIMEOUT / 2
                && let Some(child) = self.child
            {
                let _ = kill_process(child, Signal::KILL);
            }
            if self.bye.is_some() {
                self.link = None;
                self.bye_sent.get_or_insert_with(Instant::now);
            }
            return None;
        }
        if self.is_lead() {
            let all = self.mpi.size - 1;
            let is_complete = !self.is_silent.contains(&true);
            if self.bye_sent.is_none() {
                self.bye_sent = Some(Instant::now());
                for rank in 1..self.mpi.size {
                    self.mpi.send(rank, BYE, vec![u8::from(is_complete)]);
                }
            }
            let waited = self
                .bye_sent
                .map_or(Duration::ZERO, |since| since.elapsed());
            if self.byes < all && waited < END_TIMEOUT {
                return None;
            }
            self.disconnect(is_complete && self.byes >= all);
            return Some(self.status);
        }
        if !self.has_said_ended && self.bye.is_none() {
            self.has_said_ended = true;
            self.mpi.send(0, ENDED, Vec::new());
        }
        let should_disconnect = self.bye?;
        self.mpi.send(0, BYE, Vec::new());
        self.disconnect(should_disconnect);
        Some(0)
    }

    /// Ends. If a relay is lost, MPI would wait for it for ever.
    fn disconnect(&mut self, is_complete: bool) {
        let since = Instant::now();
        while self.mpi.is_sending() && since.elapsed() < HEARTBEAT {
            self.mpi.finish_sends();
            while self.mpi.receive().is_some() {}
        }
        if is_complete {
            self.mpi.end();
        }
    }
}
