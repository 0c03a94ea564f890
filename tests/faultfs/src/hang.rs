//! Requests that are never answered, unless their process is being killed.
//!
//! A process that waits for a request can die only after the request was answered or interrupted.
//! fuser does not pass the kernel's interrupts on. So this module watches the pending signals of
//! the thread that made the request.

use std::fs;
use std::thread;
use std::time::Duration;

use fuser::{Errno, Request};

/// How often to check the pending signals.
const INTERVAL: Duration = Duration::from_millis(10);

/// SIGKILL in the masks of `/proc/TID/status`. Any fatal signal sets it in all threads.
const SIGKILL: u64 = 1 << 8;

/// Leaves a request unanswered until its thread is dying. Then `give_up` answers with an error.
pub(crate) fn hang(request: &Request, give_up: impl FnOnce(Errno) + Send + 'static) {
    let reader = request.pid();
    thread::spawn(move || {
        while !is_dying(reader) {
            thread::sleep(INTERVAL);
        }
        give_up(Errno::EINTR);
    });
}

/// Returns true if a thread has ended or a fatal signal is pending.
fn is_dying(thread: u32) -> bool {
    // 0 stands for a thread in a process namespace that is not visible here.
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
