//! `--backup`, `--suffix`, `--backup-dir`: what is replaced or removed is kept.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::Signal;

use crate::compare::{self, Properties};
use crate::env::Env;
use crate::mirror::{build, for_random_pairs, unzip};
use crate::noise::pattern;

fn old_and_new(env: &Env) {
    env.file("src/file", "new").mtime(2_000, 0);
    env.file("src/dir/other", "new").mtime(2_000, 0);
    env.symlink("src/link", "new");
    env.file("dst/file", "old").mode(0o640).mtime(1_000, 0);
    env.file("dst/dir/other", "old").mtime(1_000, 0);
    env.symlink("dst/link", "old");
    env.file("dst/dir/gone", "gone");
    env.file("dst/tree/gone", "gone");
}

both_modes!(what_is_replaced_keeps_a_second_name, |env| {
    old_and_new(env);
    let inode = env.stat("dst/file").ino();
    env.pcopy(["-b", "src", "dst"]).ok().counts(3, 0, 0);
    assert_eq!(env.read("dst/file"), b"new");
    assert_eq!(env.read("dst/file~"), b"old");
    // The same file, with all its metadata.
    assert_eq!(env.stat("dst/file~").ino(), inode);
    assert_eq!(env.read("dst/dir/other~"), b"old");
    assert_eq!(
        std::fs::read_link(env.path("dst/link~")).unwrap(),
        Path::new("old")
    );
    env.pcopy(["-b", "src", "dst"]).ok().counts(0, 3, 0);
    env.file("src/file", "newer").mtime(3_000, 0);
    env.pcopy(["-b", "-S", ".bak", "src", "dst"])
        .ok()
        .counts(1, 2, 0);
    env.pcopy(["--backup=simple", "--overwrite=always", "src", "dst"])
        .ok();
    assert_eq!(env.read("dst/file.bak"), b"new");
    assert_eq!(env.read("dst/file~"), b"newer");
    env.snapshot("dst").assert_no_temporaries();
});

both_modes!(numbered_backups_are_all_kept, |env| {
    env.file("dst/file", "0").mtime(1, 0);
    env.file("dst/file.~7~", "older");
    for (number, backup) in [
        (1, "--backup=numbered"),
        (2, "-b"),
        (3, "--backup=existing"),
    ] {
        env.file("src/file", number.to_string())
            .mtime(1_000 + number, 0);
        env.pcopy([backup, "src", "dst"]).ok();
        let kept = env.read(format!("dst/file.~{}~", number + 7));
        assert_eq!(kept, (number - 1).to_string().as_bytes());
    }
    env.command(["--overwrite=always", "-b", "src", "dst"])
        .after("export VERSION_CONTROL=simple SIMPLE_BACKUP_SUFFIX=.old")
        .run()
        .ok();
    assert_eq!(env.read("dst/file.old"), b"3");
});

both_modes!(backups_survive_deletion_and_hold_what_is_deleted, |env| {
    old_and_new(env);
    env.file("dst/file~", "older");
    env.pcopy(["-b", "--delete", "src", "dst"]).ok();
    assert_eq!(env.read("dst/dir/gone~"), b"gone");
    assert_eq!(env.read("dst/tree/gone~"), b"gone");
    assert!(!env.exists("dst/dir/gone") && !env.exists("dst/tree/gone"));
    assert_eq!(env.read("dst/file~"), b"old");
    env.pcopy(["-b", "--delete", "src", "dst"])
        .ok()
        .counts(0, 3, 0);
    env.pcopy(["--delete", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

all_modes!(
    a_directory_of_backups_gets_what_is_replaced_and_deleted,
    |env| {
        old_and_new(env);
        env.at("dst/dir").mode(0o750);
        env.pcopy(["--delete", "--backup-dir=../kept", "src", "dst"])
            .ok();
        assert_eq!(env.read("kept/file"), b"old");
        assert_eq!(env.read("kept/dir/other"), b"old");
        assert_eq!(env.read("kept/dir/gone"), b"gone");
        assert_eq!(env.read("kept/tree/gone"), b"gone");
        assert_eq!(env.stat("kept/dir").mode() & 0o7777, 0o750);
        env.assert_same("src", "dst");
        // Inside DST it is not deleted. Several sources have their names in it.
        env.sh("rm -rf dst && mkdir -p dst/dir dst/src/dir && echo old >dst/src/dir/other");
        env.file("one", "new");
        env.file("dst/one", "old!");
        env.pcopy(["--backup-dir", "bak", "src", "one", "dst"]).ok();
        assert_eq!(env.read("dst/bak/src/dir/other"), b"old\n");
        assert_eq!(env.read("dst/bak/one"), b"old!");
        env.pcopy(["--delete", "--backup-dir", "bak", "-T", "src", "dst"])
            .ok();
        assert!(!env.exists("dst/src") && !env.exists("dst/one"));
        for moved in ["dst/bak/src/dir/other", "dst/bak/one"] {
            assert_eq!(env.read(moved), b"new");
        }
    }
);

both_modes!(a_backup_never_replaces_a_copy, |env| {
    env.file("src/file", "new").mtime(2, 0);
    env.file("src/file~", "of the source");
    env.file("dst/file", "old").mtime(1, 0);
    env.pcopy(["-b", "src", "dst"]).exits(1).fails_only(&[(
        "dst/file",
        "keep backup: the source has an entry with the name of the backup; choose another --suffix",
    )]);
    assert_eq!(env.read("dst/file"), b"old");
    assert_eq!(env.read("dst/file~"), b"of the source");
    env.snapshot("dst").assert_no_temporaries();
});

both_modes!(without_hard_links_the_old_file_is_renamed, |env| {
    old_and_new(env);
    if env.skipped_without_strace() {
        return;
    }
    env.command(["-b", "src", "dst"])
        .injecting("linkat:error=EPERM")
        .run()
        .ok();
    assert_eq!(env.read("dst/file"), b"new");
    assert_eq!(env.read("dst/file~"), b"old");
});

both_modes!(a_name_is_never_missing, |env| {
    for i in 0..300_u64 {
        env.file(format!("src/{i}"), pattern(600, i))
            .mtime(2_000, 0);
        env.file(format!("dst/{i}"), "old").mtime(1_000, 0);
    }
    for round in 0..4_usize {
        let running = env
            .command(["-v", "-b", "--overwrite=always", "src", "dst"])
            .start();
        while running.is_running() && running.lines() < round * 40 {
            assert!((0..300).all(|i| env.exists(format!("dst/{i}"))));
        }
        running.signal_group(Signal::KILL);
        running.wait();
        assert!((0..300).all(|i| env.exists(format!("dst/{i}"))));
    }
    env.pcopy(["-b", "--overwrite=always", "src", "dst"]).ok();
    // Nor is anything of the killed runs left, although the last run began at once.
    env.snapshot("dst").assert_no_temporaries();
    env.sh("rm -f dst/*~; touch -r src dst");
    env.assert_same("src", "dst");
});

once!(backups_that_cannot_be_are_refused, |env| {
    env.file("src/file", "x");
    env.dir("dst");
    for (args, reason) in [
        (
            &["-b", "--inplace", "src", "dst"][..],
            "--inplace does not go with --backup",
        ),
        (&["-S", "a/b", "src", "dst"], "--suffix: the suffix must"),
        (
            &["--backup=numbered", "--backup-dir=k", "src", "dst"],
            "--backup=numbered does not go",
        ),
        (
            &["--backup-dir=../src/k", "src", "dst"],
            "the destination lies inside the source",
        ),
        (&["--backup-dir=.", "src", "dst"], "is DST itself"),
        (&["--backup-dir=/proc", "src", "dst"], "another file system"),
        (&["--backup-dir=x/y", "src", "dst"], "No such file"),
    ] {
        env.pcopy(args).exits(2).stderr_has(reason);
    }
});

// ---- beside rsync -----------------------------------------------------------------------------

both_modes!(random_backups_are_those_of_rsync, |env| {
    for_random_pairs(env, 8, |env, pairs, choice| {
        let (source, destination) = unzip(pairs);
        build(env, Path::new("src"), &source);
        build(env, Path::new("dst"), &destination);
        let options = [
            &["-b", "--suffix=.old"][..],
            &["-b", "--suffix=.old", "--delete"],
            &["-b", "--backup-dir=../kept-DST"],
            &[
                "-b",
                "--backup-dir=../kept-DST",
                "--suffix=.old",
                "--delete",
            ],
        ][choice % 4];
        let with = |name: &str| {
            options
                .iter()
                .map(|it| it.replace("DST", name))
                .collect::<Vec<_>>()
        };
        let theirs = with("theirs").join(" ");
        env.sh(&format!(
            "cp -a dst theirs; rsync -aHAX --force {theirs} src/ theirs/ || true"
        ));
        let mut args = with("dst");
        args.extend(["src".to_owned(), "dst".to_owned()]);
        let run = env.pcopy(&args);
        if run.status.code() == Some(1) {
            // Something is in the way. Only --delete removes that, and not if a backup of it stays
            // in its place. Then pcopy deletes nothing more, and rsync goes on.
            return;
        }
        // With -b rsync leaves the times of directories alone.
        let same = Properties::KEPT
            .without(compare::Property::HardLinks)
            .without(compare::Property::Mtime);
        compare::assert_same(&env.snapshot("theirs"), &env.snapshot("dst"), same);
        if env.exists("kept-theirs") && env.exists("kept-dst") {
            let same = same.without(compare::Property::Mode);
            let (theirs, ours) = (env.snapshot("kept-theirs"), env.snapshot("kept-dst"));
            if theirs.entries.len() > 1 {
                compare::assert_same(&theirs, &ours, same);
            }
        }
    });
});
