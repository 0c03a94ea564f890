//! Jobs and reports as bytes, one message for each packet of a SOCK_SEQPACKET socket.
//!
//! A worker's memory may be damaged, so the parent trusts nothing: a message that is not what it
//! should be is an error, whatever it claims to hold.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, recv, send, socketpair};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No message is longer. Reports are cut at 16 KiB and one entry, and names that are shared, at
/// most 66 KiB; the deals are the largest: folders with long paths.
const LONGEST: usize = 128 << 10;

/// Why a message could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The other side is gone.
    Closed,
    /// Nothing has arrived.
    Nothing,
    /// No room at the moment.
    Full,
    /// What arrived is no message.
    Garbage,
    /// Too long to be sent.
    TooLong,
}

/// One end of the connection between the parent and a worker.
pub struct Wire {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Wire {
    /// The two ends.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    }

    /// An end.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
        }
    }

    /// Sends a message; `wait` for room or not.
    ///
    /// # Errors
    /// [`WireError::Full`] only without `wait`.
    pub fn send<T: Serialize>(&self, message: &T, wait: bool) -> Result<(), WireError> {
        let bytes = postcard::to_stdvec(message).map_err(|_| WireError::Garbage)?;
        if bytes.len() > LONGEST {
            return Err(WireError::TooLong);
        }
        let mut flags = SendFlags::NOSIGNAL;
        if !wait {
            flags |= SendFlags::DONTWAIT;
        }
        loop {
            match send(&self.socket, &bytes, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(WireError::Full),
                Err(Errno::MSGSIZE) => return Err(WireError::TooLong),
                Err(_) => return Err(WireError::Closed),
            }
        }
    }

    /// Receives a message; `wait` for one or not.
    ///
    /// # Errors
    /// [`WireError::Nothing`] only without `wait`.
    pub fn receive<T: DeserializeOwned>(&mut self, wait: bool) -> Result<T, WireError> {
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        self.buffer.clear();
        self.buffer.reserve(LONGEST + 1);
        loop {
            match recv(&self.socket, spare_capacity(&mut self.buffer), flags) {
                Ok((_, 0)) => return Err(WireError::Closed),
                Ok(_) if self.buffer.len() > LONGEST => return Err(WireError::Garbage),
                Ok(_) => return decode(&self.buffer),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(WireError::Nothing),
                Err(_) => return Err(WireError::Closed),
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
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Garbage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Again, Failure, Job, News, Reason, Report, Step, Task};
    use crate::names::{Kind, Name, Names, RelPath};
    use proptest::prelude::*;

    fn report() -> Report {
        let mut made = Names::default();
        made.push(Kind::Folder, b"one");
        made.push(Kind::Folder, b"\xff\n");
        Report {
            news: vec![News {
                job: 7,
                ended: true,
                made,
                failures: vec![Failure {
                    name: Some(Name::new(b"bad")),
                    step: Step::Open,
                    reason: Reason::System(13),
                }],
                ..News::default()
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
            task: Task::Entries {
                names: Names::one(Kind::File, b"f"),
                fresh: true,
                first_link: false,
            },
            again: Some(Again {
                skip: vec![Name::new(b"s")],
                ..Again::default()
            }),
        }]
    }

    #[test]
    fn messages_cross_a_socket() {
        let (here, there) = Wire::pair().unwrap();
        let (here, mut there) = (Wire::new(here), Wire::new(there));
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
        // So is a packet that is longer than any message.
        let (here, there) = Wire::pair().unwrap();
        let mut there = Wire::new(there);
        send(&here, &vec![0; LONGEST + 1], SendFlags::empty()).unwrap();
        assert_eq!(there.receive::<Report>(true), Err(WireError::Garbage));
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let (here, _there) = Wire::pair().unwrap();
        let long = vec![0_u8; LONGEST + 1];
        assert_eq!(Wire::new(here).send(&long, true), Err(WireError::TooLong));
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
                if let Task::Entries { names, .. } = job.task {
                    prop_assert!(names.iter().all(|(_, n)| !n.to_bytes().contains(&b'/')));
                }
            }
        }
    }
}
