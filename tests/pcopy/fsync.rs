//! `--fsync`: everything is on disk before exit status 0, and nothing looks complete before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::compare::assert_only_whole_files;
use crate::crashes::process_mode;
use crate::env::{Env, eventually, skip, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::noise::{Random, pattern, seed};
use crate::trees::{small_files, tree};
use crate::zoo::Zoo;

/// The seconds of the modification time of each file here.
const TIME: i64 = 1_000_000_000;

/// Returns true, and prints it, if the tests' file system is one that is synced file by file.
fn skipped_without_batches(env: &Env) -> bool {
    let kind = env.sh("stat -f -c %T .");
    let has_batches = ["ext2/ext3", "xfs", "btrfs", "tmpfs", "f2fs"].contains(&kind.trim());
    if !has_batches {
        skip(format_args!(
            "needs a file system that is synced at once, not {kind}"
        ));
    }
    !has_batches
}

/// Runs pcopy, and returns its system calls about syncs, times and names, in the order in which
/// they began. A sync stands where it has ended.
fn trace(env: &Env, args: &[&str]) -> Vec<String> {
    let calls = "trace=syncfs,fsync,fdatasync,utimensat,renameat,renameat2,linkat,mkdirat,unlinkat";
    let strace = ["strace", "-f", "-y", "-qq", "-e", calls, "-o", "trace"];
    env.command(args).under(&strace).run().ok();
    let trace = String::from_utf8_lossy(&env.read("trace")).into_owned();
    let is_begun_sync = |line: &&str| line.contains("syncfs(") && line.contains("<unfinished");
    let lines = trace.lines().filter(|line| !is_begun_sync(line));
    lines.map(str::to_owned).collect()
}

fn is_sync(line: &str) -> bool {
    line.contains("syncfs") && line.ends_with("= 0")
}

/// Returns true for a call by which a file looks complete, or is replaced.
fn is_commit(line: &str) -> bool {
    let sets_time = line.contains("utimensat(") && line.contains(&format!("tv_sec={TIME}"));
    let renames = line.contains("renameat") && !line.contains("resumed");
    sets_time && !line.contains("/dst>, NULL") || renames
}

/// Creates new files, files to be replaced, links, and a file that is copied in chunks.
fn mixed_tree(env: &Env) {
    for i in 0..40 {
        env.file(format!("src/{}/new-{i}", i % 4), pattern(3_000, i))
            .mtime(TIME, 5);
        env.file(format!("src/{}/old-{i}", i % 4), pattern(3_000, i))
            .mtime(TIME, 5);
        env.file(format!("dst/{}/old-{i}", i % 4), "old");
    }
    env.file("src/film", pattern(40 * 1024 * 1024, 1))
        .mtime(TIME, 5);
    env.hard_link("src/twin", "src/0/new-0");
    env.symlink("src/link", "film");
}

all_modes!(fsync_makes_the_same_copy, |env| {
    Zoo::Full.build(env, "src");
    env.pcopy(["--fsync", "src", "dst"]).ok();
    env.assert_same("src", "dst");
    // Files are replaced, under temporary names.
    env.pcopy(["--fsync", "--overwrite=always", "src", "dst"])
        .ok();
    env.assert_same("src", "dst");
    env.snapshot("dst").assert_no_temporaries();
});

both_modes!(nothing_looks_complete_before_it_is_synced, |env| {
    if env.skipped_without_strace() || skipped_without_batches(env) {
        return;
    }
    mixed_tree(env);
    let lines = trace(env, &["--fsync", "-j4", "src", "dst"]);
    env.assert_same("src", "dst");
    let shown = lines.join("\n");
    assert!(!shown.contains("fsync("), "a file is synced alone\n{shown}");
    // One sync for all the files, one for times, names, links and directories. A very slow machine
    // syncs more often.
    assert!(
        lines.iter().filter(|line| is_sync(line)).count() >= 2,
        "{shown}"
    );
    let first_sync = lines.iter().position(|line| is_sync(line)).unwrap();
    let first_commit = lines.iter().position(|line| is_commit(line)).unwrap();
    assert!(first_sync < first_commit, "{shown}");
    let last_sync = lines.iter().rposition(|line| is_sync(line)).unwrap();
    let changes = |line: &String| {
        ["utimensat(", "renameat", "linkat"]
            .iter()
            .any(|call| line.contains(call))
    };
    let last_change = lines.iter().rposition(changes).unwrap();
    assert!(last_change < last_sync, "{shown}");
});

both_modes!(a_failed_sync_fails_its_files, |env| {
    if env.skipped_without_strace() || skipped_without_batches(env) {
        return;
    }
    for name in ["a/one", "a/two", "b/new", "b/old"] {
        env.file(format!("src/{name}"), "contents").mtime(TIME, 5);
    }
    env.file("dst/b/old", "the old one");
    let old = env.snapshot("dst/b/old");
    // With one worker, the first sync of any worker is that of the files.
    let run = env
        .command(["--fsync", "-j1", "src", "dst"])
        .injecting("syncfs:error=EIO:when=1")
        .run()
        .exits(1);
    assert_eq!(
        run.complaints().into_iter().collect::<BTreeSet<_>>(),
        [
            "pcopy: dst/a: sync to disk: Input/output error (2 files)",
            "pcopy: dst/b: sync to disk: Input/output error (2 files)",
        ]
        .into(),
        "{run}"
    );
    let run = run.counts(0, 0, 4);
    old.assert_untouched();
    for name in ["a/one", "a/two", "b/new"] {
        assert!(!env.exists(format!("dst/{name}")), "{name} is left\n{run}");
    }
    env.snapshot("dst").assert_no_temporaries();
    env.pcopy(["--fsync", "src", "dst"]).ok().counts(4, 0, 0);
    env.assert_same("src", "dst");
});

both_modes!(a_failed_last_sync_is_no_success, |env| {
    if env.skipped_without_strace() || skipped_without_batches(env) {
        return;
    }
    env.file("src/a/file", "contents");
    env.command(["--fsync", "-j1", "src", "dst"])
        .injecting("syncfs:error=EIO:when=2")
        .run()
        .exits(1)
        .fails_only(&[("dst", "sync to disk: Input/output error")]);
    env.assert_same("src", "dst");
});

both_modes!(a_full_disk_may_show_only_when_it_is_synced, |env| {
    if env.skipped_without_strace() || skipped_without_batches(env) {
        return;
    }
    env.file("src/a/file", "contents");
    env.command(["--fsync", "-j1", "src", "dst"])
        .injecting("syncfs:error=ENOSPC:when=1")
        .run()
        .exits(1)
        .stderr_has("dst/a: sync to disk: No space left on device (1 file)");
    assert!(!env.exists("dst/a/file"));
});

both_modes!(a_container_may_forbid_syncfs, |env| {
    if env.skipped_without_strace() {
        return;
    }
    mixed_tree(env);
    env.command(["--fsync", "src", "dst"])
        .injecting("syncfs:error=EPERM")
        .run()
        .ok();
    env.assert_same("src", "dst");
});

both_modes!(very_many_files_of_a_directory_are_synced_in_parts, |env| {
    if env.skipped_without_strace() || skipped_without_batches(env) {
        return;
    }
    let create = |name: String| fs::write(env.path("src").join(name), "x").unwrap();
    env.dir("src");
    (0..4_200).for_each(|i| create(format!("file-{i}")));
    let trace = trace(env, &["--fsync", "-j1", "src", "dst"]);
    assert!(trace.iter().filter(|line| is_sync(line)).count() >= 3);
    env.assert_same("src", "dst");
    // The first part fails. The rest is synced file by file.
    let run = env
        .command(["--fsync", "-j1", "src", "dst-2"])
        .injecting("syncfs:error=EIO:when=1")
        .run()
        .exits(1);
    let failed = run.summary().failed;
    assert!((4_096..4_200).contains(&failed), "{run}");
    let left = env.path("dst-2").read_dir().unwrap().count() as u64;
    assert_eq!(left, 4_200 - failed, "{run}");
});

both_modes!(a_stopped_run_leaves_no_file_that_is_not_synced, |env| {
    tree(env, 1_000);
    let Some(slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = env.command(["--fsync", "-j4", "src", "dst"]).start();
    let has_files = || {
        let mut dirs = (0..40).map(|i| env.path(format!("dst/{i}")));
        dirs.any(|dir| dir.read_dir().is_ok_and(|mut files| files.next().is_some()))
    };
    eventually("some files are there", has_files);
    running.signal(Signal::INT);
    let run = running.wait();
    drop(slow);
    if run.summary().copied < 1_000 {
        run.exits(130);
    }
    env.snapshot("dst").assert_no_temporaries();
    assert_only_whole_files(&env.snapshot("real"), &env.snapshot("dst"));
    env.pcopy(["--fsync", "real", "dst"]).ok();
    env.assert_same("real", "dst");
});

#[test]
fn killed_workers_lose_no_file_that_is_not_synced() {
    let env = process_mode();
    small_files(&env, 2_000);
    // Half of the files are there already, and replaced under temporary names.
    for i in 0..1_000 {
        env.file(format!("dst/{}/file-{i}", i % 40), "old");
    }
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = env.command(["--fsync", "-j4", "src", "dst"]).start();
    let mut random = Random::new(seed());
    let mut hit = BTreeSet::new();
    let mut kills = 0;
    for _ in 0..20 {
        eventually("a worker is killed at an entry, or all is done", || {
            let workers = running.workers();
            if workers.is_empty() {
                return true;
            }
            let victim = &workers[random.below(workers.len() as u64) as usize];
            victim.signal(Signal::STOP);
            eventually("it has stopped or ended", || {
                victim.is_stopped() || !running.workers().iter().any(|it| it.pid == victim.pid)
            });
            let mut open = victim.open_files().into_iter();
            let entry = open.find(|name| name.starts_with("file-"));
            let is_new = entry.is_some_and(|entry| hit.insert(entry));
            victim.signal(if is_new { Signal::KILL } else { Signal::CONT });
            kills += u64::from(is_new);
            is_new
        });
    }
    let run = running.wait().ok();
    assert_eq!(run.replaced_workers(), kills, "{run}");
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

// The kernel itself reports what a disk did not write.
both_modes!(a_disk_that_fails_fails_the_run, |env| {
    if skipped_without_root() || env.skipped_without("mkfs.ext4") {
        return;
    }
    // What belongs to the file system itself is at the front.
    env.sh(
        "mkdir real; truncate -s 64M real/image; mkfs.ext4 -q -N 256 -O ^has_journal real/image",
    );
    let faults = ["--fault", "eio-write:image:4000000"];
    let Some(_faulty) = FaultFs::mount(env, "real", "disk", &faults) else {
        return;
    };
    let image = env.path("disk/image");
    let script = format!("mkdir mnt; mount -o loop {} mnt", image.display());
    let Some(env) = env.mounted(&script) else {
        return;
    };
    env.file("src/a/file", pattern(24 << 20, 1));
    let run = env.pcopy(["--fsync", "src", "mnt/dst"]).exits(1);
    let run = run.stderr_has("mnt/dst/a: sync to disk: Input/output error (1 file)");
    assert!(!env.exists("mnt/dst/a/file"), "{run}");
});

both_modes!(elsewhere_every_new_name_is_synced, |env| {
    if env.skipped_without_strace() {
        return;
    }
    env.file("src/file", "x");
    env.dir("real");
    let Some(_fuse) = FaultFs::mount(env, "real", "mnt", &[]) else {
        return;
    };
    let synced = |source: &str, copy: &str| {
        let trace = [
            "strace",
            "-f",
            "-y",
            "-qq",
            "-e",
            "trace=fsync",
            "-o",
            "trace",
        ];
        let args = ["--fsync", "--mkpath", source, copy];
        env.command(args).under(&trace).run().ok();
        let trace = String::from_utf8_lossy(&env.read("trace")).into_owned();
        let root = env.inner_path("mnt");
        let path_of = |line: &str| {
            let (_, path) = line.split_once('<')?;
            let path = Path::new(path.split_once('>')?.0);
            Some(path.strip_prefix(&root).ok()?.to_owned())
        };
        trace.lines().filter_map(path_of).collect::<BTreeSet<_>>()
    };
    // The empty path is the root of the mount, the parent of the first new one.
    assert_eq!(
        synced("src", "mnt/new/deep/dst"),
        ["", "new", "new/deep", "new/deep/dst", "new/deep/dst/file"]
            .map(PathBuf::from)
            .into()
    );
    assert_eq!(
        synced("src/file", "mnt/other/dst"),
        ["", "other", "other/dst"].map(PathBuf::from).into()
    );
});

both_modes!(
    deletions_are_synced_and_a_failed_sync_prevents_them,
    |env| {
        if env.skipped_without_strace() || skipped_without_batches(env) {
            return;
        }
        env.file("src/a/file", "contents").mtime(TIME, 5);
        env.file("src/b", "in the place of a directory")
            .mtime(TIME, 5);
        env.file("dst/b/inner", "old");
        env.file("dst/old/inner", "old");
        let args = ["--fsync", "--delete", "-j1", "src", "dst"];
        // Perhaps the file was moved, and this is the only copy.
        env.command(args)
            .injecting("syncfs:error=EIO:when=1")
            .run()
            .exits(1)
            .stderr_has("nothing was deleted");
        assert!(env.exists("dst/old/inner") && env.exists("dst/b/inner"));
        assert!(!env.exists("dst/a/file"));
        let lines = trace(env, &args);
        env.assert_same("src", "dst");
        let shown = lines.join("\n");
        let last_sync = lines.iter().rposition(|line| is_sync(line));
        let is_deletion = |line: &String| line.contains("unlinkat(");
        let is_change = |line: &String| is_commit(line) || is_deletion(line);
        let last_change = lines.iter().rposition(is_change);
        assert!(last_change.is_some() && last_change < last_sync, "{shown}");
        // What was copied is on disk before anything is deleted.
        let first_commit = lines.iter().position(|line| is_commit(line)).unwrap();
        let first_deletion = lines.iter().position(is_deletion).unwrap();
        let between = &lines[first_commit..first_deletion];
        assert!(between.iter().any(|line| is_sync(line)), "{shown}");
    }
);

both_modes!(
    directories_of_backups_are_synced_after_their_changes,
    |env| {
        if env.skipped_without_strace() {
            return;
        }
        for name in ["file", "a/deep/file", "a/deep/other"] {
            env.file(format!("src/{name}"), "new").mtime(2_000, 0);
            env.file(format!("dst/{name}"), "old").mtime(1_000, 0);
        }
        env.file("dst/gone/below/file", "gone");
        // A rule protects this one, so its directory stays.
        env.file("dst/stays/file.keep", "kept");
        env.file("dst/stays/other", "gone");
        let args = ["--fsync", "--delete", "--mkpath", "--exclude=*.keep"];
        let args = [&args[..], &["--backup-dir=../kept/today", "src", "dst"]].concat();
        let lines = trace(env, &args);
        let shown = lines.join("\n");
        for dir in [
            "kept",
            "kept/today",
            "kept/today/a",
            "kept/today/a/deep",
            "kept/today/gone",
            "kept/today/gone/below",
            "kept/today/stays",
            "dst",
            "dst/a/deep",
            "dst/stays",
        ] {
            let fd = format!("<{}>", env.inner_path(dir).display());
            let is_sync = |line: &&String| line.contains("fsync(") && line.contains(&fd);
            let last_sync = lines.iter().rposition(|line| is_sync(&line));
            let is_change = |line: &String| line.contains(&fd) && !is_sync(&line);
            let last_change = lines.iter().rposition(is_change);
            assert!(
                last_sync.is_some() && last_change < last_sync,
                "{dir}\n{shown}"
            );
        }
        assert_eq!(env.read("kept/today/a/deep/file"), b"old");
        assert_eq!(env.read("kept/today/gone/below/file"), b"gone");
    }
);
