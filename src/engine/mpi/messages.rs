//! What nodes and relays say. Nothing is trusted: a node that says what it would not say in its right
//! mind is given up.

use std::time::Instant;

use super::node::State;
use super::{Nodes, WORKERS_OF_NODE};
use crate::engine::Event;
use crate::protocol::frames::RELAY;
use crate::protocol::nodes::{FromNode, FromRelay, Room, Row};
use crate::protocol::wire::{WireError, decode};
use crate::protocol::{JobId, Report};

impl Nodes {
    /// Handles all frames that have arrived. Returns true if there were any.
    pub(super) fn receive(&mut self) -> bool {
        let mut has_received = false;
        // Bounded, so that signals and clocks are looked at.
        for _ in 0..64 {
            let Some(local) = &mut self.local else { break };
            match local.receive() {
                Ok(Some((_, bytes))) => self.handle_message(0, &bytes),
                Ok(None) => break,
                Err(WireError::Garbage) => {
                    self.give_up(0, "a damaged message");
                    self.local = None;
                }
                Err(_) => {
                    self.local = None;
                    self.on_gone(0, "its pcopy has ended");
                }
            }
            has_received = true;
        }
        for _ in 0..64 {
            let Some(relay) = &mut self.relay else { break };
            match relay.receive() {
                Ok(Some((RELAY, bytes))) => self.handle_relay(&bytes),
                Ok(Some((rank, bytes))) => {
                    let rank = rank as usize;
                    if (1..self.nodes.len()).contains(&rank) {
                        self.handle_message(rank, &bytes);
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    self.relay = None;
                    for rank in 1..self.nodes.len() {
                        self.on_gone(rank, "the relay has ended");
                    }
                }
            }
            has_received = true;
        }
        has_received
    }

    pub(super) fn handle_relay(&mut self, bytes: &[u8]) {
        if let Ok(FromRelay::Gone { rank, why }) = decode(bytes) {
            let rank = rank as usize;
            if (1..self.nodes.len()).contains(&rank) {
                self.on_gone(rank, &why);
            }
        }
    }

    pub(super) fn handle_message(&mut self, rank: usize, bytes: &[u8]) {
        let node = &mut self.nodes[rank];
        if !node.can_hear() {
            return;
        }
        match node.numbers.read::<FromNode>(bytes) {
            Ok(Some(message)) => {
                node.heard = Instant::now();
                if self.handle(rank, message).is_none() {
                    self.give_up(rank, "a damaged message");
                }
            }
            Ok(None) => {}
            Err(_) => self.give_up(rank, "a damaged or lost message"),
        }
    }

    /// Handles a message. Returns `None` if a node in its right mind would not send it.
    pub(super) fn handle(&mut self, rank: usize, message: FromNode) -> Option<()> {
        match message {
            FromNode::Refused { host, why } => self.change(rank, |node| {
                node.host = host;
                node.state = State::Refused(why);
            }),
            FromNode::Ready {
                host,
                room,
                is_bound,
            } => {
                if !matches!(self.nodes[rank].state, State::Starting) {
                    return None;
                }
                let room = checked(room)?;
                if is_bound {
                    self.bound.push(host.clone());
                }
                self.change(rank, |node| {
                    node.host = host;
                    node.room = room;
                    node.state = State::Ready;
                });
            }
            FromNode::Room(room) => {
                let room = checked(room)?;
                self.change(rank, |node| node.room = room);
            }
            FromNode::Report { worker, report } => self.on_report(rank, worker, report)?,
            FromNode::Lost {
                row,
                claimed,
                death,
                is_left_behind,
            } => {
                let worker = self.mirror(rank, row)?;
                for id in claimed {
                    let Some(job) = self.change(rank, |node| node.end(id)) else {
                        continue;
                    };
                    let claims = self.context.scoreboard.claims;
                    claims.hand_over(job.claim, id, rank, worker);
                }
                self.nodes[rank].busy[worker_of(&self.rows, worker)] = false;
                self.events.push_back(Event::Lost {
                    worker,
                    death,
                    is_left_behind,
                });
            }
            FromNode::Returned(ids) => self.on_returned(rank, ids),
            FromNode::Rows(rows) => {
                for row in rows {
                    self.mirror(rank, row)?;
                }
            }
            FromNode::Stopping => self.context.scoreboard.stop(),
            FromNode::Bye { left_behind } => {
                self.nodes[rank].bye = Some(left_behind as usize);
            }
        }
        Some(())
    }

    pub(super) fn on_report(&mut self, rank: usize, worker: u32, mut report: Report) -> Option<()> {
        let row = self.row(rank, worker)?;
        let claims = self.context.scoreboard.claims;
        // Without those of jobs that are not there, such as in the last words of a stuck worker
        // that was given up.
        self.change(rank, |node| {
            report.updates.retain(|update| {
                let job = if update.is_done {
                    node.end(update.job)
                } else {
                    node.job(update.job)
                };
                if let Some(job) = &job {
                    claims.hand_over(job.claim, update.job, rank, row);
                }
                job.is_some()
            });
        });
        self.events.push_back(Event::Report {
            worker: row,
            report,
        });
        Some(())
    }

    /// Opens jobs again that a node has given back.
    pub(super) fn on_returned(&mut self, rank: usize, ids: Vec<JobId>) {
        let claims = self.context.scoreboard.claims;
        let mut jobs = Vec::new();
        for id in ids {
            if let Some(job) = self.change(rank, |node| node.end(id)) {
                claims.publish(job.claim, id);
                jobs.push(id);
            }
        }
        self.events.push_back(Event::Returned { jobs });
    }

    /// Returns the row of a node's worker. `None` if no worker has such a number.
    pub(super) fn row(&mut self, rank: usize, worker: u32) -> Option<usize> {
        let node = &mut self.nodes[rank];
        if u64::from(worker) >= WORKERS_OF_NODE {
            return None;
        }
        if let Some(&row) = node.rows.get(&worker) {
            return Some(row);
        }
        let row = self.rows.len();
        if row >= self.context.scoreboard.capacity() {
            return None;
        }
        self.rows.push((rank, worker));
        node.rows.insert(worker, row);
        let named = Self::names_of(rank).start + u64::from(worker);
        self.context.scoreboard.set_named(row, named);
        Some(row)
    }

    /// Shows what a node's worker shows. Returns its row.
    pub(super) fn mirror(&mut self, rank: usize, row: Row) -> Option<usize> {
        let worker = row.worker as usize;
        let at = self.row(rank, row.worker)?;
        let busy = &mut self.nodes[rank].busy;
        if busy.len() <= worker {
            busy.resize(worker + 1, false);
        }
        busy[worker] = row.has_work;
        self.context.scoreboard.slot(at).mirror(&row.words);
        Some(at)
    }
}

fn worker_of(rows: &[(usize, u32)], row: usize) -> usize {
    rows[row].1 as usize
}

/// Checks what a node says of its size.
fn checked(room: Room) -> Option<Room> {
    let is_right = u64::from(room.workers) <= WORKERS_OF_NODE && room.batches <= 1 << 20;
    is_right.then_some(room)
}
