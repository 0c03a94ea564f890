//! Metadata that cannot be kept, that is not what was asked for, or that alone has changed.

use std::os::unix::fs::MetadataExt;

use crate::acl::{ACCESS_ACL, AclTag, DEFAULT_ACL, NO_ID, acl};
use crate::env::{Env, is_root, skip, skipped_without_root};
use crate::outcome::Run;

// ---- refused, or not supported --------------------------------------------------------------

/// Runs pcopy while a system call fails, or does nothing and succeeds.
fn injected(env: &Env, injection: &str, args: &[&str]) -> Run {
    env.command(args).injecting(injection).run()
}

both_modes!(an_immutable_directory_is_a_failure, |env| {
    if skipped_without_root() {
        return;
    }
    for name in ["sub", "other"] {
        env.file(format!("src/{name}/file"), "x");
        env.at(format!("src/{name}"))
            .owner(1000, 1000)
            .mtime(1_000_000_000, 0);
    }
    env.dir("dst/sub");
    env.sh("cp -p src/sub/file dst/sub/file");
    let flagged = env.sh("chattr +i dst/sub 2>&1 && echo -n done || true");
    if flagged != "done" {
        skip(format_args!("no immutable directories here: {flagged}"));
        return;
    }
    let run = env.pcopy(["-q", "src", "dst"]);
    env.sh("chattr -i dst/sub");
    let run = run.exits(1);
    let [line] = run.complaints()[..] else {
        panic!("not one line: {run}");
    };
    assert!(line.starts_with("pcopy: dst/sub: set owner: "), "{run}");
    assert!(line.contains("; set times: "), "{run}");
    // Now nothing refuses it.
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(what_every_entry_is_refused_is_one_warning, |env| {
    if skipped_without_root() || env.skipped_without_strace() {
        return;
    }
    for i in 0..20 {
        env.file(format!("src/{i}"), "x").owner(1000, 1000);
    }
    // Also with -q: nothing else says so.
    let run = injected(env, "fchown:error=EPERM", &["-q", "src", "dst"]).exits(0);
    let [line] = run.complaints()[..] else {
        panic!("not one line: {run}");
    };
    let expected = "pcopy: warning: destination does not support file ownership; continuing \
                    without it (20 entries, first: dst/";
    assert!(line.starts_with(expected), "{run}");
});

both_modes!(what_one_entry_is_refused_is_its_failure, |env| {
    if skipped_without_root() || env.skipped_without_strace() {
        return;
    }
    for i in 0..20 {
        env.file(format!("src/{i}"), "x").owner(1000, 1000);
    }
    // With one worker, the fifth call is the fifth file's.
    let inject = "fchown:error=EPERM:when=5";
    let run = injected(env, inject, &["-j1", "src", "dst"]).exits(1);
    run.stderr_has(": set owner: Operation not permitted\n")
        .counts(19, 0, 1);
    env.pcopy(["src", "dst"]).ok().counts(1, 19, 0);
    env.assert_same("src", "dst");
});

both_modes!(a_normal_user_is_told_of_all_but_owners, |env| {
    if env.skipped_without_strace() {
        return;
    }
    env.file("src/file", "x").mode(0o750).mtime(1_000, 0);
    env.sh("chmod 777 .; chmod -R go+rX src");
    let run = env
        .command(["src", "dst"])
        .unprivileged()
        .injecting("utimensat,fchmod:error=EPERM")
        .run();
    let run = run.exits(0);
    let text = run.stderr.clone();
    assert!(text.contains("does not support these timestamps"), "{run}");
    assert!(text.contains("does not support file modes"), "{run}");
    assert!(!text.contains("ownership"), "{run}");
});

both_modes!(a_directory_that_cannot_be_read_keeps_its_metadata, |env| {
    if skipped_without_root() {
        return;
    }
    env.file("src/closed/in", "x");
    env.file("src/file", "x");
    env.at("src/closed").mode(0o300).mtime(1_000, 5);
    env.sh("chown -R 65534:65534 .");
    for _ in 0..2 {
        env.command(["src", "dst"])
            .unprivileged()
            .run()
            .exits(1)
            .fails_only(&[("src/closed", "open directory: Permission denied")]);
        let copy = env.stat("dst/closed");
        assert_eq!(copy.mode() & 0o7777, 0o300);
        assert_eq!((copy.mtime(), copy.mtime_nsec()), (1_000, 5));
    }
});

both_modes!(
    a_destination_directory_that_keeps_its_owner_out_is_entered,
    |env| {
        if skipped_without_root() {
            return;
        }
        env.file("src/closed/sub/in", "x");
        env.sh("chown -R 65534:65534 .");
        let run = |options: &[&str]| {
            let args = [options, &["src", "dst"]].concat();
            env.command(args).unprivileged().run().exits(0)
        };
        run(&[]).counts(1, 0, 0);
        env.at("dst/closed").mode(0);
        env.at("dst/closed/sub").mode(0o100);
        run(&[]).counts(0, 1, 0);
        env.assert_same("src", "dst");
        env.at("dst/closed").mode(0);
        env.file("src/closed/new", "x");
        run(&["--no-preserve=mode"]).counts(1, 1, 0);
        assert_eq!(env.stat("dst/closed").mode() & 0o7777, 0);
    }
);

// ---- accepted, and not kept -----------------------------------------------------------------

both_modes!(calls_that_do_nothing_are_noticed, |env| {
    if skipped_without_root() || env.skipped_without_strace() {
        return;
    }
    for i in 0..10 {
        let file = env.file(format!("src/{i}"), "x");
        file.owner(1000, 1000).mode(0o640).mtime(1_000, 0);
    }
    for (calls, property, warning, step) in [
        ("fchown", "ownership", "file ownership", "set owner"),
        ("fchmod", "mode", "file modes", "set mode"),
        ("utimensat", "timestamps", "these timestamps", "set times"),
    ] {
        let inject = format!("{calls}:retval=0");
        let run = injected(env, &inject, &["src", &format!("dst-{calls}")]).exits(0);
        let line = format!("does not support {warning};");
        let run = run.stderr_has(&line);
        assert_eq!(run.summary().copied, 10, "{run}");
        let preserve = format!("--preserve={property}");
        let args = [&preserve, "src", &format!("must-{calls}")];
        let run = injected(env, &inject, &args).exits(1);
        let line = format!(": {step}: accepted by the file system, but not kept\n");
        let run = run.stderr_has(&line);
        assert_eq!(run.summary().copied, 0, "{run}");
        assert_eq!(env.read(format!("must-{calls}/3")), b"x");
    }
});

both_modes!(
    a_time_beyond_the_range_is_warned_of_and_not_copied_again,
    |env| {
        let script = "mkdir mnt; truncate -s 60M image; mkfs.ext4 -q -I 128 image 2>/dev/null; \
                  mount -o loop image mnt";
        let Some(env) = env.mounted(script) else {
            return;
        };
        env.file("src/late", "x").mtime(4_102_444_800, 0);
        env.file("src/later", "x").mtime(4_102_444_900, 0);
        env.file("src/usual", "x").mtime(1_000_000_000, 0);
        let warning =
            "does not support these timestamps; continuing without them (2 entries, first: ";
        let run = env.pcopy(["src", "mnt/dst"]).exits(0);
        run.stderr_has(warning).counts(3, 0, 0);
        let run = env.pcopy(["src", "mnt/dst"]).exits(0);
        run.stderr_has(warning).counts(0, 3, 0);
        let plan = env.pcopy(["-n", "src", "mnt/dst"]).ok();
        assert!(!plan.stdout().contains("replace"), "{plan}");
        let run = env.pcopy(["--preserve=timestamps", "src", "mnt/must"]);
        run.exits(1)
            .stderr_has("set times: accepted by the file system, but not kept")
            .counts(1, 0, 2);
    }
);

both_modes!(
    the_last_second_of_a_file_system_is_not_copied_again,
    |env| {
        // ext4 keeps no nanoseconds in that second, as NFS 3 does not.
        let script = "mkdir mnt big; truncate -s 60M image; mkfs.ext4 -q -I 256 image 2>/dev/null; \
                  mount -o loop image mnt; mount -t tmpfs tmpfs big";
        let Some(env) = env.mounted(script) else {
            return;
        };
        env.file("big/src/last", "x").mtime(15_032_385_535, 5);
        env.pcopy(["big/src", "mnt/dst"]).exits(0).counts(1, 0, 0);
        for _ in 0..2 {
            let plan = env.pcopy(["-n", "big/src", "mnt/dst"]).ok();
            assert!(!plan.stdout().contains("replace"), "{plan}");
            let run = env.pcopy(["big/src", "mnt/dst"]).exits(0);
            run.stderr_has("does not support these timestamps")
                .counts(0, 1, 0);
        }
    }
);

// ---- what cannot be kept never costs what can -----------------------------------------------

both_modes!(an_attribute_that_is_too_large_costs_only_itself, |env| {
    // Attributes have room in one block of an ext4 file system of this kind.
    let script = "mkdir mnt big; truncate -s 60M image; mkfs.ext4 -q image 2>/dev/null; \
                  mount -o loop image mnt; mount -t tmpfs tmpfs big";
    let Some(env) = env.mounted(script) else {
        return;
    };
    let file = env.file("big/src/sub/pic", "data");
    if !file.try_xattr("user.exif", vec![b'x'; 10_000]) {
        skip("tmpfs has no user attributes here");
        return;
    }
    file.xattr("user.small", "1");
    env.at("big/src/sub/pic").mode(0o640).mtime(1_000, 0);
    env.at("big/src/sub").xattr("user.exif", vec![b'x'; 10_000]);
    env.at("big/src/sub").mode(0o750).mtime(1_000, 0);
    let run = env.pcopy(["big/src", "mnt/dst"]).exits(1);
    let reason = "set attributes: user.exif (10000 bytes): No space left on device";
    run.fails_only(&[("mnt/dst/sub/pic", reason), ("mnt/dst/sub", reason)]);
    for (path, mode) in [("sub", 0o750), ("sub/pic", 0o640)] {
        let stat = env.stat(format!("mnt/dst/{path}"));
        assert_eq!(
            (stat.mode() & 0o7777, stat.mtime()),
            (mode, 1_000),
            "{path}"
        );
    }
    assert_eq!(env.read("mnt/dst/sub/pic"), b"data");
    env.sh("getfattr -n user.small mnt/dst/sub/pic");
});

both_modes!(all_failures_of_an_entry_are_one_line, |env| {
    if skipped_without_root() || env.skipped_without_strace() {
        return;
    }
    env.file("src/file", "x").owner(1000, 1000).mode(0o640);
    let inject = "fchown,fchmod,utimensat:error=EIO";
    let run = injected(env, inject, &["src", "dst"]).exits(1);
    run.stderr_has(
        "pcopy: dst/file: set owner: Input/output error; set mode: Input/output error; \
         set times: Input/output error\n",
    );
    assert_eq!(env.read("dst/file"), b"x");
});

// ---- metadata alone -------------------------------------------------------------------------

both_modes!(metadata_alone_is_brought_without_copying, |env| {
    if skipped_without_root() {
        return;
    }
    for name in ["mode", "owner", "acl", "gone", "added", "same"] {
        env.file(format!("src/{name}"), "x").mtime(1_000, 0);
    }
    if !env.at("src/gone").try_xattr("user.old", "1") {
        skip("the temporary directory has no extended attributes");
        return;
    }
    env.hard_link("src/twin", "src/mode");
    env.symlink("src/link", "mode").mtime(1_000, 0);
    env.fifo("src/fifo").mtime(1_000, 0);
    env.pcopy(["src", "dst"]).ok();
    let names = [
        "mode", "owner", "acl", "gone", "added", "same", "twin", "link", "fifo",
    ];
    let inodes = || names.map(|name| env.stat(format!("dst/{name}")).ino());
    let before = inodes();

    env.at("src/mode").mode(0o4600);
    env.at("src/owner").owner(1000, 1001);
    env.at("src/link").owner(1000, 1001);
    env.at("src/fifo").mode(0o600);
    env.at("src/added").xattr("user.new", "2");
    env.sh("setfattr -x user.old src/gone; chmod 000 dst/same; touch -d @1000 src/mode");
    let access = [
        (AclTag::UserObj, 6, NO_ID),
        (AclTag::User, 6, 1234),
        (AclTag::GroupObj, 4, NO_ID),
        (AclTag::Mask, 6, NO_ID),
        (AclTag::Other, 0, NO_ID),
    ];
    let has_acl = env.at("src/acl").try_xattr(ACCESS_ACL, acl(&access));
    let changed = 7 + u64::from(has_acl);
    let plan = env.pcopy(["-n", "src", "dst"]).ok();
    plan.stdout_has_line("update src/owner (metadata differs)");
    let run = env.pcopy(["src", "dst"]).ok();
    assert_eq!(run.summary().copied, changed, "{run}");
    env.assert_same("src", "dst");
    assert_eq!(inodes(), before, "something was copied");
    env.pcopy(["src", "dst"]).ok().counts(0, 9, 0);
});

both_modes!(
    metadata_alone_is_left_as_overwrite_and_no_preserve_say,
    |env| {
        env.file("src/file", "x").mode(0o640);
        env.pcopy(["src", "dst"]).ok();
        env.at("src/file").mode(0o600);
        for option in [
            "--overwrite=never",
            "--overwrite=older",
            "--no-preserve=mode",
        ] {
            env.pcopy([option, "src", "dst"]).ok().counts(0, 1, 0);
            assert_eq!(env.stat("dst/file").mode() & 0o777, 0o640, "{option}");
        }
    }
);

// ---- --no-preserve --------------------------------------------------------------------------

both_modes!(an_existing_file_keeps_what_is_not_preserved, |env| {
    env.file("src/file", "new contents").mode(0o644);
    let old = env.file("dst/file", "old");
    old.mode(0o600);
    if is_root() {
        env.at("dst/file").owner(1000, 1001).mode(0o600);
    }
    let has_attributes = env.at("dst/file").try_xattr("user.mine", "1");
    env.pcopy(["--no-preserve=all", "src", "dst"]).ok();
    assert_eq!(env.read("dst/file"), b"new contents");
    let stat = env.stat("dst/file");
    assert_eq!(stat.mode() & 0o7777, 0o600);
    if is_root() {
        assert_eq!((stat.uid(), stat.gid()), (1000, 1001));
    }
    if has_attributes {
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(env.path("dst/file"), "user.mine", &mut value).unwrap();
        assert_eq!(&value[..length], b"1");
    }
});

both_modes!(a_directory_hands_down_what_is_not_preserved, |env| {
    if skipped_without_root() {
        return;
    }
    let default = [
        (AclTag::UserObj, 7, NO_ID),
        (AclTag::User, 7, 1000),
        (AclTag::GroupObj, 7, NO_ID),
        (AclTag::Mask, 7, NO_ID),
        (AclTag::Other, 0, NO_ID),
    ];
    let parent = env.dir("shared");
    if !parent.try_xattr(DEFAULT_ACL, acl(&default)) {
        skip("the temporary directory has no ACLs");
        return;
    }
    env.at("shared").owner(0, 1001).mode(0o2775);
    env.file("src/sub/file", "x").mode(0o644);
    env.file("src/sub/program", "x").mode(0o755);
    env.fifo("src/fifo").mode(0o644);
    env.pcopy(["--no-preserve=all", "--mkpath", "src", "shared/made/copy"])
        .ok();
    env.sh("mkdir shared/theirs; cp -r src shared/theirs/copy");
    for path in [
        "",
        "copy",
        "copy/sub",
        "copy/sub/file",
        "copy/sub/program",
        "copy/fifo",
    ] {
        let look = |root: &str| env.sh(&format!("stat -c '%a %g' shared/{root}/{path}"));
        assert_eq!(look("made"), look("theirs"), "{path}");
    }
    assert!(
        env.snapshot("shared/made")
            .entries
            .values()
            .any(|it| !it.xattrs.is_empty())
    );
});

both_modes!(
    root_without_capabilities_copies_into_read_only_directories,
    |env| {
        // In a container, or on a server that squashes root, a mode binds root too.
        if skipped_without_root() || env.skipped_without("setpriv") {
            return;
        }
        env.file("src/closed/first", "first");
        env.at("src/closed").mode(0o555);
        let copy = || {
            let bound = [
                "setpriv",
                "--bounding-set=-dac_override,-dac_read_search",
                "--inh-caps=-all",
            ];
            env.command(["src", "dst"]).under(&bound).run().ok()
        };
        copy().counts(1, 0, 0);
        env.file("src/closed/second", "second");
        copy().counts(1, 1, 0);
        env.assert_same("src", "dst");
        copy().counts(0, 2, 0);
    }
);
