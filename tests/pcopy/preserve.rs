//! `--preserve` and `--no-preserve`.

use std::os::unix::fs::MetadataExt;

use crate::compare::{self, Properties, Property};
use crate::env::{Env, is_root};
use crate::snapshot::Snapshot;

/// Creates a file with everything that `--no-preserve` can leave out.
fn rich_source(env: &Env) {
    let file = env.file("src/file", "x");
    if is_root() {
        env.at("src/file").owner(1, 2);
    }
    env.at("src/file").mode(0o4705).mtime(1_000, 1);
    file.try_xattr("user.test", "value");
    env.hard_link("src/twin", "src/file");
    env.dir("src/directory").mode(0o2705).mtime(1_000, 2);
    env.symlink("src/link", "file").mtime(1_000, 3);
    env.at("src").mtime(1_000, 4);
}

/// Copies with `--no-preserve=word`, and checks that nothing else is lost.
fn all_but(env: &Env, word: &str, properties: Properties) -> (Snapshot, Snapshot) {
    rich_source(env);
    env.pcopy(["--no-preserve", word, "src", "dst"]).ok();
    let (source, copy) = (env.snapshot("src"), env.snapshot("dst"));
    compare::assert_same(&source, &copy, properties);
    (source, copy)
}

/// Returns true for any time of this century. Those of the source are from 1970.
fn is_recent((seconds, _): (i64, i64)) -> bool {
    seconds > 1_000_000_000
}

both_modes!(modes_need_not_be_kept, |env| {
    let (_, copy) = all_but(env, "mode", Properties::KEPT.without(Property::Mode));
    // As with cp -r: the permissions as far as the umask 022 allows, and no set-user-id bit.
    assert_eq!(copy.entry("file").mode, 0o705);
    assert_eq!(copy.entry("directory").mode, 0o705);
});

both_modes!(owners_need_not_be_kept, |env| {
    let properties = Properties::KEPT
        .without(Property::Owner)
        .without(Property::Mode);
    let (_, copy) = all_but(env, "ownership", properties);
    let us = env.stat("").uid();
    assert!(copy.entries.values().all(|entry| entry.owner.0 == us));
    if is_root() {
        assert_eq!(
            copy.entry("file").mode,
            0o705,
            "a setuid bit is lost without its owner"
        );
    }
});

both_modes!(times_need_not_be_kept, |env| {
    let (_, copy) = all_but(env, "timestamps", Properties::KEPT.without(Property::Mtime));
    assert!(copy.entries.values().all(|entry| is_recent(entry.mtime)));
});

both_modes!(hard_links_need_not_be_kept, |env| {
    let (_, copy) = all_but(env, "links", Properties::KEPT.without(Property::HardLinks));
    assert_ne!(copy.entry("file").inode, copy.entry("twin").inode);
});

both_modes!(attributes_need_not_be_kept, |env| {
    let (_, copy) = all_but(env, "xattr", Properties::KEPT.without(Property::Xattrs));
    assert!(copy.entries.values().all(|entry| entry.xattrs.is_empty()));
});

both_modes!(nothing_needs_to_be_kept, |env| {
    let properties = Properties::KEPT
        .without(Property::Mode)
        .without(Property::Owner)
        .without(Property::Mtime)
        .without(Property::HardLinks)
        .without(Property::Xattrs);
    let (_, copy) = all_but(env, "all", properties);
    assert!(copy.entries.values().all(|entry| is_recent(entry.mtime)));
    assert_eq!(copy.entry("file").mode, 0o705);
});

both_modes!(several_words_are_a_list, |env| {
    let properties = Properties::KEPT
        .without(Property::Mtime)
        .without(Property::HardLinks);
    let (_, copy) = all_but(env, "timestamps,links", properties);
    assert!(is_recent(copy.entry("file").mtime));
});

both_modes!(preserve_with_a_list_keeps_the_rest_too, |env| {
    rich_source(env);
    env.pcopy(["--preserve", "mode,timestamps,links", "src", "dst"])
        .ok();
    env.assert_same("src", "dst");
});
