//! What happens without a word: clocks, nodes that are lost, and what idle workers want.

use std::time::Instant;

use super::node::State;
use super::{HEARTBEAT, Nodes, TICK, WANT_AGAIN};
use crate::engine::processes::ChildProcess;
use crate::engine::{Event, KILL_TIMEOUT, LostNode};
use crate::protocol::frames::RELAY;
use crate::protocol::nodes::{ToNode, ToRelay};

impl Nodes {
    /// Kills a node that cannot be trusted any more. It counts as lost once it is dead.
    pub(super) fn give_up(&mut self, rank: usize, why: &str) {
        if !self.nodes[rank].can_hear() {
            return;
        }
        match (&self.child, &mut self.relay) {
            (Some(child), _) if rank == 0 => {
                child.kill();
            }
            // Not the first rank: its relay would kill this process.
            (_, Some(relay)) if rank != 0 => {
                let rank = rank as u32;
                let _ = relay.send(RELAY, &ToRelay::Kill { rank });
            }
            _ => {}
        }
        self.change(rank, |node| {
            let (why, since) = (why.to_owned(), Instant::now());
            node.state = State::Ending { why, since };
        });
    }

    /// Notes that a node is dead, and has the scheduler do its jobs again.
    pub(super) fn on_gone(&mut self, rank: usize, why: &str) {
        let why = match &self.nodes[rank].state {
            State::Lost | State::Refused(_) => return,
            State::Starting => {
                // The start ends with this reason.
                let (why, since) = (why.to_owned(), Instant::now());
                self.nodes[rank].state = State::Ending { why, since };
                return;
            }
            State::Ready => why.to_owned(),
            State::Ending { why, .. } => why.clone(),
        };
        let jobs = self.change(rank, |node| {
            node.state = State::Lost;
            node.batches.clear();
            std::mem::take(&mut node.jobs)
        });
        let node = &self.nodes[rank];
        if node.bye.is_some() {
            return;
        }
        let why = format!("{}: lost: {why}", node.name(rank));
        let rows: Vec<usize> = node.rows.values().copied().collect();
        let scoreboard = self.context.scoreboard;
        for &row in &rows {
            let current = scoreboard.slot(row).job();
            if let Some((id, sent)) = current.and_then(|id| Some((id, jobs.get(&id)?))) {
                scoreboard.claims.hand_over(sent.job.claim, id, rank, row);
            }
        }
        self.events.push_back(Event::NodeLost(LostNode {
            node: rank,
            workers: rows,
            names: Self::names_of(rank),
            why,
        }));
    }

    /// Looks at clocks, the stop flag and what idle workers want.
    pub(super) fn tend(&mut self, now: Instant) {
        let scoreboard = self.context.scoreboard;
        if !self.has_stopped && scoreboard.is_stopping() {
            self.has_stopped = true;
            self.send_to_all(|| ToNode::Stop);
        }
        if !self.has_finished && scoreboard.is_finishing() {
            self.has_finished = true;
            self.send_to_all(|| ToNode::Finish);
        }
        let wanted = scoreboard.wanted();
        let is_due = now.saturating_duration_since(self.wanted_at) >= WANT_AGAIN;
        if (wanted == 0) != (self.wanted == 0) || wanted > 0 && is_due {
            self.want(wanted);
            (self.wanted, self.wanted_at) = (wanted, now);
        }
        if now.saturating_duration_since(self.checked) < TICK {
            return;
        }
        // If this process was stopped, what the nodes have sent meanwhile has not been read.
        let unheard = (now - self.checked).saturating_sub(2 * HEARTBEAT);
        self.checked = now;
        self.beat(now);
        self.reap_child();
        for rank in 0..self.nodes.len() {
            let node = &mut self.nodes[rank];
            node.heard = (node.heard + unheard).min(now);
            let silence = now.saturating_duration_since(node.heard);
            match &node.state {
                State::Ready if silence > self.timeout && node.bye.is_none() => {
                    let seconds = self.timeout.as_secs();
                    self.give_up(rank, &format!("silent for {seconds} s"));
                }
                State::Ending { since, .. } if now - *since > KILL_TIMEOUT => {
                    self.on_gone(rank, "");
                }
                _ => {}
            }
        }
    }

    /// Passes on what idle workers want, to the nodes with most work.
    pub(super) fn want(&mut self, wanted: usize) {
        let nodes = self.nodes.iter().enumerate();
        let busy = nodes.filter(|(_, node)| node.is_ready() && !node.batches.is_empty());
        let mut busy: Vec<(usize, usize)> =
            busy.map(|(rank, node)| (node.jobs.len(), rank)).collect();
        busy.sort_unstable_by(|a, b| b.cmp(a));
        if wanted > 0 {
            busy.truncate(wanted);
        }
        for (_, rank) in busy {
            self.send_to(rank, ToNode::Wanted(wanted as u32));
        }
    }

    pub(super) fn beat(&mut self, now: Instant) {
        if now.saturating_duration_since(self.beaten) >= HEARTBEAT {
            self.beaten = now;
            for rank in 0..self.nodes.len() {
                self.send_to(rank, ToNode::Heartbeat);
            }
        }
        self.flush();
    }

    /// Sends what is queued, as far as there is room.
    pub(super) fn flush(&mut self) {
        for link in self.relay.iter_mut().chain(&mut self.local) {
            // A closed connection is noticed when it is read.
            let _ = link.flush();
        }
    }

    /// Notices the end of the node on this machine. Its workers may still hold its socket: they were
    /// killed with it, and its jobs are done again once they have ended.
    pub(super) fn reap_child(&mut self) {
        if let Some(death) = self.child.as_ref().and_then(ChildProcess::reap) {
            self.child = None;
            // What it has sent before is read first.
            while self.receive() {}
            if self.nodes[0].is_ready() && self.nodes[0].bye.is_none() {
                let (why, since) = (format!("its pcopy has ended ({death})"), Instant::now());
                self.change(0, |node| node.state = State::Ending { why, since });
            }
            if self.local.is_none() {
                self.on_gone(0, "");
            }
        }
    }
}
