//! Requests that are never answered, unless their reader is being killed.
//!
//! The kernel lets a process die only once each request that it waits for has been answered or
//! interrupted. fuser does not hand on the kernel's interrupts, so the fatal signal is looked for
//! where it shows: in the set of pending signals of the thread that made the request.

use std::fs;
use std::thread;
use std::time::Duration;

use fuser::{Errno, Request};

/// How often a reader is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// SIGKILL in the masks of `/proc/TID/status`; any fatal signal sets it in every thread it ends.
const SIGKILL: u64 = 1 << 8;

/// Leaves `request` unanswered until its reader is dying; `give_up` answers it with an error.
pub(crate) fn hang(request: &Request, give_up: impl FnOnce(Errno) + Send + 'static) {
    let reader = request.pid();
    thread::spawn(move || {
        while !is_dying(reader) {
            thread::sleep(INTERVAL);
        }
        give_up(Errno::EINTR);
    });
}

/// Whether a thread is gone or has a fatal signal pending.
fn is_dying(thread: u32) -> bool {
    // 0 is a thread of a process namespace that we cannot see into.
    if thread == 0 {
        return false;
    }
    let Ok(status) = fs::read_to_string(format!("/proc/{thread}/status")) else {
        return true;
    };
    status.lines().any(|line| match line.split_once(":\t") {
        Some(("State", state)) => state.starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", mask)) => {
            u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & SIGKILL != 0)
        }
        _ => false,
    })
}
