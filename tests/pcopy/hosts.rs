//! A run under mpirun on three hosts, which are namespaces of this machine (hosts.sh). Each has mounts
//! of its own, so the device numbers differ.

use std::process::Command;

use rustix::process::Signal;

use crate::compare::{self, Properties};
use crate::env::{Env, Mode, eventually, skip, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::processes::{Process, processes};
use crate::run::Pcopy;
use crate::trees::small_files;
use crate::zoo::Zoo;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pcopy/hosts.sh");

/// Three hosts, and an environment that all of them see.
struct Hosts {
    env: Env,
    dir: String,
}

impl Hosts {
    /// Starts the hosts. If that is impossible, prints it and returns `None`.
    #[track_caller]
    fn up() -> Option<Hosts> {
        if !cfg!(feature = "mpi") {
            skip("needs cargo test --features mpi");
            return None;
        }
        let env = Env::new(Mode::Process);
        if skipped_without_root() || env.skipped_without("mpirun") || env.skipped_without("ip") {
            return None;
        }
        if env.skipped_without("/usr/sbin/sshd") || env.skipped_without("ssh") {
            return None;
        }
        let dir = env.path("hosts").to_str().unwrap().to_owned();
        Some(Hosts { env, dir })
    }

    /// Starts them, after what they see has been mounted.
    #[track_caller]
    fn start(&self) -> bool {
        let up = Command::new(SCRIPT)
            .args(["up", &self.dir])
            .output()
            .unwrap();
        if !up.status.success() {
            skip(format_args!(
                "cannot make hosts: {}",
                String::from_utf8_lossy(&up.stderr)
            ));
        }
        up.status.success()
    }

    #[track_caller]
    fn on(&self, host: usize, script: &str) {
        let host = host.to_string();
        let status = Command::new(SCRIPT)
            .args(["in", &self.dir, &host, "sh", "-ec", script])
            .current_dir(self.env.path(""))
            .status();
        assert!(status.unwrap().success(), "{script}");
    }

    fn pcopy<'a>(&'a self, args: &[&str]) -> Pcopy<'a> {
        let args = [&["--mode", "mpi", "-j2"], args].concat();
        let launcher = [SCRIPT, "mpirun", &self.dir];
        self.env.command(args).without_mode().under(&launcher)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = Command::new(SCRIPT).args(["down", &self.dir]).output();
    }
}

#[test]
fn hosts_with_mounts_of_their_own_copy_the_zoo() {
    let Some(hosts) = Hosts::up() else { return };
    let env = &hosts.env;
    Zoo::User.build(env, "real");
    env.dir("src");
    let mounts: Vec<_> = (1..=3)
        .map_while(|host| FaultFs::mount(env, "real", &format!("src-{host}"), &[]))
        .collect();
    if mounts.len() < 3 || !hosts.start() {
        return;
    }
    for host in 1..=3 {
        hosts.on(host, &format!("mount --bind src-{host} src"));
    }
    let before = env.snapshot("real");
    let run = hosts.pcopy(&["src", "dst"]).run().exits(0);
    run.counts(before.leaves(), 0, 0).stderr_has("3 hosts");
    compare::assert_same(&before, &env.snapshot("dst"), Properties::KEPT);
    let run = hosts.pcopy(&["src", "dst"]).run().exits(0);
    run.counts(0, before.leaves(), 0);
}

#[test]
fn a_host_without_the_mount_is_named() {
    let Some(hosts) = Hosts::up() else { return };
    hosts.env.file("disk/src/file", "x");
    if !hosts.start() {
        return;
    }
    hosts.on(3, "mount -t tmpfs tmpfs disk");
    let run = hosts.pcopy(&["disk/src", "dst"]).run().exits(2);
    assert!(run.stderr.contains("node 2 on pc"), "{run}");
    run.stderr_has("No such file or directory");
    assert!(!hosts.env.exists("dst"));
}

/// Starts a copy that takes a while, does something in the middle of it, and returns the run.
fn interfere(hosts: &Hosts, interference: impl FnOnce()) -> Option<crate::run::Running> {
    let env = &hosts.env;
    small_files(env, 1_500);
    let slow = FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"])?;
    if !hosts.start() {
        return None;
    }
    let running = hosts.pcopy(&["-v", "src", "dst"]).start();
    running.await_stdout("some entries", |text| text.lines().count() > 100);
    interference();
    running.await_stderr("the summary", |text| text.contains(" copied to dst"));
    drop(slow);
    Some(running)
}

/// Lists the nodes on one of these hosts. Other tests have nodes too.
fn nodes_on(hosts: &Hosts, host: usize) -> Vec<Process> {
    let sshd = std::fs::read_to_string(format!("{}/pid{host}", hosts.dir)).unwrap();
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = namespace(sshd.trim());
    let is_node = |it: &Process| it.is_alive() && it.title().starts_with("pcopy: node");
    let nodes = processes().filter(is_node);
    nodes
        .filter(|it| namespace(&it.pid.to_string()) == own)
        .collect()
}

#[test]
fn a_node_on_another_host_may_be_killed() {
    let Some(hosts) = Hosts::up() else { return };
    let running = interfere(&hosts, || nodes_on(&hosts, 2)[0].signal(Signal::KILL));
    let Some(running) = running else { return };
    running.wait().exits(0).stderr_has(": lost: ");
    hosts.env.assert_same("real", "dst");
    hosts.env.snapshot("dst").assert_no_temporaries();
}

#[test]
fn the_others_complete_the_copy_if_a_host_is_cut_off() {
    let Some(hosts) = Hosts::up() else { return };
    let running = interfere(&hosts, || {
        let cut = Command::new(SCRIPT).args(["cut", &hosts.dir, "3"]).status();
        assert!(cut.unwrap().success());
    });
    let Some(running) = running else { return };
    running.await_stderr("the loss", |text| text.contains("silent for 15 s"));
    // mpirun itself waits for the host for minutes, unless its keepalive is set.
    drop(running);
    hosts.env.assert_same("real", "dst");
    eventually("no node is left there", || nodes_on(&hosts, 3).is_empty());
}
