//! Processes as `/proc` shows them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// A process at the moment of its listing.
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) state: char,
}

impl Process {
    /// Returns a process as it is now, or nothing if there is none.
    fn read(pid: i32) -> Option<Process> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name before it, in parentheses, may contain any byte.
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let rest = String::from_utf8_lossy(&stat[end + 1..]);
        let mut fields = rest.split_whitespace();
        Some(Process {
            pid,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    }

    /// Returns true unless it has ended. A zombie has ended.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    /// Returns true for a process that was killed and is still in a system call.
    pub(crate) fn has_pending_kill(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let mut lines = status.lines();
        let mask = lines.find_map(|line| line.strip_prefix("SigPnd:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let kill = 1 << (Signal::KILL.as_raw() - 1);
        self.is_alive() && mask.unwrap_or(0) & kill != 0
    }

    /// Returns the command that `ps` shows.
    pub(crate) fn title(&self) -> String {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .trim_end_matches('\0')
            .to_owned()
    }

    /// Returns the name that `top` shows.
    pub(crate) fn name(&self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        name.trim_end().to_owned()
    }

    /// Returns the names of its open files, without their directories.
    pub(crate) fn open_files(&self) -> Vec<String> {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid));
        fds.into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Returns true once SIGSTOP has taken effect, or if it has ended.
    pub(crate) fn is_stopped(&self) -> bool {
        let now = Process::read(self.pid);
        now.is_none_or(|now| now.state == 'T' || !now.is_alive())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill_process(Pid::from_raw(self.pid).unwrap(), signal);
    }
}

/// Lists all processes of this machine.
pub(crate) fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?))
}

/// Returns true if all processes of a group have ended.
pub(crate) fn has_group_ended(group: Pid) -> bool {
    let group = group.as_raw_pid();
    processes().all(|process| process.group != group || !process.is_alive())
}
