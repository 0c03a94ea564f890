//! Destinations without space: the run stops cleanly.

use std::fs;

use crate::compare::assert_only_whole_files;
use crate::env::Mode;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::relay;
use crate::trees::tree;

/// The number of workers, and the option for it.
const JOBS: usize = 4;
const JOBS_OPTION: &str = "-j4";

/// Fails unless the run stopped for this reason, without an error for each missing entry.
#[track_caller]
fn stopped_because_full(mode: Mode, run: Run, reason: &str) {
    let run = run
        .exits(1)
        .stderr_has(reason)
        .summary_ends_with("; stopped: destination is full");
    // At most one entry of each worker fails.
    let nodes = if mode == Mode::Mpi { relay::NODES } else { 1 };
    assert!(run.complaints().len() <= nodes * JOBS, "{run}");
}

all_modes!(
    a_full_destination_stops_the_run_and_leaves_only_whole_files,
    |env| {
        let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=1m tmpfs mnt") else {
            return;
        };
        for i in 0..300 {
            env.file(format!("src/{}/file-{i}", i % 10), pattern(20_000, i));
        }
        let source = env.snapshot("src");
        let run = env.pcopy([JOBS_OPTION, "src", "mnt/dst"]);
        let run = run.stderr_has(" not tried");
        stopped_because_full(env.mode(), run, "No space left on device");
        let copied = assert_only_whole_files(&source, &env.snapshot("mnt/dst"));
        assert!((10..60).contains(&copied), "{copied} files were copied");
        source.assert_untouched();
        // With more space the next run continues.
        env.sh("mount -o remount,size=100m mnt");
        let run = env.pcopy(["src", "mnt/dst"]).ok();
        assert!(run.summary().unchanged > 0, "it started over:\n{run}");
        env.assert_same("src", "mnt/dst");
    }
);

all_modes!(
    a_file_too_big_for_the_destination_is_not_left_there,
    |env| {
        let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=1m tmpfs mnt") else {
            return;
        };
        env.file("src/small", "small");
        env.file("src/big", pattern(40 * 1024 * 1024, 1));
        let source = env.snapshot("src");
        stopped_because_full(
            env.mode(),
            env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
            "No space left on device",
        );
        assert_only_whole_files(&source, &env.snapshot("mnt/dst"));
        assert!(!env.exists("mnt/dst/big"));
    }
);

all_modes!(a_file_without_space_keeps_the_old_one, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=1m tmpfs mnt") else {
        return;
    };
    env.file("src/file", pattern(800_000, 1));
    env.file("mnt/dst/file", pattern(700_000, 2))
        .mtime(1_000, 1);
    let old = env.snapshot("mnt/dst/file");
    stopped_because_full(
        env.mode(),
        env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
        "No space left on device",
    );
    old.assert_untouched();
    env.snapshot("mnt/dst").assert_no_temporaries();
});

both_modes!(a_destination_without_inodes_is_full, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o nr_inodes=40 tmpfs mnt") else {
        return;
    };
    for i in 0..100 {
        env.file(format!("src/file-{i:03}"), "x");
    }
    let source = env.snapshot("src");
    stopped_because_full(
        env.mode(),
        env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
        "No space left on device",
    );
    let copied = assert_only_whole_files(&source, &env.snapshot("mnt/dst"));
    assert!(copied > 20, "{copied} files were copied");
});

both_modes!(a_quota_stops_the_run, |env| {
    let script = "mkdir mnt; truncate -s 400M image; mkfs.btrfs -q image; mount -o loop image mnt
        btrfs quota enable mnt; btrfs subvolume create mnt/limited; btrfs qgroup limit 2M mnt/limited";
    let Some(env) = env.mounted(script) else {
        return;
    };
    for i in 0..300 {
        env.file(format!("src/{}/file-{i}", i % 10), pattern(20_000, i));
    }
    let source = env.snapshot("src");
    let run = env.pcopy([JOBS_OPTION, "src", "mnt/limited/dst"]);
    stopped_because_full(env.mode(), run, "quota exceeded");
    let copied = assert_only_whole_files(&source, &env.snapshot("mnt/limited/dst"));
    assert!((10..150).contains(&copied), "{copied} files were copied");
    env.sh("btrfs qgroup limit none mnt/limited");
    env.pcopy(["src", "mnt/limited/dst"]).ok();
    env.assert_same("src", "mnt/limited/dst");
});

both_modes!(a_file_beyond_the_size_limit_fails_alone, |env| {
    tree(env, 100);
    let run = env
        .command(["real", "dst"])
        // 1 MiB, in blocks of 512 bytes.
        .after("ulimit -f 2048")
        .run()
        .exits(1)
        .fails_only(&[("dst/large", "File too large")]);
    assert_eq!(run.replaced_workers(), 0, "{run}");
    fs::remove_file(env.path("real/large")).unwrap();
    env.sh("touch -r dst real");
    env.assert_same("real", "dst");
});
