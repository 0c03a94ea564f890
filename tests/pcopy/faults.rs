//! Full disks, unreadable files, read errors, sources that change, and signals: real ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;
use rustix::process::Signal;

use crate::compare::{self, Properties, Snapshot};
use crate::env::{Env, Random, eventually, is_root, pattern, skip, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::run::{Run, Running, group_has_ended};

// ---- no room ----------------------------------------------------------------------------------

/// Each file of the copy is one of the source, and whole; temporary files are none of them.
///
/// Gives the number of files that are there.
#[track_caller]
fn only_whole_files(source: &Snapshot, copy: &Snapshot) -> usize {
    copy.assert_no_temporaries();
    // Folders that are not finished have their times and modes still to come.
    let (mut expected, mut found) = (source.clone(), copy.clone());
    expected
        .entries
        .retain(|path, entry| entry.kind != FileType::Directory && copy.entries.contains_key(path));
    found
        .entries
        .retain(|_, entry| entry.kind != FileType::Directory);
    if !found.entries.is_empty() {
        compare::assert_same(&expected, &found, Properties::KEPT);
    }
    found.entries.len()
}

/// The number of workers in the tests of full destinations, and the option for it.
const JOBS: usize = 4;
const JOBS_OPTION: &str = "-j4";

/// The run stopped, with few words, because there was no room.
#[track_caller]
fn stopped_for_want_of_room(run: Run, words: &str) {
    let run = run.exits(1).stderr_has(words);
    // One line for each worker at most, not one for each entry that would have failed as well.
    assert!(run.failures().len() <= JOBS, "{run}");
}

both_modes!(
    a_full_destination_stops_the_run_and_leaves_only_whole_files,
    |env| {
        let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=1m tmpfs mnt") else {
            return;
        };
        for i in 0..300 {
            env.file(format!("src/{}/file-{i}", i % 10), pattern(20_000, i));
        }
        let source = env.snapshot("src");
        stopped_for_want_of_room(
            env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
            "No space left on device",
        );
        let copied = only_whole_files(&source, &env.snapshot("mnt/dst"));
        assert!((10..60).contains(&copied), "{copied} files found room");
        source.assert_untouched();
        // With more room a second run goes on.
        env.sh("mount -o remount,size=100m mnt");
        let run = env.pcopy(["src", "mnt/dst"]).ok();
        assert!(run.summary().unchanged > 0, "it began anew:\n{run}");
        env.assert_same("src", "mnt/dst");
    }
);

both_modes!(
    a_file_too_big_for_the_destination_is_not_left_there,
    |env| {
        let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=1m tmpfs mnt") else {
            return;
        };
        env.file("src/small", "small");
        env.file("src/big", pattern(40 * 1024 * 1024, 1));
        let source = env.snapshot("src");
        stopped_for_want_of_room(
            env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
            "No space left on device",
        );
        only_whole_files(&source, &env.snapshot("mnt/dst"));
        assert!(!env.exists("mnt/dst/big"));
    }
);

both_modes!(a_file_that_finds_no_room_does_not_cost_the_old_one, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o size=1m tmpfs mnt") else {
        return;
    };
    env.file("src/file", pattern(800_000, 1));
    env.file("mnt/dst/file", pattern(700_000, 2))
        .mtime(1_000, 1);
    let old = env.snapshot("mnt/dst/file");
    stopped_for_want_of_room(
        env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
        "No space left on device",
    );
    old.assert_untouched();
    env.snapshot("mnt/dst").assert_no_temporaries();
});

both_modes!(a_destination_without_inodes_is_full_too, |env| {
    let Some(env) = env.mounted("mkdir mnt; mount -t tmpfs -o nr_inodes=40 tmpfs mnt") else {
        return;
    };
    for i in 0..100 {
        env.file(format!("src/file-{i:03}"), "x");
    }
    let source = env.snapshot("src");
    stopped_for_want_of_room(
        env.pcopy([JOBS_OPTION, "src", "mnt/dst"]),
        "No space left on device",
    );
    let copied = only_whole_files(&source, &env.snapshot("mnt/dst"));
    assert!(copied > 20, "{copied} files found room");
});

both_modes!(a_quota_stops_the_run_as_well, |env| {
    let script = "mkdir mnt; truncate -s 400M image; mkfs.btrfs -q image; mount -o loop image mnt
        btrfs quota enable mnt; btrfs subvolume create mnt/limited; btrfs qgroup limit 2M mnt/limited";
    let Some(env) = env.mounted(script) else {
        return;
    };
    for i in 0..300 {
        env.file(format!("src/{}/file-{i}", i % 10), pattern(20_000, i));
    }
    let source = env.snapshot("src");
    let run = env.pcopy([JOBS_OPTION, "src", "mnt/limited/dst"]);
    stopped_for_want_of_room(run, "quota exceeded");
    let copied = only_whole_files(&source, &env.snapshot("mnt/limited/dst"));
    assert!((10..150).contains(&copied), "{copied} files found room");
    env.sh("btrfs qgroup limit none mnt/limited");
    env.pcopy(["src", "mnt/limited/dst"]).ok();
    env.assert_same("src", "mnt/limited/dst");
});

// ---- what cannot be read or written -----------------------------------------------------------

both_modes!(
    what_a_normal_user_cannot_read_fails_and_the_rest_arrives,
    |env| {
        env.file("src/secret", "x").mode(0o000);
        env.file("src/plain", "x");
        env.file("src/folder/plain", "x");
        env.folder("src/write-only").mode(0o333);
        env.file("src/closed/inside", "x");
        env.at("src/closed").mode(0o000);
        env.file("src/no-way-in/inside", "x");
        env.at("src/no-way-in").mode(0o444);
        env.folder("parent").mode(0o777);
        if is_root() {
            env.sh("chown -R 65534:65534 src");
        }
        let run = env
            .command(["src", "parent/dst"])
            .by_user()
            .run()
            .exits(1)
            .fails_only(&[
                ("src/secret", "open: Permission denied"),
                ("src/write-only", "Permission denied"),
                ("src/closed", "Permission denied"),
                ("src/no-way-in/inside", "Permission denied"),
            ]);
        assert_eq!(run.summary().copied, 2, "{run}");
        for path in ["plain", "folder"] {
            env.assert_same(
                Path::new("src").join(path),
                Path::new("parent/dst").join(path),
            );
        }
        assert!(!env.exists("parent/dst/secret"));
        // So that the environment can be removed.
        env.sh("chmod -R u+rwx src parent");
    }
);

both_modes!(
    a_destination_folder_that_cannot_be_written_fails_and_the_rest_arrives,
    |env| {
        for folder in ["open", "closed"] {
            env.file(format!("src/{folder}/file"), "x");
            env.file(format!("src/{folder}/deeper/file"), "x");
        }
        env.folder("parent/dst/open");
        env.folder("parent/dst/closed");
        if is_root() {
            // It belongs to somebody else, so that no chmod helps.
            env.sh("chown 65534 parent parent/dst parent/dst/open; chmod 755 parent/dst/closed");
        } else {
            env.at("parent/dst/closed").mode(0o555);
            skip("needs root: a normal user may open his own folder");
            return;
        }
        let run = env.command(["src", "parent/dst"]).by_user().run().exits(1);
        let failures = run.failures();
        assert!(
            failures
                .iter()
                .all(|line| line.starts_with("pcopy: parent/dst/closed")),
            "{run}"
        );
        assert!(
            failures.len() >= 2
                && failures
                    .iter()
                    .all(|line| line.contains("Permission denied")),
            "{run}"
        );
        assert_eq!(env.read("parent/dst/open/deeper/file"), b"x");
    }
);

// ---- a file system with faults ----------------------------------------------------------------

/// Some files that are all right, in the folder `real` that the faulty file system shows.
fn fine_files(env: &Env) {
    for i in 0..30 {
        env.file(
            format!("real/{}/fine-{i}", i % 3),
            pattern(4_000 + i as usize, i),
        );
    }
}

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
            "a part of a file is left"
        );
        old.assert_untouched();
        env.snapshot("dst").assert_no_temporaries();
        for folder in ["0", "1", "2"] {
            env.assert_same(
                Path::new("real").join(folder),
                Path::new("dst").join(folder),
            );
        }
    }
);

both_modes!(a_write_error_fails_only_that_file, |env| {
    fine_files(env);
    env.file("real/bad", pattern(3 * 1024 * 1024, 1));
    env.file("real/bad-again", pattern(100_000, 3));
    env.folder("backing");
    let faults = ["--fault", "eio-write:bad:1000000"];
    let Some(_faulty) = FaultFs::mount(env, "backing", "mnt", &faults) else {
        return;
    };
    env.pcopy(["real", "mnt/dst"])
        .exits(1)
        .counts(31, 0, 1)
        .fails_only(&[("mnt/dst/bad", "Input/output error")]);
    assert!(!env.exists("mnt/dst/bad"), "a part of a file is left");
    env.snapshot("backing/dst").assert_no_temporaries();
    env.assert_same("real/bad-again", "backing/dst/bad-again");
});

both_modes!(a_file_that_vanishes_fails_and_the_rest_arrives, |env| {
    fine_files(env);
    env.file("real/1/gone", "x");
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "vanish:gone"]) else {
        return;
    };
    env.pcopy(["src", "dst"])
        .exits(1)
        .counts(30, 0, 1)
        .fails_only(&[("src/1/gone", "No such file or directory")]);
    env.assert_same("real/0", "dst/0");
});

/// Copies a file that changes one time while it is read: the second try has it right.
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

both_modes!(a_source_that_never_stays_the_same_is_reported, |env| {
    fine_files(env);
    env.file("real/restless", pattern(1024 * 1024, 1));
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "touch:restless"]) else {
        return;
    };
    env.pcopy(["src", "dst"])
        .exits(1)
        .counts(30, 0, 1)
        .fails_only(&[("src/restless", "changed")]);
    assert!(!env.exists("dst/restless"), "what may be a mix is left");
    env.assert_same("real/0", "dst/0");
});

both_modes!(copying_begins_while_the_listing_goes_on, |env| {
    fine_files(env);
    env.folder("real/3-stuck");
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "hang-list:3-stuck"])
    else {
        return;
    };
    // A worker for each folder: what is dealt to the one that is stuck waits with it.
    let running = env.command(["-j8", "src", "dst"]).start();
    // The listing of one folder never ends, and yet everything else arrives.
    let copied = || (0..30).all(|i| env.exists(format!("dst/{}/fine-{i}", i % 3)));
    eventually("all other files are copied", copied);
    drop(running);
});

// ---- signals ----------------------------------------------------------------------------------

/// A run in the middle of a big and slow file, which would take a minute.
///
/// `then` gets the running pcopy as soon as something of the big file is at the destination.
fn in_the_middle(env: &Env, stop: impl FnOnce(Running) -> Run) {
    fine_files(env);
    env.file("real/9-slow", pattern(40 * 1024 * 1024, 5));
    let Some(faulty) = FaultFs::mount(env, "real", "src", &["--fault", "slow-read:9-slow:200"])
    else {
        return;
    };
    let running = env.command(["-j", "4", "src", "dst"]).start();
    eventually("the slow file is begun and the others are there", || {
        env.path("dst")
            .read_dir()
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                entry
                    .metadata()
                    .is_ok_and(|stat| stat.is_file() && stat.len() > 0)
            })
            && (0..30).all(|i| env.exists(format!("dst/{}/fine-{i}", i % 3)))
    });
    let run = stop(running);
    let copy = env.snapshot("dst");
    copy.assert_no_temporaries();
    assert!(
        !env.exists("dst/9-slow"),
        "a part of a file is left:\n{run}"
    );
    drop(faulty);
    only_whole_files(&env.snapshot("real"), &copy);
    let run = env.pcopy(["real", "dst"]).ok();
    assert!(run.summary().unchanged >= 25, "it began anew:\n{run}");
    env.assert_same("real", "dst");
}

/// Sends the signal and sees that the run ends soon, in order, and says what comes next.
fn ends_soon(running: Running, signal: impl FnOnce(&Running), code: i32) -> Run {
    let sent = Instant::now();
    signal(&running);
    let run = running.wait().exits(code);
    let took = sent.elapsed();
    assert!(
        took < Duration::from_millis(1500),
        "it took {took:?} to stop:\n{run}"
    );
    assert!(run.summary().copied >= 25, "{run}");
    run.stderr_has("continue")
}

both_modes!(
    sigint_stops_it_within_a_second_without_a_partial_file,
    |env| {
        // As from a terminal: every process of the group gets it.
        in_the_middle(env, |running| {
            ends_soon(running, |running| running.signal_group(Signal::INT), 130)
        });
    }
);

both_modes!(
    sigterm_stops_it_within_a_second_without_a_partial_file,
    |env| {
        // As from kill(1): only pcopy itself gets it.
        in_the_middle(env, |running| {
            ends_soon(running, |running| running.signal(Signal::TERM), 143)
        });
    }
);

both_modes!(
    a_hangup_stops_it_within_a_second_without_a_partial_file,
    |env| {
        // As when the terminal is closed.
        in_the_middle(env, |running| {
            ends_soon(running, |running| running.signal_group(Signal::HUP), 129)
        });
    }
);

both_modes!(a_signal_that_comes_twice_at_once_is_one, |env| {
    // As from timeout(1): to pcopy, and to its group.
    let twice = |running: &Running| {
        running.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(5));
        running.signal_group(Signal::TERM);
    };
    in_the_middle(env, |running| ends_soon(running, twice, 143));
});

both_modes!(an_ignored_signal_stops_nothing, |env| {
    env.file("real/slow", pattern(1024 * 1024, 1));
    let faults = ["--fault", "slow-read:slow:300"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    // As nohup(1) does it.
    let running = env.command(["src", "dst"]).after("trap '' HUP").start();
    eventually("it has begun", || env.exists("dst/slow"));
    running.signal_group(Signal::HUP);
    running.wait().ok();
    env.assert_same("src", "dst");
});

/// As a file server's client has it: whoever opens the file waits until it is given back.
const LEASE: &str = "
import fcntl, os, signal, sys, time
file = os.open('src/file', os.O_RDWR)
def give_back(*_):
    time.sleep(0.3)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    sys.exit()
signal.signal(signal.SIGIO, give_back)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open('held', 'w').close()
time.sleep(30)
";

both_modes!(a_file_that_somebody_has_a_lease_on_is_waited_for, |env| {
    if env.skipped_without("python3") {
        return;
    }
    env.file("src/file", "x");
    let mut holder = std::process::Command::new("python3")
        .args(["-c", LEASE])
        .current_dir(env.path("."))
        .spawn()
        .unwrap();
    eventually("the lease is held", || env.exists("held"));
    let run = env.pcopy(["src", "dst"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    run.ok();
    env.assert_same("src", "dst");
});

both_modes!(the_second_signal_ends_it_at_once, |env| {
    env.file("real/stuck", pattern(1024 * 1024, 1));
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "hang-read:stuck"]) else {
        return;
    };
    let running = env.command(["src", "dst"]).start();
    eventually("it has begun", || env.exists("dst"));
    running.signal(Signal::INT);
    eventually("two signals end it", || {
        if running.is_running() {
            running.signal(Signal::INT);
        }
        !running.is_running()
    });
    let run = running.wait();
    assert!(
        run.status.code() == Some(130) || run.status.code().is_none(),
        "{run}"
    );
});

both_modes!(
    a_signal_among_many_small_files_leaves_only_whole_ones,
    |env| {
        for i in 0..2_000 {
            env.file(format!("real/{}/file-{i}", i % 40), pattern(3_000, i));
        }
        let Some(faulty) = FaultFs::mount(env, "real", "src", &["--delay-ms", "2"]) else {
            return;
        };
        let running = env.command(["-v", "-j", "4", "src", "dst"]).start();
        running.await_stdout("20 files", |text| text.lines().count() >= 20);
        running.signal(Signal::INT);
        let run = running.wait().exits(130);
        drop(faulty);
        let source = env.snapshot("real");
        let copied = only_whole_files(&source, &env.snapshot("dst"));
        assert!(
            (10..1_990).contains(&copied),
            "{copied} files at the moment of the signal:\n{run}"
        );
        assert_eq!(
            run.summary().copied,
            copied as u64,
            "the summary is right:\n{run}"
        );
        env.pcopy(["real", "dst"]).ok();
        env.assert_same("real", "dst");
    }
);

both_modes!(sigkill_at_any_moment_is_repaired_by_the_next_run, |env| {
    const ROUNDS: usize = 50;
    for i in 0..150 {
        env.file(
            format!("src/{}/file-{i}", i % 12),
            pattern(200 * (i as usize % 50), i),
        )
        .mtime(1_000, i.cast_signed());
        env.symlink(format!("src/{}/link-{i}", i % 5), format!("file-{i}"))
            .mtime(1_000, 7);
    }
    for i in 0..20 {
        env.hard_link(
            format!("src/{}/twin-{i}", i % 3),
            format!("src/{}/file-{i}", i % 12),
        );
        env.fifo(format!("src/4/fifo-{i}"));
    }
    env.file("src/big", pattern(5 * 1024 * 1024, 1));
    // Copied in pieces, under a temporary name where it is replaced.
    env.file("src/3/large", pattern(33 * 1024 * 1024, 2));
    env.folder("src/read-only/inner")
        .mode(0o555)
        .mtime(1_000, 8);
    let source = env.snapshot("src");

    let seed = std::env::var("PCOPY_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            u64::from(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap()
                    .subsec_nanos(),
            )
        });
    println!("seed: PCOPY_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut whole = env.pcopy(["src", "warm"]).ok().took;

    let mut killed = 0;
    for round in 0..ROUNDS {
        // Every other round has something to replace everywhere, the others begin with nothing.
        if round % 2 == 0 {
            let _ = fs::remove_dir_all(env.path("dst"));
        } else {
            env.sh("find dst ! -type d -print0 | xargs -0 touch -h -d @77");
        }
        let moment = Duration::from_nanos(random.below(u64::try_from(whole.as_nanos()).unwrap()));
        let running = env.command(["src", "dst"]).start();
        // The moment is what is random here: there is no condition to wait for.
        std::thread::sleep(moment);
        let was_running = running.is_running();
        let group = running.pid();
        running.signal_group(Signal::KILL);
        let run = running.wait();
        let was_killed = was_running && run.status.code().is_none();
        killed += usize::from(was_killed);
        // How long a whole run takes changes with what else the machine does.
        whole = if was_killed {
            whole * 51 / 50
        } else {
            whole * 9 / 10
        };
        eventually("all its processes are gone", || group_has_ended(group));
        let left = if env.exists("dst") {
            env.snapshot("dst").entries.len()
        } else {
            0
        };

        let run = env.pcopy(["src", "dst"]).ok();
        let copy = env.snapshot("dst");
        let found = compare::differences(&source, &copy, Properties::KEPT);
        assert!(
            found.is_empty(),
            "round {round}, killed after {moment:?} with {left} entries there; then the second run left:\n{}\n{run}",
            found.join("\n")
        );
        copy.assert_no_temporaries();
    }
    println!("{killed} of {ROUNDS} were killed before they had ended; a whole run takes {whole:?}");
    assert!(
        killed >= ROUNDS / 4,
        "only {killed} runs were killed before they had ended"
    );
    source.assert_untouched();
});

both_modes!(
    an_unfinished_file_of_the_right_length_is_not_taken_for_a_copy,
    |env| {
        // What a power cut may leave: all of its length, but not all of its content.
        env.file("src/file", pattern(100_000, 1)).mtime(1_000, 1);
        env.file("dst/file", vec![0; 100_000]);
        env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
        env.assert_same("src", "dst");
    }
);

both_modes!(stale_temporary_files_are_removed_by_a_single_file, |env| {
    env.file("big", pattern(64 * 1024 * 1024, 1));
    for copy in ["dst/big", "dst"] {
        env.file("dst/big", "old");
        let running = env.command(["big", copy]).start();
        let temporaries = || {
            let listed = env.path("dst").read_dir().unwrap().flatten();
            listed.filter(|entry| entry.file_name() != "big").count()
        };
        // It may be too fast to be met, and has nothing to remove then.
        while running.is_running() && temporaries() == 0 {}
        let group = running.pid();
        running.signal_group(Signal::KILL);
        running.wait();
        eventually("the workers have ended", || group_has_ended(group));
        env.pcopy(["big", copy]).ok();
        assert_eq!(temporaries(), 0);
        env.assert_same("big", "dst/big");
    }
});

both_modes!(stale_temporary_files_are_removed, |env| {
    env.file("src/folder/file", "new");
    env.file("src/folder/more", "new");
    // The names are pcopy's own: made by a run that is killed while it replaces.
    if skipped_without_root() {
        return;
    }
    env.file("real/slow", pattern(4 * 1024 * 1024, 1));
    env.file("dst/slow", "old").mtime(1_000, 1);
    let Some(faulty) = FaultFs::mount(env, "real", "mnt", &["--fault", "slow-read:slow:300"])
    else {
        return;
    };
    let running = env.command(["mnt", "dst"]).start();
    let temporary = || {
        env.path("dst")
            .read_dir()
            .unwrap()
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(".pcopy."))
    };
    eventually("there is a temporary file", || temporary().is_some());
    let name = temporary().unwrap().file_name();
    assert!(name.to_string_lossy().ends_with(".tmp"), "{name:?}");
    let group = running.pid();
    running.signal_group(Signal::KILL);
    running.wait();
    eventually("all its processes are gone", || group_has_ended(group));
    drop(faulty);
    assert!(env.exists(Path::new("dst").join(&name)), "the kill left it");
    assert_eq!(env.read("dst/slow"), b"old");
    assert_eq!(env.stat("dst/slow").mtime(), 1_000);
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
});
