//! Workers that die, hang, or run into a limit, and parents that do: process mode survives its
//! workers, and neither mode leaves anybody behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, pidfd_getfd, pidfd_open, prlimit,
};

use crate::env::{Env, Mode, Random, eventually, pattern, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::run::{Process, Run, Running, group_has_ended};

/// A tree of some folders, links and files, one of them large.
fn tree(env: &Env, files: u64) {
    for i in 0..files {
        env.file(format!("real/{}/file-{i}", i % 40), pattern(700, i));
        if i % 20 == 0 {
            env.symlink(format!("real/{}/link-{i}", i % 40), format!("file-{i}"));
            env.hard_link(
                format!("real/{}/twin-{i}", (i + 7) % 40),
                format!("real/{}/file-{i}", i % 40),
            );
        }
    }
    env.file("real/large", pattern(40 * 1024 * 1024, 1));
}

/// A tree at `src`, each call to which takes half a millisecond: time to interfere.
#[track_caller]
fn slow_tree(env: &Env, files: u64) -> Option<FaultFs> {
    tree(env, files);
    FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"])
}

/// A tree at `src` in which `3/stuck` has a fault.
#[track_caller]
fn tree_with_stuck_file(env: &Env, fault: &str) -> Option<FaultFs> {
    tree(env, 200);
    env.file("real/3/stuck", pattern(100_000, 1));
    FaultFs::mount(env, "real", "src", &["--fault", &format!("{fault}:stuck")])
}

/// A run of `pcopy -v` that is in the middle of its work.
#[track_caller]
fn begun(env: &Env, args: &[&str]) -> Running {
    let running = env.command([&["-v"], args].concat()).start();
    running.await_stdout("some entries", |text| text.lines().count() > 20);
    running
}

fn replaced(run: &Run) -> u64 {
    let words: Vec<&str> = run.stderr.split_whitespace().collect();
    let of_workers = words
        .windows(3)
        .find(|words| words[1].starts_with("worker") && words[2].starts_with("replaced"));
    of_workers.map_or(0, |words| words[0].parse().unwrap())
}

/// The tests that are about processes alone: threads cannot be lost one by one.
fn env() -> Env {
    Env::new(Mode::Process)
}

#[test]
fn a_hundred_workers_killed_at_random_cost_nothing() {
    const KILLS: usize = 100;
    let env = env();
    tree(&env, 6_500);
    // Each of its pieces takes so long that it would be hit often.
    fs::remove_file(env.path("real/large")).unwrap();
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = env.command(["-v", "-j", "4", "src", "dst"]).start();
    let mut random = Random::new(7);
    let mut seen = BTreeSet::new();
    let mut hit = BTreeSet::new();
    for kill in 0..KILLS {
        running.await_stdout("further entries", |text| {
            text.bytes().filter(|&byte| byte == b'\n').count() > kill * 60 + 20
        });
        eventually("there are four workers", || running.workers().len() == 4);
        eventually("a worker is killed at an entry", || {
            let workers = running.workers();
            seen.extend(workers.iter().map(|worker| worker.pid));
            let victim = &workers[random.below(workers.len() as u64) as usize];
            // An entry at which two workers die is given up, and that is another test. So it
            // must stand still while it is looked at what it is doing.
            victim.signal(Signal::STOP);
            eventually("it stands still", || victim.stands_still());
            let entry = victim
                .open_files()
                .into_iter()
                .find(|name| name.starts_with("file-"));
            let is_new = entry.is_some_and(|entry| hit.insert(entry));
            victim.signal(if is_new { Signal::KILL } else { Signal::CONT });
            is_new
        });
        let parent = running.pid().as_raw_pid();
        eventually("no zombie stays", || {
            crate::run::processes().all(|p| p.parent != parent || p.state != 'Z')
        });
    }
    let run = running.wait().ok();
    assert!(seen.len() >= KILLS, "only {} workers were seen", seen.len());
    assert_eq!(replaced(&run), KILLS as u64, "{run}");
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

/// Waits until a worker has the file of this name open, and gives it.
#[track_caller]
fn worker_at(running: &Running, name: &str) -> Process {
    let mut found = None;
    eventually("a worker is at the entry", || {
        found = running
            .workers()
            .into_iter()
            .find(|worker| worker.open_files().iter().any(|open| open == name));
        found.is_some()
    });
    found.unwrap()
}

/// Compares the trees, but for one file.
#[track_caller]
fn assert_same_without(env: &Env, missing: &str) {
    assert!(!env.exists(format!("dst/{missing}")), "{missing} is there");
    fs::remove_file(env.path(format!("real/{missing}"))).unwrap();
    env.snapshot("dst").assert_no_temporaries();
    // Removing the file has changed the folder's time.
    env.sh(&format!(
        "touch -r dst/{0} real/{0}",
        Path::new(missing).parent().unwrap().display()
    ));
    env.assert_same("real", "dst");
}

const TWO_DIED: &str = "two workers died at it (SIGKILL)";

/// Kills the worker that is at the file of this name, and the next one.
#[track_caller]
fn kill_two_at(running: &Running, name: &str) {
    for _ in 0..2 {
        let worker = worker_at(running, name);
        worker.signal(Signal::KILL);
        let is_other = |other: &Process| other.pid != worker.pid;
        eventually("it is gone", || running.workers().iter().all(is_other));
    }
}

#[test]
fn an_entry_that_costs_two_workers_is_given_up() {
    let env = env();
    let Some(_faults) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    let running = env.command(["-j", "3", "src", "dst"]).start();
    kill_two_at(&running, "stuck");
    let run = running
        .wait()
        .exits(1)
        .fails_only(&[("src/3/stuck", TWO_DIED)]);
    assert_eq!(replaced(&run), 2, "{run}");
    assert_same_without(&env, "3/stuck");
}

/// What others have of the folder is more than one packet can tell the next worker.
#[test]
fn a_worker_may_die_in_a_folder_with_many_subfolders() {
    let env = env();
    for number in 0..4000 {
        env.folder(format!("real/3/{number:0100}"));
    }
    let Some(_faults) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    kill_two_at(&running, "stuck");
    let run = running.wait();
    run.exits(1).fails_only(&[("src/3/stuck", TWO_DIED)]);
    assert_same_without(&env, "3/stuck");
}

#[test]
fn a_hard_link_that_costs_two_workers_is_copied_by_its_other_name() {
    let env = env();
    env.file("real/stuck", "contents");
    env.hard_link("real/sub/twin", "real/stuck");
    // A fault is that of the name by which a file was found last: find it each time.
    let faults = ["--ttl-ms", "0", "--fault", "hang-read:stuck"];
    let Some(_faults) = FaultFs::mount(&env, "real", "src", &faults) else {
        return;
    };
    // With one worker the folder above is done first.
    let running = env.command(["-j", "1", "src", "dst"]).start();
    kill_two_at(&running, "stuck");
    let run = running.wait();
    run.exits(1).fails_only(&[("src/stuck", TWO_DIED)]);
    assert_same_without(&env, "stuck");
}

#[test]
fn a_stopped_worker_is_replaced_after_the_timeout() {
    let env = env();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    let running = begun(&env, &["-j", "3", "--stall-timeout", "1", "src", "dst"]);
    running.workers()[0].signal(Signal::STOP);
    let run = running.wait().ok();
    assert_eq!(replaced(&run), 1, "{run}");
    env.assert_same("real", "dst");
}

#[test]
fn a_read_that_never_returns_stops_nothing_else() {
    let env = env();
    let Some(_faults) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    let run = env
        .pcopy(["--stall-timeout", "1", "src", "dst"])
        .exits(1)
        .fails_only(&[("src/3/stuck", "no progress for 1 s, twice")]);
    assert_eq!(replaced(&run), 2, "{run}");
    assert_same_without(&env, "3/stuck");
}

#[test]
fn a_worker_that_cannot_be_killed_is_left_behind() {
    let env = env();
    let Some(faults) = tree_with_stuck_file(&env, "dead-read") else {
        return;
    };
    let running = env
        .command(["-j2", "--stall-timeout", "1", "src", "dst"])
        .start();
    let group = running.pid();
    let run = running
        .wait()
        .exits(1)
        .fails_only(&[("src/3/stuck", "no progress for 1 s, twice")])
        // The kernel makes the second one wait for the first, and lets it die.
        .stderr_has("1 stuck worker left behind");
    // 1 s until it is killed and 2 s for it to die, twice, and some more.
    assert!(run.took < Duration::from_secs(20), "{run}");
    assert!(!group_has_ended(group), "nobody was stuck");
    drop(faults);
    eventually("the stuck workers end once they can", || {
        group_has_ended(group)
    });
    assert_same_without(&env, "3/stuck");
}

#[test]
fn a_folder_whose_listing_never_returns_stops_nothing_else() {
    let env = env();
    tree(&env, 200);
    env.file("real/3/stuck/inner", "never seen");
    let Some(_faults) = FaultFs::mount(&env, "real", "src", &["--fault", "hang-list:stuck"]) else {
        return;
    };
    let run = env
        .pcopy(["--stall-timeout", "1", "src", "dst"])
        .exits(1)
        .fails_only(&[("src/3/stuck", "list folder: no progress for 1 s, twice")]);
    assert_eq!(replaced(&run), 2, "{run}");
    fs::remove_file(env.path("real/3/stuck/inner")).unwrap();
    env.sh("touch -r dst/3/stuck real/3/stuck; chmod --reference=dst/3/stuck real/3/stuck");
    env.assert_same("real", "dst");
}

both_modes!(others_do_what_a_stuck_worker_has_not_begun, |env| {
    let files: Vec<String> = (0..600)
        .map(|i| format!("{}/file-{i}", i % 60))
        .filter(|file| !file.starts_with("3/") && !file.starts_with("7/"))
        .chain((0..50).map(|i| format!("3/{i}/file")))
        .collect();
    for file in &files {
        env.file(format!("real/{file}"), "x");
    }
    for folder in [3, 7] {
        env.file(format!("real/{folder}/stuck"), pattern(100_000, 1));
    }
    let Some(_faults) = FaultFs::mount(env, "real", "src", &["--fault", "hang-read:stuck"]) else {
        return;
    };
    // Without -j all workers may hang before there are more of them.
    for (jobs, copy) in [(&["-j3"][..], "dst"), (&[], "dst-2")] {
        let running = env.command([jobs, &["src", copy]].concat()).start();
        let mut left = files.clone();
        eventually("all but the stuck folders is there", || {
            left.retain(|file| !env.exists(format!("{copy}/{file}")));
            left.is_empty()
        });
        assert!(running.is_running());
        running.signal_group(Signal::INT);
        running.wait().exits(130).stderr_has("interrupted");
        env.pcopy(["real", copy]).ok();
        env.assert_same("real", copy);
    }
});

both_modes!(a_stuck_entry_is_told_and_the_run_can_be_stopped, |env| {
    let Some(_faults) = tree_with_stuck_file(env, "hang-read") else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    running.await_stderr("a warning", Duration::from_secs(60), |text| {
        text.contains("src/3/stuck: no progress for 30 s ([")
    });
    let stopped = Instant::now();
    running.signal_group(Signal::INT);
    let run = running.wait().exits(130).stderr_has("interrupted");
    assert!(stopped.elapsed() < Duration::from_secs(2), "{run}");
    env.snapshot("dst").assert_no_temporaries();
    assert!(!env.exists("dst/3/stuck"), "it is not complete:\n{run}");
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
});

both_modes!(nobody_outlives_a_parent_that_is_killed, |env| {
    let Some(_slow) = slow_tree(env, 1_000) else {
        return;
    };
    let running = begun(env, &["-j", "4", "src", "dst"]);
    let group = running.pid();
    if env.mode() == Mode::Process {
        eventually("parent, spawner and workers are there", || {
            running.processes().len() == 6
        });
    }
    running.signal(Signal::KILL);
    let killed = Instant::now();
    eventually("all its processes are gone", || group_has_ended(group));
    assert!(killed.elapsed() < Duration::from_secs(1));
    drop(running);
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
});

#[test]
fn the_spawner_may_die() {
    let env = env();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    // The workers that there are go on.
    let running = begun(&env, &["-j", "4", "src", "dst"]);
    running.titled("pcopy: spawner")[0].signal(Signal::KILL);
    running.workers()[0].signal(Signal::KILL);
    running.wait().ok();
    env.assert_same("real", "dst");

    // When none is left, the run ends and says so.
    let running = begun(&env, &["-j", "4", "src", "dst-2"]);
    running.titled("pcopy: spawner")[0].signal(Signal::KILL);
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

#[test]
fn every_process_says_what_it_is() {
    let env = env();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    let running = begun(&env, &["-j", "2", "src", "dst"]);
    let mut titles: Vec<(String, String)> = running
        .processes()
        .iter()
        .filter(|process| process.pid != running.pid().as_raw_pid())
        .map(|process| (process.title(), process.name()))
        .collect();
    titles.sort();
    let expected = [
        ("pcopy: spawner", "pcopy: spawner"),
        ("pcopy: worker 1", "pcopy: worker 1"),
        ("pcopy: worker 2", "pcopy: worker 2"),
    ];
    assert_eq!(
        titles,
        expected.map(|(title, name)| (title.to_owned(), name.to_owned()))
    );
    let pids: BTreeSet<String> = running
        .workers()
        .iter()
        .map(|worker| format!("[pid {}]", worker.pid))
        .collect();
    let run = running.wait().ok();
    let shown: BTreeSet<String> = run
        .stdout()
        .lines()
        .filter_map(|line| Some(format!("{}]", line.split_once(']')?.0)))
        .collect();
    assert_eq!(shown, pids);
    env.assert_same("real", "dst");
}

#[test]
fn a_worker_out_of_memory_is_replaced() {
    if skipped_without_root() {
        return;
    }
    let env = env();
    tree(&env, 500);
    // Names that need memory, wherever the worker is: 64 KiB in each folder.
    for i in 0..9 * 260 {
        env.file(format!("real/names/{}/{i:0255}", i % 9), "");
    }
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = begun(&env, &["-j", "3", "src", "dst"]);
    let none = Rlimit {
        current: Some(0),
        maximum: None,
    };
    let victim = Pid::from_raw(running.workers()[0].pid);
    prlimit(victim, Resource::As, none).unwrap();
    let run = running.wait().ok();
    assert_eq!(replaced(&run), 1, "{run}");
    env.assert_same("real", "dst");
}

both_modes!(a_file_beyond_the_size_limit_fails_alone, |env| {
    tree(env, 100);
    let run = env
        .command(["real", "dst"])
        // In blocks of 512 bytes.
        .after("ulimit -f 2048")
        .run()
        .exits(1)
        .fails_only(&[("dst/large", "File too large")]);
    assert_eq!(replaced(&run), 0, "{run}");
    fs::remove_file(env.path("real/large")).unwrap();
    env.sh("touch -r dst real");
    env.assert_same("real", "dst");
});

/// The only socket that a process has, and the way to speak as that process.
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
    assert_eq!(sockets.len(), 1, "a worker holds no socket but its own");
    let pidfd = pidfd_open(Pid::from_raw(process.pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(pidfd.as_fd(), sockets[0], PidfdGetfdFlags::empty()).unwrap()
}

#[test]
fn a_message_that_claims_to_be_huge_costs_one_worker() {
    if skipped_without_root() {
        return;
    }
    let env = env();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    let running = begun(&env, &["-j", "3", "src", "dst"]);
    // A list of 2^63 items, and then nothing; bytes that mean nothing; nothing at all.
    let claim = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for (worker, message) in running
        .workers()
        .iter()
        .zip([&claim[..], &[0x5a; 60_000], &[]])
    {
        send(socket_of(worker), message, SendFlags::empty()).unwrap();
    }
    let run = running.wait().ok();
    assert!(replaced(&run) >= 3, "{run}");
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}
