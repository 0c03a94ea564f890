//! Sources and destinations that fail: permissions, I/O errors, changes during the run.

use std::fs;
use std::path::Path;

use crate::env::{Env, is_root, skip};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::trees::fine_files;

// ---- permissions ----------------------------------------------------------------------------

all_modes!(unreadable_entries_fail_and_the_rest_arrives, |env| {
    env.file("src/secret", "x").mode(0o000);
    env.file("src/plain", "x");
    env.file("src/directory/plain", "x");
    env.dir("src/write-only").mode(0o333);
    env.file("src/closed/inside", "x");
    env.at("src/closed").mode(0o000);
    env.file("src/no-way-in/inside", "x");
    env.at("src/no-way-in").mode(0o444);
    env.dir("parent").mode(0o777);
    if is_root() {
        env.sh("chown -R 65534:65534 src");
    }
    let run = env
        .command(["src", "parent/dst"])
        .unprivileged()
        .run()
        .exits(1)
        .fails_only(&[
            ("src/secret", "open: Permission denied"),
            ("src/write-only", "Permission denied"),
            ("src/closed", "Permission denied"),
            ("src/no-way-in/inside", "Permission denied"),
        ]);
    assert_eq!(run.summary().copied, 2, "{run}");
    for path in ["plain", "directory"] {
        env.assert_same(
            Path::new("src").join(path),
            Path::new("parent/dst").join(path),
        );
    }
    assert!(!env.exists("parent/dst/secret"));
});

both_modes!(an_unwritable_directory_fails_and_the_rest_arrives, |env| {
    for directory in ["open", "closed"] {
        env.file(format!("src/{directory}/file"), "x");
        env.file(format!("src/{directory}/deeper/file"), "x");
    }
    env.dir("parent/dst/open");
    env.dir("parent/dst/closed");
    if is_root() {
        // The closed directory stays root's, so that the user cannot chmod it.
        env.sh("chown 65534 parent parent/dst parent/dst/open; chmod 755 parent/dst/closed");
    } else {
        skip("needs root: users can open their own directories");
        return;
    }
    let run = env
        .command(["src", "parent/dst"])
        .unprivileged()
        .run()
        .exits(1);
    let errors = run.complaints();
    assert!(errors.len() >= 2, "{run}");
    for error in errors {
        assert!(error.starts_with("pcopy: parent/dst/closed"), "{run}");
        let is_denied = error.ends_with("Permission denied");
        let is_metadata = error.ends_with("set times: Operation not permitted");
        assert!(is_denied || is_metadata, "{run}");
    }
    assert_eq!(env.read("parent/dst/open/deeper/file"), b"x");
});

// ---- I/O errors -----------------------------------------------------------------------------

both_modes!(
    a_read_error_in_the_middle_of_a_file_fails_only_that_file,
    |env| {
        fine_files(env);
        env.file("real/bad", pattern(3 * 1024 * 1024, 1));
        env.file("real/bad-and-large", pattern(40 * 1024 * 1024, 2));
        env.file("real/bad-again", pattern(100_000, 3));
        let faults = [
            "--fault",
            "eio:bad:1000000",
            "--fault",
            "eio:bad-and-large:30000000",
            "--fault",
            "eio:bad-again:0",
        ];
        let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
            return;
        };
        env.file("dst/bad-again", "the old one").mtime(1_000, 1);
        let old = env.snapshot("dst/bad-again");
        env.pcopy(["src", "dst"])
            .exits(1)
            .counts(30, 0, 3)
            .fails_only(&[
                ("src/bad", "Input/output error"),
                ("src/bad-and-large", "Input/output error"),
                ("src/bad-again", "Input/output error"),
            ]);
        assert!(
            !env.exists("dst/bad") && !env.exists("dst/bad-and-large"),
            "a partial file is left"
        );
        old.assert_untouched();
        env.snapshot("dst").assert_no_temporaries();
        for directory in ["0", "1", "2"] {
            env.assert_same(
                Path::new("real").join(directory),
                Path::new("dst").join(directory),
            );
        }
    }
);

both_modes!(a_write_error_fails_only_that_file, |env| {
    fine_files(env);
    env.file("real/bad", pattern(3 * 1024 * 1024, 1));
    env.file("real/bad-again", pattern(100_000, 3));
    env.dir("backing");
    let faults = ["--fault", "eio-write:bad:1000000"];
    let Some(_faulty) = FaultFs::mount(env, "backing", "mnt", &faults) else {
        return;
    };
    env.pcopy(["real", "mnt/dst"])
        .exits(1)
        .counts(31, 0, 1)
        .fails_only(&[("mnt/dst/bad", "Input/output error")]);
    assert!(!env.exists("mnt/dst/bad"), "a partial file is left");
    env.snapshot("backing/dst").assert_no_temporaries();
    env.assert_same("real/bad-again", "backing/dst/bad-again");
});

/// A disk or a network mount that goes away while its directory is copied.
const GONE_AFTER: [usize; 4] = [1, 20, 60, 100];

all_modes!(a_source_that_goes_away_is_reported_once, |env| {
    for number in 0..128 {
        env.file(format!("real/sub/file-{number}"), pattern(2_000, number));
    }
    for lines in GONE_AFTER {
        let Some(mut mounted) = FaultFs::mount(env, "real", "src", &["--delay-ms", "1"]) else {
            return;
        };
        let running = env.command(["-v", "-j4", "src", "dst"]).start();
        running.await_stdout("some entries", |text| text.lines().count() >= lines);
        mounted.kill();
        let run = running.wait().exits(1);
        let errors = run.complaints();
        assert!(!errors.is_empty(), "{run}");
        for error in &errors {
            let count = errors.iter().filter(|other| *other == error).count();
            assert_eq!(count, 1, "{error}:\n{run}");
        }
        // Each file fails at most once, and so do the two directories.
        assert!(errors.len() <= 130, "{} errors:\n{run}", errors.len());
        drop(mounted);
        fs::remove_dir_all(env.path("dst")).unwrap();
    }
});

// ---- a source that changes ------------------------------------------------------------------

both_modes!(a_file_that_vanishes_fails_and_the_rest_arrives, |env| {
    fine_files(env);
    env.file("real/1/gone", "x");
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "vanish:gone"]) else {
        return;
    };
    env.pcopy(["src", "dst"])
        .exits(3)
        .counts(30, 0, 1)
        .fails_only(&[("src/1/gone", "No such file or directory")]);
    env.assert_same("real/0", "dst/0");
});

/// Copies a file that changes once while it is read: the second attempt succeeds.
fn changes_once(env: &Env, fault: &str, size: usize) {
    fine_files(env);
    env.file("real/restless", pattern(size, 1))
        .mtime(1_000_000_000, 1);
    let before = env.read("real/restless");
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", fault]) else {
        return;
    };
    env.pcopy(["src", "dst"]).ok().counts(31, 0, 0);
    assert_ne!(
        env.read("real/restless"),
        before,
        "the fault did not happen"
    );
    env.assert_same("real", "dst");
}

both_modes!(a_source_that_shrinks_once_is_read_again, |env| {
    changes_once(env, "shrink:restless:300000", 3 * 1024 * 1024);
});

both_modes!(a_source_that_shrinks_to_nothing_once_is_read_again, |env| {
    changes_once(env, "shrink:restless:0", 1024 * 1024);
});

both_modes!(a_source_that_grows_once_is_read_again, |env| {
    changes_once(env, "grow:restless:5000", 3 * 1024 * 1024);
});

both_modes!(a_source_that_changes_in_place_once_is_read_again, |env| {
    changes_once(env, "change-once:restless", 3 * 1024 * 1024);
});

both_modes!(a_large_source_that_shrinks_once_is_read_again, |env| {
    changes_once(env, "shrink:restless:1000000", 48 * 1024 * 1024);
});

both_modes!(a_small_source_that_changes_once_is_read_again, |env| {
    changes_once(env, "change-once:restless", 100);
});

both_modes!(a_source_that_keeps_changing_is_reported, |env| {
    fine_files(env);
    env.file("real/restless", pattern(1024 * 1024, 1));
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "touch:restless"]) else {
        return;
    };
    env.pcopy(["src", "dst"])
        .exits(3)
        .counts(30, 0, 1)
        .fails_only(&[(
            "src/restless",
            "file changed while being copied (2 attempts)",
        )]);
    assert!(
        !env.exists("dst/restless"),
        "a mix of two contents may be left"
    );
    env.assert_same("real/0", "dst/0");
});
