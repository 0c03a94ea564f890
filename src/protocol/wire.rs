//! Jobs and reports as bytes over a SOCK_SEQPACKET socket, each message in as many packets as it
//! takes.
//!
//! A worker's memory may be damaged, so the parent trusts nothing: a message that is not what it
//! should be is an error, whatever it claims to hold.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, recv, send, socketpair};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a message in one packet: several fit into what a socket holds, which is 208 KiB as
/// Linux comes and may be set to less (net.core.wmem_default).
const PACKET: usize = 16 << 10;
/// A packet's last byte: the message ends with it, or goes on in the next one.
const ENDS: u8 = 0;
const GOES_ON: u8 = 1;

/// The longest message from a worker. Reports are cut at 16 KiB and one entry, and names that
/// are shared are at most 66 KiB; a worker that sends more is damaged.
pub(crate) const LONGEST_REPORT: usize = 128 << 10;

/// Why a message could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The other side is gone.
    Closed,
    /// Nothing has arrived, or not all of a message.
    Nothing,
    /// What arrived is no message.
    Garbage,
}

/// One end of the connection between the parent and a worker.
pub(crate) struct Wire {
    socket: OwnedFd,
    /// The longest message that is received.
    longest: usize,
    buffer: Vec<u8>,
    /// What has arrived of a message that goes on.
    begun: Vec<u8>,
    /// Packets that the socket had no room for.
    unsent: VecDeque<Vec<u8>>,
}

impl Wire {
    /// The two ends.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    }

    /// An end that takes no message of more than `longest` bytes.
    pub(crate) fn new(socket: OwnedFd, longest: usize) -> Self {
        Self {
            socket,
            longest,
            buffer: Vec::new(),
            begun: Vec::new(),
            unsent: VecDeque::new(),
        }
    }

    /// Sends a message; waits for room, or keeps what there is no room for until
    /// [`Wire::send_rest`].
    ///
    /// # Errors
    /// [`WireError::Closed`], also where the socket takes no such packet.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T, wait: bool) -> Result<(), WireError> {
        let mut bytes = postcard::to_stdvec(message).map_err(|_| WireError::Garbage)?;
        let last = bytes.len().saturating_sub(1) / PACKET * PACKET;
        for part in bytes[..last].chunks(PACKET) {
            self.unsent.push_back([part, &[GOES_ON]].concat());
        }
        bytes.drain(..last);
        bytes.push(ENDS);
        self.unsent.push_back(bytes);
        self.send_rest(wait)
    }

    /// Sends what there was no room for, as far as there is now.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub(crate) fn send_rest(&mut self, wait: bool) -> Result<(), WireError> {
        let mut flags = SendFlags::NOSIGNAL;
        if !wait {
            flags |= SendFlags::DONTWAIT;
        }
        while let Some(packet) = self.unsent.front() {
            match send(&self.socket, packet, flags) {
                Ok(_) => {
                    self.unsent.pop_front();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(WireError::Closed),
            }
        }
        Ok(())
    }

    /// True when something waits for room.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Receives a message; `wait` for one or not.
    ///
    /// # Errors
    /// [`WireError::Nothing`] only without `wait`.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self, wait: bool) -> Result<T, WireError> {
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            self.buffer.clear();
            self.buffer.reserve(PACKET + 2);
            match recv(&self.socket, spare_capacity(&mut self.buffer), flags) {
                Ok((_, 0)) => return Err(WireError::Closed),
                Ok(_) => {}
                // The other side has closed with something unread. That is said first, and once;
                // what it has sent can still be read.
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(Errno::AGAIN) => return Err(WireError::Nothing),
                Err(_) => return Err(WireError::Closed),
            }
            let end = self.buffer.pop();
            if self.buffer.len() > PACKET || self.begun.len() + self.buffer.len() > self.longest {
                return Err(WireError::Garbage);
            }
            match (end, self.begun.is_empty()) {
                (Some(ENDS), true) => return decode(&self.buffer),
                (Some(ENDS), false) => {
                    self.begun.append(&mut self.buffer);
                    return decode(&std::mem::take(&mut self.begun));
                }
                (Some(GOES_ON), _) => self.begun.append(&mut self.buffer),
                _ => return Err(WireError::Garbage),
            }
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message from bytes, all of them.
///
/// # Errors
/// [`WireError::Garbage`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Garbage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::{Kind, Name, Names, RelPath};
    use crate::protocol::entry::HardLinks;
    use crate::protocol::error::{CopyError, Reason, Step};
    use crate::protocol::{Again, EntryError, Job, JobKind, JobUpdate, Report};
    use proptest::prelude::*;

    fn wire(socket: OwnedFd) -> Wire {
        Wire::new(socket, usize::MAX)
    }

    fn report() -> Report {
        let mut made = Names::default();
        made.push(Kind::Directory, b"one");
        made.push(Kind::Directory, b"\xff\n");
        Report {
            news: vec![JobUpdate {
                job: 7,
                ended: true,
                made,
                failures: vec![EntryError {
                    name: Some(Name::new(b"bad")),
                    error: CopyError::new(Step::Open, Reason::System(13)),
                }],
                ..JobUpdate::default()
            }],
            deal_ended: true,
            ..Report::default()
        }
    }

    fn jobs() -> Vec<Job> {
        vec![Job {
            id: 1,
            root: 0,
            path: RelPath::default().join(b"a").join(b"b"),
            task: JobKind::Entries {
                names: Names::one(Kind::File, b"f"),
                fresh: true,
                hard_links: HardLinks::Report,
            },
            again: Some(Again {
                clear: vec![Name::new(b"s")],
                counted: 1,
            }),
        }]
    }

    #[test]
    fn messages_cross_a_socket() {
        let (here, there) = Wire::pair().unwrap();
        let (mut here, mut there) = (wire(here), wire(there));
        assert_eq!(there.receive::<Report>(false), Err(WireError::Nothing));
        here.send(&report(), true).unwrap();
        assert_eq!(there.receive::<Report>(true), Ok(report()));
        here.send(&jobs(), true).unwrap();
        assert_eq!(there.receive::<Vec<Job>>(true), Ok(jobs()));
        drop(here);
        assert_eq!(there.receive::<Report>(true), Err(WireError::Closed));
    }

    #[test]
    fn a_message_cut_anywhere_is_garbage() {
        let bytes = postcard::to_stdvec(&report()).unwrap();
        for end in 0..bytes.len() {
            assert_eq!(
                decode::<Report>(&bytes[..end]),
                Err(WireError::Garbage),
                "{end}"
            );
        }
        assert_eq!(decode(&bytes), Ok(report()));
    }

    #[test]
    fn a_message_that_claims_to_be_huge_is_garbage() {
        // A list of 2^63 news, then nothing.
        let claim = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(decode::<Report>(&claim), Err(WireError::Garbage));
        assert_eq!(decode::<Vec<Job>>(&claim), Err(WireError::Garbage));
        // So is a packet that is longer than any, or that is neither the last nor another one.
        for packet in [vec![ENDS; PACKET + 2], vec![7]] {
            let (here, there) = Wire::pair().unwrap();
            send(&here, &packet, SendFlags::empty()).unwrap();
            assert_eq!(wire(there).receive::<Report>(true), Err(WireError::Garbage));
        }
    }

    /// Jobs that take more than the socket holds.
    fn many_jobs() -> Vec<Job> {
        let mut job = jobs().remove(0);
        let names = (0..100_000).map(|number| Name::new(format!("name {number}").as_bytes()));
        job.task = JobKind::Directory {
            fresh: false,
            above: Vec::new(),
            skip: names.collect(),
        };
        vec![job]
    }

    #[test]
    fn a_long_message_arrives_as_there_is_room() {
        let (here, there) = Wire::pair().unwrap();
        let (mut here, mut there) = (wire(here), wire(there));
        here.send(&many_jobs(), false).unwrap();
        here.send(&jobs(), false).unwrap();
        assert!(here.unsent.len() > 2, "{}", here.unsent.len());
        let mut parts = 0;
        let received = loop {
            match there.receive::<Vec<Job>>(false) {
                Err(WireError::Nothing) => here.send_rest(false).unwrap(),
                received => break received,
            }
            parts += 1;
        };
        assert_eq!(received, Ok(many_jobs()));
        assert!(parts > 2, "{parts}");
        here.send_rest(false).unwrap();
        assert_eq!(there.receive::<Vec<Job>>(false), Ok(jobs()));
    }

    #[test]
    fn a_message_longer_than_is_taken_is_garbage() {
        let (here, there) = Wire::pair().unwrap();
        let mut here = wire(here);
        here.send(&many_jobs(), false).unwrap();
        let mut there = Wire::new(there, PACKET + 1);
        let received = there.receive::<Vec<Job>>(true);
        assert_eq!(received, Err(WireError::Garbage));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode::<Report>(&bytes);
            let _ = decode::<Vec<Job>>(&bytes);
        }

        /// One damaged byte gives an error or another well-formed message, never a name that
        /// leads out of its folder.
        #[test]
        fn damaged_messages_hold_names_only(at in 0_usize..200, to: u8) {
            let mut bytes = postcard::to_stdvec(&jobs()).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            for job in decode::<Vec<Job>>(&bytes).into_iter().flatten() {
                for part in job.path.as_bytes().split(|&b| b == b'/') {
                    prop_assert!(part != b"..", "{:?}", job.path);
                }
                if let JobKind::Entries { names, .. } = job.task {
                    prop_assert!(names.iter().all(|(_, n)| !n.to_bytes().contains(&b'/')));
                }
            }
        }
    }
}
