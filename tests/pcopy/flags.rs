//! `--preserve=flags`: the inode flags of chattr(1).

use crate::env::Env;
use crate::noise::pattern;

const EXT4: &str = "mkdir -p mnt; truncate -s 300M ext4; mkfs.ext4 -q ext4; mount -o loop ext4 mnt";
const BTRFS: &str =
    "mkdir -p mnt; truncate -s 400M btrfs; mkfs.btrfs -q btrfs; mount -o loop btrfs mnt";

/// Returns the flags and names of all files and directories below `dir`. Leaves out what the file
/// system sets by itself: extents (e) and an index (I).
fn flags(env: &Env, dir: &str) -> String {
    env.sh(&format!(
        "cd {dir}; find . -type f -o -type d | sort | xargs lsattr -d |
         awk '{{ gsub(/[-eI]/, \"\", $1); print $1 \":\" $2 }}'"
    ))
}

/// Copies with `--preserve=flags`. Returns the numbers of copied and unchanged entries.
fn copy(env: &Env, from: &str, to: &str) -> (u64, u64) {
    let run = env.pcopy(["--preserve=flags", from, to]).ok();
    env.assert_same(from, to);
    assert_eq!(flags(env, from), flags(env, to), "{run}");
    let summary = run.summary();
    (summary.copied, summary.unchanged)
}

both_modes!(inode_flags_are_kept_on_request, |env| {
    for script in [EXT4, BTRFS] {
        let Some(env) = env.mounted(script) else {
            return;
        };
        for name in ["plain", "nodump", "noatime", "fixed", "log", "linked"] {
            env.file(format!("mnt/src/{name}"), name);
        }
        env.file("mnt/src/large", pattern(40 << 20, 1));
        env.file("mnt/src/closed/file", "file");
        env.hard_link("mnt/src/sub/linked", "mnt/src/linked");
        env.at("mnt/src/closed").try_xattr("user.test", "value");
        env.sh("cd mnt/src; chattr +d nodump large; chattr +A noatime sub
            chattr +i fixed large linked closed; chattr +a log");
        assert_eq!(copy(&env, "mnt/src", "mnt/dst"), (9, 0));
        assert_eq!(copy(&env, "mnt/src", "mnt/dst"), (0, 9));

        // Flags that alone have changed, and a new file in a directory that is immutable.
        env.sh("cd mnt/src; chattr -d nodump; chattr +d plain
            chattr -i closed; echo new > closed/new; chattr +i closed");
        assert_eq!(copy(&env, "mnt/src", "mnt/dst"), (3, 7));
        assert_eq!(copy(&env, "mnt/src", "mnt/dst"), (0, 10));

        // New contents of files that are immutable, one of them with two names.
        env.sh(
            "cd mnt/src; chattr -i fixed linked; echo newer >> fixed; echo newer >> linked
            chattr +i fixed linked",
        );
        assert_eq!(copy(&env, "mnt/src", "mnt/dst"), (3, 7));
        assert_eq!(copy(&env, "mnt/src", "mnt/dst"), (0, 10));

        env.pcopy(["--preserve=all", "mnt/src", "mnt/without"]).ok();
        let without = flags(&env, "mnt/without");
        assert!(
            without.lines().all(|line| line.starts_with(':')),
            "{without}"
        );
        env.sh("chattr -R -ia mnt");
    }
});

both_modes!(copy_on_write_is_turned_off_before_the_first_byte, |env| {
    let Some(env) = env.mounted(BTRFS) else {
        return;
    };
    env.dir("mnt/src/images");
    env.sh(
        "cd mnt/src; touch disk images/disk plain; chattr +C disk images images/disk
        for file in disk images/disk plain; do head -c 300000 /dev/zero | tr '\\0' x > $file; done",
    );
    env.file("mnt/src/empty", "");
    env.dir("mnt/inherits");
    env.sh("chattr +C mnt/inherits");
    for (copy_at, reflink) in [
        ("mnt/dst", "--reflink=auto"),
        ("mnt/inherits/dst", "--reflink=never"),
    ] {
        env.pcopy(["--preserve=flags", reflink, "mnt/src", copy_at])
            .ok();
        let found = flags(&env, copy_at);
        assert_eq!(found, flags(&env, "mnt/src"));
        assert!(found.contains("C:./disk\n") && found.contains("\n:./plain"));
        env.assert_same("mnt/src", copy_at);
    }
});

both_modes!(
    flags_that_cannot_be_kept_fail_and_cost_nothing_else,
    |env| {
        let script = format!("{BTRFS}\n{}", EXT4.replace("mnt", "other"));
        let Some(env) = env.mounted(&script) else {
            return;
        };
        env.file("mnt/src/plain", "plain");
        env.sh("cd mnt/src; touch disk; chattr +C disk; chattr +d disk; echo data > disk");
        env.pcopy(["--preserve=flags", "mnt/src", "other/dst"])
            .exits(1)
            .fails_only(&[(
                "other/dst/disk",
                "set inode flags: +C: Operation not supported",
            )]);
        env.assert_same("mnt/src", "other/dst");
        assert!(flags(&env, "other/dst").contains("d:./disk"));
    }
);
