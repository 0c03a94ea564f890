//! Runs that were killed: the next run completes them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::compare::{self, Properties};
use crate::env::eventually;
use crate::faultfs::FaultFs;
use crate::noise::{Random, pattern, seed};
use crate::processes::{has_group_ended, processes};

both_modes!(a_run_after_sigkill_completes_the_copy, |env| {
    const KILLS: usize = 10;
    for i in 0..150 {
        env.file(
            format!("src/{}/file-{i}", i % 12),
            pattern(200 * (i as usize % 50), i),
        )
        .mtime(1_000, i.cast_signed());
        env.symlink(format!("src/{}/link-{i}", i % 5), format!("file-{i}"))
            .mtime(1_000, 7);
    }
    for i in 0..20 {
        env.hard_link(
            format!("src/{}/twin-{i}", i % 3),
            format!("src/{}/file-{i}", i % 12),
        );
        env.fifo(format!("src/4/fifo-{i}"));
    }
    env.file("src/big", pattern(5 * 1024 * 1024, 1));
    // Copied in chunks, and under a temporary name if it replaces a file.
    env.file("src/3/large", pattern(33 * 1024 * 1024, 2));
    env.dir("src/read-only/inner").mode(0o555).mtime(1_000, 8);
    let source = env.snapshot("src");

    let mut random = Random::new(seed());
    let started = Instant::now();
    env.pcopy(["src", "warm"]).ok();
    // An estimate of how long a run takes. It follows the load of the machine.
    let mut whole = started.elapsed();

    let (mut rounds, mut killed) = (0, 0);
    while killed < KILLS {
        rounds += 1;
        assert!(
            rounds < 20 * KILLS,
            "only {killed} runs were killed in time"
        );
        // Half of the runs replace every entry, and half begin with nothing.
        if rounds % 2 == 0 {
            env.sh("find dst ! -type d -print0 | xargs -0 touch -h -d @77");
        } else {
            let _ = fs::remove_dir_all(env.path("dst"));
        }
        let moment = Duration::from_nanos(random.below(u64::try_from(whole.as_nanos()).unwrap()));
        let running = env.command(["src", "dst"]).start();
        // The moment is random, so there is no condition to wait for.
        thread::sleep(moment);
        let was_running = running.is_running();
        let group = running.pid();
        running.signal_group(Signal::KILL);
        let run = running.wait();
        let was_killed = was_running && run.status.code().is_none();
        killed += usize::from(was_killed);
        whole = if was_killed {
            whole * 51 / 50
        } else {
            whole * 9 / 10
        };
        eventually("all its processes have ended", || has_group_ended(group));
        let existing = if env.exists("dst") {
            env.snapshot("dst").entries.len()
        } else {
            0
        };

        let run = env.pcopy(["src", "dst"]).ok();
        let copy = env.snapshot("dst");
        let found = compare::differences(&source, &copy, Properties::KEPT);
        assert!(
            found.is_empty(),
            "round {rounds}, killed after {moment:?} with {existing} entries; the next run left:\n{}\n{run}",
            found.join("\n")
        );
        copy.assert_no_temporaries();
    }
    source.assert_untouched();
});

both_modes!(
    the_copy_of_a_single_file_removes_stale_temporary_files,
    |env| {
        env.file("big", pattern(64 * 1024 * 1024, 1));
        for copy in ["dst/big", "dst"] {
            env.file("dst/big", "old");
            let running = env.command(["big", copy]).start();
            let temporaries = || {
                let listed = env.path("dst").read_dir().unwrap().flatten();
                listed.filter(|entry| entry.file_name() != "big").count()
            };
            // The run may be too fast to be caught. Then there is no temporary file to remove.
            while running.is_running() && temporaries() == 0 {}
            let group = running.pid();
            running.signal_group(Signal::KILL);
            running.wait();
            eventually("all its processes have ended", || has_group_ended(group));
            env.pcopy(["big", copy]).ok();
            assert_eq!(temporaries(), 0);
            env.assert_same("big", "dst/big");
        }
    }
);

both_modes!(stale_temporary_files_are_removed, |env| {
    env.file("real/slow", pattern(4 * 1024 * 1024, 1));
    env.file("dst/slow", "old").mtime(1_000, 1);
    let Some(faulty) = FaultFs::mount(env, "real", "mnt", &["--fault", "slow-read:slow:300"])
    else {
        return;
    };
    let running = env.command(["mnt", "dst"]).start();
    let temporary = || {
        env.path("dst")
            .read_dir()
            .unwrap()
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(".pcopy."))
    };
    eventually("a temporary file exists", || temporary().is_some());
    let name = temporary().unwrap().file_name();
    assert!(name.to_string_lossy().ends_with(".tmp"), "{name:?}");
    let group = running.pid();
    running.signal_group(Signal::KILL);
    running.wait();
    eventually("all its processes have ended", || has_group_ended(group));
    drop(faulty);
    assert!(
        env.exists(Path::new("dst").join(&name)),
        "the kill left no temporary file"
    );
    assert_eq!(env.read("dst/slow"), b"old");
    assert_eq!(env.stat("dst/slow").mtime(), 1_000);
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
});

both_modes!(a_run_waits_until_killed_processes_have_ended, |env| {
    for i in 0..40 {
        env.file(format!("real/{}/{i}", i % 8), "new")
            .mtime(2_000, 0);
    }
    env.file("dst/0/0", "old").mtime(1_000, 0);
    // A killed process waits for the answer to its call.
    let Some(_slow) = FaultFs::mount(env, "real", "mnt", &["--delay-ms", "120"]) else {
        return;
    };
    let running = env.command(["-j8", "mnt", "dst"]).start();
    let is_copied = |i| env.exists(format!("dst/{}/{i}", i % 8));
    eventually("several workers copy", || {
        (8..40).filter(|&i| is_copied(i)).count() >= 4
    });
    let group = running.pid();
    running.signal_group(Signal::KILL);
    let began = Instant::now();
    env.pcopy(["real", "dst"]).ok();
    let mut killed = processes().filter(|it| it.group == group.as_raw_pid());
    if killed.any(|process| process.has_pending_kill()) {
        // On a machine that is very busy. A run waits for a second, and no longer.
        assert!(began.elapsed() >= Duration::from_secs(1));
        return;
    }
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
});
