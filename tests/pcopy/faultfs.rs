//! The project's fault file system (tests/faultfs), mounted for a test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process};

use crate::env::{Env, skip, skipped_without_root};
use crate::run::await_end;

/// A mounted FUSE file system that passes a directory through, slowly or with faults.
pub(crate) struct FaultFs {
    child: Child,
    stdin: Option<ChildStdin>,
    mountpoint: PathBuf,
}

impl FaultFs {
    /// Mounts `source` at `mountpoint`. If that is impossible, prints it and returns `None`.
    #[track_caller]
    pub(crate) fn mount(
        env: &Env,
        source: &str,
        mountpoint: &str,
        options: &[&str],
    ) -> Option<FaultFs> {
        if skipped_without_root() {
            return None;
        }
        // Cargo builds it beside the directory of this test program.
        let program = std::env::current_exe().unwrap();
        let program = program
            .parent()
            .and_then(Path::parent)
            .unwrap()
            .join("faultfs");
        if !program.exists() {
            skip(format_args!(
                "{} is missing: cargo build -p faultfs",
                program.display()
            ));
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            skip("needs /dev/fuse");
            return None;
        }
        let mountpoint = env.dir(mountpoint).path().to_owned();
        let mut child = Command::new(program)
            .arg(env.path(source))
            .arg(&mountpoint)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mounted = FaultFs {
            child,
            stdin,
            mountpoint,
        };
        if line != "ready\n" {
            skip("faultfs cannot mount here");
            return None;
        }
        Some(mounted)
    }

    /// Kills the file system's program. The mount stays, and every call to it fails.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal to the server: KILL takes the file system away, STOP makes it hang.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn unmount(&self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.mountpoint)
            .output();
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        // It unmounts and exits at the end of its stdin.
        self.stdin = None;
        let _ = kill_process(Pid::from_child(&self.child), Signal::CONT);
        if let Ok(Some(_)) = self.child.try_wait() {
            self.unmount();
            return;
        }
        let pidfd =
            rustix::process::pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        if !await_end(&pidfd, Duration::from_secs(10)) {
            let _ = self.child.kill();
            self.unmount();
        }
        let _ = self.child.wait();
    }
}
