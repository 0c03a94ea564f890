//! `--chmod`, `--chown`, `--itemize-changes`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::compare::{self, Properties};
use crate::env::{Env, NOBODY, skipped_without_root};
use crate::mirror::{build, for_random_pairs, unzip};
use crate::noise::pattern;
use crate::trees::small_tree;

both_modes!(modes_are_changed_as_rsync_changes_them, |env| {
    if env.skipped_without("rsync") {
        return;
    }
    small_tree(env);
    env.fifo("src/fifo").mode(0o644);
    env.file("src/s", "x").mode(0o4711);
    env.file("src/large", pattern(40 << 20, 1)).mode(0o604);
    // rsync leaves times alone that are nearly right.
    env.sh("find src -exec touch -hd @2000 {} +");
    for (number, modes) in [
        "D2755,F644",
        "u+rwX,go-w",
        "a=rX,u+w",
        "Fo-rwx,Dg+s,+t",
        "g=u,o=",
    ]
    .into_iter()
    .enumerate()
    {
        let (theirs, ours) = (format!("theirs-{number}"), format!("ours-{number}"));
        let option = format!("--chmod={modes}");
        env.sh(&format!("rsync -aHAX {option} src/ {theirs}/"));
        env.pcopy([&option, "src", &ours]).ok().counts(8, 0, 0);
        compare::assert_same(
            &env.snapshot(&theirs),
            &env.snapshot(&ours),
            Properties::KEPT,
        );
        env.pcopy([&option, "src", &ours])
            .ok()
            .summary_ends_with("nothing to do");
        // An existing copy gets the modes too.
        env.pcopy([&option, "src", "ours-0"]).ok();
        compare::assert_same(
            &env.snapshot(&theirs),
            &env.snapshot("ours-0"),
            Properties::KEPT,
        );
    }
});

both_modes!(an_acl_and_a_changed_mode_go_together, |env| {
    if env.skipped_without("setfacl") {
        return;
    }
    env.file("src/file", "x");
    env.sh("setfacl -m u:1234:rw src/file || true");
    env.pcopy(["--chmod=g-w,o-r", "src", "dst"]).ok();
    assert_eq!(env.stat("dst/file").mode() & 0o077, 0o040);
    env.pcopy(["--chmod=g-w,o-r", "src", "dst"])
        .ok()
        .summary_ends_with("nothing to do");
});

both_modes!(owners_are_changed_by_name_or_number, |env| {
    if skipped_without_root() {
        return;
    }
    small_tree(env);
    for (option, owner) in [
        ("--chown=1234:4321", (1234, 4321)),
        ("--chown=nobody", (NOBODY, 0)),
        ("--chown=:4321", (0, 4321)),
    ] {
        env.pcopy([option, "src", "dst"]).ok();
        for (path, entry) in &env.snapshot("dst").entries {
            assert_eq!(entry.owner, owner, "{option}: {}", path.escape_ascii());
        }
        env.pcopy([option, "src", "dst"])
            .ok()
            .summary_ends_with("nothing to do");
    }
    env.sh("chmod 777 . && touch readable");
    env.command(["--chown=root", "readable", "mine"])
        .unprivileged()
        .run()
        .exits(1)
        .stderr_has("set owner: Operation not permitted");
});

once!(changes_that_cannot_be_are_refused, |env| {
    env.file("src/file", "x");
    for (args, reason) in [
        (
            &["--chmod=u+q", "src", "dst"][..],
            "--chmod: u+q is no mode",
        ),
        (
            &["--chown=no-such-user", "src", "dst"],
            "--chown: there is no user no-such-user",
        ),
        (&["--chown=:", "src", "dst"], "--chown needs a user"),
        (
            &["--chmod=755", "--no-preserve=mode", "src", "dst"],
            "--chmod does not go with",
        ),
        (&["-l", "--chmod=755", "src", "dst"], "do not go with -l"),
    ] {
        env.pcopy(args).exits(2).stderr_has(reason);
    }
});

// ---- itemized ---------------------------------------------------------------------------------

/// Returns the lines without what links lead to, sorted.
fn items(text: &str) -> Vec<String> {
    let name = |line: &str| line.split(" -> ").next().unwrap_or_default().to_owned();
    let mut lines: Vec<_> = text.lines().map(name).collect();
    lines.sort();
    lines
}

fn itemized_like_rsync(env: &Env, options: &[&str]) {
    let args = options.join(" ");
    let theirs = env.sh(&format!(
        "cp -a dst theirs; rsync -aHAX8i {args} src/ theirs/"
    ));
    let planned = env
        .pcopy([&["-n", "-i", "src", "dst"], options].concat())
        .ok();
    assert_eq!(
        items(&theirs),
        items(&planned.stdout()),
        "planned: {planned}"
    );
    let run = env.pcopy([&["-i", "src", "dst"], options].concat()).ok();
    assert_eq!(items(&theirs), items(&run.stdout()), "{run}");
    let again = env.pcopy([&["-i", "src", "dst"], options].concat()).ok();
    again.stdout_is_empty();
}

both_modes!(changes_are_itemized_like_those_of_rsync, |env| {
    if env.skipped_without("rsync") || skipped_without_root() {
        return;
    }
    small_tree(env);
    env.sh("cp -a src dst");
    env.file("src/new/file", "new");
    env.file("src/large", pattern(40 << 20, 1));
    env.file("src/a/b.txt", "changed")
        .mode(0o600)
        .mtime(9_000, 0);
    env.at("src/empty-file").mode(0o604).owner(5, 6);
    env.at("src/empty-directory").mode(0o700).mtime(9_000, 0);
    env.at("src/a/deeper/c")
        .mtime(9_000, 0)
        .try_xattr("user.x", b"1");
    env.sh("ln -sfn other src/link; touch -hd @5 src/link; mknod src/null c 1 3");
    env.file("dst/gone/file", "gone");
    env.at("src").mtime(8_000, 0);
    itemized_like_rsync(env, &["--delete"]);
});

both_modes!(random_changes_are_itemized_like_those_of_rsync, |env| {
    for_random_pairs(env, 8, |env, pairs, _| {
        let (source, destination) = unzip(pairs);
        build(env, Path::new("src"), &source);
        build(env, Path::new("dst"), &destination);
        itemized_like_rsync(env, &["--delete"]);
    });
});
