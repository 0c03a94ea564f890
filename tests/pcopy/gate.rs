//! The gate before the contents: it holds nobody up for ever, and `-j` does without it.
//!
//! How fast it makes a copy is measured in `benches/`.

use rustix::process::Signal;

use crate::env::{Env, Mode, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::processes::Process;
use crate::run::Running;
use crate::trees::assert_same_without;

/// Makes files in three directories, and in a fourth one a file that cannot be read. They are on a disk
/// with one head, so that one worker at a time copies contents.
fn disk_with_stuck_file(env: &Env) -> Option<FaultFs> {
    for number in 0..30 {
        let file = format!("real/{}/file-{number}", number % 3);
        env.file(file, pattern(200_000, number));
    }
    env.file("real/3/stuck", pattern(100_000, 1));
    let options = ["--head", "5,50", "--fault", "hang-read:stuck"];
    FaultFs::mount(env, "real", "src", &options)
}

both_modes!(a_read_that_hangs_keeps_nobody_from_reading, |env| {
    let Some(_disk) = disk_with_stuck_file(env) else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    let is_copied = |number| {
        let path = format!("dst/{}/file-{number}", number % 3);
        env.exists(&path) && env.read(&path).len() == 200_000
    };
    eventually("all other files are copied", || (0..30).all(is_copied));
    assert!(running.is_running());
    running.signal_group(Signal::INT);
    running.wait().exits(130);
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
});

fn worker_at(running: &Running, name: &str) -> Option<Process> {
    let mut workers = running.workers().into_iter();
    workers.find(|worker| worker.open_files().iter().any(|open| open == name))
}

#[test]
fn a_killed_worker_keeps_nobody_from_reading() {
    let env = Env::new(Mode::Process);
    let Some(_disk) = disk_with_stuck_file(&env) else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    for _ in 0..2 {
        let mut killed = None;
        eventually("a worker is at the stuck file", || {
            killed = worker_at(&running, "stuck");
            killed.is_some()
        });
        let killed = killed.unwrap();
        killed.signal(Signal::KILL);
        let is_other = |other: &Process| other.pid != killed.pid;
        eventually("it has ended", || running.workers().iter().all(is_other));
    }
    let error = "workers crashed on it twice (SIGKILL)";
    let run = running
        .wait()
        .exits(1)
        .fails_only(&[("src/3/stuck", error)]);
    assert_eq!(run.replaced_workers(), 2, "{run}");
    assert_same_without(&env, "3/stuck");
}

both_modes!(decisions_can_be_seen_and_j_leaves_none, |env| {
    for number in 0..60 {
        env.file(format!("real/file-{number}"), "x");
    }
    // Every call sleeps, so more workers are wanted.
    let Some(_slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "20"]) else {
        return;
    };
    let exact = env.pcopy(["--debug", "-j2", "src", "dst"]).ok();
    assert!(!exact.stderr.contains("debug:"), "{exact}");
    let automatic = env.pcopy(["--debug", "src", "dst-2"]).exits(0);
    let is_decision = |line: &str| line.starts_with("pcopy: debug: ") && line.contains("workers");
    assert!(automatic.stderr.lines().any(is_decision), "{automatic}");
    env.assert_same("real", "dst");
    env.assert_same("real", "dst-2");
});
