//! Runs of pcopy: prepared, watched while they last, and judged by how they ended.

use std::ffi::OsString;
use std::fmt::{self, Display, Write as _};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group};

use crate::env::{Env, NOBODY, PATIENCE, is_root};

/// How long one run of pcopy may take before it counts as hanging.
const WATCHDOG: Duration = Duration::from_secs(120);

/// A run of pcopy that is being prepared.
#[must_use]
pub(crate) struct Pcopy<'a> {
    env: &'a Env,
    args: Vec<OsString>,
    by_user: bool,
    with_mode: bool,
    shell: String,
    limit: Duration,
}

impl<'a> Pcopy<'a> {
    pub(crate) fn new(env: &'a Env, args: Vec<OsString>) -> Pcopy<'a> {
        Pcopy {
            env,
            args,
            by_user: false,
            with_mode: true,
            shell: String::new(),
            limit: WATCHDOG,
        }
    }

    /// As a user without privileges: the user of the tests, or "nobody" where that is root.
    pub(crate) fn by_user(mut self) -> Self {
        self.by_user = true;
        self
    }

    /// Without the option `--mode`.
    pub(crate) fn without_mode(mut self) -> Self {
        self.with_mode = false;
        self
    }

    /// After these shell commands, such as `ulimit -n 64`.
    pub(crate) fn after(mut self, commands: &str) -> Self {
        let _ = writeln!(self.shell, "{commands}");
        self
    }

    /// With another watchdog than the usual one.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    #[track_caller]
    pub(crate) fn run(self) -> Run {
        self.start().wait()
    }

    #[track_caller]
    pub(crate) fn start(self) -> Running {
        let mut argv = self.env.entering();
        if self.by_user && is_root() {
            let id = NOBODY.to_string();
            argv.extend(
                [
                    "setpriv",
                    "--reuid",
                    &id,
                    "--regid",
                    &id,
                    "--clear-groups",
                    "--",
                ]
                .map(OsString::from),
            );
        }
        if !self.shell.is_empty() {
            let script = format!("{}exec \"$@\"", self.shell);
            argv.extend(["sh", "-ec", &script, "sh"].map(OsString::from));
        }
        argv.push(self.env.program(self.by_user).into());
        if self.with_mode {
            argv.extend(["--mode", self.env.mode().name()].map(OsString::from));
        }
        argv.extend(self.args);
        Running::start(self.env.spawnable(&argv), render(&argv), self.limit)
    }
}

/// A command line for people.
fn render(argv: &[OsString]) -> String {
    let mut line = String::new();
    for word in argv {
        let word = word.as_bytes().escape_ascii().to_string();
        if word.is_empty() || word.contains([' ', '"', '$', '\\']) {
            let _ = write!(line, "'{word}' ");
        } else {
            let _ = write!(line, "{word} ");
        }
    }
    line
}

/// A pcopy that runs, in a process group of its own, under a watchdog.
pub(crate) struct Running {
    child: Child,
    /// Tells when the child has ended, without reaping it: until then its number is its own.
    pidfd: OwnedFd,
    command: String,
    started: Instant,
    limit: Duration,
    stdout: Capture,
    stderr: Capture,
    over: bool,
}

impl Running {
    #[track_caller]
    fn start(mut command: Command, rendered: String, limit: Duration) -> Running {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{rendered}: {e}"));
        let pidfd =
            rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let stdout = Capture::of(child.stdout.take().unwrap());
        let stderr = Capture::of(child.stderr.take().unwrap());
        Running {
            child,
            pidfd,
            command: rendered,
            started: Instant::now(),
            limit,
            stdout,
            stderr,
            over: false,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to pcopy itself, as `kill PID` does.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Sends a signal to pcopy and all its workers, as a terminal does.
    pub(crate) fn signal_group(&self, signal: Signal) {
        // The group may have ended already.
        let _ = kill_process_group(self.pid(), signal);
    }

    /// Whether pcopy still runs.
    pub(crate) fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits for the end of pcopy, but no longer than this.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        await_end(&self.pidfd, limit)
    }

    /// Waits until what pcopy has printed on stdout fulfils the condition.
    #[track_caller]
    pub(crate) fn await_stdout(&self, what: &str, condition: impl FnMut(&str) -> bool) {
        self.stdout.wait_for(what, PATIENCE, condition);
    }

    /// Waits until what pcopy has printed on stderr fulfils the condition.
    #[track_caller]
    pub(crate) fn await_stderr(
        &self,
        what: &str,
        patience: Duration,
        condition: impl FnMut(&str) -> bool,
    ) {
        self.stderr.wait_for(what, patience, condition);
    }

    /// The processes of this run that live: pcopy itself, and what it has forked.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let group = self.pid().as_raw_pid();
        let mut found: Vec<Process> = processes().filter(|p| p.group == group).collect();
        found.retain(|process| process.lives());
        found
    }

    /// The workers that live, in process mode.
    pub(crate) fn workers(&self) -> Vec<Process> {
        self.titled("pcopy: worker ")
    }

    /// The processes of this run whose title begins so.
    pub(crate) fn titled(&self, title: &str) -> Vec<Process> {
        let mut found = self.processes();
        found.retain(|process| process.title().starts_with(title));
        found
    }

    /// Waits until pcopy has ended and everything that holds its output has, too.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Run {
        let ended = await_end(
            &self.pidfd,
            self.limit.saturating_sub(self.started.elapsed()),
        );
        if !ended {
            self.signal_group(Signal::KILL);
        }
        let status = self.child.wait().unwrap();
        let took = self.started.elapsed();
        self.over = true;
        let let_go = self.stdout.wait_for_end() & self.stderr.wait_for_end();
        let run = Run {
            command: self.command.clone(),
            status,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.text(),
            took,
        };
        assert!(
            ended,
            "still running after {:?}, killed:\n{run}",
            self.limit
        );
        assert!(
            let_go,
            "pcopy ended, but some process it left behind holds its output open:\n{run}"
        );
        run
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.signal_group(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Waits for the end of a process; false when it did not come in time.
pub(crate) fn await_end(pidfd: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}

/// What comes out of a pipe, read by a thread of its own so that the pipe never fills up.
struct Capture(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let shared = Arc::new((Mutex::new(Captured::default()), Condvar::new()));
        let capture = Capture(Arc::clone(&shared));
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut captured = shared.0.lock().unwrap();
                captured.bytes.extend_from_slice(&buffer[..count]);
                captured.ended = count == 0;
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        capture
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, patience: Duration, mut condition: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + patience;
        let (captured, changed) = &*self.0;
        let mut captured = captured.lock().unwrap();
        while !condition(&String::from_utf8_lossy(&captured.bytes)) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !captured.ended && !left.is_zero(),
                "{} without {what}:\n{}",
                if captured.ended {
                    "the output ended"
                } else {
                    "the time is over"
                },
                String::from_utf8_lossy(&captured.bytes)
            );
            captured = changed.wait_timeout(captured, left).unwrap().0;
        }
    }

    /// Waits for the end of the pipe; false when someone still holds it open after a while.
    fn wait_for_end(&self) -> bool {
        let (captured, changed) = &*self.0;
        let captured = captured.lock().unwrap();
        let (captured, _) = changed
            .wait_timeout_while(captured, Duration::from_secs(10), |captured| {
                !captured.ended
            })
            .unwrap();
        captured.ended
    }
}

/// How a run of pcopy ended and what it printed.
pub(crate) struct Run {
    command: String,
    pub(crate) status: ExitStatus,
    stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Run {
    /// Fails unless pcopy ended well and had nothing to complain of.
    #[track_caller]
    pub(crate) fn ok(self) -> Run {
        let run = self.exits(0);
        assert!(
            run.failures().is_empty(),
            "exit status 0, and yet complaints:\n{run}"
        );
        assert!(
            !run.stderr.contains("left behind"),
            "nobody was stuck:\n{run}"
        );
        run
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Run {
        assert!(
            self.status.code() == Some(code),
            "expected exit status {code}, got {}:\n{self}",
            self.status
        );
        assert!(
            !self.stderr.contains("panicked at"),
            "pcopy panicked:\n{self}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn stderr_has(self, text: &str) -> Run {
        assert!(
            self.stderr.contains(text),
            "stderr has no {text:?}:\n{self}"
        );
        self
    }

    /// Fails unless a line of stdout is exactly this one.
    #[track_caller]
    pub(crate) fn stdout_has_line(self, line: &str) -> Run {
        assert!(
            self.stdout().lines().any(|found| found == line),
            "stdout has no line {line:?}:\n{self}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn stdout_is_empty(self) -> Run {
        assert!(self.stdout.is_empty(), "stdout should be empty:\n{self}");
        self
    }

    /// Fails unless there is one failure for each of these, in any order, and no other.
    ///
    /// Each is the path and a part of what follows it.
    #[track_caller]
    pub(crate) fn fails_only(self, expected: &[(&str, &str)]) -> Run {
        let mut failures = self.failures();
        for (path, reason) in expected {
            let start = format!("pcopy: {path}: ");
            let found = failures.iter().position(|line| {
                line.strip_prefix(start.as_str())
                    .is_some_and(|rest| rest.contains(reason))
            });
            match found {
                Some(index) => drop(failures.swap_remove(index)),
                None => panic!("no failure {start:?} with {reason:?}:\n{self}"),
            }
        }
        assert!(
            failures.is_empty(),
            "further failures {failures:?}:\n{self}"
        );
        self
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The lines of stderr but for the summary.
    pub(crate) fn failures(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter(|line| Summary::parse(line).is_none())
            .collect()
    }

    /// The counts of the summary line.
    #[track_caller]
    pub(crate) fn summary(&self) -> Summary {
        let mut summaries = self.stderr.lines().filter_map(Summary::parse);
        let summary = summaries
            .next()
            .unwrap_or_else(|| panic!("there is no summary:\n{self}"));
        assert!(
            summaries.next().is_none(),
            "there are two summaries:\n{self}"
        );
        summary
    }

    /// Fails unless the summary counts this many entries copied, unchanged and failed.
    #[track_caller]
    pub(crate) fn counts(self, copied: u64, unchanged: u64, failed: u64) -> Run {
        let summary = self.summary();
        let expected = Summary {
            copied,
            unchanged,
            failed,
        };
        assert!(
            summary == expected,
            "expected {expected:?}, got {summary:?}:\n{self}"
        );
        self
    }
}

impl Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "command: {}", self.command)?;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => writeln!(f, "exit status: {code}, after {:?}", self.took)?,
            (None, signal) => writeln!(f, "killed by signal {signal:?}, after {:?}", self.took)?,
        }
        for (name, text) in [("stdout", &self.stdout()), ("stderr", &self.stderr)] {
            writeln!(f, "{name}:")?;
            // Thousands of -v lines explain nothing.
            for line in text.lines().take(60) {
                writeln!(f, "    {line}")?;
            }
            let more = text.lines().count().saturating_sub(60);
            if more > 0 {
                writeln!(f, "    ... and {more} lines more")?;
            }
        }
        Ok(())
    }
}

/// The counts in `pcopy: 3 copied, 2 unchanged, 1 failed, ...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) copied: u64,
    pub(crate) unchanged: u64,
    pub(crate) failed: u64,
}

impl Summary {
    fn parse(line: &str) -> Option<Summary> {
        let mut parts = line.strip_prefix("pcopy: ")?.split(", ");
        let copied = parts.next()?;
        // A dry run tells what it would do.
        let copied = copied
            .strip_suffix(" copied")
            .or_else(|| copied.strip_suffix(" to copy"))?;
        let mut count = |word: &str| parts.next()?.strip_suffix(word)?.parse().ok();
        Some(Summary {
            copied: copied.parse().ok()?,
            unchanged: count(" unchanged")?,
            failed: count(" failed")?,
        })
    }
}

/// Whether no process of a group is left, but for those that only wait to be reaped.
pub(crate) fn group_has_ended(group: Pid) -> bool {
    let group = group.as_raw_pid();
    processes().all(|process| process.group != group || !process.lives())
}

/// What `/proc` says of a process.
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    group: i32,
    pub(crate) state: char,
}

impl Process {
    /// Whether it has not ended; one that only waits to be reaped has.
    fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    /// What `ps` shows as its command.
    pub(crate) fn title(&self) -> String {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .trim_end_matches('\0')
            .to_owned()
    }

    /// The name that `top` shows.
    pub(crate) fn name(&self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        name.trim_end().to_owned()
    }

    /// The names of what it has open.
    pub(crate) fn open_files(&self) -> Vec<String> {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid));
        fds.into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Whether SIGSTOP has taken effect, or it has ended.
    pub(crate) fn stands_still(&self) -> bool {
        let now = processes().find(|process| process.pid == self.pid);
        now.is_none_or(|now| now.state == 'T' || !now.lives())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill_process(Pid::from_raw(self.pid).unwrap(), signal);
    }
}

/// All processes of this machine.
pub(crate) fn processes() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            // The name before it, in parentheses, may hold anything.
            let end = stat.iter().rposition(|&byte| byte == b')')?;
            let rest = String::from_utf8_lossy(&stat[end + 1..]).into_owned();
            let mut fields = rest.split_whitespace();
            Some(Process {
                pid,
                state: fields.next()?.chars().next()?,
                parent: fields.next()?.parse().ok()?,
                group: fields.next()?.parse().ok()?,
            })
        })
}
