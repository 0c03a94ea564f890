//! Workers that crash, and parents that do: process mode survives its workers.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendFlags, send};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, pidfd_getfd, pidfd_open, prlimit,
};

use crate::env::{Env, Mode, eventually, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::noise::{Random, seed};
use crate::processes::{Process, has_group_ended, processes};
use crate::run::Running;
use crate::trees::{assert_same_without, slow_tree, small_files, tree, tree_with_stuck_file};

/// Most of these tests have one mode: threads cannot be killed one by one.
pub(crate) fn process_mode() -> Env {
    Env::new(Mode::Process)
}

#[test]
fn a_hundred_workers_killed_at_random_cost_nothing() {
    const KILLS: usize = 100;
    let env = process_mode();
    small_files(&env, 6_500);
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = env.command(["-v", "-j", "4", "src", "dst"]).start();
    let mut random = Random::new(seed());
    let mut seen = BTreeSet::new();
    let mut hit = BTreeSet::new();
    for kill in 0..KILLS {
        running.await_stdout("more entries", |text| {
            text.bytes().filter(|&byte| byte == b'\n').count() > kill * 60 + 20
        });
        eventually("there are four workers", || running.workers().len() == 4);
        eventually("a worker is killed at an entry", || {
            let workers = running.workers();
            seen.extend(workers.iter().map(|worker| worker.pid));
            let victim = &workers[random.below(workers.len() as u64) as usize];
            // An entry that crashes two workers is given up, which is for other tests. So the
            // worker is stopped to find out which entry it has open.
            victim.signal(Signal::STOP);
            eventually("it has stopped", || victim.is_stopped());
            let entry = victim
                .open_files()
                .into_iter()
                .find(|name| name.starts_with("file-"));
            let is_new = entry.is_some_and(|entry| hit.insert(entry));
            victim.signal(if is_new { Signal::KILL } else { Signal::CONT });
            is_new
        });
        let parent = running.pid().as_raw_pid();
        eventually("no zombie is left", || {
            processes().all(|p| p.parent != parent || p.state != 'Z')
        });
    }
    let run = running.wait().ok();
    assert!(seen.len() >= KILLS, "only {} workers were seen", seen.len());
    assert_eq!(run.replaced_workers(), KILLS as u64, "{run}");
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

// ---- an entry that crashes its workers ------------------------------------------------------

/// Waits until a worker has a file of this name open, and returns the worker.
#[track_caller]
fn worker_at(running: &Running, name: &str) -> Process {
    let mut found = None;
    eventually("a worker has the file open", || {
        found = running
            .workers()
            .into_iter()
            .find(|worker| worker.open_files().iter().any(|open| open == name));
        found.is_some()
    });
    found.unwrap()
}

const CRASHED_TWICE: &str = "workers crashed on it twice (SIGKILL)";

/// Kills the worker that has a file of this name open, and then its successor.
#[track_caller]
fn kill_two_at(running: &Running, name: &str) {
    for _ in 0..2 {
        let worker = worker_at(running, name);
        worker.signal(Signal::KILL);
        let is_other = |other: &Process| other.pid != worker.pid;
        eventually("it has ended", || running.workers().iter().all(is_other));
    }
}

#[test]
fn an_entry_that_crashes_two_workers_is_given_up() {
    let env = process_mode();
    let Some(_faulty) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    let running = env.command(["-j", "3", "src", "dst"]).start();
    kill_two_at(&running, "stuck");
    let run = running
        .wait()
        .exits(1)
        .fails_only(&[("src/3/stuck", CRASHED_TWICE)]);
    assert_eq!(run.replaced_workers(), 2, "{run}");
    assert_same_without(&env, "3/stuck");
}

/// The names that the next worker must skip do not fit into one packet.
#[test]
fn a_worker_may_crash_in_a_directory_with_many_subdirectories() {
    let env = process_mode();
    for number in 0..4000 {
        env.dir(format!("real/3/{number:0100}"));
    }
    let Some(_faulty) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    kill_two_at(&running, "stuck");
    let run = running.wait();
    run.exits(1).fails_only(&[("src/3/stuck", CRASHED_TWICE)]);
    assert_same_without(&env, "3/stuck");
}

#[test]
fn a_hard_link_that_crashes_two_workers_is_copied_by_its_other_name() {
    let env = process_mode();
    env.file("real/stuck", "contents");
    env.hard_link("real/sub/twin", "real/stuck");
    // A fault follows the name by which a file was last looked up, so look it up every time.
    let faults = ["--ttl-ms", "0", "--fault", "hang-read:stuck"];
    let Some(_faulty) = FaultFs::mount(&env, "real", "src", &faults) else {
        return;
    };
    // With one worker the parent directory comes first.
    let running = env.command(["-j", "1", "src", "dst"]).start();
    kill_two_at(&running, "stuck");
    let run = running.wait();
    run.exits(1).fails_only(&[("src/stuck", CRASHED_TWICE)]);
    assert_same_without(&env, "stuck");
}

// ---- other ways to lose a process -----------------------------------------------------------

#[test]
fn a_worker_out_of_memory_is_replaced() {
    if skipped_without_root() {
        return;
    }
    let env = process_mode();
    tree(&env, 500);
    // Every directory has so many long names that to list it needs memory.
    for i in 0..9 * 260 {
        env.file(format!("real/names/{}/{i:0255}", i % 9), "");
    }
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j", "3", "src", "dst"]);
    let none = Rlimit {
        current: Some(0),
        maximum: None,
    };
    let victim = Pid::from_raw(running.workers()[0].pid);
    prlimit(victim, Resource::As, none).unwrap();
    let run = running.wait().ok();
    assert_eq!(run.replaced_workers(), 1, "{run}");
    env.assert_same("real", "dst");
}

/// Returns a copy of a worker's socket, to send messages in its name.
fn socket_of(process: &Process) -> OwnedFd {
    let fds = format!("/proc/{}/fd", process.pid);
    let sockets: Vec<i32> = fs::read_dir(&fds)
        .unwrap()
        .flatten()
        .filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        })
        .map(|fd| fd.file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(sockets.len(), 1, "a worker has one socket");
    let pidfd = pidfd_open(Pid::from_raw(process.pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(pidfd.as_fd(), sockets[0], PidfdGetfdFlags::empty()).unwrap()
}

#[test]
fn a_message_that_claims_to_be_huge_costs_one_worker() {
    if skipped_without_root() {
        return;
    }
    let env = process_mode();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j", "3", "src", "dst"]);
    // A list of 2^63 items without any item, bytes without a meaning, and an empty message.
    let claim = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for (worker, message) in running
        .workers()
        .iter()
        .zip([&claim[..], &[0x5a; 60_000], &[]])
    {
        send(socket_of(worker), message, SendFlags::empty()).unwrap();
    }
    let run = running.wait().ok();
    assert!(run.replaced_workers() >= 3, "{run}");
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

#[test]
fn the_fork_server_may_crash() {
    let env = process_mode();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    // The remaining workers continue.
    let running = env.start_and_await_entries(&["-j", "4", "src", "dst"]);
    running.titled("pcopy: fork server")[0].signal(Signal::KILL);
    running.workers()[0].signal(Signal::KILL);
    running.wait().ok();
    env.assert_same("real", "dst");

    // Without any worker the run ends with an error.
    let running = env.start_and_await_entries(&["-j", "4", "src", "dst-2"]);
    running.titled("pcopy: fork server")[0].signal(Signal::KILL);
    for worker in running.workers() {
        worker.signal(Signal::KILL);
    }
    running
        .wait()
        .exits(1)
        .stderr_has("all workers died and none can be started; run pcopy again to resume");
    env.pcopy(["src", "dst-2"]).ok();
    env.assert_same("real", "dst-2");
}

all_modes!(no_process_outlives_a_killed_parent, |env| {
    let Some(_slow) = slow_tree(env, 1_000) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j", "4", "src", "dst"]);
    let group = running.pid();
    if env.mode() == Mode::Process {
        eventually("parent, fork server and workers are running", || {
            running.processes().len() == 6
        });
    }
    running.signal(Signal::KILL);
    eventually("all its processes have ended", || has_group_ended(group));
    drop(running);
    // Workers that outlived it would have completed the copy.
    let (all, copied) = (env.snapshot("real").leaves(), env.snapshot("dst").leaves());
    assert!(copied < all, "all of {all} entries were copied");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
});

#[test]
fn every_process_has_a_title() {
    let env = process_mode();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j", "2", "src", "dst"]);
    let titles = || {
        let mut titles: Vec<String> = running.processes().iter().map(Process::title).collect();
        titles.retain(|title| title.starts_with("pcopy: "));
        titles.sort();
        titles
    };
    let expected = ["pcopy: fork server", "pcopy: worker 1", "pcopy: worker 2"];
    eventually("every process has its title", || titles() == expected);
    for process in running.processes() {
        // top(1) shows 15 bytes of a name.
        let name = process.name();
        assert!(name.starts_with("pcopy"), "{name}");
        assert!(
            !name.contains("worker") || name == process.title(),
            "{name}"
        );
    }
    let pids: BTreeSet<String> = running
        .workers()
        .iter()
        .map(|worker| format!("[pid {}]", worker.pid))
        .collect();
    let run = running.wait().ok();
    let shown: BTreeSet<String> = run.entries_by_worker().into_keys().collect();
    assert!(shown.is_subset(&pids), "{shown:?} are not {pids:?}");
    env.assert_same("real", "dst");
}
