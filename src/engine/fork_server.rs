//! The fork server of process mode, and what its children do.
//!
//! The parent has threads and must not fork. So before it has any it forks the fork_server, a small
//! process with one thread, and that forks the workers: when there is work for one, and when one is to be
//! replaced. Workers are made siblings of the fork_server, so that the parent learns how they end,
//! and so that they go on should the fork_server die.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use signal_hook::consts::{SIGCONT, SIGXFSZ};

use crate::context::Context;
use crate::fs::sys::{self, Fork};
use crate::protocol::wire::Wire;
use crate::protocol::{Job, Report};
use crate::signals::STOP_SIGNALS;
use crate::worker::{Port, Worker};

/// The parent's end of the connection to the fork_server.
pub(super) struct ForkServer {
    control: OwnedFd,
    /// Its process number.
    pub(super) pid: Pid,
}

impl ForkServer {
    /// Forks the fork_server. This process has one thread.
    ///
    /// # Errors
    /// Where the system allows no further process or descriptor.
    pub(super) fn start(context: &'static Context) -> Result<Self> {
        // A SIGSTOP that comes during a fork reaches the child once it runs. The SIGCONT after it
        // takes that back only where it is not ignored, as it is without a handler: the child
        // would stay stopped (Linux 6.18, __send_signal_locked). All that are forked inherit it.
        signal_hook::flag::register(SIGCONT, Arc::default()).context("cannot handle signals")?;
        let (here, there) = Wire::pair().context("cannot make a socket")?;
        let parent = getpid();
        match sys::fork().context("cannot fork")? {
            Fork::Parent(pid) => Ok(Self { control: here, pid }),
            Fork::Child => {
                drop(here);
                serve(context, there, parent);
                sys::exit_now(0)
            }
        }
    }

    /// Asks for a worker of this number that is to listen to this socket. It is there at once
    /// for messages; should the worker not come to life, the socket's other end is closed.
    ///
    /// # Errors
    /// Where the fork_server is no more.
    pub(super) fn ask(&self, worker: usize, socket: &OwnedFd) -> rustix::io::Result<()> {
        let number = (worker as u64).to_ne_bytes();
        let fds = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(&number)];
        sendmsg(&self.control, &data, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }
}

/// The fork_server's life: fork a worker whenever the parent asks, end when the parent does.
fn serve(context: &'static Context, control: OwnedFd, parent: Pid) {
    become_child("pcopy: fork_server", "pcopy: fork_server", parent);
    while let Some((number, socket)) = next_request(&control) {
        // Where no process can be had, the socket is closed here, and so the parent knows.
        if let Ok(Fork::Child) = sys::fork_sibling() {
            // Held by workers too, it would not tell the parent that the fork_server is no more.
            drop(control);
            work(context, number, socket, parent);
            sys::exit_now(0)
        }
    }
}

fn next_request(control: &OwnedFd) -> Option<(usize, OwnedFd)> {
    let mut number = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut data = [IoSliceMut::new(&mut number)];
        match recvmsg(control, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result.ok()?,
        }
    };
    let socket = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })?;
    (received.bytes == number.len()).then_some((u64::from_ne_bytes(number) as usize, socket))
}

/// A worker's life: take jobs from the socket until the other end is closed.
fn work(context: &'static Context, number: usize, socket: OwnedFd, parent: Pid) {
    let shown = number + 1;
    become_child(
        &short_name(shown),
        &format!("pcopy: worker {shown}"),
        parent,
    );
    context.scoreboard.slot(number).set_pid(getpid());
    let mut wire = Wire::new(socket, usize::MAX);
    // Forked, it has a current folder and descriptors of its own already.
    let mut worker = Worker::new(context, number, true);
    while let Ok(jobs) = wire.receive::<Vec<Job>>(true) {
        if !worker.run(&jobs, &mut Socket(&mut wire)) {
            break;
        }
    }
}

struct Socket<'a>(&'a mut Wire);

impl Port for Socket<'_> {
    fn send(&mut self, report: Report) -> bool {
        self.0.send(&report, true).is_ok()
    }
}

/// What every forked process does first.
fn become_child(name: &str, title: &str, parent: Pid) {
    // Nobody is left over when the parent ends, whatever ends it.
    let died_with = set_parent_process_death_signal(Some(Signal::KILL));
    if died_with.is_err() || getppid() != Some(parent) {
        sys::exit_now(1);
    }
    // Ctrl-C reaches the whole group: what is to be stopped and tidied up is the parent's
    // decision. A handler instead of ignoring, so that nothing is inherited by accident.
    // SIGXFSZ: a file that is larger than `ulimit -f` allows is an error, not the end.
    for signal in STOP_SIGNALS.into_iter().chain([SIGXFSZ]) {
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
    // One that cannot be ended must not hold the reader of a pipe up.
    if let Ok(null) = fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
    sys::set_command_line(title);
}

/// A process's short name has 15 bytes (PR_SET_NAME(2const)).
fn short_name(number: usize) -> String {
    let long = format!("pcopy: worker {number}");
    if long.len() <= 15 {
        long
    } else {
        format!("pcopy:worker{number}")
    }
}
