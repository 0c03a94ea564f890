//! Trees that several test files copy.

use std::fs;
use std::path::Path;

use crate::env::Env;
use crate::faultfs::FaultFs;
use crate::noise::pattern;

/// Creates a tree at `src` with a little of everything that needs no privilege.
pub(crate) fn small_tree(env: &Env) {
    env.file("src/a/b.txt", "b")
        .mode(0o640)
        .mtime(1_000_000_000, 123_456_789);
    env.file("src/a/deeper/c", pattern(200_000, 1)).mode(0o755);
    env.file("src/empty-file", "");
    env.dir("src/empty-directory")
        .mode(0o711)
        .mtime(1_000_000_001, 1);
    env.symlink("src/link", "a/b.txt").mtime(1_000_000_002, 2);
    env.symlink("src/dangling", "nowhere");
    env.at("src/a").mtime(1_000_000_003, 3);
    env.at("src").mode(0o750).mtime(1_000_000_004, 4);
}

/// The number of entries in [`small_tree`] that are not directories.
pub(crate) const SMALL_TREE_LEAVES: u64 = 5;

/// Creates a tree at `real` of directories, links and small files.
pub(crate) fn small_files(env: &Env, files: u64) {
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
}

/// Creates a tree at `real` of directories, links and files, one of them large.
pub(crate) fn tree(env: &Env, files: u64) {
    small_files(env, files);
    env.file("real/large", pattern(40 * 1024 * 1024, 1));
}

/// Mounts a tree at `src` whose calls take half a millisecond each: time to interfere.
#[track_caller]
pub(crate) fn slow_tree(env: &Env, files: u64) -> Option<FaultFs> {
    tree(env, files);
    FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"])
}

/// Mounts a tree at `src` in which `3/stuck` has a fault.
#[track_caller]
pub(crate) fn tree_with_stuck_file(env: &Env, fault: &str) -> Option<FaultFs> {
    small_files(env, 200);
    env.file("real/3/stuck", pattern(100_000, 1));
    FaultFs::mount(env, "real", "src", &["--fault", &format!("{fault}:stuck")])
}

/// Fails unless `dst` is a copy of `real` in which one file is missing.
#[track_caller]
pub(crate) fn assert_same_without(env: &Env, missing: &str) {
    assert!(!env.exists(format!("dst/{missing}")), "{missing} is there");
    fs::remove_file(env.path(format!("real/{missing}"))).unwrap();
    env.snapshot("dst").assert_no_temporaries();
    // The removal has changed the time of its directory.
    env.sh(&format!(
        "touch -r dst/{0} real/{0}",
        Path::new(missing).parent().unwrap().display()
    ));
    env.assert_same("real", "dst");
}

/// Creates thirty files without faults in `real`, which the fault file system shows.
pub(crate) fn fine_files(env: &Env) {
    for i in 0..30 {
        env.file(
            format!("real/{}/fine-{i}", i % 3),
            pattern(4_000 + i as usize, i),
        );
    }
}
