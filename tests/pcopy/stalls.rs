//! Work that makes no progress: it stops nothing else.

use std::fs;

use rustix::process::Signal;

use crate::env::{Env, Mode, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::processes::has_group_ended;
use crate::trees::{assert_same_without, fine_files, slow_tree, small_files, tree_with_stuck_file};

all_modes!(copying_begins_before_the_listing_ends, |env| {
    fine_files(env);
    env.dir("real/3-stuck");
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "hang-list:3-stuck"])
    else {
        return;
    };
    // One worker for each directory, so that no job has to wait for the stuck one.
    let running = env.command(["-j8", "src", "dst"]).start();
    let copied = || (0..30).all(|i| env.exists(format!("dst/{}/fine-{i}", i % 3)));
    eventually("all other files are copied", copied);
    drop(running);
});

all_modes!(other_workers_take_over_the_jobs_of_a_stuck_one, |env| {
    let files: Vec<String> = (0..600)
        .map(|i| format!("{}/file-{i}", i % 60))
        .filter(|file| !file.starts_with("3/") && !file.starts_with("7/"))
        .chain((0..50).map(|i| format!("3/{i}/file")))
        .collect();
    for file in &files {
        env.file(format!("real/{file}"), "x");
    }
    for directory in [3, 7] {
        env.file(format!("real/{directory}/stuck"), pattern(100_000, 1));
    }
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "hang-read:stuck"]) else {
        return;
    };
    // Without -j, all workers may be stuck before pcopy starts more of them.
    for (jobs, copy) in [(&["-j3"][..], "dst"), (&[], "dst-2")] {
        let running = env.command([jobs, &["src", copy]].concat()).start();
        let mut missing = files.clone();
        eventually("all files but the stuck ones are copied", || {
            missing.retain(|file| !env.exists(format!("{copy}/{file}")));
            missing.is_empty()
        });
        assert!(running.is_running());
        running.signal_group(Signal::INT);
        running.wait().exits(130);
        env.pcopy(["real", copy]).ok();
        env.assert_same("real", copy);
    }
});

all_modes!(no_job_waits_behind_stuck_ones, |env| {
    let files: Vec<String> = (0..10).map(|i| format!("{i}/stuck")).collect();
    for file in &files {
        env.file(format!("real/{file}"), pattern(100_000, 1));
    }
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "hang-read:stuck"]) else {
        return;
    };
    // The workers that take the place of stuck ones are stuck soon too.
    let running = env.command(["src", "dst"]).start();
    eventually("all files are begun", || {
        files.iter().all(|file| env.exists(format!("dst/{file}")))
    });
    running.signal_group(Signal::INT);
    running.wait().exits(130);
});

all_modes!(
    a_stuck_entry_is_reported_and_the_run_can_be_stopped,
    |env| {
        let Some(_faulty) = tree_with_stuck_file(env, "hang-read") else {
            return;
        };
        let running = env.command(["--stall-warning", "1", "src", "dst"]).start();
        let kind = match env.mode() {
            Mode::Thread => "thread".to_owned(),
            Mode::Process => "pid".to_owned(),
            Mode::Mpi => format!("{} thread", env.sh("uname -n").trim()),
        };
        running.await_stderr("a warning", |text| {
            text.lines().any(|line| {
                line.starts_with(&format!(
                    "pcopy: src/3/stuck: no progress for 1 s ([{kind} "
                )) && line.ends_with("]); still waiting")
            })
        });
        // The read itself never returns, so the run must end without it.
        running.signal_group(Signal::INT);
        let run = running
            .wait()
            .exits(130)
            .summary_ends_with("; interrupted, run again to resume");
        env.snapshot("dst").assert_no_temporaries();
        assert!(!env.exists("dst/3/stuck"), "it is not complete:\n{run}");
        env.pcopy(["real", "dst"]).ok();
        env.assert_same("real", "dst");
    }
);

/// Takes a lease, as file servers do: to open the file waits until the lease is returned.
const LEASE: &str = "
import fcntl, os, signal, sys, time
file = os.open('src/file', os.O_RDWR)
def return_lease(*_):
    time.sleep(0.3)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    sys.exit()
signal.signal(signal.SIGIO, return_lease)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open('held', 'w').close()
time.sleep(30)
";

both_modes!(a_file_with_a_lease_is_waited_for, |env| {
    if env.skipped_without("python3") {
        return;
    }
    env.file("src/file", "x");
    let mut holder = std::process::Command::new("python3")
        .args(["-c", LEASE])
        .current_dir(env.path("."))
        .spawn()
        .unwrap();
    eventually("the lease is held", || env.exists("held"));
    let run = env.pcopy(["src", "dst"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    run.ok();
    env.assert_same("src", "dst");
});

// ---- --stall-timeout ------------------------------------------------------------------------

/// The tests of one mode: threads cannot be killed one by one.
fn process_mode() -> Env {
    Env::new(Mode::Process)
}

#[test]
fn a_stopped_worker_is_replaced_after_the_timeout() {
    let env = process_mode();
    let Some(_slow) = slow_tree(&env, 1_000) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j", "3", "--stall-timeout", "1", "src", "dst"]);
    running.workers()[0].signal(Signal::STOP);
    let run = running.wait().ok();
    assert!(run.replaced_workers() >= 1, "{run}");
    env.assert_same("real", "dst");
}

#[test]
fn an_idle_worker_that_is_stopped_does_not_hold_up_the_run() {
    let env = process_mode();
    // Work for four workers, then a long way down for one of them, then work for all again.
    let chain = (0..12).fold("real".to_owned(), |path, level| {
        format!("{path}/{level}-chain")
    });
    for number in 0..12 {
        env.file(format!("real/{number}/file"), "x");
        env.file(format!("{chain}/{number}/file"), "x");
    }
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "30"]) else {
        return;
    };
    let running = env
        .command(["-v", "-j4", "--stall-timeout", "1", "src", "dst"])
        .start();
    running.await_stdout("all files at the top", |text| {
        let lines = text.lines().filter(|line| line.ends_with("/file"));
        lines.count() >= 12
    });
    // A worker without a job sleeps; a call to the slow file system waits in another state.
    let idle = || {
        let mut workers = running.workers();
        workers.retain(|worker| worker.state == 'S');
        workers
    };
    eventually("three workers are idle", || idle().len() >= 3);
    for worker in idle() {
        worker.signal(Signal::STOP);
    }
    running.wait().ok();
    env.assert_same("real", "dst");
}

#[test]
fn a_read_that_never_returns_stops_nothing_else() {
    let env = process_mode();
    let Some(_faulty) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    let run = env
        .pcopy(["--stall-timeout", "1", "src", "dst"])
        .exits(1)
        .fails_only(&[("src/3/stuck", "copy: no progress for 1 s (2 attempts)")]);
    assert!(run.replaced_workers() >= 2, "{run}");
    assert_same_without(&env, "3/stuck");
}

#[test]
fn a_worker_that_cannot_be_killed_is_left_behind() {
    let env = process_mode();
    let Some(faulty) = tree_with_stuck_file(&env, "dead-read") else {
        return;
    };
    let running = env
        .command(["-j2", "--stall-timeout", "1", "src", "dst"])
        .start();
    let group = running.pid();
    let run = running
        .wait()
        .exits(1)
        .fails_only(&[("src/3/stuck", "copy: no progress for 1 s (2 attempts)")]);
    // The kernel makes the second worker wait for the first, and may let it die.
    assert!(
        run.stderr.contains("1 stuck worker left behind")
            || run.stderr.contains("2 stuck workers left behind"),
        "{run}"
    );
    assert!(!has_group_ended(group), "no worker was stuck");
    drop(faulty);
    eventually("the stuck workers end once they can", || {
        has_group_ended(group)
    });
    assert_same_without(&env, "3/stuck");
}

#[test]
fn a_directory_whose_listing_never_returns_stops_nothing_else() {
    let env = process_mode();
    small_files(&env, 200);
    env.file("real/3/stuck/inner", "never seen");
    let Some(_faulty) = FaultFs::mount(&env, "real", "src", &["--fault", "hang-list:stuck"]) else {
        return;
    };
    let run = env
        .pcopy(["--stall-timeout", "1", "src", "dst"])
        .exits(1)
        .fails_only(&[(
            "src/3/stuck",
            "list directory: no progress for 1 s (2 attempts)",
        )]);
    assert!(run.replaced_workers() >= 2, "{run}");
    fs::remove_file(env.path("real/3/stuck/inner")).unwrap();
    env.sh("touch -r dst/3/stuck real/3/stuck; chmod --reference=dst/3/stuck real/3/stuck");
    env.assert_same("real", "dst");
}
