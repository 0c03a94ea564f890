//! Everything that is kept, and everything that one can ask not to be kept.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::compare::{self, Properties, Property, Snapshot};
use crate::env::{
    ACL_NO_ID, AclTag, Env, Mode, NOBODY, acl, is_root, pattern, skip, skipped_without_root,
};
use crate::zoo::Zoo;

const MIB: u64 = 1024 * 1024;

// ---- the zoo ----------------------------------------------------------------------------------

/// Copies the zoo two times, and looks at everything after each.
fn zoo_is_copied(env: &Env, source: &str, copy: &str) {
    let left_out = Zoo::Full.build(env, source);
    println!("not in the zoo here: {left_out:?}");
    let before = env.snapshot(source);
    let run = env.pcopy([source, copy]).ok().counts(before.leaves(), 0, 0);
    println!("{}", run.stderr);
    let copied = env.snapshot(copy);
    compare::assert_same(&before, &copied, Properties::KEPT.with(Property::Atime));
    copied.assert_no_temporaries();
    before.assert_untouched();

    env.pcopy([source, copy])
        .ok()
        .counts(0, before.leaves(), 0)
        .stderr_has("; nothing to do\n");
    copied.assert_untouched();
}

both_modes!(the_zoo_is_copied_faithfully_and_then_left_alone, |env| {
    zoo_is_copied(env, "src", "dst");
});

both_modes!(a_normal_users_zoo_is_copied_faithfully, |env| {
    let left_out = Zoo::OfUser.build(env, "src");
    println!("not in the zoo here: {left_out:?}");
    env.folder("parent").mode(0o777);
    let before = env.snapshot("src");
    env.command(["src", "parent/dst"])
        .by_user()
        .run()
        .ok()
        .counts(before.leaves(), 0, 0);
    compare::assert_same(&before, &env.snapshot("parent/dst"), Properties::KEPT);
    before.assert_untouched();
    env.command(["src", "parent/dst"])
        .by_user()
        .run()
        .ok()
        .counts(0, before.leaves(), 0);
    compare::assert_same(&before, &env.snapshot("parent/dst"), Properties::KEPT);
});

both_modes!(the_zoo_is_copied_by_one_worker_as_by_many, |env| {
    Zoo::Full.build(env, "src");
    for jobs in ["1", "16"] {
        let copy = format!("dst-{jobs}");
        env.pcopy(["-j", jobs, "src", &copy]).ok();
        env.assert_same("src", &copy);
    }
});

both_modes!(a_copy_that_was_spoilt_everywhere_is_repaired, |env| {
    Zoo::Full.build(env, "src");
    env.pcopy(["src", "dst"]).ok();
    // Every file gets another time, and a third of them another length. FIFOs and links as well.
    env.sh("find dst -path 'dst/deep-*' -prune -o -type f -size -100k -print0 | awk 'BEGIN{RS=ORS=\"\\0\"} NR%3==0' | xargs -0 truncate -s 3");
    env.sh("find dst -path 'dst/deep-*' -prune -o ! -type d -print0 | xargs -0 touch -h -d @1234");
    env.pcopy(["src", "dst"]).ok();
    let copy = env.snapshot("dst");
    compare::assert_same(&env.snapshot("src"), &copy, Properties::KEPT);
    copy.assert_no_temporaries();
});

/// For the record: what the usual tool makes of the same zoo.
#[test]
fn cp_a_is_compared_in_the_same_way() {
    let env = Env::new(Mode::Thread);
    Zoo::Full.build(&env, "src");
    let source = env.snapshot("src");
    // It fails: paths longer than PATH_MAX are beyond it.
    println!("{}", env.sh("cp -aT src dst 2>&1 || true"));
    let found = compare::differences(&source, &env.snapshot("dst"), Properties::KEPT);
    println!(
        "cp -a differs from the source in {} points:\n{}",
        found.len(),
        found.join("\n")
    );
    // The comparer and cp come from different hands: wide agreement says that both are right.
    assert!(source.entries.len() > 1_000);
    let found: Vec<_> = found
        .iter()
        .filter(|line| !line.starts_with("deep-deep-"))
        .collect();
    assert!(found.len() < 20, "cp -a is not that bad: {found:#?}");
}

// ---- file systems -----------------------------------------------------------------------------

/// The zoo, copied within a file system of this kind, and from it to the one of the tests.
fn zoo_on(env: &Env, make: &str, mount: &str) {
    let script = format!("mkdir mnt; {make}\nmount {mount} mnt");
    let Some(env) = env.mounted(&script) else {
        return;
    };
    zoo_is_copied(&env, "mnt/src", "mnt/dst");
    let before = env.snapshot("mnt/src");
    env.pcopy(["mnt/src", "dst"]).ok();
    compare::assert_same(&before, &env.snapshot("dst"), Properties::KEPT);
    env.pcopy(["dst", "mnt/back"]).ok();
    compare::assert_same(&before, &env.snapshot("mnt/back"), Properties::KEPT);
}

both_modes!(the_zoo_on_ext4, |env| {
    zoo_on(
        env,
        "truncate -s 256M image; mkfs.ext4 -q image",
        "-o loop image",
    );
});

both_modes!(the_zoo_on_xfs, |env| {
    zoo_on(
        env,
        "truncate -s 400M image; mkfs.xfs -q image",
        "-o loop image",
    );
});

both_modes!(the_zoo_on_btrfs, |env| {
    zoo_on(
        env,
        "truncate -s 400M image; mkfs.btrfs -q image",
        "-o loop image",
    );
});

both_modes!(the_zoo_on_tmpfs, |env| {
    zoo_on(env, "", "-t tmpfs -o size=300m tmpfs");
});

both_modes!(btrfs_shares_extents_unless_asked_not_to, |env| {
    let script = "mkdir mnt; truncate -s 400M image; mkfs.btrfs -q image; mount -o loop image mnt";
    let Some(env) = env.mounted(script) else {
        return;
    };
    env.file("mnt/src/file", pattern(MIB as usize * 2, 1));
    for (option, shared) in [
        ("--reflink=auto", true),
        ("--reflink=always", true),
        ("--reflink", true),
        ("--reflink=never", false),
    ] {
        let copy = format!("mnt/dst{option}-{shared}");
        env.pcopy([option, "mnt/src", &copy]).ok();
        env.assert_same("mnt/src", &copy);
        let extents = env.sh(&format!("sync -f mnt; filefrag -v '{copy}/file'"));
        assert_eq!(extents.contains("shared"), shared, "{option}:\n{extents}");
    }
});

both_modes!(reflink_always_fails_where_it_cannot_be_done, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs tmpfs mnt") else {
        return;
    };
    env.file("mnt/src/file", pattern(10_000, 1));
    env.symlink("mnt/src/link", "file");
    let run = env
        .pcopy(["--reflink=always", "mnt/src", "mnt/dst"])
        .exits(1)
        .counts(1, 0, 1);
    assert!(
        run.failures().len() == 1 && run.failures()[0].starts_with("pcopy: mnt/"),
        "{run}"
    );
    assert!(!env.exists("mnt/dst/file"), "nothing unfinished stays");
    env.assert_same("mnt/src/link", "mnt/dst/link");
});

both_modes!(
    the_mask_of_a_lost_acl_does_not_become_the_groups_rights,
    |env| {
        use AclTag::{GroupObj, Mask, Other, User, UserObj};
        let Some(env) = env.mounted("mkdir mnt; mount -t ramfs ramfs mnt") else {
            return;
        };
        let of = |group| {
            acl(&[
                (UserObj, 7, ACL_NO_ID),
                (User, 6, 1234),
                (GroupObj, group, ACL_NO_ID),
                (Mask, 6, ACL_NO_ID),
                (Other, 0, ACL_NO_ID),
            ])
        };
        let name = "system.posix_acl_access";
        let file = env.file("src/folder/nothing", "x");
        if !file.try_xattr(name, of(0)) {
            skip("the temporary folder has no ACLs");
            return;
        }
        env.file("src/folder/read", "x").xattr(name, of(4));
        env.fifo("src/folder/fifo").xattr(name, of(0));
        env.at("src/folder").xattr(name, of(0));
        assert_eq!(env.stat("src/folder/nothing").mode() & 0o777, 0o760);
        env.pcopy(["src", "mnt/dst"]).exits(0);
        for (path, mode) in [
            ("folder/nothing", 0o700),
            ("folder/read", 0o740),
            ("folder/fifo", 0o700),
            ("folder", 0o700),
        ] {
            let there = env.stat(format!("mnt/dst/{path}")).mode() & 0o777;
            assert_eq!(there, mode, "{path}: {there:o}");
        }
    }
);

both_modes!(what_a_file_system_cannot_hold_is_said_once, |env| {
    // ramfs has no extended attributes.
    let Some(env) = env.mounted("mkdir mnt; mount -t ramfs ramfs mnt") else {
        return;
    };
    for i in 0..50 {
        let file = env.file(format!("src/file-{i}"), "x");
        if !file.try_xattr("user.test", "value") {
            skip("the temporary folder has no extended attributes");
            return;
        }
    }
    if env.file("mnt/try", "").try_xattr("user.test", "value") {
        skip("ramfs holds attributes here");
        return;
    }
    let run = env.pcopy(["src", "mnt/dst"]).exits(0).counts(50, 0, 0);
    assert_eq!(run.failures().len(), 1, "one line for the run:\n{run}");
    assert!(run.failures()[0].contains("attribute"), "{run}");
    compare::assert_same(
        &env.snapshot("src"),
        &env.snapshot("mnt/dst"),
        Properties::KEPT.without(Property::Xattrs),
    );
    // What was asked for by name is a failure.
    let run = env
        .pcopy(["--preserve", "xattr", "src", "mnt/dst-2"])
        .exits(1);
    assert_eq!(run.summary().failed, 50, "{run}");
    // And what was not asked for is not missed.
    env.pcopy(["--no-preserve", "xattr", "src", "mnt/dst-3"])
        .ok()
        .counts(50, 0, 0);
});

/// Puts a FAT file system at `mnt`: the kernel's, or where it has none the one of fusefat.
const FAT: &str = "\
mkdir mnt; truncate -s 64M image; mkfs.vfat image >/dev/null
mount -t vfat -o loop image mnt 2>/dev/null || fusefat -o rw+ image mnt >&2 2>/dev/null
mountpoint -q mnt || { echo 'neither the kernel nor fusefat mounts FAT here' >&2; exit 1; }";

both_modes!(names_that_the_destination_takes_for_one_are_told, |env| {
    let Some(env) = env.mounted(FAT) else {
        return;
    };
    for name in ["src/A/one", "src/a/two"] {
        env.file(name, "x");
    }
    let run = env.pcopy(["src", "mnt/dst"]).exits(1);
    assert_eq!(run.summary().failed, 1, "{run}");
    assert_eq!(run.summary().copied, 1, "{run}");
});

both_modes!(fat_gets_what_it_can_hold, |env| {
    let Some(env) = env.mounted(FAT) else {
        return;
    };
    let file = |path: &str, content: &[u8]| env.file(path, content);
    file("src/private", b"private")
        .mode(0o600)
        .mtime(1_000_000_001, 999_999_999);
    file("src/program", b"program")
        .mode(0o755)
        .mtime(1_000_000_003, 500_000_000);
    file("src/even", b"even").mtime(1_000_000_004, 0);
    file("src/owned", b"owned").owner(1234, 2345);
    file("src/empty", b"");
    file("src/large", &pattern(40 * MIB as usize, 1));
    let attributed = file("src/attributed", b"x");
    let has_attributes = attributed.try_xattr("user.test", "value");
    env.hard_link("src/twin", "src/program");
    // Zeros between data: some make a file longer only by writing, and not with zeros.
    env.sparse("src/sparse", MIB, &[(0, b"data"), (MIB / 2, b"data")]);
    file("src/folder/inside", b"inside").mtime(1_000_000_005, 1);
    env.at("src/folder").mode(0o555).mtime(1_000_000_007, 5);
    // These cannot be there.
    env.symlink("src/link", "private");
    env.fifo("src/fifo");
    file("src/colon:name", b"x");
    let refused = ["src/link", "src/fifo", "src/colon:name"];
    let files = 10;

    let run = env.pcopy(["src", "mnt/dst"]).exits(1);
    let run = run.counts(files, 0, refused.len() as u64);
    for path in refused {
        let path = path.replace("src", "mnt/dst");
        assert!(run.stderr.contains(&format!("{path}: create: ")), "{run}");
    }
    let about = |what: &str| {
        let of_it = |line: &&&str| line.contains(what) && line.contains("does not support");
        run.failures().iter().filter(of_it).count()
    };
    assert_eq!(about("file ownership"), 1, "{run}");
    assert_eq!(about("attributes"), usize::from(has_attributes), "{run}");
    // The kernel's FAT takes any mode and says nothing; it keeps a part of one.
    assert!(about("file modes") <= 1, "{run}");

    let (source, copy) = (env.snapshot("src"), env.snapshot("mnt/dst"));
    for (path, entry) in &source.entries {
        let path = String::from_utf8_lossy(path);
        let (original, copied) = (format!("src/{path}"), format!("mnt/dst/{path}"));
        if refused.contains(&original.as_str()) {
            continue;
        }
        if env.stat(&original).is_file() {
            assert!(env.read(&original) == env.read(&copied), "{copied}");
        }
        // FAT keeps every other second.
        let (seconds, _) = entry.mtime;
        let kept = env.stat(&copied).mtime();
        assert_eq!(kept, seconds - seconds % 2, "the time of {copied}");
    }
    copy.assert_no_temporaries();

    // What FAT has kept of a time is the same time: nothing is copied again.
    let plan = env.pcopy(["-n", "src", "mnt/dst"]).ok();
    assert!(!plan.stdout().contains("(time differs)"), "{plan}");
    let again = env.pcopy(["src", "mnt/dst"]).exits(1);
    again.counts(0, files, refused.len() as u64);
    // But a change within the size is seen, as soon as its time is another one on FAT.
    env.file("src/private", "changed").mtime(1_000_000_002, 0);
    let again = env.pcopy(["src", "mnt/dst"]).exits(1);
    again.counts(1, files - 1, refused.len() as u64);
    assert_eq!(env.read("mnt/dst/private"), b"changed");
});

both_modes!(times_in_whole_seconds_are_no_reason_to_copy_again, |env| {
    // Inodes of 128 bytes have no room for more.
    let script = "mkdir mnt; truncate -s 256M image; mkfs.ext4 -q -I 128 image 2>/dev/null; mount -o loop image mnt";
    let Some(env) = env.mounted(script) else {
        return;
    };
    env.file("src/file", "one").mtime(1_000_000_001, 5);
    env.file("src/large", pattern(33 * MIB as usize, 1));
    env.symlink("src/link", "file").mtime(1_000_000_001, 5);
    env.pcopy(["src", "mnt/dst"]).ok().counts(3, 0, 0);
    let plan = env.pcopy(["-n", "src", "mnt/dst"]).ok();
    assert!(!plan.stdout().contains("replace"), "{plan}");
    env.pcopy(["src", "mnt/dst"]).ok().counts(0, 3, 0);
    // Half a step of FAT is a whole one here.
    env.file("src/file", "two").mtime(1_000_000_002, 5);
    env.pcopy(["src", "mnt/dst"]).ok().counts(1, 2, 0);
    env.file("src/file", "six").mtime(1_000_000_003, 5);
    env.pcopy(["src", "mnt/dst"]).ok().counts(1, 2, 0);
    assert_eq!(env.read("mnt/dst/file"), b"six");
});

both_modes!(where_nanoseconds_are_kept_each_one_counts, |env| {
    env.file("src/file", "two").mtime(1_000_000_001, 1);
    env.file("dst/file", "one").mtime(1_000_000_001, 0);
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
    env.file("src/file", "six").mtime(1_000_000_003, 5);
    env.at("dst/file").mtime(1_000_000_002, 0);
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
});

// ---- one property at a time -------------------------------------------------------------------

both_modes!(the_umask_plays_no_part, |env| {
    env.file("src/open", "x").mode(0o666);
    env.folder("src/folder").mode(0o777);
    env.fifo("src/fifo").mode(0o666);
    for umask in ["000", "077", "777"] {
        let copy = format!("dst-{umask}");
        env.command(["src", &copy])
            .after(&format!("umask {umask}"))
            .run()
            .ok();
        env.assert_same("src", &copy);
    }
});

both_modes!(a_default_acl_at_the_destination_does_not_leak, |env| {
    use AclTag::{GroupObj, Mask, Other, User, UserObj};
    let default = acl(&[
        (UserObj, 7, ACL_NO_ID),
        (User, 7, 1234),
        (GroupObj, 7, ACL_NO_ID),
        (Mask, 7, ACL_NO_ID),
        (Other, 7, ACL_NO_ID),
    ]);
    env.file("src/file", "x").mode(0o640);
    env.folder("src/folder/inner").mode(0o750);
    env.fifo("src/fifo").mode(0o600);
    // The folder in which DST is made hands its ACL down.
    if !env
        .folder("parent")
        .try_xattr("system.posix_acl_default", &default)
    {
        skip("no ACLs in the temporary folder");
        return;
    }
    env.pcopy(["src", "parent/dst"]).ok();
    env.assert_same("src", "parent/dst");
    env.pcopy(["src/file", "parent"]).ok();
    env.assert_same("src/file", "parent/file");
    // And a folder of the source with a default ACL does not hand it down while it is filled.
    env.at("src/folder")
        .xattr("system.posix_acl_default", &default);
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(a_setgid_folder_at_the_destination_does_not_leak, |env| {
    if skipped_without_root() {
        return;
    }
    env.file("src/folder/file", "x").mode(0o640);
    env.folder("parent").owner(0, 1234).mode(0o2775);
    env.pcopy(["src", "parent/dst"]).ok();
    env.assert_same("src", "parent/dst");
});

both_modes!(
    files_in_a_new_folder_below_a_setgid_one_get_their_group,
    |env| {
        if skipped_without_root() {
            return;
        }
        env.folder("parent").owner(0, 1234).mode(0o2775);
        env.file("src/file", "x").owner(0, 1234).mode(0o640);
        env.file("src/folder/file", "x").owner(0, 1234).mode(0o640);
        env.pcopy(["src", "parent/dst"]).ok();
        env.assert_same("src", "parent/dst");
    }
);

both_modes!(folders_that_users_may_not_write_to_stay_so, |env| {
    env.file("src/a/first", "x");
    env.hard_link("src/b/second", "src/a/first");
    env.file("file", "x");
    for folder in ["src/a", "src/b", "closed"] {
        env.folder(folder).mode(0o555);
    }
    env.sh("chmod 777 .");
    let by_user = |args: &[&str]| env.command(args).by_user().run();
    by_user(&["-j1", "src", "dst"]).ok();
    for folder in ["dst/a", "dst/b"] {
        assert_eq!(env.stat(folder).mode() & 0o7777, 0o555, "{folder}");
    }
    by_user(&["file", "closed/"]).exits(1);
    assert_eq!(env.stat("closed").mode() & 0o7777, 0o555);
});

both_modes!(
    a_large_file_that_may_only_be_read_is_copied_by_a_user,
    |env| {
        env.file("src/large", pattern(40 * MIB as usize, 1))
            .mode(0o444);
        env.sh("chmod 777 .");
        env.command(["--reflink=never", "src", "dst"])
            .by_user()
            .run()
            .ok();
        assert_eq!(env.read("src/large"), env.read("dst/large"));
        assert_eq!(env.stat("dst/large").mode() & 0o7777, 0o444);
    }
);

both_modes!(the_longest_file_that_can_be_is_copied, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=8m tmpfs mnt; mkdir mnt/src")
    else {
        return;
    };
    env.sh("truncate -s 9223372036854775807 mnt/src/file; echo x > mnt/src/other");
    env.pcopy(["mnt/src", "mnt/dst"]).ok();
    assert_eq!(env.stat("mnt/dst/file").size(), i64::MAX as u64);
});

both_modes!(links_are_kept_where_what_is_there_is_left, |env| {
    env.file("src/a", "x");
    env.hard_link("src/b", "src/a");
    for overwrite in ["never", "older"] {
        let option = format!("--overwrite={overwrite}");
        env.pcopy([&option, "--no-preserve=timestamps", "src", overwrite])
            .ok();
        let of = |name| env.stat(format!("{overwrite}/{name}")).ino();
        assert_eq!(of("a"), of("b"), "{overwrite}");
    }
});

both_modes!(access_times_of_files_are_kept, |env| {
    env.file("src/file", "content")
        .atime(1_000_000_000, 987_654_321);
    env.file("src/big", pattern(9 * MIB as usize, 2))
        .atime(1_000_000_001, 1);
    env.file("src/one", "one").atime(1_000_000_002, 2);
    env.hard_link("src/two", "src/one");
    // pcopy itself may change them by reading, so this is what they were before.
    let before = env.snapshot("src");
    env.pcopy(["src", "dst"]).ok();
    compare::assert_same(
        &before,
        &env.snapshot("dst"),
        Properties::KEPT.with(Property::Atime),
    );
});

both_modes!(hard_links_are_kept_across_the_sources_of_one_run, |env| {
    env.file("one/file", "content");
    env.hard_link("two/deeper/file", "one/file");
    env.hard_link("three", "one/file");
    env.pcopy(["-t", "dst", "one", "two", "three"]).ok();
    let inode = |path: &str| env.stat(path).ino();
    assert_eq!(inode("dst/one/file"), inode("dst/two/deeper/file"));
    assert_eq!(inode("dst/one/file"), inode("dst/three"));
    assert_eq!(env.read("dst/three"), b"content");
});

both_modes!(a_hard_link_that_comes_later_is_joined_to_its_group, |env| {
    env.file("src/a", "content");
    env.hard_link("src/b", "src/a");
    env.pcopy(["src", "dst"]).ok();
    env.hard_link("src/0-before", "src/a");
    env.hard_link("src/folder/z-after", "src/a");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(
    a_group_of_hard_links_that_was_changed_is_replaced_as_a_whole,
    |env| {
        env.file("src/a", "content");
        env.hard_link("src/b", "src/a");
        env.hard_link("src/folder/c", "src/a");
        env.pcopy(["src", "dst"]).ok();
        env.file("src/a", "other content");
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
    }
);

both_modes!(
    what_older_and_never_leave_is_neither_linked_to_nor_replaced,
    |env| {
        env.file("src/a", "content").mtime(1_000, 0);
        env.hard_link("src/b", "src/a");
        for option in ["--overwrite=older", "--overwrite=never"] {
            // One of the two is there, and newer: the other one gets the source's content.
            for (there, missing) in [("a", "b"), ("b", "a")] {
                let copy = format!("dst{option}-{there}");
                env.file(format!("{copy}/{there}"), "of another kind");
                env.pcopy([option, "src", &copy]).ok();
                assert_eq!(env.read(format!("{copy}/{there}")), b"of another kind");
                assert_eq!(env.read(format!("{copy}/{missing}")), b"content");
            }
            // Both are.
            let copy = format!("dst{option}-both");
            env.file(format!("{copy}/a"), "one");
            env.file(format!("{copy}/b"), "the other");
            env.pcopy([option, "src", &copy]).ok().counts(0, 0, 0);
            assert_eq!(env.read(format!("{copy}/a")), b"one");
            assert_eq!(env.read(format!("{copy}/b")), b"the other");
        }
    }
);

both_modes!(the_plan_for_hard_links_is_what_is_done, |env| {
    env.file("src/a", "content");
    env.hard_link("src/b", "src/a");
    env.pcopy(["src", "dst"]).ok();
    env.file("src/a", "longer content");
    for option in ["changed", "older", "never", "always"] {
        let args = ["--overwrite", option, "src", "dst"];
        let planned = env.pcopy([&["-n"][..], &args].concat()).ok().summary();
        let done = env.pcopy(args).ok().summary();
        assert_eq!(planned.copied, done.copied, "{option}");
        // Something to be done for the next one as well.
        env.file("src/a", format!("content for {option}"));
    }
});

both_modes!(
    separate_files_are_not_joined_and_joined_ones_are_separated,
    |env| {
        env.file("src/a", "one").mtime(1, 1);
        env.file("src/b", "two").mtime(1, 2);
        env.file("dst/a", "one").mtime(1, 1);
        env.hard_link("dst/b", "dst/a");
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
    }
);

both_modes!(
    a_normal_user_keeps_what_is_allowed_and_hears_nothing,
    |env| {
        if skipped_without_root() {
            return;
        }
        env.file("src/roots", "x").owner(0, 0).mode(0o644);
        env.file("src/setuid", "x").owner(0, 0).mode(0o6755);
        env.file("src/own-setuid", "x")
            .owner(NOBODY, NOBODY)
            .mode(0o4755);
        env.folder("src/folder").owner(7, 7).mode(0o2755);
        env.symlink("src/link", "roots");
        env.folder("parent").mode(0o777);
        let run = env.command(["src", "parent/dst"]).by_user().run().ok();
        assert_eq!(run.stderr.lines().count(), 1, "the summary only:\n{run}");
        let mode = |path: &str| env.stat(format!("parent/dst/{path}")).mode() & 0o7777;
        assert_eq!(mode("roots"), 0o644);
        assert_eq!(
            mode("setuid"),
            0o755,
            "a setuid bit without its owner is dropped"
        );
        assert_eq!(mode("own-setuid"), 0o4755, "and kept with its owner");
        assert_eq!(mode("folder") & 0o777, 0o755);
        assert_eq!(env.stat("parent/dst/roots").uid(), NOBODY);
        compare::assert_same(
            &env.snapshot("src"),
            &env.snapshot("parent/dst"),
            Properties::KEPT
                .without(Property::Owner)
                .without(Property::Mode),
        );
        // Asked for by name, it is a failure.
        env.command(["--preserve", "ownership", "src/roots", "parent/asked"])
            .by_user()
            .run()
            .exits(1);
    }
);

both_modes!(
    an_acl_of_the_destination_does_not_survive_a_replacement,
    |env| {
        use AclTag::{GroupObj, Mask, Other, User, UserObj};
        let open = acl(&[
            (UserObj, 6, ACL_NO_ID),
            (User, 6, 1234),
            (GroupObj, 4, ACL_NO_ID),
            (Mask, 6, ACL_NO_ID),
            (Other, 0, ACL_NO_ID),
        ]);
        env.file("src/file", "newer").mode(0o600);
        env.folder("src/folder").mode(0o700);
        if !env
            .file("dst/file", "old")
            .try_xattr("system.posix_acl_access", &open)
        {
            skip("no ACLs in the temporary folder");
            return;
        }
        env.folder("dst/folder")
            .xattr("system.posix_acl_access", &open)
            .xattr("user.stale", "x");
        env.pcopy(["src", "dst"]).ok();
        let copy = env.snapshot("dst");
        assert_eq!(
            copy.entry("file").xattrs.len(),
            0,
            "{:?}",
            copy.entry("file").xattrs
        );
        assert_eq!(copy.entry("folder").mode, 0o700);
        let acl_of_folder = copy
            .entry("folder")
            .xattrs
            .get(b"system.posix_acl_access".as_slice());
        assert_eq!(
            acl_of_folder, None,
            "a folder that nobody else may enter can be entered"
        );
    }
);

both_modes!(
    a_source_file_named_like_a_temporary_one_is_copied_and_stays,
    |env| {
        env.file("src/.pcopy.mine.tmp", "mine");
        env.file("src/.pcopy.1234.tmp", "mine too");
        env.file("src/other", "x");
        for _ in 0..2 {
            env.pcopy(["src", "dst"]).ok();
            env.assert_same("src", "dst");
        }
        // Even when there is something to replace beside it.
        env.file("src/other", "longer");
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
    }
);

// ---- what one can ask for ---------------------------------------------------------------------

/// A file with all that can be left out by `--no-preserve`.
fn rich_source(env: &Env) {
    let file = env.file("src/file", "x");
    if is_root() {
        env.at("src/file").owner(1, 2);
    }
    env.at("src/file").mode(0o4705).mtime(1_000, 1);
    file.try_xattr("user.test", "value");
    env.hard_link("src/twin", "src/file");
    env.folder("src/folder").mode(0o2705).mtime(1_000, 2);
    env.symlink("src/link", "file").mtime(1_000, 3);
    env.at("src").mtime(1_000, 4);
}

/// Copies all but what `word` stands for, and sees that nothing else is missing.
fn all_but(env: &Env, word: &str, properties: Properties) -> (Snapshot, Snapshot) {
    rich_source(env);
    env.pcopy(["--no-preserve", word, "src", "dst"]).ok();
    let (source, copy) = (env.snapshot("src"), env.snapshot("dst"));
    compare::assert_same(&source, &copy, properties);
    (source, copy)
}

fn is_recent((seconds, _): (i64, i64)) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.saturating_sub(Duration::from_secs(seconds.cast_unsigned())) < Duration::from_secs(300)
}

both_modes!(modes_need_not_be_kept, |env| {
    let (_, copy) = all_but(env, "mode", Properties::KEPT.without(Property::Mode));
    // As for any new file: what the umask leaves.
    assert_eq!(copy.entry("file").mode, 0o644);
    assert_eq!(copy.entry("folder").mode, 0o755);
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
            "no setuid bit for somebody else"
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
    assert_eq!(copy.entry("file").mode, 0o644);
});

both_modes!(several_words_are_a_list, |env| {
    let properties = Properties::KEPT
        .without(Property::Mtime)
        .without(Property::HardLinks);
    let (_, copy) = all_but(env, "timestamps,links", properties);
    assert!(is_recent(copy.entry("file").mtime));
});

both_modes!(what_is_preserved_by_name_is_no_less_than_the_rest, |env| {
    rich_source(env);
    env.pcopy(["--preserve", "mode,timestamps,links", "src", "dst"])
        .ok();
    env.assert_same("src", "dst");
});

both_modes!(sparse_always_makes_holes_of_zeros, |env| {
    let mut content = vec![0; 8 * MIB as usize];
    content[3_000_000..3_000_100].fill(1);
    env.file("src/zeros", &content);
    env.file("src/only-zeros", vec![0; 2 * MIB as usize]);
    env.file("src/small", "x");
    env.pcopy(["--sparse", "always", "src", "dst"]).ok();
    env.assert_same("src", "dst");
    assert!(env.snapshot("dst").entry("zeros").allocated <= MIB);
    assert!(env.snapshot("dst").entry("only-zeros").allocated <= MIB / 4);
});

both_modes!(sparse_never_fills_the_holes, |env| {
    env.sparse("src/holes", 4 * MIB, &[(MIB, b"data")]);
    env.pcopy(["--sparse", "never", "src", "dst"]).ok();
    let (source, copy) = (env.snapshot("src"), env.snapshot("dst"));
    compare::assert_same(&source, &copy, Properties::KEPT.without(Property::Blocks));
    assert!(
        copy.entry("holes").allocated >= 4 * MIB,
        "{}",
        copy.entry("holes").allocated
    );
});

both_modes!(holes_are_not_read, |env| {
    // Read at a gigabyte a second, this would take two hours.
    env.sparse("src/huge", 1 << 43, &[(1 << 42, b"data")]);
    let run = env
        .command(["src", "dst"])
        .within(Duration::from_secs(30))
        .run()
        .ok();
    println!("{run}");
    env.assert_same("src", "dst");
});

both_modes!(dereference_copies_what_links_point_to, |env| {
    env.file("outside/file", "outside").mode(0o640).mtime(5, 5);
    env.file("outside/folder/inside", "inside").mtime(6, 6);
    env.symlink("src/file", "../outside/file");
    env.symlink("src/folder", "../outside/folder");
    env.file("src/plain", "plain");
    env.pcopy(["-L", "src", "dst"]).ok();
    env.assert_same("outside/file", "dst/file");
    env.assert_same("outside/folder", "dst/folder");
    env.assert_same("src/plain", "dst/plain");
    let before = env.snapshot("dst");
    let run = env.pcopy(["--dereference", "src", "dst"]).ok();
    assert_eq!(run.summary().copied, 0, "{run}");
    before.assert_untouched();
});

both_modes!(dereference_reports_dangling_links_and_loops, |env| {
    env.symlink("src/dangling", "nowhere");
    env.symlink("src/folder/up", "..");
    env.symlink("src/self", "self");
    env.file("src/folder/file", "x");
    let run = env
        .command(["-L", "src", "dst"])
        .within(Duration::from_secs(30))
        .run()
        .exits(1);
    for name in ["src/dangling: ", "src/folder/up: ", "src/self: "] {
        assert!(run.stderr.contains(name), "no failure of {name}:\n{run}");
    }
    env.assert_same("src/folder/file", "dst/folder/file");
});

both_modes!(one_file_system_leaves_mounts_out, |env| {
    let Some(env) = env.mounted(
        "mkdir -p src/mnt src/here; mount -t tmpfs tmpfs src/mnt; echo x > src/mnt/other; echo x > src/here/file",
    ) else {
        return;
    };
    env.pcopy(["-x", "src", "dst"]).ok();
    assert!(!env.exists("dst/mnt/other"));
    env.assert_same("src/here", "dst/here");
    // Without it everything comes.
    env.pcopy(["src", "dst-2"]).ok();
    env.assert_same("src", "dst-2");
});

both_modes!(fsync_makes_the_same_copy, |env| {
    Zoo::Full.build(env, "src");
    env.pcopy(["--fsync", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(fsync_has_every_new_name_on_disk, |env| {
    env.file("src/file", "x");
    let synced = |source: &str, copy: &str| {
        let trace = "set -- strace -f -y -qq -e trace=fsync -o trace \"$@\"";
        let args = ["--fsync", source, copy];
        env.command(args).after(trace).run().ok();
        let trace = String::from_utf8_lossy(&env.read("trace")).into_owned();
        let root = env.inner_path("");
        let path_of = |line: &str| {
            let (_, path) = line.split_once('<')?;
            let path = Path::new(path.split_once('>')?.0);
            Some(path.strip_prefix(&root).ok()?.to_owned())
        };
        trace.lines().filter_map(path_of).collect::<BTreeSet<_>>()
    };
    if env.skipped_without("strace") {
        return;
    }
    // The folder in which the first missing one was made is the environment's.
    assert_eq!(
        synced("src", "new/deep/dst"),
        ["", "new", "new/deep", "new/deep/dst", "new/deep/dst/file"]
            .map(PathBuf::from)
            .into()
    );
    assert_eq!(
        synced("src/file", "other/dst"),
        ["", "other", "other/dst"].map(PathBuf::from).into()
    );
});

both_modes!(a_folder_of_proc_and_sys_has_its_content, |env| {
    // They claim size 0, or a page, and have neither.
    env.pcopy(["/proc/version", "version"]).ok();
    assert_eq!(env.read("version"), fs::read("/proc/version").unwrap());
    env.pcopy([
        "/proc/filesystems",
        "/proc/cmdline",
        "/proc/self/mountinfo",
        "several",
    ])
    .ok();
    assert_eq!(
        env.read("several/filesystems"),
        fs::read("/proc/filesystems").unwrap()
    );
    assert_eq!(
        env.read("several/cmdline"),
        fs::read("/proc/cmdline").unwrap()
    );
    assert!(!env.read("several/mountinfo").is_empty());

    // Some of these cannot be read, and some change with each reading.
    let run = env.pcopy(["/proc/sys/kernel", "kernel"]);
    assert!(matches!(run.status.code(), Some(0 | 1)), "{run}");
    for name in ["ostype", "osrelease", "hostname", "pid_max"] {
        let real = fs::read(format!("/proc/sys/kernel/{name}")).unwrap();
        assert_eq!(env.read(format!("kernel/{name}")), real, "{name}");
    }
});

both_modes!(
    files_of_sys_that_are_shorter_than_they_claim_are_copied,
    |env| {
        let folder = "/sys/kernel/mm/transparent_hugepage";
        let Ok(real) = fs::read(format!("{folder}/enabled")) else {
            skip(format_args!("there is no {folder}"));
            return;
        };
        env.pcopy([folder, "dst"]).ok();
        assert_eq!(env.read("dst/enabled"), real);
    }
);
