//! Signals to pcopy: it stops cleanly, or ignores them if it was told to.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::compare::assert_only_whole_files;
use crate::env::{Env, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::run::Running;
use crate::trees::fine_files;

/// Stops a run in the middle of a file that takes a minute, and lets the next run finish it.
///
/// `stop` is called when a part of that file and all other files are at the destination. A run
/// that finished the file before it stopped would leave it there.
fn in_the_middle(env: &Env, stop: impl FnOnce(Running) -> Run) {
    fine_files(env);
    env.file("real/9-slow", pattern(40 * 1024 * 1024, 5));
    let Some(faulty) = FaultFs::mount(env, "real", "src", &["--fault", "slow-read:9-slow:500"])
    else {
        return;
    };
    let running = env.command(["-j", "4", "src", "dst"]).start();
    eventually(
        "the slow file has begun and the others are complete",
        || {
            env.path("dst")
                .read_dir()
                .into_iter()
                .flatten()
                .flatten()
                .any(|entry| {
                    entry
                        .metadata()
                        .is_ok_and(|stat| stat.is_file() && stat.len() > 0)
                })
                && (0..30).all(|i| env.exists(format!("dst/{}/fine-{i}", i % 3)))
        },
    );
    let run = stop(running);
    let copy = env.snapshot("dst");
    copy.assert_no_temporaries();
    assert!(!env.exists("dst/9-slow"), "a partial file is left:\n{run}");
    drop(faulty);
    assert_only_whole_files(&env.snapshot("real"), &copy);
    let run = env.pcopy(["real", "dst"]).ok();
    assert!(run.summary().unchanged >= 25, "it started over:\n{run}");
    env.assert_same("real", "dst");
}

const INTERRUPTED: &str = "; interrupted, run again to resume";

/// Sends a signal and waits for the end of the run, which must say how to resume.
fn stops_cleanly(running: Running, signal: impl FnOnce(&Running), code: i32) -> Run {
    signal(&running);
    let run = running.wait().exits(code).summary_ends_with(INTERRUPTED);
    assert!(run.summary().copied >= 25, "{run}");
    run
}

all_modes!(sigint_stops_it_in_the_middle_of_a_file, |env| {
    // A terminal sends it to every process of the group.
    in_the_middle(env, |running| {
        stops_cleanly(running, |running| running.signal_group(Signal::INT), 130)
    });
});

all_modes!(sigterm_stops_it_in_the_middle_of_a_file, |env| {
    // kill(1) sends it to pcopy alone.
    in_the_middle(env, |running| {
        stops_cleanly(running, |running| running.signal(Signal::TERM), 143)
    });
});

both_modes!(a_hangup_stops_it_in_the_middle_of_a_file, |env| {
    // A terminal that is closed sends it to every process of the group.
    in_the_middle(env, |running| {
        stops_cleanly(running, |running| running.signal_group(Signal::HUP), 129)
    });
});

all_modes!(signals_sent_at_once_count_once, |env| {
    // timeout(1) sends its signal to pcopy and then to the group, which includes pcopy. A stopped
    // process takes both at once when it goes on, however busy the machine is. (Two of the same
    // signal would be one.)
    let both = |running: &Running| {
        running.signal(Signal::STOP);
        eventually("it has stopped", || {
            let pid = running.pid().as_raw_pid();
            running
                .processes()
                .iter()
                .any(|it| it.pid == pid && it.state == 'T')
        });
        running.signal(Signal::HUP);
        running.signal_group(Signal::TERM);
        running.signal(Signal::CONT);
    };
    in_the_middle(env, |running| {
        both(&running);
        let run = running.wait().summary_ends_with(INTERRUPTED);
        // The kernel may deliver either of them first.
        assert!(matches!(run.status.code(), Some(129 | 143)), "{run}");
        run
    });
});

all_modes!(the_second_signal_ends_it_at_once, |env| {
    env.file("real/stuck", pattern(1024 * 1024, 1));
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "hang-read:stuck"]) else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    eventually("it has begun", || env.exists("dst"));
    running.signal(Signal::INT);
    eventually("further signals end it", || {
        if running.is_running() {
            running.signal(Signal::INT);
        }
        !running.is_running()
    });
    let run = running.wait();
    assert!(
        run.status.code() == Some(130) || run.status.code().is_none(),
        "{run}"
    );
});

both_modes!(
    a_signal_among_many_small_files_leaves_only_whole_ones,
    |env| {
        for i in 0..2_000 {
            env.file(format!("real/{}/file-{i}", i % 40), pattern(3_000, i));
        }
        let Some(faulty) = FaultFs::mount(env, "real", "src", &["--delay-ms", "2"]) else {
            return;
        };
        let running = env.command(["-v", "-j", "4", "src", "dst"]).start();
        running.await_stdout("20 files", |text| text.lines().count() >= 20);
        running.signal(Signal::INT);
        let run = running.wait().exits(130).summary_ends_with(INTERRUPTED);
        drop(faulty);
        let source = env.snapshot("real");
        let copied = assert_only_whole_files(&source, &env.snapshot("dst"));
        assert!(
            (10..1_990).contains(&copied),
            "{copied} files were copied before the signal:\n{run}"
        );
        assert_eq!(
            run.summary().copied,
            copied as u64,
            "the summary is wrong:\n{run}"
        );
        env.pcopy(["real", "dst"]).ok();
        env.assert_same("real", "dst");
    }
);

both_modes!(ignored_signals_do_not_stop_it, |env| {
    env.file("real/slow", pattern(500 * 1024, 1));
    let faults = ["--fault", "slow-read:slow:300"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    // nohup(1) ignores SIGHUP, and a shell ignores SIGINT for its background jobs.
    let running = env.command(["src", "dst"]).after("trap '' HUP INT").start();
    eventually("it has begun", || env.exists("dst/slow"));
    running.signal_group(Signal::HUP);
    running.signal_group(Signal::INT);
    running.wait().ok();
    env.assert_same("src", "dst");
});

all_modes!(a_stopped_run_continues, |env| {
    for i in 0..300 {
        env.file(format!("src/{}/file-{i}", i % 10), pattern(50_000, i));
    }
    // Most of these moments are those in which workers are started.
    for moment in 0..20 {
        let copy = format!("dst-{moment}");
        let running = env.command(["src", &copy]).start();
        thread::sleep(Duration::from_millis(1) * moment);
        running.signal_group(Signal::STOP);
        running.signal_group(Signal::CONT);
        running.wait().ok().counts(300, 0, 0);
        env.sh(&format!("rm -rf {copy}"));
    }
    let running = env.command(["-v", "src", "dst"]).start();
    running.await_stdout("a first line", |text| text.contains('\n'));
    running.signal_group(Signal::STOP);
    running.signal_group(Signal::CONT);
    running.wait().ok().counts(300, 0, 0);
    env.assert_same("src", "dst");
});
