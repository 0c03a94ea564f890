//! Runs of pcopy: prepared, and watched while they last.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::capture::Capture;
use crate::env::{DEADLINE, Env, Mode as EnvMode, NOBODY, is_root};
use crate::outcome::Run;
use crate::processes::{Process, processes};
use crate::relay;

/// Has `Command` call posix_spawn(3) in a statically linked test program too.
///
/// It does that for a command with a directory of its own only if it finds this function, and a
/// reference that is weak does not link it. To fork this program copies its tables of pages.
#[used]
static SPAWN_IN_DIRECTORY: unsafe extern "C" fn(
    *mut libc::posix_spawn_file_actions_t,
    *const libc::c_char,
) -> libc::c_int = libc::posix_spawn_file_actions_addchdir_np;

/// A command line of pcopy.
#[must_use]
pub(crate) struct Pcopy<'a> {
    env: &'a Env,
    args: Vec<OsString>,
    unprivileged: bool,
    with_mode: bool,
    /// Shell commands that run first.
    shell: String,
    /// A program, with its arguments, that runs pcopy.
    wrapper: Vec<OsString>,
    /// Options of the relay that joins the nodes.
    relay: Vec<OsString>,
}

impl<'a> Pcopy<'a> {
    pub(crate) fn new(env: &'a Env, args: Vec<OsString>) -> Pcopy<'a> {
        Pcopy {
            env,
            args,
            unprivileged: false,
            with_mode: true,
            shell: String::new(),
            wrapper: Vec::new(),
            relay: Vec::new(),
        }
    }

    /// Runs without privileges: as the user of the tests, or as "nobody" if that is root.
    pub(crate) fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// Leaves out the option `--mode`.
    pub(crate) fn without_mode(mut self) -> Self {
        self.with_mode = false;
        self
    }

    /// Runs shell commands first, such as `ulimit -n 64`.
    pub(crate) fn after(mut self, commands: &str) -> Self {
        let _ = writeln!(self.shell, "{commands}");
        self
    }

    /// Runs under another program, such as strace(1) with its options.
    pub(crate) fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    /// Passes options to the relay that joins the nodes.
    pub(crate) fn relayed(mut self, options: &[&str]) -> Self {
        self.relay.extend(options.iter().map(OsString::from));
        self
    }

    /// Runs while system calls fail, or do nothing and succeed. `injection` is what strace(1) takes
    /// after `inject=`.
    pub(crate) fn injecting(self, injection: &str) -> Self {
        let (calls, _) = injection.split_once(':').expect("CALLS:WHAT");
        let trace = format!("trace={calls}");
        let inject = format!("inject={injection}");
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null"];
        self.under(&[&strace[..], &["-e", &trace, "-e", &inject]].concat())
    }

    /// Runs, which must succeed, and returns strace's line for each of these system calls.
    ///
    /// Each thread has a file of its own. In a common one, strace breaks the line of a call that
    /// another thread's call interrupts.
    #[track_caller]
    pub(crate) fn traced(self, calls: &str) -> Vec<String> {
        let directory = self.env.path("traces");
        fs::create_dir(&directory).unwrap();
        let trace = format!("trace={calls}");
        let quiet = "signal=none";
        let strace = ["strace", "-ff", "-y", "-qq", "-e", quiet, "-e", &trace];
        self.under(&[&strace[..], &["-o", "traces/of"]].concat())
            .run()
            .ok();
        let read = |file: fs::DirEntry| fs::read(file.path()).unwrap();
        let files = fs::read_dir(&directory).unwrap();
        let files: Vec<_> = files.map(|file| read(file.unwrap())).collect();
        fs::remove_dir_all(&directory).unwrap();
        let lines = files
            .iter()
            .map(|file| String::from_utf8_lossy(file).into_owned());
        lines
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    #[track_caller]
    pub(crate) fn run(self) -> Run {
        self.start().wait()
    }

    #[track_caller]
    pub(crate) fn start(self) -> Running {
        let mut argv = self.env.entering();
        if self.unprivileged && is_root() {
            let id = NOBODY.to_string();
            let drop_privileges = [
                "setpriv",
                "--reuid",
                &id,
                "--regid",
                &id,
                "--clear-groups",
                "--",
            ];
            argv.extend(drop_privileges.map(OsString::from));
        }
        if !self.shell.is_empty() {
            let script = format!("{}exec \"$@\"", self.shell);
            argv.extend(["sh", "-ec", &script, "sh"].map(OsString::from));
        }
        argv.extend(self.wrapper);
        if self.with_mode && self.env.mode() == EnvMode::Mpi {
            argv.push(relay::program(self.env, self.unprivileged).into());
            argv.extend(self.relay);
            argv.push(relay::NODES.to_string().into());
        }
        argv.push(self.env.program(self.unprivileged).into());
        if self.with_mode {
            argv.extend(["--mode", self.env.mode().name()].map(OsString::from));
        }
        argv.extend(self.args);
        Running::start(self.env.command_for(&argv), render(&argv))
    }
}

/// Returns a command line for messages.
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

/// Gives all children the same start on every machine: umask 022, and default signal handling
/// even if this process ignores the signals.
///
/// A shell's background job, nohup(1) and some CI runners ignore SIGINT or SIGHUP, which
/// children inherit, pcopy respects, and no shell can undo. A caught signal in contrast is
/// back at its default after execve(2), so this process catches what it would ignore.
pub(crate) fn normalize_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            if ignored.unwrap_or(0) & 1 << (signal - 1) != 0 {
                signal_hook::flag::register(signal, Arc::default()).unwrap();
            }
        }
    });
}

/// A running pcopy, in a process group of its own, under a watchdog.
pub(crate) struct Running {
    child: Child,
    /// Reports the child's end without reaping it, so that its number is not reused.
    pidfd: OwnedFd,
    command: String,
    started: Instant,
    stdout: Capture,
    stderr: Capture,
    is_over: bool,
}

impl Running {
    #[track_caller]
    fn start(mut command: Command, rendered: String) -> Running {
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
            stdout,
            stderr,
            is_over: false,
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

    /// Returns how many lines pcopy has printed on stdout so far.
    pub(crate) fn lines(&self) -> usize {
        self.stdout.text().lines().count()
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits for the end of pcopy, and returns false if it does not come in time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        await_end(&self.pidfd, limit)
    }

    /// Waits until pcopy's stdout fulfils the condition.
    #[track_caller]
    pub(crate) fn await_stdout(&self, what: &str, condition: impl FnMut(&str) -> bool) {
        self.stdout.wait_for(what, condition);
    }

    /// Waits until pcopy's stderr fulfils the condition.
    #[track_caller]
    pub(crate) fn await_stderr(&self, what: &str, condition: impl FnMut(&str) -> bool) {
        self.stderr.wait_for(what, condition);
    }

    /// Lists the living processes of this run: pcopy and its forks.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let group = self.pid().as_raw_pid();
        let mut found: Vec<Process> = processes().filter(|p| p.group == group).collect();
        found.retain(Process::is_alive);
        found
    }

    /// Lists the living workers of process mode.
    pub(crate) fn workers(&self) -> Vec<Process> {
        self.titled("pcopy: worker ")
    }

    /// Lists the living processes of this run whose title begins with this text.
    pub(crate) fn titled(&self, title: &str) -> Vec<Process> {
        let mut found = self.processes();
        found.retain(|process| process.title().starts_with(title));
        found
    }

    /// Waits until pcopy has ended and no process holds its output open.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Run {
        let ended = await_end(&self.pidfd, DEADLINE.saturating_sub(self.started.elapsed()));
        if !ended {
            self.signal_group(Signal::KILL);
        }
        let status = self.child.wait().unwrap();
        self.is_over = true;
        let is_output_closed = self.stdout.wait_for_end() & self.stderr.wait_for_end();
        let run = Run {
            command: self.command.clone(),
            status,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.text(),
        };
        assert!(ended, "still running after {DEADLINE:?}, killed:\n{run}");
        assert!(
            is_output_closed,
            "pcopy ended, but a process it left behind holds its output open:\n{run}"
        );
        run
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.signal_group(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Waits for the end of a process, and returns false if it does not come in time.
pub(crate) fn await_end(pidfd: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: remaining.as_secs().cast_signed(),
            tv_nsec: remaining.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}
