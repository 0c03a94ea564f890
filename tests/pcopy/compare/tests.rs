//! Every other test trusts the comparison. These tests show that it sees what it must see.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Properties, differences};
use crate::env::{self, Env};
use crate::noise::pattern;

/// Creates a small tree, and a copy of it made by cp(1).
fn two_trees() -> Env {
    let env = Env::new(env::Mode::Thread);
    env.file("a/file", pattern(100_000, 1)).mode(0o640);
    env.file("a/below/other", "other");
    env.hard_link("a/twin", "a/file");
    env.symlink("a/link", "file");
    env.fifo("a/fifo");
    env.sparse("a/sparse", 8 << 20, &[(4 << 20, b"data")]);
    env.sh("cp -aT a b");
    env
}

/// Changes the copy and returns the differences.
fn after(change: impl FnOnce(&Env)) -> Vec<String> {
    let env = two_trees();
    let dir_time = env.snapshot("b").entry("").mtime;
    change(&env);
    env.at("b").mtime(dir_time.0, dir_time.1);
    differences(&env.snapshot("a"), &env.snapshot("b"), Properties::KEPT)
}

#[test]
fn equal_trees_have_no_differences() {
    assert_eq!(after(|_| {}), [""; 0]);
}

#[test]
fn missing_and_extra_entries_are_seen() {
    let found = after(|env| {
        std::fs::remove_file(env.path("b/fifo")).unwrap();
        env.file("b/more", "");
    });
    assert_eq!(
        found,
        [
            "fifo: entry: source FIFO, copy missing",
            "more: entry: source missing, copy file"
        ]
    );
}

#[test]
fn another_type_is_seen() {
    let found = after(|env| {
        std::fs::remove_file(env.path("b/fifo")).unwrap();
        env.socket("b/fifo");
    });
    assert_eq!(found, ["fifo: type: source FIFO, copy socket"]);
}

#[test]
fn one_other_byte_is_seen() {
    let found = after(|env| {
        let time = env.snapshot("b").entry("file").mtime;
        let file = File::options()
            .write(true)
            .open(env.path("b/file"))
            .unwrap();
        file.write_at(&[env.read("b/file")[70_001] ^ 1], 70_001)
            .unwrap();
        env.at("b/file").mtime(time.0, time.1);
    });
    // It shows under both of its names.
    assert_eq!(
        found,
        [
            "file: content: source one thing, copy another, from offset 70001",
            "twin: content: source one thing, copy another, from offset 70001"
        ]
    );
}

#[test]
fn another_mode_and_time_are_seen() {
    let found = after(|env| {
        env.at("b/below/other").mode(0o4600).mtime(1, 2);
    });
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("below/other: mode: source 0644, copy 4600"),
        "{found:?}"
    );
    assert!(found[1].ends_with("copy 1.000000002"), "{found:?}");
}

#[test]
fn the_roots_own_properties_are_seen() {
    let found = after(|env| {
        env.at("b").mode(0o700);
    });
    assert_eq!(found, ["(root): mode: source 0755, copy 0700"]);
}

#[test]
fn an_extra_attribute_is_seen() {
    let found = after(|env| {
        if !env.at("b/below/other").try_xattr("user.more", "x") {
            env::skip("no extended attributes here");
        }
    });
    assert!(
        found.is_empty() || found == ["below/other: xattr user.more: source missing, copy x"],
        "{found:?}"
    );
}

#[test]
fn a_link_that_points_elsewhere_is_seen() {
    let found = after(|env| {
        let time = env.snapshot("b").entry("link").mtime;
        std::fs::remove_file(env.path("b/link")).unwrap();
        env.symlink("b/link", "twin").mtime(time.0, time.1);
    });
    assert_eq!(found, ["link: target: source file, copy twin"]);
}

#[test]
fn broken_hard_links_are_seen() {
    let found = after(|env| {
        env.sh("cp -p b/twin t; mv t b/twin");
    });
    assert_eq!(
        found,
        [
            "file: hard links: source file, copy no other name",
            "twin: hard links: source file, copy no other name"
        ]
    );
}

#[test]
fn a_lost_hole_is_seen() {
    let found = after(|env| {
        env.sh("cp -p --sparse=never b/sparse t; mv t b/sparse");
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("sparse: allocated bytes: "),
        "{found:?}"
    );
}

#[test]
#[should_panic(expected = "nothing to compare")]
fn an_empty_source_proves_nothing() {
    let env = Env::new(env::Mode::Thread);
    env.dir("a");
    env.dir("b");
    env.assert_same("a", "b");
}
