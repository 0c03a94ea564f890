//! Destinations that are less than Linux expects: calls that lie, and features that are missing.
//!
//! The first test of each pair shows that the fault file system does what it says. The others
//! show what pcopy makes of it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

use crate::compare::{self, Properties, Property};
use crate::env::{Env, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::trees::{SMALL_TREE_LEAVES, small_tree};

/// Mounts the directory `backing` at `mnt`.
#[track_caller]
fn mount(env: &Env, options: &[&str]) -> Option<FaultFs> {
    env.dir("backing");
    FaultFs::mount(env, "backing", "mnt", options)
}

// ---- calls that succeed and do nothing ------------------------------------------------------

once!(calls_on_some_names_lie, |env| {
    let faults = ["lie-chmod:a*", "lie-chown:a*", "lie-utimens:a*"];
    let options: Vec<&str> = faults.into_iter().flat_map(|it| ["--fault", it]).collect();
    let Some(_mounted) = mount(env, &options) else {
        return;
    };
    for name in ["mnt/all", "mnt/other"] {
        env.file(name, "x");
        env.at(name).owner(1, 2).mode(0o612).mtime(7, 7);
    }
    let (all, other) = (env.stat("mnt/all"), env.stat("mnt/other"));
    assert_eq!((all.uid(), all.gid(), all.mode() & 0o7777), (0, 0, 0o644));
    assert!(all.mtime() > 7);
    assert_eq!(
        (other.uid(), other.gid(), other.mode() & 0o7777),
        (1, 2, 0o612)
    );
    assert_eq!((other.mtime(), other.mtime_nsec()), (7, 7));
    assert_eq!(env.read("backing/all"), b"x");
});

// ---- renaming -------------------------------------------------------------------------------

once!(renaming_is_refused, |env| {
    let options = ["--fault", "refuse-rename:a", "--fault", "no-rename:b"];
    let Some(_mounted) = mount(env, &options) else {
        return;
    };
    for name in ["a", "b", "c"] {
        env.file(format!("mnt/{name}"), name);
    }
    let rename = |from: &str, to: &str| {
        let renamed = fs::rename(env.path("mnt").join(from), env.path("mnt").join(to));
        renamed.map_err(|e| e.raw_os_error().unwrap())
    };
    assert_eq!(rename("a", "d"), Err(Errno::PERM.raw_os_error()));
    assert_eq!(rename("c", "a"), Err(Errno::PERM.raw_os_error()));
    assert_eq!(rename("b", "d"), Err(Errno::NOSYS.raw_os_error()));
    assert_eq!(rename("c", "d"), Ok(()));
});

both_modes!(a_destination_that_cannot_rename_fails_by_name, |env| {
    env.file("src/new", "new");
    env.file("src/replaced", "newer").mtime(2_000, 1);
    env.file("backing/dst/replaced", "old").mtime(1_000, 1);
    for fault in ["refuse-rename:*", "no-rename:*"] {
        let Some(_mounted) = mount(env, &["--fault", fault]) else {
            return;
        };
        let run = env.pcopy(["src", "mnt/dst"]).exits(1);
        assert_eq!(run.summary().failed, 1, "{run}");
        let complaints = run.complaints();
        assert!(
            complaints[0].starts_with("pcopy: mnt/dst/replaced: "),
            "{run}"
        );
        assert_eq!(env.read("mnt/dst/replaced"), b"old");
        env.snapshot("backing").assert_no_temporaries();
    }
    assert_eq!(env.read("backing/dst/new"), b"new");
});

// ---- closing --------------------------------------------------------------------------------

both_modes!(a_file_whose_close_fails_fails, |env| {
    env.file("src/bad", "bad");
    env.file("src/fine", "fine");
    env.file("src/replaced", "newer").mtime(2_000, 1);
    env.file("backing/dst/replaced", "old").mtime(1_000, 1);
    let faults = ["--fault", "eio-close:bad", "--fault", "eio-close:.pcopy*"];
    let Some(_mounted) = mount(env, &faults) else {
        return;
    };
    env.pcopy(["src", "mnt/dst"])
        .exits(1)
        .counts(1, 0, 2)
        .fails_only(&[
            ("mnt/dst/bad", "close: Input/output error"),
            ("mnt/dst/replaced", "close: Input/output error"),
        ]);
    assert!(!env.exists("backing/dst/bad"), "an incomplete file is left");
    assert_eq!(env.read("backing/dst/replaced"), b"old");
    env.snapshot("backing").assert_no_temporaries();
});

// ---- modes ----------------------------------------------------------------------------------

once!(modes_are_cut_at_creation, |env| {
    let Some(_mounted) = mount(env, &["--create-mask", "027"]) else {
        return;
    };
    env.file("mnt/file", "x");
    env.dir("mnt/directory");
    env.fifo("mnt/fifo");
    let mode = |path| env.stat(path).mode() & 0o7777;
    assert_eq!(mode("mnt/file"), 0o640);
    assert_eq!(mode("mnt/directory"), 0o750);
    assert_eq!(mode("mnt/fifo"), 0o640);
    env.at("mnt/file").mode(0o666);
    assert_eq!(mode("mnt/file"), 0o666);
});

// ---- times ----------------------------------------------------------------------------------

once!(closing_a_written_file_sets_its_time, |env| {
    let Some(_mounted) = mount(env, &["--mtime-at-flush"]) else {
        return;
    };
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let path = env.path("mnt/file");
    let mtime = || env.stat("mnt/file").mtime();
    // A program that another test starts meanwhile closes the file too, which sets the time early.
    eventually("the time changes when the file is closed", || {
        let mut file = File::create(&path).unwrap();
        file.write_all(b"x").unwrap();
        file.set_modified(long_ago).unwrap();
        let is_kept = mtime() == 1_000;
        drop(file);
        is_kept && mtime() != 1_000
    });
    // Nothing is written this time.
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(long_ago).unwrap();
    drop(file);
    assert_eq!(mtime(), 1_000);
});

// ---- names ----------------------------------------------------------------------------------

once!(names_that_differ_in_case_are_one, |env| {
    let Some(_mounted) = mount(env, &["--fold-case"]) else {
        return;
    };
    env.file("mnt/Directory/Straße", "first");
    assert_eq!(env.read("mnt/dIRECTORY/STRAßE"), b"first");
    let again = File::create_new(env.path("mnt/directory/straße"));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    env.file("mnt/directory/straße", "second");
    env.file("mnt/directory/other", "other");
    // The first spelling is kept, also if the file is replaced.
    fs::rename(
        env.path("mnt/Directory/other"),
        env.path("mnt/DIRECTORY/STRAßE"),
    )
    .unwrap();
    assert_eq!(
        env.sh("ls -R backing"),
        "backing:\nDirectory\n\nbacking/Directory:\nStraße\n"
    );
    assert_eq!(env.read("backing/Directory/Straße"), b"other");
    fs::remove_file(env.path("mnt/directory/straße")).unwrap();
    assert!(!env.exists("mnt/Directory/Straße"));
    fs::remove_dir(env.path("mnt/directory")).unwrap();
    assert!(!env.exists("backing/Directory"));
});

both_modes!(a_tree_without_twins_is_copied_where_case_is_folded, |env| {
    small_tree(env);
    let Some(_mounted) = mount(env, &["--fold-case"]) else {
        return;
    };
    env.pcopy(["src", "mnt/dst"]).ok();
    env.assert_same("src", "backing/dst");
    env.file("src/a/b.txt", "newer").mtime(1_500_000_000, 1);
    env.pcopy(["src", "mnt/dst"])
        .ok()
        .counts(1, SMALL_TREE_LEAVES - 1, 0);
    env.assert_same("src", "backing/dst");
});

// ---- attributes -----------------------------------------------------------------------------

once!(attributes_have_a_limit, |env| {
    let Some(_mounted) = mount(env, &["--xattr-max", "100"]) else {
        return;
    };
    let file = env.file("mnt/file", "x");
    if !env.file("backing/other", "x").try_xattr("user.x", "x") {
        crate::env::skip("no extended attributes here");
        return;
    }
    let set = |name: &str, size: usize| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(file.path(), name, &vec![b'x'; size], flags)
    };
    assert_eq!(set("user.large", 101), Err(Errno::TOOBIG));
    assert_eq!(set("user.first", 80), Ok(()));
    assert_eq!(set("user.second", 21), Err(Errno::NOSPC));
    assert_eq!(set("user.second", 20), Ok(()));
    // Replacing counts once.
    assert_eq!(set("user.first", 79), Ok(()));
});

both_modes!(
    a_dry_run_announces_no_attribute_that_cannot_be_held,
    |env| {
        let Some(env) = env.mounted("mkdir mnt; mount -t ramfs none mnt") else {
            return;
        };
        if !env.file("src/file", "x").try_xattr("user.x", "x") {
            crate::env::skip("no extended attributes here");
            return;
        }
        env.pcopy(["src", "mnt/dst"]).exits(0);
        for options in [&["-n"][..], &[]] {
            let run = env.pcopy([options, &["src", "mnt/dst"]].concat()).exits(0);
            assert_eq!(run.summary().copied, 0, "{run}");
        }
        env.at("src/file").mode(0o600);
        let run = env.pcopy(["-n", "src", "mnt/dst"]).exits(0);
        assert_eq!(run.summary().copied, 1, "{run}");
    }
);

// ---- holes ----------------------------------------------------------------------------------

once!(holes_are_filled, |env| {
    let Some(_mounted) = mount(env, &["--fill-holes", "--fault", "enospc:3000000"]) else {
        return;
    };
    let sparse = env.sparse("mnt/sparse", 1 << 20, &[]);
    assert_eq!(env.stat("mnt/sparse").blocks(), (1 << 20) / 512);
    let file = File::options().write(true).open(sparse.path()).unwrap();
    file.write_all_at(b"x", 2 << 20).unwrap();
    let error = file.write_all_at(b"x", 3 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let data = rustix::fs::seek(
        File::open(sparse.path()).unwrap(),
        rustix::fs::SeekFrom::Data(100),
    );
    assert_eq!(data, Ok(100));
});

both_modes!(contents_arrive_where_holes_are_filled, |env| {
    let data = pattern(100_000, 1);
    env.sparse("src/small", 8 << 20, &[(0, &data), (5 << 20, &data)]);
    env.sparse("src/large", 48 << 20, &[(40 << 20, &data)]);
    env.file("src/chunked", pattern(40 << 20, 2));
    let Some(_mounted) = mount(env, &["--fill-holes"]) else {
        return;
    };
    env.pcopy(["src", "mnt/dst"]).ok().counts(3, 0, 0);
    env.assert_same("src", "backing/dst");
    env.pcopy(["src", "mnt/dst"]).ok().counts(0, 3, 0);
});

// ---- inode numbers --------------------------------------------------------------------------

once!(inode_numbers_do_not_last, |env| {
    let Some(_mounted) = mount(env, &["--volatile-inodes"]) else {
        return;
    };
    env.file("mnt/directory/file", "x");
    let number = || env.stat("mnt/directory/file").ino();
    assert_ne!(number(), number());
    let new = File::create(env.path("mnt/new")).unwrap();
    assert_ne!(new.metadata().unwrap().ino(), env.stat("mnt/new").ino());
    let file = File::open(env.path("mnt/directory/file")).unwrap();
    fs::rename(
        env.path("mnt/directory/file"),
        env.path("mnt/directory/new"),
    )
    .unwrap();
    assert_ne!(
        file.metadata().unwrap().ino(),
        env.stat("mnt/directory/new").ino()
    );
    assert_eq!(env.read("mnt/directory/new"), b"x");
});

both_modes!(small_files_arrive_where_inode_numbers_do_not_last, |env| {
    small_tree(env);
    let Some(_mounted) = mount(env, &["--volatile-inodes"]) else {
        return;
    };
    env.pcopy(["src", "mnt/dst"]).ok();
    env.assert_same("src", "backing/dst");
    env.pcopy(["src", "mnt/dst"])
        .ok()
        .counts(0, SMALL_TREE_LEAVES, 0);
});

both_modes!(metadata_arrives_where_inode_numbers_do_not_last, |env| {
    small_tree(env);
    let Some(_mounted) = mount(env, &["--volatile-inodes", "--ttl-ms", "0"]) else {
        return;
    };
    env.pcopy(["src", "mnt/dst"]).ok();
    env.at("src/a/b.txt").mode(0o600);
    env.pcopy(["src", "mnt/dst"])
        .ok()
        .counts(1, SMALL_TREE_LEAVES - 1, 0);
    env.assert_same("src", "backing/dst");
});

both_modes!(
    hard_links_are_known_where_inode_numbers_do_not_last,
    |env| {
        env.file("src/one", "contents").mtime(1_000, 0);
        env.hard_link("src/two", "src/one");
        env.hard_link("src/directory/three", "src/one");
        let Some(_mounted) = mount(env, &["--volatile-inodes", "--rename-links"]) else {
            return;
        };
        env.pcopy(["src", "mnt/dst"]).ok().counts(3, 0, 0);
        env.assert_same("src", "backing/dst");
        let changed = || env.sh("stat -c %z backing/dst/one; find backing/dst -name '.pcopy*'");
        let before = changed();
        env.pcopy(["-n", "src", "mnt/dst"]).ok().counts(0, 3, 0);
        env.pcopy(["src", "mnt/dst"]).ok().counts(0, 3, 0);
        assert_eq!(changed(), before, "links were made again");

        // A new name joins them.
        env.hard_link("src/four", "src/one");
        env.pcopy(["src", "mnt/dst"]).ok();
        env.assert_same("src", "backing/dst");
        env.pcopy(["src", "mnt/dst"]).ok().counts(0, 4, 0);
    }
);

both_modes!(
    files_that_only_look_like_links_are_linked_where_inode_numbers_do_not_last,
    |env| {
        env.file("src/one", "contents").mtime(1_000, 0);
        env.hard_link("src/two", "src/one");
        // The same number of links, size and time, but two files.
        env.sh("mkdir -p backing/dst; cd backing/dst
            cp -p ../../src/one one; ln one x; sleep 0.1; cp -p ../../src/one two; ln two y");
        let Some(_mounted) = mount(env, &["--volatile-inodes", "--rename-links"]) else {
            return;
        };
        env.pcopy(["-n", "src", "mnt/dst"]).ok().counts(1, 1, 0);
        env.pcopy(["src", "mnt/dst"]).ok().counts(1, 1, 0);
        let inode = |name: &str| env.stat(format!("backing/dst/{name}")).ino();
        assert_eq!(inode("one"), inode("two"));
    }
);

// ---- hard links -----------------------------------------------------------------------------

once!(hard_links_are_refused, |env| {
    let Some(_mounted) = mount(env, &["--no-hard-links"]) else {
        return;
    };
    let file = env.file("mnt/file", "x");
    let linked = linkat(
        CWD,
        file.path(),
        CWD,
        env.path("mnt/link"),
        AtFlags::empty(),
    );
    assert_eq!(linked, Err(Errno::PERM));
});

both_modes!(copies_are_made_where_hard_links_are_refused, |env| {
    env.file("src/one", "contents");
    env.hard_link("src/two", "src/one");
    env.hard_link("src/directory/three", "src/one");
    let Some(_mounted) = mount(env, &["--no-hard-links"]) else {
        return;
    };
    env.pcopy(["src", "mnt/dst"]).exits(0).counts(3, 0, 0);
    compare::assert_same(
        &env.snapshot("src"),
        &env.snapshot("backing/dst"),
        Properties::KEPT.without(Property::HardLinks),
    );
});
