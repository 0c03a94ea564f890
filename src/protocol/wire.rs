//! Sends jobs and reports as bytes over a SOCK_SEQPACKET socket, in as many packets as needed.
//!
//! A worker's memory may be damaged, so the parent trusts nothing: a message that is not
//! well-formed is an error, whatever it claims to hold.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, recv, send, socketpair};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a message in one packet. Several packets fit into a socket's buffer, which is 208 KiB
/// by default and may be set to less (net.core.wmem_default).
const PACKET: usize = 16 << 10;
/// A packet's last byte: the message ends with it, or continues in the next one.
const ENDS: u8 = 0;
const CONTINUES: u8 = 1;

/// The longest message from a worker, in bytes. A report holds at most 16 KiB, one more entry, and
/// 1024 names of up to 765 bytes. A worker that sends more is damaged.
pub(crate) const LONGEST_REPORT: usize = 1 << 20;

/// How often a send is tried again if the kernel has no memory for it, with growing pauses.
const ATTEMPTS: u32 = 8;

/// Why a message could not be sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The other side is gone, or the socket fails.
    Closed,
    /// No message has arrived, or not all of one.
    Nothing,
    /// The bytes that arrived are no message.
    Garbage,
}

/// One end of the connection between the parent and a worker.
pub(crate) struct Wire {
    socket: OwnedFd,
    /// The longest message that is received.
    longest: usize,
    buffer: Vec<u8>,
    /// The packets of a message that continues.
    begun: Vec<u8>,
    /// Packets that the socket had no room for.
    unsent: VecDeque<Vec<u8>>,
}

impl Wire {
    /// Makes the two ends.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    }

    /// Makes an end that receives no message of more than `longest` bytes.
    pub(crate) fn new(socket: OwnedFd, longest: usize) -> Self {
        Self {
            socket,
            longest,
            buffer: Vec::new(),
            begun: Vec::new(),
            unsent: VecDeque::new(),
        }
    }

    /// Sends a message. Waits for room, or keeps the rest until [`Wire::send_rest`].
    ///
    /// # Errors
    /// [`WireError::Closed`], also if the socket refuses the packet for any other reason.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T, wait: bool) -> Result<(), WireError> {
        let mut bytes = postcard::to_stdvec(message).map_err(|_| WireError::Garbage)?;
        let last = bytes.len().saturating_sub(1) / PACKET * PACKET;
        for part in bytes[..last].chunks(PACKET) {
            self.unsent.push_back([part, &[CONTINUES]].concat());
        }
        bytes.drain(..last);
        bytes.push(ENDS);
        self.unsent.push_back(bytes);
        self.send_rest(wait)
    }

    /// Sends the packets for which there was no room, as far as there is now.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub(crate) fn send_rest(&mut self, wait: bool) -> Result<(), WireError> {
        let mut flags = SendFlags::NOSIGNAL;
        if !wait {
            flags |= SendFlags::DONTWAIT;
        }
        while let Some(packet) = self.unsent.front() {
            match send_patiently(|| send(&self.socket, packet, flags)) {
                Ok(_) => {
                    self.unsent.pop_front();
                }
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(WireError::Closed),
            }
        }
        Ok(())
    }

    /// Returns true if something waits for room.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Receives a message, and waits for one if `wait` is set.
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
                // ECONNRESET: the other side has closed with something unread. The kernel reports
                // it once. Messages that were sent before can still be read.
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
                (Some(CONTINUES), _) => self.begun.append(&mut self.buffer),
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

/// Sends, and tries again after EINTR, ENOBUFS or ENOMEM.
///
/// # Errors
/// Any other error, or the last one after about an eighth of a second.
pub(crate) fn send_patiently<T>(
    mut send: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let mut attempt = 0;
    loop {
        match send() {
            Err(Errno::INTR) => {}
            Err(Errno::NOBUFS | Errno::NOMEM) if attempt < ATTEMPTS => {
                std::thread::sleep(Duration::from_micros(500 << attempt));
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Decodes a message that takes up all of the bytes.
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
    use crate::protocol::entry::{DirOrigin, HardLinks};
    use crate::protocol::error::{CopyError, Step};
    use crate::protocol::{EntryError, Job, JobKind, JobUpdate, Report, Resume};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn wire(socket: OwnedFd) -> Wire {
        Wire::new(socket, usize::MAX)
    }

    fn report() -> Report {
        let mut update = JobUpdate {
            job: 7,
            is_done: true,
            errors: vec![EntryError {
                name: Some(Name::new(b"bad")),
                kind: Some(Kind::File),
                error: CopyError::new(Step::Open, Errno::ACCESS),
                twin: None,
            }],
            ..JobUpdate::default()
        };
        update.subdirs.new.push(Kind::Directory, b"one");
        update.subdirs.new.push(Kind::Directory, b"\xff\n");
        Report {
            updates: vec![update],
            is_batch_done: true,
            ..Report::default()
        }
    }

    fn jobs() -> Vec<Job> {
        vec![Job {
            id: 1,
            claim: 0,
            target: 0,
            path: RelPath::default().join(b"a").join(b"b"),
            origin: DirOrigin::default(),
            kind: JobKind::Entries {
                names: Names::one(Kind::File, b"f"),
                hard_links: HardLinks::Report,
            },
            suspects: vec![Name::new(b"s")],
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
            let cut = decode::<Report>(&bytes[..end]);
            assert_eq!(cut, Err(WireError::Garbage), "cut at {end}");
        }
        assert_eq!(decode(&bytes), Ok(report()));
    }

    #[test]
    fn a_message_that_claims_to_be_huge_is_garbage() {
        // A list of 2^63 updates, then nothing.
        let claim = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(decode::<Report>(&claim), Err(WireError::Garbage));
        assert_eq!(decode::<Vec<Job>>(&claim), Err(WireError::Garbage));
        // A packet that is longer than any, and one with an unknown last byte.
        for packet in [vec![ENDS; PACKET + 2], vec![7]] {
            let (here, there) = Wire::pair().unwrap();
            send(&here, &packet, SendFlags::empty()).unwrap();
            assert_eq!(wire(there).receive::<Report>(true), Err(WireError::Garbage));
        }
    }

    /// Jobs that are longer than the socket's buffer.
    fn many_jobs() -> Vec<Job> {
        let mut job = jobs().remove(0);
        let names = (0..100_000).map(|number| Name::new(format!("name {number}").as_bytes()));
        job.kind = JobKind::Directory {
            ancestors: Arc::default(),
            resume: Resume {
                skip: names.collect(),
                ..Resume::default()
            },
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
    fn a_message_longer_than_the_limit_is_garbage() {
        let (here, there) = Wire::pair().unwrap();
        let mut here = wire(here);
        here.send(&many_jobs(), false).unwrap();
        let mut there = Wire::new(there, PACKET + 1);
        let received = there.receive::<Vec<Job>>(true);
        assert_eq!(received, Err(WireError::Garbage));
    }

    #[test]
    fn a_send_is_repeated_only_for_errors_that_pass() {
        let mut errors = vec![Errno::NOMEM, Errno::INTR, Errno::NOBUFS];
        let sent = send_patiently(|| errors.pop().map_or(Ok(()), Err));
        assert_eq!((sent, errors.len()), (Ok(()), 0));
        for (errno, expected) in [(Errno::PERM, 1), (Errno::NOBUFS, 1 + ATTEMPTS)] {
            let mut attempts = 0;
            let sent = send_patiently::<()>(|| {
                attempts += 1;
                Err(errno)
            });
            assert_eq!((sent, attempts), (Err(errno), expected));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode::<Report>(&bytes);
            let _ = decode::<Vec<Job>>(&bytes);
        }

        /// Checks that one damaged byte never gives a name that leads out of its directory.
        #[test]
        fn damaged_messages_hold_only_names(at in 0_usize..200, to: u8) {
            let mut bytes = postcard::to_stdvec(&jobs()).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            for job in decode::<Vec<Job>>(&bytes).into_iter().flatten() {
                for part in job.path.as_bytes().split(|&b| b == b'/') {
                    prop_assert!(part != b"..", "{:?}", job.path);
                }
                if let JobKind::Entries { names, .. } = job.kind {
                    prop_assert!(names.iter().all(|(_, n)| !n.to_bytes().contains(&b'/')));
                }
            }
        }
    }
}
