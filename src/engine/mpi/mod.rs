//! The engine of a run on many machines, at the lead: its workers are those of the nodes.
//!
//! Each node is another pcopy with an engine of its own (`mpi/node.rs`), reached through a relay
//! (`mpi/relay.rs`). The lead's own machine has a node too, a child of this process. So the lead
//! copies nothing, and all nodes are alike.
//!
//! **A job is at one node at a time.** The lead's table of claims says which: it claims a job for
//! the node before it sends it, and for the worker once that has reported. A node hands out claims
//! among its own workers, on a table of its own. It gives a job back only after it has claimed it
//! for nobody. And the jobs of a lost node are done again only after it is dead: killed by its
//! relay, or, if it was cut off, by its own clock, which runs out before the lead's.
//!
//! The lead's scoreboard has a row for each node, and after them one for each worker that has shown
//! itself. These mirror the slots of the nodes' scoreboards, a tenth of a second late.

mod messages;
mod node;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::node::{Figures, Node, State};
use super::processes::ChildProcess;
use super::{Engine, Event, Hosts, Sent};
use crate::context::Context;
use crate::fs::path::Name;
use crate::protocol::Job;
use crate::protocol::frames::{Link, wait_for};
use crate::protocol::nodes::{Start, ToNode};
use crate::protocol::wire::WireError;

/// Worker numbers of one node in temporary names: more than a node ever has.
pub(crate) const WORKERS_OF_NODE: u64 = 4096;
/// The most nodes, and rows of the scoreboard: the table of claims has 16 bits for a row.
pub(crate) const MOST_NODES: u32 = 4096;
const MOST_ROWS: usize = 60_000;
/// How long nodes may take to open the roots.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often each side says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
/// How often to look at clocks and children.
const TICK: Duration = Duration::from_millis(20);
/// How often idle workers ask the others for work.
const WANT_AGAIN: Duration = Duration::from_millis(4);
/// A chunk of a file. On network file systems, machines that write close to each other take each
/// other's locks.
const CHUNK: u64 = 64 << 20;
/// How many jobs all nodes together have, if that is enough for each. A job takes about a kilobyte
/// here. With more of them, most of the lead's time goes into fetching that from memory.
const MOST_JOBS: usize = 8 << 10;
/// Nodes that are compared to find the one with the least work.
const CANDIDATES: usize = 16;
/// Neighbouring chunks that one node gets.
const CHUNKS_IN_A_ROW: u32 = 4;

/// The engine of `--mode mpi`.
pub(crate) struct Nodes {
    context: &'static Context,
    /// The connection to the node on this machine. `None` once all processes of it have ended.
    local: Option<Link>,
    child: Option<ChildProcess>,
    /// The connection to all others. `None` once the relay is gone.
    relay: Option<Link>,
    nodes: Vec<Node>,
    figures: Figures,
    /// The hosts that may use one core only.
    pub(crate) bound: Vec<String>,
    /// The nodes that take batches, and perhaps some that do not any more.
    roomy: VecDeque<usize>,
    /// The node and the worker of each row. The first rows are the nodes themselves.
    rows: Vec<(usize, u32)>,
    events: VecDeque<Event>,
    timeout: Duration,
    checked: Instant,
    beaten: Instant,
    wanted: usize,
    wanted_at: Instant,
    /// The nodes know that no more entries are to be begun.
    has_finished: bool,
    has_stopped: bool,
    /// The node that removes entries, if their number is limited.
    remover: Option<usize>,
    /// The last chunk's file, and the node that got it, and how many in a row.
    last_chunk: Option<(Name, usize, u32)>,
    last_batch: u64,
}

/// Returns how many rows the scoreboard needs.
pub(crate) fn rows(nodes: u32) -> usize {
    let all = u64::from(nodes) * (1 + WORKERS_OF_NODE);
    MOST_ROWS.min(all as usize)
}

impl Nodes {
    /// Takes over the connections. `child` is the node on this machine, with rank 0.
    pub(crate) fn new(
        context: &'static Context,
        local: Link,
        child: rustix::process::Pid,
        relay: Link,
        size: u32,
        timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            context,
            local: Some(local),
            child: ChildProcess::open(child),
            relay: Some(relay),
            nodes: (0..size)
                .map(|_| Node::new(now, MOST_JOBS / size.max(1) as usize))
                .collect(),
            figures: Figures::default(),
            bound: Vec::new(),
            roomy: VecDeque::new(),
            rows: (0..size as usize).map(|rank| (rank, 0)).collect(),
            events: VecDeque::new(),
            timeout,
            checked: now,
            beaten: now,
            wanted: 0,
            wanted_at: now,
            has_finished: false,
            has_stopped: false,
            remover: None,
            last_chunk: None,
            last_batch: 0,
        }
    }

    /// Starts all nodes and waits until they are ready.
    ///
    /// # Errors
    /// If one of them cannot start. Nothing has been sent to any of them then.
    pub(crate) fn start(&mut self, start: &Start) -> Result<()> {
        for rank in 0..self.nodes.len() {
            self.send_to(rank, ToNode::Start(Box::new(start.clone())));
        }
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.receive();
            for (rank, node) in self.nodes.iter().enumerate() {
                let name = node.name(rank);
                match &node.state {
                    State::Refused(why) => bail!("{name}: {why}"),
                    State::Ending { why, .. } => bail!("{name}: {why}"),
                    State::Lost => bail!("{name}: lost"),
                    State::Starting | State::Ready => {}
                }
            }
            let waits = |node: &&Node| matches!(node.state, State::Starting);
            let Some(first) = self.nodes.iter().position(|node| waits(&node)) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let name = self.nodes[first].name(first);
                let seconds = START_TIMEOUT.as_secs();
                bail!("{name}: not ready after {seconds} s");
            }
            self.beat(Instant::now());
            self.wait(TICK);
            self.reap_child();
        }
    }

    /// Returns how many workers there are now.
    pub(crate) fn workers(&self) -> usize {
        let ready = self.nodes.iter().filter(|node| node.is_ready());
        ready.map(|node| node.room.workers as usize).sum()
    }

    /// Returns the range of worker numbers in the temporary names of a node.
    fn names_of(rank: usize) -> std::ops::Range<u64> {
        let first = rank as u64 * WORKERS_OF_NODE;
        first..first + WORKERS_OF_NODE
    }

    /// Changes a node, and the figures of all nodes with it.
    fn change<T>(&mut self, rank: usize, change: impl FnOnce(&mut Node) -> T) -> T {
        let node = &mut self.nodes[rank];
        let before = node.figures();
        let changed = change(node);
        let after = node.figures();
        let figures = &mut self.figures;
        figures.free = figures.free + after.free - before.free;
        figures.idle = figures.idle + after.idle - before.idle;
        figures.able = figures.able + after.able - before.able;
        figures.busy = figures.busy + after.busy - before.busy;
        if after.free > 0 && !node.is_roomy {
            node.is_roomy = true;
            self.roomy.push_back(rank);
        }
        changed
    }

    fn send_to(&mut self, rank: usize, message: ToNode) {
        let node = &mut self.nodes[rank];
        if !node.can_hear() {
            return;
        }
        let numbered = node.numbers.number(message);
        let link = if rank == 0 {
            &mut self.local
        } else {
            &mut self.relay
        };
        let sent = match link {
            Some(link) => link.queue(rank as u32, &numbered),
            None => Err(WireError::Closed),
        };
        if sent == Err(WireError::Garbage) {
            // It is too long for a frame, which takes millions of names in one directory.
            self.give_up(rank, "a message is too long");
        }
        // A closed connection is noticed when it is read.
    }

    fn send_to_all(&mut self, message: impl Fn() -> ToNode) {
        for rank in 0..self.nodes.len() {
            if self.nodes[rank].is_ready() {
                self.send_to(rank, message());
            }
        }
    }

    fn wait(&self, timeout: Duration) {
        let links: Vec<&Link> = self.relay.iter().chain(&self.local).collect();
        if links.is_empty() {
            return std::thread::sleep(timeout);
        }
        wait_for(&links, timeout);
    }

    /// Returns the node that removes entries. It counts them, for `--max-delete`. Another one knows
    /// nothing of that count, so after its loss nothing more is removed.
    fn choose_remover(&mut self) -> Option<usize> {
        if let Some(rank) = self.remover
            && self.nodes[rank].is_able()
        {
            return Some(rank);
        }
        let was_lost = self.remover.is_some();
        let rank = self.nodes.iter().position(Node::is_able)?;
        self.remover = Some(rank);
        if was_lost {
            self.send_to(rank, ToNode::KeepRest);
        }
        Some(rank)
    }

    /// Chooses the node for a batch: the one with the least work for its size.
    fn choose(&mut self, batch: &[Arc<Job>]) -> Option<usize> {
        let mirror = self.context.config.mirror;
        if mirror.is_some_and(|mirror| mirror.limit.is_some())
            && batch.iter().any(|job| job.removes())
        {
            return self.choose_remover();
        }
        let file = match batch {
            [job] => job.chunked_file(),
            _ => None,
        };
        if let (Some(file), Some((last, rank, count))) = (file, &mut self.last_chunk)
            && Some(&*last) == file.temp.as_ref()
            && *count < CHUNKS_IN_A_ROW
            && self.nodes[*rank].free() > 0
        {
            *count += 1;
            return Some(*rank);
        }
        let rank = match self.find_room() {
            Some(rank) => rank,
            // All are busy.
            None => self.nodes.iter().position(Node::is_able)?,
        };
        if let Some(file) = file {
            self.last_chunk = file.temp.clone().map(|temp| (temp, rank, 1));
        }
        Some(rank)
    }

    /// Returns a node that takes batches. Of many, only a few are compared.
    fn find_room(&mut self) -> Option<usize> {
        let mut best: Option<(usize, usize)> = None;
        let mut compared = 0;
        for _ in 0..self.roomy.len() {
            let rank = self.roomy.pop_front()?;
            let node = &mut self.nodes[rank];
            if node.free() == 0 {
                node.is_roomy = false;
                continue;
            }
            self.roomy.push_back(rank);
            let load = node.load();
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, rank));
            }
            compared += 1;
            if compared == CANDIDATES {
                break;
            }
        }
        best.map(|(_, rank)| rank)
    }

    fn owner(&self, row: usize) -> Option<(usize, u32)> {
        let is_worker = row >= self.nodes.len();
        self.rows.get(row).copied().filter(|_| is_worker)
    }
}

impl Engine for Nodes {
    /// Returns how many batches can be sent. If no node is left, it is one: [`Sent::NoWorkers`] tells
    /// the scheduler.
    fn free_slots(&self) -> usize {
        match self.figures.able {
            0 => 1,
            _ => self.figures.free,
        }
    }

    fn idle(&self) -> usize {
        self.figures.idle
    }

    fn nodes(&self) -> Option<usize> {
        Some(self.figures.able)
    }

    fn busy(&self) -> usize {
        self.figures.busy
    }

    fn send(&mut self, batch: Vec<Arc<Job>>) -> Sent {
        let Some(rank) = self.choose(&batch) else {
            return Sent::NoWorkers;
        };
        self.last_batch += 1;
        let last_batch = self.last_batch;
        let claims = self.context.scoreboard.claims;
        let mut jobs = batch;
        jobs.retain(|job| claims.claim(job.claim, job.id, rank));
        self.change(rank, |node| {
            for job in &jobs {
                node.begin(job, last_batch);
            }
        });
        if !jobs.is_empty() {
            self.send_to(rank, ToNode::Jobs(jobs));
        }
        Sent::To(rank)
    }

    fn next(&mut self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now() + timeout;
        loop {
            let now = Instant::now();
            self.tend(now);
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            self.flush();
            if self.receive() {
                continue;
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return None;
            }
            let wait = if self.wanted > 0 {
                WANT_AGAIN
            } else {
                HEARTBEAT / 5
            };
            self.wait(left.min(wait));
        }
    }

    /// Does nothing: each node knows how many workers pay.
    fn set_limit(&mut self, _workers: usize) {}

    /// Does nothing: each node passes its stuck workers over.
    fn set_stuck(&mut self, _worker: usize, _is_stuck: bool) {}

    /// Returns true if a worker has jobs, as far as its node has said lately.
    fn has_work(&self, worker: usize) -> bool {
        self.owner(worker).is_some_and(|(rank, number)| {
            let node = &self.nodes[rank];
            let is_heard = node.is_ready() && node.heard.elapsed() < 3 * HEARTBEAT;
            is_heard && node.busy.get(number as usize) == Some(&true)
        })
    }

    fn started(&self) -> usize {
        self.rows.len()
    }

    fn label(&self, worker: usize) -> String {
        let (rank, number) = self.rows[worker];
        let host = &self.nodes[rank].host;
        match self.context.scoreboard.slot(worker).pid() {
            _ if worker < self.nodes.len() => format!("[{host}]"),
            Some(pid) => format!("[{host} pid {}]", pid.as_raw_nonzero()),
            None => format!("[{host} thread {}]", number + 1),
        }
    }

    fn kill(&mut self, worker: usize) -> bool {
        let Some((rank, worker)) = self.owner(worker) else {
            return false;
        };
        let can_kill = self.nodes[rank].is_ready() && self.nodes[rank].room.can_kill;
        if can_kill {
            self.send_to(rank, ToNode::Kill { worker });
        }
        can_kill
    }

    fn abandon(&mut self, worker: usize) {
        if let Some((rank, worker)) = self.owner(worker) {
            self.send_to(rank, ToNode::Abandon { worker });
        }
    }

    fn chunk_size(&self) -> u64 {
        CHUNK
    }

    /// Tells the node that has prepared the file.
    fn end_chunked(&mut self, temp: &Name) {
        let mut parts = temp.as_bytes().split(|&b| b == b'.').skip(3);
        let number = parts.next().and_then(|part| std::str::from_utf8(part).ok());
        let worker: Option<u64> = number.and_then(|text| text.parse().ok());
        let rank = worker.map(|worker| (worker / WORKERS_OF_NODE) as usize);
        if let Some(rank) = rank.filter(|&rank| rank < self.nodes.len()) {
            self.send_to(rank, ToNode::ChunkedEnded);
        }
    }

    /// Says how many hosts there are.
    fn hosts(&self) -> Option<Hosts> {
        let is_lost = |node: &&Node| !node.is_ready() && node.bye.is_none();
        let rooms = self.nodes.iter().map(|node| node.room.workers as usize);
        Some(Hosts {
            all: self.nodes.len(),
            workers: rooms.sum(),
            lost: self.nodes.iter().filter(is_lost).count(),
        })
    }

    fn shut_down(&mut self, timeout: Duration, kill_timeout: Duration) -> usize {
        self.send_to_all(|| ToNode::Quit);
        let since = Instant::now();
        let mut is_killed = false;
        loop {
            self.receive();
            self.beat(Instant::now());
            self.reap_child();
            let waits = |node: &Node| node.is_ready() && node.bye.is_none();
            let is_local_left = self.child.is_some();
            if !self.nodes.iter().any(waits) && !is_local_left {
                break;
            }
            let waited = since.elapsed();
            if waited > timeout + kill_timeout + HEARTBEAT {
                break;
            }
            if waited > timeout + kill_timeout && !is_killed {
                is_killed = true;
                for rank in 0..self.nodes.len() {
                    if waits(&self.nodes[rank]) {
                        self.give_up(rank, "does not end");
                    }
                }
                if let Some(child) = &self.child {
                    child.kill();
                }
            }
            self.wait(Duration::from_millis(1));
        }
        let left = self.nodes.iter().filter_map(|node| node.bye);
        left.sum()
    }
}
