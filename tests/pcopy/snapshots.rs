//! `--link-dest`, `--link` and `--symbolic-link`: links instead of copies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FileType;

use crate::compare::{self, Properties};
use crate::env::{Env, NOBODY, skipped_without_root};
use crate::mirror::{build, for_random_pairs, unzip};
use crate::trees::small_tree;

fn inode(env: &Env, path: &str) -> u64 {
    env.stat(path).ino()
}

all_modes!(a_snapshot_shares_what_has_not_changed, |env| {
    small_tree(env);
    env.hard_link("src/a/twin", "src/a/b.txt");
    env.fifo("src/fifo");
    env.pcopy(["--link-dest=../none", "src", "1"])
        .exits(0)
        .stderr_has("warning: --link-dest: 1/../none does not exist; continuing without it");
    env.file("src/a/deeper/c", "changed").mtime(5_000, 0);
    env.at("src/empty-file").mode(0o600);
    let first = env.snapshot("1");
    env.pcopy(["-n", "--link-dest=../1", "src", "2"])
        .ok()
        .stdout_has_line("link src/link (same in --link-dest)");
    env.pcopy(["--link-dest", "../1", "src", "2"])
        .ok()
        .counts(7, 0, 0);
    first.assert_untouched();
    env.assert_same("src", "2");
    for same in ["a/b.txt", "a/twin", "link", "fifo"] {
        assert_eq!(
            inode(env, &format!("1/{same}")),
            inode(env, &format!("2/{same}")),
            "{same}"
        );
    }
    for other in ["a/deeper/c", "empty-file"] {
        assert_ne!(
            inode(env, &format!("1/{other}")),
            inode(env, &format!("2/{other}")),
            "{other}"
        );
    }
    env.pcopy(["--link-dest=../1", "src", "2"])
        .ok()
        .counts(0, 7, 0);
    // The first directory that has an entry counts.
    env.pcopy(["--link-dest=../1", "--link-dest=../2", "src", "3"])
        .ok();
    assert_eq!(inode(env, "2/empty-file"), inode(env, "3/empty-file"));
    assert_eq!(inode(env, "1/link"), inode(env, "3/link"));
    first.assert_untouched();
});

both_modes!(metadata_of_an_older_snapshot_never_changes, |env| {
    small_tree(env);
    env.hard_link("src/a/twin", "src/a/b.txt");
    env.pcopy(["src", "1"]).ok();
    env.pcopy(["--link-dest=../1", "src", "2"]).ok();
    let first = env.snapshot("1");
    env.at("src/a/b.txt").mode(0o400);
    env.at("src/a/deeper/c").try_xattr("user.new", b"x");
    // The same snapshot is brought up to date.
    env.pcopy(["--link-dest=../1", "src", "2"]).ok();
    compare::assert_same(&first, &env.snapshot("1"), Properties::KEPT);
    env.assert_same("src", "2");
    env.pcopy(["--link-dest=../1", "src", "2"])
        .ok()
        .summary_ends_with("nothing to do");
});

both_modes!(
    snapshots_of_several_sources_are_found_under_their_names,
    |env| {
        env.file("a/file", "a").mtime(1_000, 0);
        env.file("b", "b").mtime(1_000, 0);
        env.pcopy(["--mkpath", "a", "b", "day/1/"]).ok();
        env.pcopy(["--link-dest=../1", "a", "b", "day/2/"]).ok();
        assert_eq!(inode(env, "day/1/a/file"), inode(env, "day/2/a/file"));
        assert_eq!(inode(env, "day/1/b"), inode(env, "day/2/b"));
        // A snapshot below DST stays.
        env.sh("mkdir -p top && cp -a a top/old");
        env.pcopy(["--delete", "--link-dest=old", "-T", "a", "top"])
            .ok();
        assert_eq!(inode(env, "top/old/file"), inode(env, "top/file"));
    }
);

both_modes!(hard_links_to_the_source, |env| {
    small_tree(env);
    env.hard_link("src/a/twin", "src/a/b.txt");
    let before = env.snapshot("src");
    env.pcopy(["-l", "src", "dst"]).ok().counts(6, 0, 0);
    for name in [
        "a/b.txt",
        "a/twin",
        "a/deeper/c",
        "link",
        "dangling",
        "empty-file",
    ] {
        assert_eq!(
            inode(env, &format!("src/{name}")),
            inode(env, &format!("dst/{name}"))
        );
    }
    compare::assert_same(&before, &env.snapshot("dst"), Properties::KEPT);
    env.pcopy(["-l", "src", "dst"])
        .ok()
        .summary_ends_with("nothing to do");
    // Another file is replaced by the link.
    env.sh("rm dst/empty-file && echo other >dst/empty-file");
    env.pcopy(["--link", "src", "dst"]).ok().counts(1, 5, 0);
    assert_eq!(inode(env, "src/empty-file"), inode(env, "dst/empty-file"));
});

both_modes!(hard_links_to_another_file_system_fail, |env| {
    let Some(env) = env.mounted("mkdir src dst && touch src/file && mount -t tmpfs none dst")
    else {
        return;
    };
    env.pcopy(["-l", "src", "dst/copy"]).exits(1).fails_only(&[(
        "dst/copy/file",
        "create hard link: Invalid cross-device link",
    )]);
});

both_modes!(symbolic_links_to_the_source, |env| {
    small_tree(env);
    let source = env.inner_path("src");
    let source = source.to_str().unwrap();
    env.pcopy(["-s", source, "dst"]).ok().counts(5, 0, 0);
    let text = std::fs::read_link(env.path("dst/a/deeper/c")).unwrap();
    assert_eq!(text, Path::new(source).join("a/deeper/c"));
    assert_eq!(env.read("dst/a/b.txt"), b"b");
    env.pcopy(["-s", source, "dst"])
        .ok()
        .summary_ends_with("nothing to do");
    env.pcopy(["-s", &format!("{source}/a/b.txt"), "dst/a/"])
        .ok();
    env.sh("ln -sfn elsewhere dst/empty-file");
    env.pcopy(["--symbolic-link", source, "dst"])
        .ok()
        .counts(1, 4, 0);
});

once!(links_that_cannot_be_are_refused, |env| {
    env.file("src/file", "x");
    env.dir("dst");
    for (args, reason) in [
        (
            &["-l", "-s", "/etc/passwd", "dst"][..],
            "-l and -s contradict each other",
        ),
        (
            &["-s", "src", "dst"],
            "-s needs a SRC that begins with a slash",
        ),
        (
            &["-l", "--inplace", "src", "dst"],
            "-l does not go with --inplace",
        ),
        (&["--link-dest=.", "src", "dst"], "is DST itself"),
        (&["--link-dest=/proc", "src", "dst"], "another file system"),
        (
            &["-l", "--link-dest=../x", "src", "dst"],
            "-l does not go with --link-dest",
        ),
    ] {
        env.pcopy(args).exits(2).stderr_has(reason);
    }
});

both_modes!(an_unreadable_snapshot_costs_only_its_links, |env| {
    if skipped_without_root() {
        return;
    }
    small_tree(env);
    env.sh(&format!(
        "cp -a src 1 && chmod 0 1/a && chown -R {NOBODY}:{NOBODY} src 1 && chmod 777 ."
    ));
    env.command(["--link-dest=../1", "src", "2"])
        .unprivileged()
        .run()
        .ok();
    env.assert_same("src", "2");
    assert_eq!(inode(env, "1/link"), inode(env, "2/link"));
});

// ---- beside rsync -----------------------------------------------------------------------------

both_modes!(random_snapshots_are_those_of_rsync, |env| {
    for_random_pairs(env, 8, |env, pairs, _| {
        let (source, older) = unzip(pairs);
        build(env, Path::new("src"), &source);
        build(env, Path::new("1"), &older);
        env.sh("rsync -aHAX --link-dest=../1 src/ theirs/");
        env.pcopy(["--link-dest=../1", "src", "dst"]).ok();
        env.assert_same("src", "dst");
        for (path, theirs) in &env.snapshot("theirs").entries {
            let name = Path::new(OsStr::from_bytes(path));
            // rsync follows links in the snapshot, wherever they lead. pcopy does not.
            let is_behind_link = name
                .ancestors()
                .skip(1)
                .any(|above| env.path("1").join(above).is_symlink());
            if theirs.kind == FileType::Directory || is_behind_link {
                continue;
            }
            let is_linked = |root: &str| {
                let other = std::fs::symlink_metadata(env.path("1").join(name));
                other.is_ok_and(|it| it.ino() == env.stat(Path::new(root).join(name)).ino())
            };
            let shown = path.escape_ascii();
            assert_eq!(is_linked("theirs"), is_linked("dst"), "{shown}");
        }
    });
});
