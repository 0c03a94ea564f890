//! A terminal in which pcopy runs, and what has been on its screen.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use vt100::Parser;

use crate::env::{DEADLINE, Env, eventually};
use crate::run::await_end;

const ROWS: u16 = 24;

/// Something that happened in the terminal.
enum Happening {
    Output(Vec<u8>),
    Columns(u16),
}

/// A run of pcopy in a terminal.
pub(crate) struct Terminal {
    child: Child,
    master: OwnedFd,
    slave: OwnedFd,
    log: Arc<(Mutex<Vec<Happening>>, Condvar)>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts pcopy in a terminal of so many columns, with these environment variables.
    pub(crate) fn start(
        env: &Env,
        columns: u16,
        variables: &[(&str, &str)],
        args: &[&str],
    ) -> Terminal {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        set_columns(&slave, columns);
        let end = || slave.try_clone().unwrap();
        let mut command = Command::new(env.program(false));
        command
            .args(["--mode", env.mode().name()])
            .args(args)
            .current_dir(env.path(""))
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .envs(variables.iter().copied())
            .process_group(0)
            .stdin(end())
            .stdout(end())
            .stderr(end());
        let child = command.spawn().unwrap();
        let log = Arc::new((
            Mutex::new(vec![Happening::Columns(columns)]),
            Condvar::new(),
        ));
        let reader = {
            let (log, master) = (Arc::clone(&log), File::from(master.try_clone().unwrap()));
            thread::spawn(move || read(master, &log))
        };
        Terminal {
            child,
            master,
            slave,
            log,
            reader,
        }
    }

    pub(crate) fn signal_group(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops pcopy and its workers, and returns when its main thread has stopped. A thread that
    /// waits for a file system cannot be stopped.
    #[track_caller]
    pub(crate) fn stop_group(&self) {
        self.signal_group(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        eventually("it is stopped", || {
            let stat = fs::read_to_string(&stat).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        });
    }

    /// Changes the width of the terminal.
    pub(crate) fn resize(&self, columns: u16) {
        let (log, _) = &*self.log;
        let mut log = log.lock().unwrap();
        set_columns(&self.slave, columns);
        log.push(Happening::Columns(columns));
    }

    /// Writes to the screen, as a shell does.
    pub(crate) fn print(&self, text: &str) {
        let mut slave = File::from(self.slave.try_clone().unwrap());
        slave.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until pcopy has written a text that fulfils the condition, from now on.
    #[track_caller]
    pub(crate) fn await_output(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let (log, changed) = &*self.log;
        let mut log = log.lock().unwrap();
        let start = log.len();
        loop {
            let text = output(&log[start..]);
            if condition(&text) {
                return;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            assert!(!remaining.is_zero(), "never came: {what}\n{text:?}");
            log = changed.wait_timeout(log, remaining).unwrap().0;
        }
    }

    /// Waits for the end of the run.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Recording {
        let pid = Pid::from_child(&self.child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let ended = await_end(&pidfd, DEADLINE);
        if !ended {
            self.signal_group(Signal::KILL);
        }
        let status = self.child.wait().unwrap();
        // The reader comes to an end when nobody holds the other side open.
        drop(self.slave);
        self.reader.join().unwrap();
        drop(self.master);
        let log = std::mem::take(&mut *self.log.0.lock().unwrap());
        let recording = Recording { status, log };
        assert!(ended, "still running:\n{:?}", recording.text());
        recording
    }
}

fn set_columns(terminal: impl AsFd, columns: u16) {
    let size = Winsize {
        ws_row: ROWS,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

fn read(mut master: File, log: &(Mutex<Vec<Happening>>, Condvar)) {
    let mut buffer = vec![0; 64 * 1024];
    // EIO once no process has the other side open.
    while let Ok(count) = master.read(&mut buffer) {
        if count == 0 {
            return;
        }
        let output = Happening::Output(buffer[..count].to_vec());
        log.0.lock().unwrap().push(output);
        log.1.notify_all();
    }
}

fn output(log: &[Happening]) -> String {
    let mut bytes = Vec::new();
    for happening in log {
        if let Happening::Output(output) = happening {
            bytes.extend_from_slice(output);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Everything that a run has written to its terminal.
pub(crate) struct Recording {
    pub(crate) status: ExitStatus,
    log: Vec<Happening>,
}

impl Recording {
    /// Returns what was written, escape sequences included.
    pub(crate) fn text(&self) -> String {
        output(&self.log)
    }

    /// Returns the percentages in the order in which they were written.
    pub(crate) fn percentages(&self) -> Vec<u32> {
        let text = self.text();
        let before = text.split('%').collect::<Vec<_>>();
        let numbers = before[..before.len() - 1].iter().map(|text| {
            let start = text
                .rfind(|c: char| !c.is_ascii_digit())
                .map_or(0, |at| at + 1);
            let start = text.len().min(start);
            text[start..].parse().unwrap()
        });
        numbers.collect()
    }

    /// Replays the output and shows the rows of the screen after each small part of it. Trailing
    /// spaces are left out, and empty rows at the end.
    pub(crate) fn replay(&self, mut look: impl FnMut(u16, &[String])) -> Vec<String> {
        let size = |columns| NonZeroU16::new(columns).unwrap();
        let mut parser = Parser::new(size(ROWS), size(80), 1000);
        let mut columns = 80;
        let mut rows = Vec::new();
        for happening in &self.log {
            match happening {
                Happening::Columns(new) => {
                    columns = *new;
                    parser.set_size(size(ROWS), size(columns));
                }
                Happening::Output(output) => {
                    for part in output.chunks(16) {
                        parser.process(part);
                        rows = rows_of(&parser, columns);
                        look(columns, &rows);
                    }
                }
            }
        }
        assert_eq!(
            parser.screen().scrollback_len(),
            0,
            "the screen scrolled: {rows:#?}"
        );
        rows
    }
}

fn rows_of(parser: &Parser, columns: u16) -> Vec<String> {
    let rows = parser.screen().rows(0, columns);
    let mut rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
    while rows.last().is_some_and(String::is_empty) {
        rows.pop();
    }
    rows
}
