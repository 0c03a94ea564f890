//! The ranks, and the frames between them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::faults::{Fault, What};

/// The rank in frames from and to the relay itself.
const RELAY: u32 = u32::MAX;
/// How long the others may take to end after rank 0.
const END_TIMEOUT: Duration = Duration::from_secs(5);

struct Peer {
    socket: Option<UnixStream>,
    child: Option<Child>,
    /// When its child has ended.
    ended: Option<Instant>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Frames that it has sent.
    frames: u64,
    is_cut: bool,
}

pub(crate) struct Peers {
    list: Vec<Peer>,
    faults: Vec<Fault>,
}

fn frame(rank: u32, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32;
    [&rank.to_ne_bytes()[..], &length.to_ne_bytes(), body].concat()
}

/// Encodes a number as postcard does.
fn varint(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

impl Peers {
    pub(crate) fn new(lead: UnixStream, faults: Vec<Fault>) -> Self {
        let mut peers = Self {
            list: Vec::new(),
            faults,
        };
        peers.push(lead, None);
        peers
    }

    pub(crate) fn add(&mut self, socket: UnixStream, child: Child) {
        self.push(socket, Some(child));
    }

    fn push(&mut self, socket: UnixStream, child: Option<Child>) {
        socket.set_nonblocking(true).unwrap();
        self.list.push(Peer {
            socket: Some(socket),
            child,
            ended: None,
            input: Vec::new(),
            output: Vec::new(),
            frames: 0,
            is_cut: false,
        });
    }

    /// Passes frames on until all ranks have ended.
    pub(crate) fn run(&mut self) -> Result<()> {
        let size = self.list.len() as u32;
        for rank in 0..size {
            let hello = [vec![0], varint(rank), varint(size)].concat();
            self.list[rank as usize].output.extend(frame(RELAY, &hello));
        }
        let mut ended = None;
        loop {
            for rank in 0..self.list.len() {
                self.write(rank);
                self.read(rank);
                self.reap(rank);
            }
            if self.list[0].socket.is_none() {
                let since = *ended.get_or_insert_with(Instant::now);
                // The sockets of the others are closed: they end, or are killed.
                for peer in &mut self.list {
                    if since.elapsed() > END_TIMEOUT
                        && let Some(child) = &mut peer.child
                    {
                        child.kill()?;
                    }
                    peer.write_rest();
                    peer.socket = None;
                }
                if self.list.iter().all(|peer| peer.child.is_none()) {
                    return Ok(());
                }
            }
            self.wait()?;
        }
    }

    fn wait(&self) -> Result<()> {
        let sockets = self.list.iter().filter_map(|peer| {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !peer.output.is_empty());
            Some(PollFd::new(peer.socket.as_ref()?, flags))
        });
        let mut fds: Vec<PollFd<'_>> = sockets.collect();
        // Often, to notice the end of a child whose socket another process holds.
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, rank: usize) {
        self.list[rank].write_rest();
    }

    fn read(&mut self, rank: usize) {
        let peer = &mut self.list[rank];
        let Some(socket) = &mut peer.socket else {
            return;
        };
        let mut buffer = [0; 1 << 16];
        match socket.read(&mut buffer) {
            Ok(0) => peer.socket = None,
            Ok(count) => peer.input.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => peer.socket = None,
        }
        while let Some((to, body)) = self.list[rank].next_frame() {
            self.pass_on(rank, to, body);
        }
    }

    fn pass_on(&mut self, from: usize, to: u32, mut body: Vec<u8>) {
        if to == RELAY {
            // The only message: kill a rank. Its number takes one byte or more.
            let rank = body.get(1..).map_or(0, |rest| {
                rest.iter()
                    .rev()
                    .fold(0, |sum, &byte| sum << 7 | u32::from(byte & 0x7f))
            });
            if let Some(peer) = self.list.get_mut(rank as usize)
                && let Some(child) = &mut peer.child
                && !peer.is_cut
            {
                let _ = child.kill();
            }
            return;
        }
        self.list[from].frames += 1;
        let frames = self.list[from].frames;
        let is_due = |fault: &&Fault| fault.rank == from && fault.frame == frames;
        let what = self.faults.iter().find(is_due).map(|fault| fault.what);
        if what == Some(What::Cut) {
            self.list[from].is_cut = true;
        }
        if self.list[from].is_cut {
            return;
        }
        let Some(peer) = self.list.get_mut(to as usize) else {
            return;
        };
        if peer.is_cut || peer.socket.is_none() {
            return;
        }
        match what {
            Some(What::Drop) => return,
            Some(What::Double) => peer.output.extend(frame(from as u32, &body)),
            Some(What::Garble) => body.iter_mut().for_each(|byte| *byte = 0xee),
            _ => {}
        }
        peer.output.extend(frame(from as u32, &body));
    }

    /// Notices that a rank has ended, and says so to rank 0. Workers of it may live a little longer:
    /// they hold its socket.
    fn reap(&mut self, rank: usize) {
        let peer = &mut self.list[rank];
        if peer.ended.is_none()
            && let Some(child) = &mut peer.child
            && let Ok(Some(_)) = child.try_wait()
        {
            peer.ended = Some(Instant::now());
        }
        let Some(ended) = peer.ended else { return };
        if peer.child.is_none() || peer.socket.is_some() && ended.elapsed() < END_TIMEOUT {
            return;
        }
        peer.child = None;
        peer.socket = None;
        let is_cut = peer.is_cut;
        let why = b"its pcopy has ended";
        let length = varint(why.len() as u32);
        let gone = [vec![1], varint(rank as u32), length, why.to_vec()].concat();
        if !is_cut {
            self.list[0].output.extend(frame(RELAY, &gone));
        }
    }
}

impl Peer {
    fn next_frame(&mut self) -> Option<(u32, Vec<u8>)> {
        let number = |at: usize| {
            let bytes = self.input.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let (rank, length) = (number(0)?, number(4)? as usize);
        let body = self.input.get(8..8 + length)?.to_vec();
        self.input.drain(..8 + length);
        Some((rank, body))
    }

    fn write_rest(&mut self) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        while !self.output.is_empty() {
            match socket.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.output.clear();
                    return;
                }
            }
        }
    }
}
