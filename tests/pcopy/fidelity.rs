//! Everything that a copy keeps.

use std::os::unix::fs::MetadataExt;

use crate::acl::{ACCESS_ACL, AclTag, DEFAULT_ACL, NO_ID, acl};
use crate::compare::{self, Properties, Property};
use crate::env::{Env, Mode, NOBODY, skip, skipped_without_root};
use crate::noise::{Random, pattern};
use crate::zoo::Zoo;

const MIB: u64 = 1024 * 1024;

// ---- the zoo --------------------------------------------------------------------------------

/// Copies the zoo twice and compares everything after each run.
pub(crate) fn zoo_is_copied(env: &Env, source: &str, copy: &str) {
    let skipped = Zoo::Full.build(env, source);
    println!("not in the zoo here: {skipped:?}");
    let before = env.snapshot(source);
    env.pcopy([source, copy]).ok().counts(before.leaves(), 0, 0);
    let copied = env.snapshot(copy);
    compare::assert_same(&before, &copied, Properties::KEPT.with(Property::Atime));
    copied.assert_no_temporaries();
    before.assert_untouched();

    env.pcopy([source, copy])
        .ok()
        .counts(0, before.leaves(), 0)
        .summary_ends_with("; nothing to do");
    copied.assert_untouched();
}

all_modes!(the_zoo_is_copied_faithfully_and_then_unchanged, |env| {
    zoo_is_copied(env, "src", "dst");
});

all_modes!(a_zoo_of_a_normal_user_is_copied_faithfully, |env| {
    let skipped = Zoo::User.build(env, "src");
    println!("not in the zoo here: {skipped:?}");
    env.dir("parent").mode(0o777);
    let before = env.snapshot("src");
    env.command(["src", "parent/dst"])
        .unprivileged()
        .run()
        .ok()
        .counts(before.leaves(), 0, 0);
    compare::assert_same(&before, &env.snapshot("parent/dst"), Properties::KEPT);
    before.assert_untouched();
    env.command(["src", "parent/dst"])
        .unprivileged()
        .run()
        .ok()
        .counts(0, before.leaves(), 0);
    compare::assert_same(&before, &env.snapshot("parent/dst"), Properties::KEPT);
});

both_modes!(one_worker_copies_the_zoo_as_many_do, |env| {
    Zoo::Full.build(env, "src");
    for jobs in ["1", "16"] {
        let copy = format!("dst-{jobs}");
        env.pcopy(["-j", jobs, "src", &copy]).ok();
        env.assert_same("src", &copy);
    }
});

all_modes!(a_copy_that_was_spoilt_everywhere_is_repaired, |env| {
    Zoo::Full.build(env, "src");
    env.pcopy(["src", "dst"]).ok();
    // Everything but directories gets another time, and a third of the files another length.
    env.sh("find dst -path 'dst/deep-*' -prune -o -type f -size -100k -writable -print0 | awk 'BEGIN{RS=ORS=\"\\0\"} NR%3==0' | xargs -0 truncate -s 3");
    env.sh("find dst -path 'dst/deep-*' -prune -o ! -type d -print0 | xargs -0 touch -h -d @1234");
    env.pcopy(["src", "dst"]).ok();
    let copy = env.snapshot("dst");
    compare::assert_same(&env.snapshot("src"), &copy, Properties::KEPT);
    copy.assert_no_temporaries();
});

/// Compares a copy made by cp(1), so that two independent programs check each other.
#[test]
fn the_comparison_finds_few_differences_in_a_copy_by_cp() {
    let env = Env::new(Mode::Thread);
    Zoo::Full.build(&env, "src");
    let source = env.snapshot("src");
    // It fails because it cannot handle paths longer than PATH_MAX.
    println!("{}", env.sh("cp -aT src dst 2>&1 || true"));
    let found = compare::differences(&source, &env.snapshot("dst"), Properties::KEPT);
    println!(
        "the copy by cp -a has {} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    assert!(source.entries.len() > 1_000);
    let found: Vec<_> = found
        .iter()
        .filter(|line| !line.starts_with("deep-deep-"))
        .collect();
    assert!(found.len() < 20, "too many differences: {found:#?}");
}

// ---- modes, owners and ACLs -----------------------------------------------------------------

all_modes!(the_umask_plays_no_part, |env| {
    env.file("src/open", "x").mode(0o666);
    env.dir("src/directory").mode(0o777);
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
        (UserObj, 7, NO_ID),
        (User, 7, 1234),
        (GroupObj, 7, NO_ID),
        (Mask, 7, NO_ID),
        (Other, 7, NO_ID),
    ]);
    env.file("src/file", "x").mode(0o640);
    env.dir("src/directory/inner").mode(0o750);
    env.fifo("src/fifo").mode(0o600);
    // The parent of DST hands its ACL down to new entries.
    if !env.dir("parent").try_xattr(DEFAULT_ACL, &default) {
        skip("the temporary directory has no ACLs");
        return;
    }
    env.pcopy(["src", "parent/dst"]).ok();
    env.assert_same("src", "parent/dst");
    env.pcopy(["src/file", "parent"]).ok();
    env.assert_same("src/file", "parent/file");
    // Nor does a copied default ACL affect the entries of its directory.
    env.at("src/directory").xattr(DEFAULT_ACL, &default);
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(
    an_acl_of_the_destination_does_not_survive_a_replacement,
    |env| {
        use AclTag::{GroupObj, Mask, Other, User, UserObj};
        let open = acl(&[
            (UserObj, 6, NO_ID),
            (User, 6, 1234),
            (GroupObj, 4, NO_ID),
            (Mask, 6, NO_ID),
            (Other, 0, NO_ID),
        ]);
        env.file("src/file", "newer").mode(0o600);
        env.dir("src/directory").mode(0o700);
        if !env.file("dst/file", "old").try_xattr(ACCESS_ACL, &open) {
            skip("the temporary directory has no ACLs");
            return;
        }
        env.dir("dst/directory")
            .xattr(ACCESS_ACL, &open)
            .xattr("user.stale", "x");
        env.pcopy(["src", "dst"]).ok();
        let copy = env.snapshot("dst");
        assert_eq!(
            copy.entry("file").xattrs.len(),
            0,
            "{:?}",
            copy.entry("file").xattrs
        );
        assert_eq!(copy.entry("directory").mode, 0o700);
        let acl_of_directory = copy.entry("directory").xattrs.get(ACCESS_ACL.as_bytes());
        assert_eq!(
            acl_of_directory, None,
            "other users may enter the directory"
        );
    }
);

both_modes!(a_setgid_directory_at_the_destination_does_not_leak, |env| {
    if skipped_without_root() {
        return;
    }
    env.file("src/directory/file", "x").mode(0o640);
    env.dir("parent").owner(0, 1234).mode(0o2775);
    env.pcopy(["src", "parent/dst"]).ok();
    env.assert_same("src", "parent/dst");
});

both_modes!(
    files_in_a_new_directory_below_a_setgid_one_get_their_group,
    |env| {
        if skipped_without_root() {
            return;
        }
        env.dir("parent").owner(0, 1234).mode(0o2775);
        env.file("src/file", "x").owner(0, 1234).mode(0o640);
        env.file("src/directory/file", "x")
            .owner(0, 1234)
            .mode(0o640);
        env.pcopy(["src", "parent/dst"]).ok();
        env.assert_same("src", "parent/dst");
    }
);

both_modes!(
    directories_without_write_permission_keep_their_mode,
    |env| {
        env.file("src/a/first", "x");
        env.hard_link("src/b/second", "src/a/first");
        env.file("file", "x");
        for directory in ["src/a", "src/b", "closed"] {
            env.dir(directory).mode(0o555);
        }
        env.sh("chmod 777 .");
        let run_unprivileged = |args: &[&str]| env.command(args).unprivileged().run();
        run_unprivileged(&["-j1", "src", "dst"]).ok();
        for directory in ["dst/a", "dst/b"] {
            assert_eq!(env.stat(directory).mode() & 0o7777, 0o555, "{directory}");
        }
        run_unprivileged(&["file", "closed/"]).exits(1);
        assert_eq!(env.stat("closed").mode() & 0o7777, 0o555);
    }
);

both_modes!(a_user_can_copy_a_large_read_only_file, |env| {
    env.file("src/large", pattern(40 * MIB as usize, 1))
        .mode(0o444);
    env.sh("chmod 777 .");
    env.command(["--reflink=never", "src", "dst"])
        .unprivileged()
        .run()
        .ok();
    assert_eq!(env.read("src/large"), env.read("dst/large"));
    assert_eq!(env.stat("dst/large").mode() & 0o7777, 0o444);
});

both_modes!(
    a_normal_user_keeps_all_that_is_allowed_without_a_message,
    |env| {
        if skipped_without_root() {
            return;
        }
        env.file("src/roots", "x").owner(0, 0).mode(0o644);
        env.file("src/setuid", "x").owner(0, 0).mode(0o6755);
        env.file("src/own-setuid", "x")
            .owner(NOBODY, NOBODY)
            .mode(0o4755);
        env.dir("src/directory").owner(7, 7).mode(0o2755);
        env.symlink("src/link", "roots");
        env.dir("parent").mode(0o777);
        let run = env.command(["src", "parent/dst"]).unprivileged().run().ok();
        assert_eq!(
            run.stderr.lines().count(),
            1,
            "the summary is the only line:\n{run}"
        );
        let mode = |path: &str| env.stat(format!("parent/dst/{path}")).mode() & 0o7777;
        assert_eq!(mode("roots"), 0o644);
        assert_eq!(
            mode("setuid"),
            0o755,
            "a setuid bit is lost without its owner"
        );
        assert_eq!(mode("own-setuid"), 0o4755, "and kept with it");
        assert_eq!(mode("directory") & 0o777, 0o755);
        assert_eq!(env.stat("parent/dst/roots").uid(), NOBODY);
        compare::assert_same(
            &env.snapshot("src"),
            &env.snapshot("parent/dst"),
            Properties::KEPT
                .without(Property::Owner)
                .without(Property::Mode),
        );
        // An owner that is asked for by name is an error.
        env.command(["--preserve", "ownership", "src/roots", "parent/asked"])
            .unprivileged()
            .run()
            .exits(1);
    }
);

// ---- times ----------------------------------------------------------------------------------

both_modes!(access_times_of_files_are_kept, |env| {
    env.file("src/file", "content")
        .atime(1_000_000_000, 987_654_321);
    env.file("src/big", pattern(9 * MIB as usize, 2))
        .atime(1_000_000_001, 1);
    env.file("src/one", "one").atime(1_000_000_002, 2);
    env.hard_link("src/two", "src/one");
    // pcopy may change the times of the source by reading it.
    let before = env.snapshot("src");
    env.pcopy(["src", "dst"]).ok();
    compare::assert_same(
        &before,
        &env.snapshot("dst"),
        Properties::KEPT.with(Property::Atime),
    );
});

both_modes!(a_difference_of_one_nanosecond_counts, |env| {
    env.file("src/file", "two").mtime(1_000_000_001, 1);
    env.file("dst/file", "one").mtime(1_000_000_001, 0);
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
    env.file("src/file", "six").mtime(1_000_000_003, 5);
    env.at("dst/file").mtime(1_000_000_002, 0);
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
});

// ---- contents and holes ---------------------------------------------------------------------

both_modes!(the_longest_possible_file_is_copied, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=8m tmpfs mnt; mkdir mnt/src")
    else {
        return;
    };
    env.sh("truncate -s 9223372036854775807 mnt/src/file; echo x > mnt/src/other");
    env.pcopy(["mnt/src", "mnt/dst"]).ok();
    assert_eq!(env.stat("mnt/dst/file").size(), i64::MAX as u64);
});

all_modes!(many_workers_copy_one_large_file, |env| {
    env.file("src/large", pattern(70 * 1024 * 1024 + 321, 1))
        .mode(0o4710)
        .mtime(1_000, 1);
    for i in 0..100 {
        env.file(format!("src/small-{i}"), "x");
    }
    env.pcopy(["-j", "6", "src", "dst"]).ok().counts(101, 0, 0);
    env.assert_same("src", "dst");
    // An existing file is replaced in the same way.
    env.file("dst/large", "old");
    env.pcopy(["-j", "6", "src", "dst"]).ok().counts(1, 100, 0);
    env.assert_same("src", "dst");
});

all_modes!(holes_in_large_files_are_kept, |env| {
    const MIB: u64 = 1024 * 1024;
    let data = pattern(MIB as usize, 3);
    let mut random = Random::new(5);
    let extents: Vec<(u64, &[u8])> = (0..40)
        .map(|_| (random.below(250) * MIB, &data[..random.below(MIB) as usize]))
        .collect();
    env.sparse("src/holes", 256 * MIB + 17, &extents);
    env.pcopy(["-j", "6", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(holes_are_not_read, |env| {
    // At a gigabyte a second, reading all of it would take two hours.
    env.sparse("src/huge", 1 << 43, &[(1 << 42, b"data")]);
    env.pcopy(["src", "dst"]).ok();
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

both_modes!(a_source_file_named_like_a_temporary_one_is_copied, |env| {
    env.file("src/.pcopy.mine.tmp", "mine");
    env.file("src/.pcopy.1234.tmp", "mine too");
    env.file("src/other", "x");
    for _ in 0..2 {
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
    }
    // It also stays when a neighbour is replaced.
    env.file("src/other", "longer");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});
