//! `--bwlimit`, `--stop-after` and `--lock`.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::env::{Env, Mode, eventually};
use crate::faultfs::FaultFs;
use crate::json::objects;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::targets::refused;
use crate::trees::small_tree;

all_modes!(bytes_take_their_time, |env| {
    // A large file in chunks, and small ones.
    env.file("src/large", pattern(33 << 20, 1));
    for i in 0..20 {
        env.file(format!("src/small-{i}"), pattern(100_000, i));
    }
    let started = Instant::now();
    let run = env
        .pcopy(["--bwlimit=20M", "--reflink=never", "src", "dst"])
        .ok();
    let elapsed = started.elapsed();
    // Slower is always possible. Faster is not, but for the tenth of a second that can be made up.
    let bytes = (33 << 20) + 20 * 100_000;
    let least = Duration::from_secs_f64(f64::from(bytes) / f64::from(20 << 20) - 0.2);
    assert!(elapsed >= least, "{elapsed:?} < {least:?}:\n{run}");
    env.assert_same("src", "dst");
});

both_modes!(a_signal_ends_the_wait_for_bandwidth, |env| {
    env.file("src/file", pattern(10 << 20, 1));
    let running = env.command(["--bwlimit=512B", "src", "dst"]).start();
    eventually("it copies", || env.exists("dst/file"));
    running.signal(Signal::INT);
    running.wait().exits(130);
    assert!(!env.exists("dst/file"));
});

/// Runs pcopy until its time is over, which must come after it has begun a file. On a busy machine
/// that takes longer.
fn stopped(env: &Env, begun: &str, args: &[&str]) -> Run {
    for (minutes, shown) in [("0.03", "1.8 s"), ("0.1", "6.0 s"), ("0.5", "30 s")] {
        let limit = format!("--stop-after={minutes}");
        let run = env.pcopy([&[limit.as_str()], args].concat()).exits(5);
        let end = format!("; stopped after {shown} (--stop-after), run again to resume");
        let run = run.summary_ends_with(&end);
        if env.exists(begun) {
            return run;
        }
    }
    panic!("{begun} was never begun");
}

all_modes!(what_was_begun_is_completed_when_the_time_is_over, |env| {
    env.file("real/1-slow", pattern(2 << 20, 1));
    for i in 0..300 {
        env.file(format!("real/later/{i}"), "x");
    }
    // One worker is at the first file while the time ends. A directory listed later is left.
    let Some(faulty) = FaultFs::mount(env, "real", "src", &["--fault", "slow-read:1-slow:600"])
    else {
        return;
    };
    let run = stopped(env, "dst/1-slow", &["-j1", "--json", "src", "dst"]);
    let objects = objects(env, &run);
    assert_eq!(objects.last().unwrap()["stopped_by"], "time_limit", "{run}");
    assert_eq!(env.read("dst/1-slow"), env.read("real/1-slow"));
    env.snapshot("dst").assert_no_temporaries();
    drop(faulty);
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
    // A run that is done in time is as any other.
    env.pcopy(["--stop-after=60", "real", "dst-2"]).ok();
});

all_modes!(
    a_deletion_that_has_no_time_left_is_not_reported_as_done,
    |env| {
        env.file("real/1-slow", pattern(2 << 20, 1));
        for i in 0..20 {
            env.file(format!("dst/extraneous/{i}"), "x");
        }
        // Extraneous entries go after the copies of their directory, so when the time is over.
        let faults = ["--fault", "slow-read:1-slow:600"];
        let Some(faulty) = FaultFs::mount(env, "real", "src", &faults) else {
            return;
        };
        stopped(env, "dst/1-slow", &["-j1", "--delete", "src", "dst"]);
        assert_eq!(env.read("dst/1-slow"), env.read("real/1-slow"));
        assert!(env.exists("dst/extraneous/19"));
        drop(faulty);
        env.pcopy(["--delete", "real", "dst"]).ok();
        env.assert_same("real", "dst");
    }
);

both_modes!(one_run_at_a_time_has_the_lock, |env| {
    env.file("src/file", pattern(10 << 20, 1));
    let slow = ["--bwlimit=512B", "--lock=lock", "src", "slow"];
    let first = env.command(slow).start();
    eventually("it copies", || env.exists("slow/file"));
    let held = "lock: lock: another run holds it";
    refused(env, env.pcopy(["--lock=lock", "src", "dst"]), held);
    if !env.skipped_without("flock") {
        env.sh("flock -n lock true && exit 9 || true");
    }
    // Killed: the lock is free when the last worker has ended.
    first.signal(Signal::KILL);
    if env.mode() == Mode::Process {
        eventually("the workers have ended", || first.workers().is_empty());
    }
    drop(first);
    eventually("the lock is free", || {
        let run = env.pcopy(["--lock=lock", "src", "dst"]);
        run.status.code() == Some(0)
    });
    env.pcopy(["--lock=lock", "src", "dst"]).ok();
    assert_eq!(fs::read(env.path("lock")).unwrap(), b"");
    env.assert_same("src", "dst");
});

once!(wrong_limits_are_refused, |env| {
    small_tree(env);
    for option in [
        "--bwlimit=fast",
        "--bwlimit=100B",
        "--stop-after=0",
        "--stop-after=1h",
        "--retries=-1",
    ] {
        let name = option.split('=').next().unwrap();
        refused(env, env.pcopy([option, "src", "dst"]), name);
    }
});
