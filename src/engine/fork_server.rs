//! The fork server of process mode, and the main loop of the worker processes.
//!
//! The parent will have threads, and must not fork then. So it first forks the fork server, a small
//! process with one thread. On request the fork server forks a worker. Workers are siblings of the
//! fork server (CLONE_PARENT), so the parent learns how they end, and they go on if the fork server
//! dies.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use signal_hook::consts::SIGXFSZ;

use crate::context::Context;
use crate::fs::sys::{self, Fork};
use crate::protocol::wire::{self, Wire};
use crate::protocol::{Job, Report};
use crate::signals::{self, STOP_SIGNALS};
use crate::worker::{ReportSink, Worker};

/// The parent's end of the connection to the fork server.
pub(super) struct ForkServer {
    control: OwnedFd,
    pub(super) pid: Pid,
}

impl ForkServer {
    /// Forks the fork server. This process must have one thread. The `private` descriptors stay
    /// its own.
    ///
    /// # Errors
    /// If the system allows no further process or descriptor.
    pub(super) fn start(context: &'static Context, private: &[BorrowedFd<'_>]) -> Result<Self> {
        let (here, there) = Wire::pair().context("cannot make a socket")?;
        let parent = getpid();
        match signals::fork().context("cannot fork")? {
            Fork::Parent(pid) => Ok(Self { control: here, pid }),
            Fork::Child => {
                drop(here);
                for &fd in private {
                    sys::close_inherited(fd);
                }
                serve(context, there, parent);
                sys::exit_now(0)
            }
        }
    }

    /// Asks for a worker with this number and socket. Messages can be sent at once. If the worker
    /// cannot be forked, its end of the socket is closed.
    ///
    /// # Errors
    /// If the fork server has ended.
    pub(super) fn start_worker(&self, number: usize, socket: &OwnedFd) -> rustix::io::Result<()> {
        let number = (number as u64).to_ne_bytes();
        let fds = [socket.as_fd()];
        let data = [IoSlice::new(&number)];
        wire::send_patiently(|| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(&self.control, &data, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
        })
    }
}

/// Forks a worker whenever the parent asks. Ends when the parent does.
fn serve(context: &'static Context, control: OwnedFd, parent: Pid) {
    become_child("pcopy: forker", "pcopy: fork server", parent);
    leave_stdio();
    while let Some((number, socket)) = next_request(&control) {
        // If the system allows no process, the socket is closed here, which tells the parent.
        if let Ok(Fork::Child) = sys::fork_sibling() {
            // If workers held it too, the parent would not notice the end of the fork server.
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

/// Takes batches of jobs from the socket and runs them until the other end is closed.
fn work(context: &'static Context, number: usize, socket: OwnedFd, parent: Pid) {
    let shown = number + 1;
    become_child(
        &short_name(shown),
        &format!("pcopy: worker {shown}"),
        parent,
    );
    context.scoreboard.slot(number).set_pid(getpid());
    let mut wire = Wire::new(socket, usize::MAX);
    // A forked process has a current directory and descriptors of its own.
    let mut worker = Worker::new(context, number, true);
    while let Ok(batch) = wire.receive::<Vec<Job>>(true) {
        worker.run_batch(&batch, &mut Socket(&mut wire));
    }
}

struct Socket<'a>(&'a mut Wire);

impl ReportSink for Socket<'_> {
    /// Ends the process if the report cannot be sent. The parent then gives all unreported work to
    /// another worker.
    fn send(&mut self, report: Report) {
        if self.0.send(&report, true).is_err() {
            sys::exit_now(1);
        }
    }
}

/// Prepares a forked process.
pub(crate) fn become_child(name: &str, title: &str, parent: Pid) {
    // No process outlives the parent, whatever ends it.
    let died_with = set_parent_process_death_signal(Some(Signal::KILL));
    if died_with.is_err() || getppid() != Some(parent) {
        sys::exit_now(1);
    }
    // Ctrl-C reaches the whole group, but the parent decides what to stop and to tidy up. A handler
    // that does nothing is reset by exec, but an ignored signal would stay ignored. SIGXFSZ: a file
    // larger than `ulimit -f` allows is an error, not the end.
    for signal in STOP_SIGNALS.into_iter().chain([SIGXFSZ]) {
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
    sys::set_command_line(title);
}

/// Closes the standard streams of the fork server and so of all workers. A process that cannot be
/// killed must not hold a pipe open, or its reader would wait.
fn leave_stdio() {
    if let Ok(null) = fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Returns a worker's name for top(1), at most 15 bytes (PR_SET_NAME(2const)).
fn short_name(number: usize) -> String {
    let long = format!("pcopy: worker {number}");
    if long.len() <= 15 {
        long
    } else {
        format!("pcopy:worker{number}")
    }
}
