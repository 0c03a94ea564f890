//! Frames between pcopy and its relay: a rank, a length and a message, over a stream socket.
//!
//! A relay passes a frame on to the pcopy of that rank and never looks into it. Nothing is trusted:
//! a frame that is too long or holds no message is an error, whatever it claims to be. Messages
//! between two nodes are numbered. So one that arrives twice is noticed, and so is one that is lost.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{WireError, decode, send_patiently};

/// The rank in frames from and to the relay itself.
pub(crate) const RELAY: u32 = u32::MAX;
/// The longest message from a node. A report is shorter ([`super::wire::LONGEST_REPORT`]).
pub(crate) const LONGEST_FROM_NODE: usize = 2 << 20;
/// The longest message from the lead. A retried listing can name millions of entries.
pub(crate) const LONGEST_FROM_LEAD: usize = 1 << 30;

/// Bytes of a frame before its message: the rank and the length.
const HEAD: usize = 8;
/// Bytes that are read at a time.
const READ: usize = 64 << 10;
/// Bytes of queued frames that are sent at once.
const QUEUED: usize = 32 << 10;
/// Bytes of complete frames that wait in memory before more is read.
const ENOUGH: usize = 1 << 20;

/// One end of a connection that carries frames. It never blocks.
pub(crate) struct Link {
    socket: OwnedFd,
    longest: usize,
    input: Vec<u8>,
    /// Where the first frame in `input` begins.
    begin: usize,
    output: Vec<u8>,
    /// How much of `output` was sent.
    sent: usize,
}

impl Link {
    /// Makes the two ends of a connection.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
    }

    /// Makes an end that receives no message of more than `longest` bytes.
    pub(crate) fn new(socket: OwnedFd, longest: usize) -> Self {
        Self {
            socket,
            longest,
            input: Vec::new(),
            begin: 0,
            output: Vec::new(),
            sent: 0,
        }
    }

    /// Receives no message of more than `longest` bytes from now on.
    pub(crate) fn with_longest(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// Sends a message, as far as there is room now. [`Link::flush`] sends the rest.
    ///
    /// # Errors
    /// [`WireError::Closed`].
    pub(crate) fn send<T: Serialize>(&mut self, rank: u32, message: &T) -> Result<(), WireError> {
        let body = postcard::to_stdvec(message).map_err(|_| WireError::Garbage)?;
        self.put(rank, &body)?;
        self.flush()
    }

    /// Queues a message. It is sent with the next ones: a system call costs more than a small one.
    ///
    /// # Errors
    /// [`WireError::Closed`].
    pub(crate) fn queue<T: Serialize>(&mut self, rank: u32, message: &T) -> Result<(), WireError> {
        let body = postcard::to_stdvec(message).map_err(|_| WireError::Garbage)?;
        self.queue_bytes(rank, &body)
    }

    /// Queues a message that was encoded before.
    ///
    /// # Errors
    /// [`WireError::Closed`].
    pub(crate) fn queue_bytes(&mut self, rank: u32, body: &[u8]) -> Result<(), WireError> {
        self.put(rank, body)?;
        if self.unsent() >= QUEUED {
            self.flush()?;
        }
        Ok(())
    }

    fn put(&mut self, rank: u32, body: &[u8]) -> Result<(), WireError> {
        let length = u32::try_from(body.len()).map_err(|_| WireError::Garbage)?;
        self.output.extend_from_slice(&rank.to_ne_bytes());
        self.output.extend_from_slice(&length.to_ne_bytes());
        self.output.extend_from_slice(body);
        Ok(())
    }

    /// Sends what there was no room for, as far as there is now.
    ///
    /// # Errors
    /// [`WireError::Closed`].
    pub(crate) fn flush(&mut self) -> Result<(), WireError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while self.sent < self.output.len() {
            match send_patiently(|| send(&self.socket, &self.output[self.sent..], flags)) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => {
                    // What was sent must not pile up in front of what was not.
                    if self.sent > self.output.len() / 2 {
                        self.output.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(_) => return Err(WireError::Closed),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// Returns how many bytes wait for room.
    pub(crate) fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Returns the next frame: the rank and the bytes of its message. `None` if no whole frame has
    /// arrived.
    ///
    /// # Errors
    /// [`WireError::Closed`] once all frames are read; [`WireError::Garbage`] if a frame is too long.
    pub(crate) fn receive(&mut self) -> Result<Option<(u32, Vec<u8>)>, WireError> {
        if let Some(frame) = self.next_frame()? {
            return Ok(Some(frame));
        }
        loop {
            let is_open = self.read()?;
            let frame = self.next_frame()?;
            match frame {
                Some(_) => return Ok(frame),
                None if is_open == Some(false) => return Err(WireError::Closed),
                None if is_open.is_none() => return Ok(None),
                None => {}
            }
        }
    }

    /// Reads what has arrived. Returns `None` if that is nothing, and false at the end.
    fn read(&mut self) -> Result<Option<bool>, WireError> {
        let mut has_read = None;
        while self.input.len() - self.begin < ENOUGH.max(self.awaited()) {
            let length = self.input.len();
            self.input.resize(length + READ, 0);
            let flags = RecvFlags::DONTWAIT;
            let received = recv(&self.socket, &mut self.input[length..], flags);
            self.input
                .truncate(length + received.map_or(0, |(count, _)| count));
            match received {
                Ok((0, _)) => return Ok(Some(false)),
                Ok(_) => has_read = Some(true),
                // ECONNRESET: the other side has closed with something unread. Once.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(WireError::Closed),
            }
        }
        Ok(has_read)
    }

    /// Returns how long the first frame is, as far as that is known.
    fn awaited(&self) -> usize {
        self.head().map_or(0, |(_, length)| HEAD + length)
    }

    fn head(&self) -> Option<(u32, usize)> {
        let head = self.input.get(self.begin..self.begin + HEAD)?;
        let number = |at: usize| {
            let bytes = head[at..at + 4].try_into().unwrap_or_default();
            u32::from_ne_bytes(bytes)
        };
        Some((number(0), number(4) as usize))
    }

    fn next_frame(&mut self) -> Result<Option<(u32, Vec<u8>)>, WireError> {
        let Some((rank, length)) = self.head() else {
            return Ok(None);
        };
        if length > self.longest {
            return Err(WireError::Garbage);
        }
        let (from, to) = (self.begin + HEAD, self.begin + HEAD + length);
        let Some(body) = self.input.get(from..to) else {
            return Ok(None);
        };
        let body = body.to_vec();
        self.begin = to;
        if self.begin == self.input.len() {
            self.input.clear();
            self.begin = 0;
        } else if self.begin > READ {
            self.input.drain(..self.begin);
            self.begin = 0;
        }
        Ok(Some((rank, body)))
    }

    /// Waits until something has arrived, or there is room for what was not sent.
    pub(crate) fn wait(&self, timeout: Duration) {
        wait_for(&[self], timeout);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until one of these has something to read, or room for what was not sent.
pub(crate) fn wait_for(links: &[&Link], timeout: Duration) {
    let fds = links.iter().map(|link| {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, link.unsent() > 0);
        PollFd::from_borrowed_fd(link.as_fd(), flags)
    });
    let mut fds: Vec<PollFd<'_>> = fds.collect();
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // A signal ends the wait, and the caller looks at it.
    let _ = poll(&mut fds, Some(&timeout));
}

/// Numbers the messages between two nodes.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    sent: u64,
    received: u64,
}

/// A message and its number.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Numbered<T> {
    number: u64,
    pub(crate) message: T,
}

impl Numbers {
    /// Gives a message its number.
    pub(crate) fn number<T>(&mut self, message: T) -> Numbered<T> {
        self.sent += 1;
        Numbered {
            number: self.sent,
            message,
        }
    }

    /// Decodes a message. Returns `None` for one that has arrived before.
    ///
    /// # Errors
    /// [`WireError::Garbage`], also if a message before it is missing.
    pub(crate) fn read<T: DeserializeOwned>(
        &mut self,
        bytes: &[u8],
    ) -> Result<Option<T>, WireError> {
        let numbered: Numbered<T> = decode(bytes)?;
        if numbered.number <= self.received {
            return Ok(None);
        }
        if numbered.number != self.received + 1 {
            return Err(WireError::Garbage);
        }
        self.received += 1;
        Ok(Some(numbered.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn links(longest: usize) -> (Link, Link) {
        let (here, there) = Link::pair().unwrap();
        (Link::new(here, longest), Link::new(there, longest))
    }

    /// Fails unless the other end is closed. A child that another test forks has it for a moment too.
    fn assert_closed(link: &mut Link) {
        for _ in 0..10_000 {
            match link.receive() {
                Ok(None) => link.wait(Duration::from_millis(1)),
                end => return assert_eq!(end.unwrap_err(), WireError::Closed),
            }
        }
        panic!("the other end is still open");
    }

    #[test]
    fn frames_cross_a_socket_in_pieces() {
        let (mut here, mut there) = links(LONGEST_FROM_LEAD);
        assert!(matches!(there.receive(), Ok(None)));
        let long = vec![7_u8; 3 << 20];
        here.send(1, &long).unwrap();
        here.send(RELAY, &"end".to_owned()).unwrap();
        assert!(here.unsent() > 0);
        let mut frames = Vec::new();
        while frames.len() < 2 {
            here.flush().unwrap();
            frames.extend(there.receive().unwrap());
        }
        assert_eq!(frames[0].0, 1);
        assert_eq!(decode::<Vec<u8>>(&frames[0].1), Ok(long));
        assert_eq!(frames[1].0, RELAY);
        drop(here);
        assert_closed(&mut there);
    }

    #[test]
    fn what_was_sent_before_the_end_is_received() {
        let (mut here, mut there) = links(100);
        // So few that the socket has room for all.
        for number in 0..50_u32 {
            here.send(number, &number).unwrap();
        }
        assert_eq!(here.unsent(), 0);
        drop(here);
        for number in 0..50 {
            assert_eq!(there.receive().unwrap().unwrap().0, number);
        }
        assert_closed(&mut there);
    }

    #[test]
    fn a_frame_that_is_too_long_is_garbage() {
        let (mut here, mut there) = links(100);
        here.send(0, &vec![0_u8; 101]).unwrap();
        assert_eq!(there.receive().unwrap_err(), WireError::Garbage);
    }

    #[test]
    fn a_doubled_message_is_ignored_and_a_lost_one_is_noticed() {
        let (mut sender, mut receiver) = (Numbers::default(), Numbers::default());
        let mut next = || postcard::to_stdvec(&sender.number(5_u8)).unwrap();
        let (first, second, _lost, fourth) = (next(), next(), next(), next());
        assert_eq!(receiver.read::<u8>(&first), Ok(Some(5)));
        assert_eq!(receiver.read::<u8>(&second), Ok(Some(5)));
        assert_eq!(receiver.read::<u8>(&first), Ok(None));
        assert_eq!(receiver.read::<u8>(&second), Ok(None));
        assert_eq!(receiver.read::<u8>(&fourth), Err(WireError::Garbage));
    }

    proptest! {
        /// Whatever arrives, in whatever pieces: no panic, and no more memory than was sent.
        #[test]
        fn any_bytes_are_frames_or_an_error(pieces: Vec<Vec<u8>>) {
            let (here, there) = Link::pair().unwrap();
            let mut link = Link::new(there, 1 << 16);
            for piece in &pieces {
                if !piece.is_empty() {
                    send(&here, piece, SendFlags::DONTWAIT).unwrap();
                }
                while let Ok(Some(_)) = link.receive() {}
            }
            prop_assert!(link.input.len() <= pieces.concat().len());
        }
    }
}
