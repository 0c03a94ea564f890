//! What a run reports after a worker has crashed or a message was lost.
//!
//! These tests have one mode, because only processes can be lost.

use std::collections::BTreeMap;
use std::fs;

use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::Signal;

use crate::crashes::process_mode;
use crate::env::{Env, Mode, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::trees::{small_files, tree_with_stuck_file};

const FILES: u64 = 12_000;

/// Copies a directory of empty files with one worker, and kills that worker in the middle.
///
/// A run that is over before the kill is repeated.
fn kill_one(env: &Env, options: &[&str]) -> Run {
    let dir = env.dir("src/plain");
    for number in 0..FILES {
        let name = dir.path().join(format!("file-{number:06}"));
        mknodat(CWD, name, FileType::RegularFile, 0o644.into(), 0).unwrap();
    }
    // pcopy lists a directory in the same order.
    let listing = fs::read_dir(dir.path()).unwrap();
    let middle = listing.flatten().nth(FILES as usize / 3).unwrap();
    let middle = env.path("dst/plain").join(middle.file_name());
    loop {
        let running = env
            .command([options, &["-j1", "src", "dst"]].concat())
            .start();
        while !middle.exists() && running.is_running() {}
        for worker in running.workers() {
            worker.signal(Signal::KILL);
        }
        let run = running.wait().ok();
        if run.replaced_workers() > 0 {
            assert_eq!(run.replaced_workers(), 1, "{run}");
            let copied = fs::read_dir(env.path("dst/plain")).unwrap().count();
            assert_eq!(copied as u64, FILES, "{run}");
            return run;
        }
        fs::remove_dir_all(env.path("dst")).unwrap();
    }
}

#[test]
fn the_summary_counts_each_entry_once_after_a_crash() {
    for options in [
        &[][..],
        &["--overwrite=always"],
        &["--no-preserve=timestamps"],
    ] {
        kill_one(&Env::new(Mode::Process), options).counts(FILES, 0, 0);
    }
}

#[test]
fn verbose_prints_each_entry_once_after_a_crash() {
    let run = kill_one(&Env::new(Mode::Process), &["-v"]);
    let mut lines = BTreeMap::new();
    for (_, entry) in run.finished_entries() {
        *lines.entry(entry).or_insert(0) += 1;
    }
    let expected = (0..FILES).map(|number| format!("src/plain/file-{number:06}"));
    let expected = expected.chain(["src/".to_owned(), "src/plain/".to_owned()]);
    for entry in expected {
        assert_eq!(lines.remove(&entry), Some(1), "lines for {entry}:\n{run}");
    }
    assert!(lines.is_empty(), "other lines: {lines:?}");
}

#[test]
fn the_progress_shows_the_right_total_after_a_crash() {
    let env = process_mode();
    for number in 0..600 {
        env.file(format!("real/flat/file-{number}"), "x");
    }
    // This file keeps the run going when everything else is done.
    env.file("real/sub/slow", pattern(200_000, 1));
    let files = env.snapshot("real").leaves();
    let faults = ["--delay-ms", "0.5", "--fault", "slow-read:slow:1500"];
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &faults) else {
        return;
    };
    let running = env.start_and_await_entries(&["--progress=always", "-j", "3", "src", "dst"]);
    // One of them lists the directory. They are stopped first, so that no job is lost twice.
    let workers = running.workers();
    for signal in [Signal::STOP, Signal::KILL] {
        for worker in &workers {
            worker.signal(signal);
        }
    }
    let run = running.wait().exits(0);
    let totals: Vec<u64> = run.stderr.lines().filter_map(progress_total).collect();
    assert!(!totals.is_empty(), "{run}");
    assert!(totals.iter().all(|&total| total <= files), "{run}");
    assert_eq!(totals.last(), Some(&files), "{run}");
    run.counts(files, 0, 0);
}

/// Returns the total in `pcopy: 12 of 40 files, ...` or, during the listing, `12 of 40+ files`.
fn progress_total(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(" of ")?;
    let (total, _) = rest.split_once(" files")?;
    total.trim_end_matches('+').parse().ok()
}

#[test]
fn a_crash_without_a_known_status_is_not_an_exit_status() {
    let env = process_mode();
    if env.skipped_without_strace() {
        return;
    }
    let Some(_faulty) = tree_with_stuck_file(&env, "hang-read") else {
        return;
    };
    // Another process could have reaped the workers.
    let running = env
        .command(["-j2", "src", "dst"])
        .injecting("wait4,waitid:error=ECHILD")
        .start();
    eventually("the run ends without the stuck file", || {
        for worker in running.workers() {
            if worker.open_files().iter().any(|name| name == "stuck") {
                worker.signal(Signal::KILL);
            }
        }
        !running.is_running()
    });
    let run = running.wait().exits(1);
    assert!(!run.complaints().is_empty(), "{run}");
    assert!(!run.stderr.contains("exit status 0"), "{run}");
}

#[test]
fn killed_workers_are_never_left_behind() {
    let env = process_mode();
    small_files(&env, 600);
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "1"]) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j8", "--stall-timeout=1", "src", "dst"]);
    // A worker that is stopped in the middle of a file counts as stuck, but can be killed.
    let mut stopped = 0;
    eventually("three workers are stopped", || {
        for worker in running.workers() {
            if stopped == 3 || worker.state == 'T' {
                continue;
            }
            worker.signal(Signal::STOP);
            eventually("it has stopped", || worker.is_stopped());
            let files = worker.open_files();
            if files.iter().any(|name| name.starts_with("file-")) {
                stopped += 1;
            } else {
                worker.signal(Signal::CONT);
            }
        }
        stopped == 3 || !running.is_running()
    });
    // This fails if the summary says that a worker was left behind.
    let run = running.wait().ok();
    assert!(run.replaced_workers() >= 3, "{run}");
    let summary = run.summary();
    let leaves = env.snapshot("real").leaves();
    assert_eq!(summary.copied + summary.unchanged, leaves, "{run}");
    env.assert_same("real", "dst");
}

/// Fails calls with each of some errors, and checks that no file is lost without a word.
///
/// The calls are those that send jobs, reports and requests between the processes.
#[track_caller]
fn no_message_is_lost(call: &str) {
    let env = process_mode();
    if env.skipped_without_strace() {
        return;
    }
    for number in 0..8 {
        env.file(format!("src/file-{number}"), "x");
        env.file(format!("src/sub/file-{number}"), "x");
    }
    for errno in ["ENOBUFS", "ENOMEM", "EPERM", "ECONNRESET"] {
        for message in 1..=8 {
            let fault = format!("{call}:error={errno}:when={message}");
            let run = env.command(["-j2", "src", "dst"]).injecting(&fault).run();
            assert!(!run.stderr.contains("panicked"), "{run}");
            assert!(!run.stderr.contains("exit status 0"), "{run}");
            if run.status.success() {
                let copied = env.snapshot("dst").leaves();
                assert_eq!(copied, 16, "{errno} at message {message}:\n{run}");
            } else {
                assert!(run.status.code().is_some(), "{run}");
                assert!(!run.complaints().is_empty(), "no error:\n{run}");
            }
            let _ = fs::remove_dir_all(env.path("dst"));
        }
    }
}

#[test]
fn no_file_is_missing_if_a_message_cannot_be_sent() {
    no_message_is_lost("sendto");
}

#[test]
fn no_file_is_missing_if_a_request_to_the_fork_server_cannot_be_sent() {
    no_message_is_lost("sendmsg");
}
