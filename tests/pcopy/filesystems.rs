//! Kinds of file systems, and the options that depend on them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::acl::{ACCESS_ACL, AclTag, NO_ID, acl};
use crate::compare::{self, Properties, Property};
use crate::env::{Env, skip};
use crate::fidelity::zoo_is_copied;
use crate::mounts::FAT;
use crate::noise::pattern;

const MIB: u64 = 1024 * 1024;

// ---- the zoo on each ------------------------------------------------------------------------

/// Copies the zoo within a file system of this kind, to that of the tests, and back.
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

// ---- what a file system lacks ---------------------------------------------------------------

both_modes!(the_mask_of_a_lost_acl_grants_nothing_to_the_group, |env| {
    use AclTag::{GroupObj, Mask, Other, User, UserObj};
    let Some(env) = env.mounted("mkdir mnt; mount -t ramfs ramfs mnt") else {
        return;
    };
    let of = |group| {
        acl(&[
            (UserObj, 7, NO_ID),
            (User, 6, 1234),
            (GroupObj, group, NO_ID),
            (Mask, 6, NO_ID),
            (Other, 0, NO_ID),
        ])
    };
    let name = ACCESS_ACL;
    let file = env.file("src/directory/nothing", "x");
    if !file.try_xattr(name, of(0)) {
        skip("the temporary directory has no ACLs");
        return;
    }
    env.file("src/directory/read", "x").xattr(name, of(4));
    env.fifo("src/directory/fifo").xattr(name, of(0));
    env.at("src/directory").xattr(name, of(0));
    assert_eq!(env.stat("src/directory/nothing").mode() & 0o777, 0o760);
    env.pcopy(["src", "mnt/dst"]).exits(0);
    for (path, mode) in [
        ("directory/nothing", 0o700),
        ("directory/read", 0o740),
        ("directory/fifo", 0o700),
        ("directory", 0o700),
    ] {
        let found = env.stat(format!("mnt/dst/{path}")).mode() & 0o777;
        assert_eq!(found, mode, "{path}: {found:o}");
    }
});

const OWNERS: &str = "file ownership; continuing without it";
const MODES: &str = "file modes; continuing without them";
const XATTRS: &str = "some extended attributes; continuing without them";

/// Returns the line about metadata that the destination does not support.
fn warning(lacking: &str) -> String {
    format!("pcopy: warning: destination does not support {lacking}")
}

both_modes!(an_unsupported_attribute_is_one_warning, |env| {
    // ramfs has no extended attributes.
    let Some(env) = env.mounted("mkdir mnt; mount -t ramfs ramfs mnt") else {
        return;
    };
    for i in 0..50 {
        let file = env.file(format!("src/file-{i}"), "x");
        if !file.try_xattr("user.test", "value") {
            skip("the temporary directory has no extended attributes");
            return;
        }
    }
    if env.file("mnt/try", "").try_xattr("user.test", "value") {
        skip("ramfs has attributes here");
        return;
    }
    let run = env.pcopy(["src", "mnt/dst"]).exits(0).counts(50, 0, 0);
    let [line] = run.complaints()[..] else {
        panic!("not one line: {run}");
    };
    assert!(line.starts_with(&warning(XATTRS)), "{run}");
    assert!(line.contains(" (50 entries, first: mnt/dst/file-"), "{run}");
    compare::assert_same(
        &env.snapshot("src"),
        &env.snapshot("mnt/dst"),
        Properties::KEPT.without(Property::Xattrs),
    );
    // An attribute that is asked for by name is an error.
    let run = env
        .pcopy(["--preserve", "xattr", "src", "mnt/dst-2"])
        .exits(1);
    assert_eq!(run.summary().failed, 50, "{run}");
    // Attributes that are not wanted are not missed.
    env.pcopy(["--no-preserve", "xattr", "src", "mnt/dst-3"])
        .ok()
        .counts(50, 0, 0);
});

both_modes!(two_names_that_are_one_on_fat_are_an_error, |env| {
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

both_modes!(fat_keeps_all_that_it_supports, |env| {
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
    file("src/owned", b"owned")
        .owner(1234, 2345)
        .mtime(1_000_000_011, 0);
    file("src/empty", b"").mtime(1_000_000_013, 0);
    file("src/large", &pattern(40 * MIB as usize, 1)).mtime(1_000_000_009, 5);
    let attributed = file("src/attributed", b"x");
    let has_attributes = attributed.try_xattr("user.test", "value");
    env.hard_link("src/twin", "src/program");
    // Some drivers extend a file only by writing, and do not fill it with zeros.
    env.sparse("src/sparse", MIB, &[(0, b"data"), (MIB / 2, b"data")]);
    file("src/directory/inside", b"inside").mtime(1_000_000_005, 1);
    env.at("src/directory").mode(0o555).mtime(1_000_000_007, 5);
    // FAT cannot store these.
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
    let warnings = |lacking: &str| {
        let warning = warning(lacking);
        let complaints = run.complaints();
        let is_it = |line: &&&str| line.starts_with(&warning);
        complaints.iter().filter(is_it).count()
    };
    assert_eq!(warnings(OWNERS), 1, "{run}");
    assert_eq!(warnings(XATTRS), usize::from(has_attributes), "{run}");
    // The kernel's driver accepts any mode without an error, but keeps only a part of it.
    assert!(warnings(MODES) <= 1, "{run}");

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
        // FAT stores every other second.
        let (seconds, _) = entry.mtime;
        let kept = env.stat(&copied).mtime();
        assert_eq!(kept, seconds - seconds % 2, "the time of {copied}");
    }
    copy.assert_no_temporaries();

    // A time that FAT has rounded counts as the same time: nothing is copied again.
    let plan = env.pcopy(["-n", "src", "mnt/dst"]).ok();
    assert!(!plan.stdout().contains("(time differs)"), "{plan}");
    let again = env.pcopy(["src", "mnt/dst"]).exits(1);
    again.counts(0, files, refused.len() as u64);
    // A change of the content is seen if its time differs on FAT, too.
    env.file("src/private", "changed").mtime(1_000_000_002, 0);
    let again = env.pcopy(["src", "mnt/dst"]).exits(1);
    again.counts(1, files - 1, refused.len() as u64);
    assert_eq!(env.read("mnt/dst/private"), b"changed");
});

both_modes!(times_in_whole_seconds_do_not_cause_another_copy, |env| {
    // Inodes of 128 bytes have no space for nanoseconds.
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
    // One second is half a step of FAT, but a whole one here.
    env.file("src/file", "two").mtime(1_000_000_002, 5);
    env.pcopy(["src", "mnt/dst"]).ok().counts(1, 2, 0);
    env.file("src/file", "six").mtime(1_000_000_003, 5);
    env.pcopy(["src", "mnt/dst"]).ok().counts(1, 2, 0);
    assert_eq!(env.read("mnt/dst/file"), b"six");
});

both_modes!(ext4_is_read_in_the_order_of_inode_numbers, |env| {
    if env.skipped_without_strace() {
        return;
    }
    let script =
        "mkdir mnt; truncate -s 60M image; mkfs.ext4 -q image 2>/dev/null; mount -o loop image mnt";
    let Some(env) = env.mounted(script) else {
        return;
    };
    // It lists them by hashes of their names.
    for i in 0..200 {
        env.file(format!("mnt/src/file-{i}"), "x");
    }
    let calls = env.command(["-j1", "mnt/src", "dst"]).traced("openat");
    let read = calls.iter().filter(|line| line.contains("O_RDONLY"));
    let names = read.filter_map(|line| Some(line.split_once("\"file-")?.1.split_once('"')?.0));
    let inodes: Vec<u64> = names
        .map(|number| env.stat(format!("mnt/src/file-{number}")).ino())
        .collect();
    assert_eq!(inodes.len(), 200);
    assert!(inodes.is_sorted(), "{inodes:?}");
    env.assert_same("mnt/src", "dst");
});

// ---- options --------------------------------------------------------------------------------

both_modes!(btrfs_shares_extents_unless_told_not_to, |env| {
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

both_modes!(
    reflink_always_fails_on_a_file_system_without_reflinks,
    |env| {
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
            run.complaints().len() == 1 && run.complaints()[0].starts_with("pcopy: mnt/"),
            "{run}"
        );
        assert!(!env.exists("mnt/dst/file"), "an unfinished file is left");
        env.assert_same("mnt/src/link", "mnt/dst/link");
    }
);

both_modes!(one_file_system_skips_mounts, |env| {
    let Some(env) = env.mounted(
        "mkdir -p src/mnt src/here; mount -t tmpfs tmpfs src/mnt; echo x > src/mnt/other; echo x > src/here/file",
    ) else {
        return;
    };
    env.pcopy(["-x", "src", "dst"]).ok();
    assert!(!env.exists("dst/mnt/other"));
    env.assert_same("src/here", "dst/here");
    // Without -x everything is copied.
    env.pcopy(["src", "dst-2"]).ok();
    env.assert_same("src", "dst-2");
});

// ---- proc and sys ---------------------------------------------------------------------------

both_modes!(files_of_proc_have_their_content, |env| {
    // Their size is given as 0 or one page, and is neither.
    env.pcopy(["/proc/version", "version"]).ok();
    assert_eq!(env.read("version"), fs::read("/proc/version").unwrap());
    env.pcopy([
        "/proc/version",
        "/proc/cmdline",
        "/proc/self/mountinfo",
        "several",
    ])
    .ok();
    assert_eq!(
        env.read("several/version"),
        fs::read("/proc/version").unwrap()
    );
    assert_eq!(
        env.read("several/cmdline"),
        fs::read("/proc/cmdline").unwrap()
    );
    assert!(!env.read("several/mountinfo").is_empty());

    // Some of these cannot be read, and some change with each read.
    let run = env.pcopy(["/proc/sys/kernel", "kernel"]);
    assert!(matches!(run.status.code(), Some(0 | 1)), "{run}");
    for name in ["ostype", "osrelease", "hostname", "pid_max"] {
        let real = fs::read(format!("/proc/sys/kernel/{name}")).unwrap();
        assert_eq!(env.read(format!("kernel/{name}")), real, "{name}");
    }
});

both_modes!(
    files_of_sys_that_are_shorter_than_their_size_are_copied,
    |env| {
        let directory = "/sys/kernel/mm/transparent_hugepage";
        let Ok(real) = fs::read(format!("{directory}/enabled")) else {
            skip(format_args!("there is no {directory}"));
            return;
        };
        env.pcopy([directory, "dst"]).ok();
        assert_eq!(env.read("dst/enabled"), real);
    }
);
