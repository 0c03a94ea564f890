//! Several runs at once with one destination.

use std::time::Duration;

use rustix::process::Signal;

use crate::env::eventually;
use crate::noise::{Random, pattern, seed};
use crate::processes::has_group_ended;

both_modes!(two_runs_at_once_both_end_right, |env| {
    for i in 0..200 {
        let dir = i % 7;
        env.file(format!("src/f{i}"), i.to_string());
        env.file(format!("src/{dir}/g{i}"), pattern(3_000, i));
        env.symlink(format!("src/{dir}/l{i}"), "target");
        if i % 10 == 0 {
            env.hard_link(format!("src/1/h{i}"), format!("src/f{i}"));
        }
    }
    env.file("src/big", pattern(33 << 20, 7));
    env.fifo("src/fifo");
    let mut random = Random::new(seed());
    for round in 0..8 {
        if round % 2 == 0 {
            env.sh("rm -rf dst");
        } else {
            env.sh("find dst ! -type d -print0 | xargs -0 touch -h -d @77");
        }
        let runs = [(); 2].map(|()| env.command(["src", "dst"]).start());
        // A third one is stopped in the middle.
        let third = env.command(["src", "dst"]).start();
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let group = third.pid();
        third.signal_group(if round % 3 == 0 {
            Signal::KILL
        } else {
            Signal::TERM
        });
        third.wait();
        eventually("its processes have ended", || has_group_ended(group));
        for run in runs {
            run.wait().ok();
        }
        // Removes what the kill has left.
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
        env.snapshot("dst").assert_no_temporaries();
    }
});

both_modes!(temporary_files_of_another_machine_stay_for_an_hour, |env| {
    env.file("src/file", "x");
    env.dir("dst");
    // A file of another machine, which is younger than an hour.
    env.file("dst/.pcopy.0123456789abcdef.7.12.tmp", "in use");
    env.pcopy(["src", "dst"]).ok();
    assert!(env.exists("dst/.pcopy.0123456789abcdef.7.12.tmp"));
});
