//! Links are not followed, and no other process sees half a file.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::env::skip;
use crate::noise::pattern;
use crate::outcome::Run;

// ---- links at the destination ---------------------------------------------------------------

both_modes!(
    a_destination_file_that_is_a_link_is_replaced_not_followed,
    |env| {
        env.file("outside/file", "outside").mtime(1_000, 1);
        env.file("src/file", "from the source");
        env.file("src/to-nothing", "from the source");
        env.fifo("src/fifo");
        env.symlink("dst/file", "../outside/file");
        env.symlink("dst/to-nothing", "../outside/new");
        env.symlink("dst/fifo", "../outside/file");
        let outside = env.snapshot("outside");
        env.pcopy(["src", "dst"]).ok();
        outside.assert_untouched();
        env.assert_same("src", "dst");
    }
);

both_modes!(a_destination_directory_that_is_a_link_is_an_error, |env| {
    env.file("outside/keep", "outside").mtime(1_000, 1);
    env.at("outside").mode(0o700).mtime(1_000, 2);
    env.file("src/directory/file", "x");
    env.file("src/directory/deeper/file", "x");
    env.dir("src/empty").mode(0o777);
    env.file("src/other/file", "x");
    env.symlink("dst/directory", "../outside");
    env.symlink("dst/empty", "../outside");
    let outside = env.snapshot("outside");
    env.pcopy(["src", "dst"]).exits(1).fails_only(&[
        ("dst/directory", "symbolic link"),
        ("dst/empty", "symbolic link"),
    ]);
    outside.assert_untouched();
    env.assert_same("src/other", "dst/other");
    assert!(env.stat("dst/directory").is_symlink(), "the link is gone");
});

// ---- trees that change during the run -------------------------------------------------------

/// Runs `work` at least `min` times while another thread repeats `disturb` without a pause.
///
/// It continues until the other thread has done more rounds than there were runs, so that a
/// busy machine cannot make a test pass without any disturbance.
fn meanwhile(disturb: impl Fn() + Sync, min: u64, mut work: impl FnMut()) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    // Also stops the other thread if `work` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                disturb();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        {
            let _stop = Stop(&stop);
            let mut runs = 0;
            while runs < min || rounds.load(Ordering::Relaxed) <= runs {
                assert!(!other.is_finished(), "the other thread found an error");
                work();
                runs += 1;
            }
            println!("{runs} runs, {rounds:?} rounds of the other thread");
        }
        other.join().expect("the other thread found an error");
    });
}

/// Swaps two names atomically, so that both always exist.
fn swap(one: &PathBuf, other: &PathBuf) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// Fails unless a run exited as it may if the tree changes meanwhile.
#[track_caller]
fn ended_cleanly(run: &Run) {
    assert!(matches!(run.status.code(), Some(0 | 1 | 3)), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
}

/// The number of runs during which names are swapped.
const SWAPPED_RUNS: u64 = 40;

both_modes!(
    a_source_directory_swapped_for_a_link_leads_nowhere_outside,
    |env| {
        for i in 0..20 {
            env.file(format!("src/directory/deeper/file-{i}"), "inside");
            env.file(format!("outside/deeper/file-{i}"), "OUTSIDE");
            env.file(format!("outside/deeper/secret-{i}"), "OUTSIDE");
        }
        env.symlink("link", env.inner_path("outside"));
        let outside = env.snapshot("outside");
        let (dir, link) = (env.path("src/directory"), env.path("link"));
        meanwhile(
            || swap(&dir, &link),
            SWAPPED_RUNS,
            || {
                let run = env.pcopy(["-j", "4", "src", "dst"]);
                ended_cleanly(&run);
                if env.exists("dst/directory") && env.stat("dst/directory").is_dir() {
                    let copy = env.snapshot("dst/directory");
                    for (path, entry) in &copy.entries {
                        let name = String::from_utf8_lossy(path);
                        let is_outside = name.contains("secret") || entry.size == 7;
                        assert!(!is_outside, "{name} was copied from outside:\n{run}");
                    }
                }
                fs::remove_dir_all(env.path("dst")).unwrap();
            },
        );
        outside.assert_untouched();
    }
);

both_modes!(
    a_destination_directory_swapped_for_a_link_leads_nowhere_outside,
    |env| {
        for i in 0..40 {
            env.file(format!("src/directory/file-{i}"), format!("{i}"));
            env.file(format!("src/directory/deeper/file-{i}"), format!("{i}"));
        }
        env.dir("src/directory/deeper").mode(0o700);
        env.file("outside/file-1", "OUTSIDE").mtime(1_000, 1);
        env.file("outside/deeper/file-1", "OUTSIDE").mtime(1_000, 1);
        env.at("outside/deeper").mode(0o755).mtime(1_000, 2);
        env.at("outside").mode(0o755).mtime(1_000, 3);
        let outside = env.snapshot("outside");
        env.dir("dst/directory");
        env.symlink("link", env.inner_path("outside"));
        let (dir, link) = (env.path("dst/directory"), env.path("link"));
        meanwhile(
            || swap(&dir, &link),
            SWAPPED_RUNS,
            || {
                let run = env.pcopy(["-j", "4", "--overwrite", "always", "src", "dst"]);
                ended_cleanly(&run);
                outside.assert_untouched();
            },
        );
    }
);

both_modes!(
    a_source_file_swapped_for_a_link_or_a_fifo_is_not_followed,
    |env| {
        for i in 0..50 {
            env.file(format!("src/other-{i}"), "other");
        }
        env.file("src/file", "inside");
        env.file("outside", "OUTSIDE SECRET");
        env.symlink("link", env.inner_path("outside"));
        env.fifo("fifo");
        let (file, link, fifo) = (env.path("src/file"), env.path("link"), env.path("fifo"));
        let disturb = || {
            // The name belongs to a link, the file, a FIFO, and the file again.
            swap(&file, &link);
            swap(&file, &link);
            swap(&file, &fifo);
            swap(&file, &fifo);
        };
        // To open a FIFO without a writer must not block the run.
        meanwhile(disturb, SWAPPED_RUNS, || {
            let run = env.pcopy(["src", "dst"]);
            ended_cleanly(&run);
            if env.exists("dst/file") && env.stat("dst/file").is_file() {
                assert_eq!(env.read("dst/file"), b"inside", "{run}");
            }
            fs::remove_dir_all(env.path("dst")).unwrap();
        });
    }
);

both_modes!(a_run_whose_destination_is_removed_ends_cleanly, |env| {
    for i in 0..400 {
        env.file(format!("src/{}/file-{i}", i % 20), pattern(5_000, i));
    }
    let target = env.path("dst");
    let remove = || match fs::remove_dir_all(&target) {
        Ok(()) => {}
        Err(e) => assert!(
            matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty),
            "{e}"
        ),
    };
    meanwhile(remove, 5, || {
        let run = env.pcopy(["src", "dst"]);
        assert!(matches!(run.status.code(), Some(0..=2)), "{run}");
        assert!(!run.stderr.contains("panicked"), "{run}");
    });
});

both_modes!(two_runs_at_once_make_a_whole_copy, |env| {
    for i in 0..300 {
        env.file(format!("src/{}/file-{i}", i % 10), pattern(5_000, i));
    }
    let first = env.command(["src", "dst"]).start();
    let second = env.command(["src", "dst"]).start();
    ended_cleanly(&first.wait());
    ended_cleanly(&second.wait());
    // The next run repairs an entry at which the two collided.
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});

// ---- what other processes see ---------------------------------------------------------------

both_modes!(a_private_file_is_never_readable_by_others, |env| {
    for i in 0..4 {
        env.file(format!("src/private-{i}"), pattern(6 * 1024 * 1024, i))
            .mode(0o600);
    }
    let old: Vec<u64> = (0..4)
        .map(|i| {
            env.file(format!("dst/private-{i}"), "old").mode(0o666);
            env.stat(format!("dst/private-{i}")).ino()
        })
        .collect();
    let (new, replaced) = (env.path("new"), env.path("dst"));
    // Examines the files under all names, including temporary ones.
    let examine = |dir: &PathBuf| {
        for found in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(stat) = found.metadata() else { continue };
            let is_old = old.contains(&stat.ino()) && stat.len() == 3;
            assert!(
                is_old || stat.mode() & 0o077 == 0,
                "{:?} has mode {:o}",
                found.path(),
                stat.mode()
            );
        }
    };
    let watch = || {
        examine(&new);
        examine(&replaced);
    };
    meanwhile(watch, 3, || {
        env.command(["src", "new"]).after("umask 000").run().ok();
        fs::remove_dir_all(&new).unwrap();
        env.command(["--overwrite=always", "src", "dst"])
            .after("umask 000")
            .run()
            .ok();
    });
    env.assert_same("src", "dst");
});

both_modes!(a_private_directory_is_never_open_to_others, |env| {
    for i in 0..200 {
        env.file(format!("src/private/file-{i}"), pattern(20_000, i))
            .mode(0o644);
    }
    env.at("src/private").mode(0o700);
    let dir = env.path("dst/private");
    let watch = || {
        if let Ok(stat) = fs::symlink_metadata(&dir) {
            let mode = stat.mode();
            assert_eq!(mode & 0o077, 0, "other users may enter: {mode:o}");
        }
    };
    meanwhile(watch, 5, || {
        env.command(["src", "dst"]).after("umask 000").run().ok();
        fs::remove_dir_all(env.path("dst")).unwrap();
    });
});

both_modes!(a_reader_sees_the_old_file_or_the_new_one, |env| {
    const SIZE: usize = 3 * 1024 * 1024;
    let contents = [vec![b'a'; SIZE], vec![b'b'; SIZE + 1]];
    let write_source = |round: usize| {
        let even = round.is_multiple_of(2);
        env.file("src/file", &contents[round % 2]);
        // A link and a group of hard links are replaced in the same way.
        let _ = fs::remove_file(env.path("src/link"));
        env.symlink("src/link", if even { "even" } else { "odd-target" });
        let _ = fs::remove_file(env.path("src/twin"));
        let _ = fs::remove_file(env.path("src/small"));
        env.file("src/small", if even { "even" } else { "odd-content" });
        env.hard_link("src/twin", "src/small");
    };
    write_source(0);
    env.pcopy(["src", "dst"]).ok();
    let (file, link) = (env.path("dst/file"), env.path("dst/link"));
    let small = [env.path("dst/small"), env.path("dst/twin")];
    let read = || {
        let seen = fs::read(&file).unwrap_or_else(|e| panic!("dst/file: {e}"));
        assert!(
            contents.contains(&seen),
            "{} bytes, mixed or partial",
            seen.len()
        );
        let target = fs::read_link(&link).unwrap_or_else(|e| panic!("dst/link: {e}"));
        assert!(
            ["even", "odd-target"]
                .iter()
                .any(|known| target.as_os_str() == *known)
        );
        for path in &small {
            let seen = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(
                [&b"even"[..], b"odd-content"].contains(&seen.as_slice()),
                "{seen:?}"
            );
        }
    };
    let mut round = 0;
    meanwhile(read, 14, || {
        round += 1;
        write_source(round);
        env.pcopy(["src", "dst"]).ok();
    });
    env.assert_same("src", "dst");
});

both_modes!(a_running_program_can_be_replaced, |env| {
    // To write into it would fail with "Text file busy".
    env.dir("dst");
    fs::copy("/bin/sleep", env.path("dst/program")).unwrap();
    env.file("src/program", "new").mode(0o755);
    let program = Command::new(env.path("dst/program")).arg("600").spawn();
    let mut child = match program {
        Ok(child) => child,
        Err(e) => return skip(format_args!("cannot run a program in TMPDIR: {e}")),
    };
    let run = env.pcopy(["src", "dst"]);
    child.kill().unwrap();
    child.wait().unwrap();
    run.ok();
    env.assert_same("src", "dst");
});
