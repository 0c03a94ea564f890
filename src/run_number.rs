//! The run number: identifies the machine and process of a run, and tells whether that process is
//! alive.
//!
//! Temporary names contain it, so that a later run can tell whether a file is a leftover. A lock on
//! the directory could not: NFS and some FUSE file systems have no such locks. Nor does any job
//! hold the directory open between two chunks. But the parent process lives as long as its run, and
//! any process on the machine can look for it.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::fs::sys;

/// Bits of each part. Process numbers are below 2^22 (proc_sys_kernel(5)).
const PID_BITS: u32 = 22;
const SECOND_BITS: u32 = 22;

/// Identifies a run. It has three parts:
///
/// - a hash of the machine and the process namespace (20 bits),
/// - the process number of the run's parent (22 bits),
/// - the second since boot in which the run first needed a number (22 bits, 48 days).
///
/// The kernel does not reuse a PID within a second, so the number is unique on its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunNumber(u64);

/// Whether the run with a given number is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    Ended,
    /// It belongs to another machine or container.
    Unknown,
}

impl RunNumber {
    /// Makes the number of the run whose parent is this process.
    pub(crate) fn of_process(parent: Pid) -> Self {
        let pid = parent.as_raw_nonzero().get() as u64;
        Self::new(hash_of_machine(), pid, sys::seconds_since_boot())
    }

    /// Returns it as a word, which is never 0: no process has that number.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    fn new(machine: u64, pid: u64, second: u64) -> Self {
        let low = |value: u64, bits: u32| value & ((1 << bits) - 1);
        let process = low(pid, PID_BITS) << SECOND_BITS | low(second, SECOND_BITS);
        Self(machine << (PID_BITS + SECOND_BITS) | process)
    }

    /// Reads the 16 digits of a temporary name.
    pub(crate) fn parse(digits: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(digits).ok()?;
        (text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(text, 16).ok().map(Self))
            .flatten()
    }

    /// Returns the 16 digits for a temporary name.
    pub(crate) fn digits(self) -> String {
        format!("{:016x}", self.0)
    }

    /// Checks whether the run's parent process is alive.
    pub(crate) fn liveness(self) -> Liveness {
        let machine = self.0 >> (PID_BITS + SECOND_BITS);
        if machine != hash_of_machine() & 0xf_ffff {
            return Liveness::Unknown;
        }
        let pid = self.0 >> SECOND_BITS & ((1 << PID_BITS) - 1);
        let began = self.0 & ((1 << SECOND_BITS) - 1);
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Liveness::Ended;
        };
        // Another user's process cannot be signalled (EPERM), but it exists.
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return Liveness::Ended;
        }
        match process_state(pid) {
            Some((b'Z' | b'X', _)) => Liveness::Ended,
            Some((_, started)) if !is_before(started, began) => Liveness::Ended,
            // Also if /proc hides the processes of other users.
            _ => Liveness::Alive,
        }
    }
}

/// Returns true if a process that started in this second can have numbered a run in the other one.
/// One that started later has only inherited the process number. Both are counted modulo 2^22.
fn is_before(started: u64, began: u64) -> bool {
    began.wrapping_sub(started) & ((1 << SECOND_BITS) - 1) < 1 << (SECOND_BITS - 1)
}

/// Returns a hash of this boot and of the PID namespace. Two containers on one machine have
/// different hashes.
fn hash_of_machine() -> u64 {
    let mut hasher = DefaultHasher::new();
    let boot: io::Result<String> = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.ok().hash(&mut hasher);
    fs::read_link("/proc/self/ns/pid").ok().hash(&mut hasher);
    hasher.finish() & 0xf_ffff
}

/// Returns the state of a process and the second since boot in which it started.
fn process_state(pid: Pid) -> Option<(u8, u64)> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may contain anything. The state is the third field, and the time
    // in clock ticks the 22nd (proc_pid_stat(5)).
    let end = stat.iter().rposition(|&b| b == b')')?;
    let fields = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    let ticks: u64 = fields.nth(22 - 4)?.parse().ok()?;
    Some((
        state,
        ticks / rustix::param::clock_ticks_per_second().max(1),
    ))
}

#[cfg(test)]
mod tests {
    use rustix::process::getpid;

    use super::*;

    fn of_child(pid: u32) -> RunNumber {
        RunNumber::of_process(Pid::from_raw(pid as i32).unwrap())
    }

    #[test]
    fn a_run_is_alive_as_long_as_its_process() {
        assert_eq!(RunNumber::of_process(getpid()).liveness(), Liveness::Alive);
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let run = of_child(child.id());
        assert_eq!(run.liveness(), Liveness::Alive);
        child.kill().unwrap();
        // Its parent has not waited for it.
        while run.liveness() == Liveness::Alive {
            std::thread::yield_now();
        }
        assert_eq!(run.liveness(), Liveness::Ended);
        child.wait().unwrap();
        assert_eq!(run.liveness(), Liveness::Ended);
    }

    #[test]
    fn a_process_that_started_later_has_only_the_number() {
        let pid = u64::from(std::process::id());
        let earlier = sys::seconds_since_boot().wrapping_sub(1_000_000);
        let run = RunNumber::new(hash_of_machine(), pid, earlier);
        assert_eq!(run.liveness(), Liveness::Ended);
    }

    #[test]
    fn the_runs_of_other_machines_are_unknown() {
        let machine = hash_of_machine() ^ 1;
        let run = RunNumber::new(
            machine,
            std::process::id().into(),
            sys::seconds_since_boot(),
        );
        assert_eq!(run.liveness(), Liveness::Unknown);
    }

    #[test]
    fn the_digits_are_read_back() {
        let run = RunNumber::of_process(getpid());
        assert_eq!(RunNumber::from_bits(run.bits()), run);
        assert_eq!(RunNumber::parse(run.digits().as_bytes()), Some(run));
        assert_eq!(RunNumber::parse(b"0123456789abcde"), None);
        assert_eq!(RunNumber::parse(b"+123456789abcdef"), None);
    }
}
