//! Waits for the processes of killed runs.
//!
//! A process that was killed ends when its system call does. Until then it may still make a
//! temporary file, and the parent of its run may be gone already. A run that looked for leftovers
//! meanwhile would look too early. So it first waits for such processes at its destinations.
//!
//! To look at all processes takes longer than to copy ten small files. So each run has a lock for
//! each of its destinations, and looks only if another run has it too. Forked workers share the
//! lock, so it is held until the last of them has ended. It is a byte of the file in /proc that
//! stands for the process namespace: that exists everywhere, and no lock of it can disturb another
//! program.

use std::fs::{read_dir, read_link, read_to_string};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{self, Mode, OFlags};

use crate::config::Config;
use crate::fs::proc::real_path;
use crate::fs::stat::FileId;
use crate::fs::sys;
use crate::targets::Targets;

/// A process that waits for a dead server or disk may never end.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// The most destinations that are locked: a run can have one for each source.
const MOST_LOCKS: usize = 64;
/// The bit of SIGKILL in the masks of proc_pid_status(5).
const KILL: u64 = 1 << 8;

/// Shows other runs that a process of this run is alive.
pub(crate) struct Presence {
    _locks: OwnedFd,
}

impl Presence {
    /// Shows this run to later ones at the same destinations. Waits until the killed processes of
    /// other ones have ended. Returns `None` if that is impossible here, and in a dry run.
    pub(crate) fn begin(targets: &Targets, config: &Config) -> Option<Self> {
        if config.dry_run {
            return None;
        }
        let destinations = targets.list.iter().filter_map(|it| it.destination.as_ref());
        let destinations: Vec<&OwnedFd> = destinations.map(AsRef::as_ref).collect();
        let (locks, is_alone) = lock(&destinations)?;
        if !is_alone {
            await_killed(&destinations);
        }
        Some(Self { _locks: locks })
    }
}

/// Takes the locks of destinations. Returns false if another run has one of them too.
fn lock(destinations: &[&OwnedFd]) -> Option<(OwnedFd, bool)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let locks = fs::open("/proc/self/ns/pid", flags, Mode::empty()).ok()?;
    let mut is_alone = true;
    let mut last = None;
    for destination in destinations.iter().take(MOST_LOCKS) {
        let id = FileId::of(&fs::fstat(destination).ok()?);
        if last.replace(id) != Some(id) {
            is_alone &= !sys::share_lock(locks.as_fd(), byte_of(id)).ok()?;
        }
    }
    Some((locks, is_alone))
}

/// Returns the byte that stands for a directory. Two with the same byte do no harm.
fn byte_of(dir: FileId) -> u64 {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    hasher.finish()
}

/// Waits until no killed process of another run is left at these destinations.
fn await_killed(destinations: &[&OwnedFd]) {
    let began = Instant::now();
    let mut killed = killed_processes();
    if killed.is_empty() {
        return;
    }
    let paths = destinations.iter().take(MOST_LOCKS);
    let paths: Vec<PathBuf> = paths.filter_map(|it| real_path(it.as_fd()).ok()).collect();
    killed.retain(|process| has_open(process, &paths));
    while !killed.is_empty() && began.elapsed() < LONGEST_WAIT {
        sleep(POLL_INTERVAL);
        killed.retain(|process| is_being_killed(process));
    }
}

/// Returns the processes of pcopy that were killed and have not ended, by their paths in /proc.
fn killed_processes() -> Vec<PathBuf> {
    // The program may have another name. Its workers are named by pcopy.
    let own_name = read_to_string("/proc/self/comm").ok();
    let is_pcopy = |process: &PathBuf| {
        let name = read_to_string(process.join("comm")).ok();
        name.is_some_and(|name| name.starts_with("pcopy") || own_name.as_ref() == Some(&name))
    };
    let is_process = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let entries = read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    let processes = processes.map(|entry| entry.path()).filter(is_pcopy);
    processes.filter(|it| is_being_killed(it)).collect()
}

/// Returns true if a process has one of these directories open, or one above or below it.
///
/// Only the links in /proc are read: to examine what is open might take as long as the process.
fn has_open(process: &Path, dirs: &[PathBuf]) -> bool {
    let fds = read_dir(process.join("fd"));
    let open = fds.into_iter().flatten().flatten();
    let mut open = open.filter_map(|fd| read_link(fd.path()).ok());
    open.any(|open| dirs.iter().any(|dir| is_near(&open, dir)))
}

fn is_near(open: &Path, dir: &Path) -> bool {
    open.starts_with(dir) || dir.starts_with(open)
}

/// Returns true if a thread of a process was killed and is still in a system call.
fn is_being_killed(process: &Path) -> bool {
    let threads = read_dir(process.join("task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        let status = read_to_string(thread.path().join("status"));
        status.is_ok_and(|status| has_pending_kill(&status))
    })
}

/// Reads a file of proc_pid_status(5).
fn has_pending_kill(status: &str) -> bool {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let has_ended = field("State").is_none_or(|state| state.starts_with(['Z', 'X']));
    let is_pending = |name| {
        let mask = field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
        mask.unwrap_or(0) & KILL != 0
    };
    !has_ended && (is_pending("SigPnd") || is_pending("ShdPnd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_thread_has_the_signal_pending() {
        let status = |state: &str, own: &str, shared: &str| {
            format!("Name:\tpcopy\nState:\t{state}\nSigPnd:\t{own}\nShdPnd:\t{shared}\n")
        };
        let (none, kill) = ("0000000000000000", "0000000000000100");
        assert!(has_pending_kill(&status("D (disk sleep)", kill, none)));
        assert!(has_pending_kill(&status("D (disk sleep)", none, kill)));
        assert!(!has_pending_kill(&status("D (disk sleep)", none, none)));
        assert!(!has_pending_kill(&status(
            "R (running)",
            "0000000000004000",
            none
        )));
        assert!(!has_pending_kill(&status("Z (zombie)", none, kill)));
        assert!(!has_pending_kill(""));
        assert!(!is_being_killed(Path::new("/proc/self")));
    }

    #[test]
    fn a_process_is_known_by_its_directories() {
        let dir = Path::new("/mnt/backup");
        for (open, expected) in [
            ("/mnt/backup", true),
            ("/mnt/backup/below", true),
            ("/mnt", true),
            ("/mnt/backup-2", false),
            ("/dev/null", false),
            ("socket:[123]", false),
        ] {
            assert_eq!(is_near(Path::new(open), dir), expected, "{open}");
        }
        let dir = tempfile::tempdir().unwrap();
        let _open = std::fs::File::open(dir.path()).unwrap();
        let dirs = [dir.path().canonicalize().unwrap()];
        assert!(has_open(Path::new("/proc/self"), &dirs));
    }

    #[test]
    fn two_runs_at_one_destination_see_each_other() {
        let open = || {
            let dir = tempfile::tempdir().unwrap();
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = fs::open(dir.path(), flags, Mode::empty()).unwrap();
            (dir, fd)
        };
        let ((_one, one), (_other, other)) = (open(), open());
        let is_alone = |locks: &Option<(OwnedFd, bool)>| locks.as_ref().is_none_or(|it| it.1);
        let first = lock(&[&one]);
        assert!(is_alone(&first) && is_alone(&lock(&[&other])));
        let both = lock(&[&other, &one]);
        assert!(both.as_ref().is_none_or(|(_, is_alone)| !is_alone));
        drop((first, both));
        assert!(is_alone(&lock(&[&one])));
    }
}
