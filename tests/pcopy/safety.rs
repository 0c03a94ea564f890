//! The source is never harmed, nothing outside is touched, and nobody sees half a file.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, RenameFlags, renameat_with};

use crate::compare::{self, Properties};
use crate::env::{Env, pattern};
use crate::run::Run;

/// A source tree whose loss would be noticed.
fn precious(env: &Env) {
    env.file("src/file", "precious").mtime(1_000, 1);
    env.file("src/inner/file", pattern(100_000, 1))
        .mtime(1_000, 2);
    env.symlink("src/link", "file");
    env.hard_link("src/inner/twin", "src/file");
    env.at("src/inner").mtime(1_000, 3);
    env.at("src").mtime(1_000, 4);
}

/// Runs pcopy, which has to refuse before it writes anything into the source.
#[track_caller]
fn refused(env: &Env, args: &[&str]) {
    let before = env.snapshot("src");
    let run = env.command(args).within(Duration::from_secs(30)).run();
    before.assert_untouched();
    let run = run.exits(2).stdout_is_empty();
    assert_eq!(run.failures().len(), 1, "one line that says why:\n{run}");
}

// ---- what is written to is read too -------------------------------------------------------------

both_modes!(a_link_to_what_is_being_made_is_no_way_round, |env| {
    env.file("src/a/file", "x");
    env.symlink("src/a/link", env.inner_path("dst/a"));
    let run = env
        .command(["-L", "src", "dst"])
        .within(Duration::from_secs(30));
    let reason = "this folder is the destination itself";
    run.run().exits(1).fails_only(&[("src/a/link", reason)]);
    env.assert_same("src/a/file", "dst/a/file");
});

both_modes!(
    what_is_being_made_mounted_in_the_source_is_no_way_round,
    |env| {
        let Some(env) = env
            .mounted("mkdir -p src/a/mnt dst/a; echo x > src/a/file; mount --bind dst/a src/a/mnt")
        else {
            return;
        };
        let run = env.command(["src", "dst"]).within(Duration::from_secs(30));
        let reason = "this folder is the destination itself";
        run.run().exits(1).fails_only(&[("src/a/mnt", reason)]);
        env.assert_same("src/a/file", "dst/a/file");
    }
);

both_modes!(a_file_system_may_be_copied_to_a_disk_mounted_in_it, |env| {
    let Some(env) =
        env.mounted("mkdir -p src/disk; echo x > src/file; mount -t tmpfs tmpfs src/disk")
    else {
        return;
    };
    env.pcopy(["src", "src/disk"]).exits(2);
    env.pcopy(["-x", "src", "src/disk"]).ok();
    env.assert_same("src/file", "src/disk/file");
    assert!(!env.exists("src/disk/disk/file"));
});

both_modes!(a_named_source_is_never_a_left_over, |env| {
    let name = "dst/.pcopy.0123456789abcdef.7.12.tmp";
    env.file(name, "to be rescued");
    env.pcopy([name, "dst/rescued"]).ok();
    assert_eq!(env.read("dst/rescued"), b"to be rescued");
    assert!(env.exists(name));
});

both_modes!(
    a_source_that_is_at_the_destination_stays_what_it_is,
    |env| {
        env.file("x/a", "hi");
        env.hard_link("dir/b", "x/a");
        env.pcopy(["x/a", "dir/b", "dir"]).ok();
        assert_eq!(env.stat("x/a").ino(), env.stat("dir/b").ino());
        assert_eq!(env.read("dir/a"), b"hi");
    }
);

both_modes!(a_source_is_not_replaced_by_another_one, |env| {
    env.file("new/b/f", "other");
    env.file("x/b/f", "mine");
    let run = env.pcopy(["new/b", "x/b/f", "x"]).exits(1);
    run.fails_only(&[("x/b/f", "it would replace another source of this run")]);
    assert_eq!(env.read("x/b/f"), b"mine");
    assert_eq!(env.read("x/f"), b"mine");
});

both_modes!(
    what_a_mount_hides_in_the_source_may_be_the_destination,
    |env| {
        let script = "mkdir -p src/x other; mount --bind src/x other; mount -t tmpfs tmpfs src/x; echo x > src/x/file; echo x > src/file";
        let Some(env) = env.mounted(script) else {
            return;
        };
        env.pcopy(["src", "other"]).ok();
        env.assert_same("src", "other");
    }
);

// ---- destinations that are not what they seem ---------------------------------------------------

both_modes!(a_destination_through_what_is_missing_is_refused, |env| {
    precious(env);
    refused(env, &["src", "missing/../src/new"]);
    assert!(!env.exists("missing"));
});

both_modes!(a_link_to_nowhere_is_not_replaced, |env| {
    precious(env);
    env.symlink("link", "nowhere");
    refused(env, &["src/file", "link"]);
    assert_eq!(
        fs::read_link(env.path("link")).unwrap(),
        PathBuf::from("nowhere")
    );
});

// ---- the same folder, and a folder into itself ------------------------------------------------

both_modes!(a_folder_onto_itself_is_refused_under_every_name, |env| {
    precious(env);
    env.symlink("alias", "src");
    env.symlink("src-parent", ".");
    let absolute = env.inner_path("src");
    for name in [
        "src",
        "./src",
        "src/",
        "src/.",
        "src/inner/..",
        "alias",
        "alias/",
        "src-parent/src",
        absolute.to_str().unwrap(),
    ] {
        refused(env, &["src", name]);
        refused(env, &[name, "src"]);
        refused(env, &["-n", "src", name]);
    }
    // "-t ." gives it its own name again.
    refused(env, &["-t", ".", "src"]);
});

both_modes!(a_folder_into_itself_is_refused_under_every_name, |env| {
    precious(env);
    env.symlink("alias", "src/inner");
    env.symlink("src-parent", ".");
    env.symlink("dangling-into-src", "src/not-yet");
    for name in [
        "src/new",
        "src/new/deeper/still",
        "src/inner",
        "src/inner/new",
        "alias",
        "alias/new",
        "src-parent/src/new",
        "src/inner/../new",
    ] {
        refused(env, &["src", name]);
        refused(env, &["-t", name, "src"]);
    }
    refused(env, &["-t", "src", "src"]);
    refused(env, &["-t", "src/inner", "src"]);
    // Where the link points to nothing, any refusal will do.
    let before = env.snapshot("src");
    env.pcopy(["src", "dangling-into-src"]);
    before.assert_untouched();
});

both_modes!(a_good_source_beside_a_bad_one_is_not_begun, |env| {
    precious(env);
    env.file("good/file", "good");
    refused(env, &["good", "src", "src/inner"]);
});

both_modes!(bind_mounts_hide_nothing, |env| {
    let script =
        "mkdir -p src/inner alias outer; mount --bind src alias; mount --bind src/inner outer";
    let Some(env) = env.mounted(script) else {
        return;
    };
    precious(&env);
    refused(&env, &["src", "alias"]);
    refused(&env, &["alias", "src"]);
    refused(&env, &["src", "alias/new"]);
    refused(&env, &["src", "alias/inner"]);
    // The destination lies in the source, although every folder above it is elsewhere.
    refused(&env, &["src", "outer"]);
    refused(&env, &["src", "outer/new"]);
    refused(&env, &["-t", "outer", "src"]);
});

both_modes!(
    a_bind_mount_inside_the_source_that_is_the_destination_is_no_endless_copy,
    |env| {
        let script = "mkdir -p src/mnt dst; mount --bind dst src/mnt";
        let Some(env) = env.mounted(script) else {
            return;
        };
        precious(&env);
        let run = env
            .command(["src", "dst"])
            .within(Duration::from_secs(30))
            .run();
        assert_ne!(
            run.status.code(),
            Some(0),
            "the destination lies in the source:\n{run}"
        );
        assert!(!env.exists("dst/mnt/mnt/mnt"), "{run}");
        assert_eq!(env.read("src/file"), b"precious");
    }
);

both_modes!(
    a_folder_whose_entry_would_land_on_the_source_is_left_out,
    |env| {
        // SRC x/src to DST x: its entry "src" would land on x/src, the source itself.
        env.file("x/src/file", "precious").mtime(1_000, 1);
        env.file("x/src/src/file", "would overwrite x/src/file");
        env.file("x/src/src/more", "would be added to x/src");
        env.file("x/src/other/file", "other");
        let before = env.snapshot("x/src");
        let run = env.pcopy(["x/src", "x"]).exits(1);
        before.assert_untouched();
        assert_eq!(run.failures().len(), 1, "{run}");
        run.stderr_has("x/src: ");
        // The rest arrives.
        assert_eq!(env.read("x/file"), b"precious");
        env.assert_same("x/src/other", "x/other");
    }
);

both_modes!(
    a_folder_whose_entry_would_land_on_the_source_deeper_down_is_left_out,
    |env| {
        env.file("x/p/src/file", "precious").mtime(1_000, 1);
        env.file("x/p/src/p/src/file", "would overwrite x/p/src/file");
        env.file("x/p/src/p/src/inner/file", "would be added");
        env.file("x/p/src/p/fine", "fine");
        let before = env.snapshot("x/p/src");
        env.pcopy(["x/p/src", "x"]).exits(1);
        before.assert_untouched();
        assert_eq!(env.read("x/p/fine"), b"fine");
    }
);

both_modes!(another_source_of_the_same_run_is_not_written_to, |env| {
    env.file("a/b/file", "longer, from a/b");
    env.file("x/b/file", "precious").mtime(1_000, 1);
    let before = env.snapshot("x/b");
    // x/b is the second source, and the first one would land on it.
    let run = env.pcopy(["-t", "x", "a/b", "x/b"]);
    assert!(matches!(run.status.code(), Some(1 | 2)), "{run}");
    before.assert_untouched();
});

both_modes!(an_own_copy_inside_is_no_reason_to_refuse, |env| {
    precious(env);
    // Names that only look like it: src-2 is not in src, and ../src from elsewhere is another.
    env.pcopy(["src", "src-2"]).ok();
    env.assert_same("src", "src-2");
    env.pcopy(["src/inner", "src/copy-of-inner"]).ok();
    env.assert_same("src/inner", "src/copy-of-inner");
});

// ---- the same file ----------------------------------------------------------------------------

both_modes!(a_file_onto_itself_stays_what_it_is, |env| {
    env.file("file", "precious").mtime(1_000, 1);
    env.hard_link("hard", "file");
    env.symlink("soft", "file");
    env.folder("folder");
    env.hard_link("folder/file", "file");
    env.symlink("here", ".");
    let before = env.snapshot("");
    let options: [&[&str]; 3] = [&[], &["--overwrite=always"], &["--sparse=always"]];
    for copy in [
        "file",
        "./file",
        "hard",
        "soft",
        "folder",
        "folder/file",
        ".",
        "here",
        "here/file",
    ] {
        for options in options {
            let run = env.pcopy([options, &["file", copy]].concat());
            assert!(run.status.code().is_some(), "{run}");
            assert_eq!(env.read("file"), b"precious", "{run}");
            assert_eq!(
                env.stat("file").ino(),
                before.entry("file").inode.1,
                "{run}"
            );
        }
    }
    env.at("")
        .mtime(before.entry("").mtime.0, before.entry("").mtime.1);
    env.at("folder").mtime(
        before.entry("folder").mtime.0,
        before.entry("folder").mtime.1,
    );
    before.assert_untouched();
});

both_modes!(a_file_that_is_the_same_inode_already_is_left_alone, |env| {
    env.file("src/file", "precious").mtime(1_000, 1);
    env.hard_link("dst/file", "src/file");
    let before = env.snapshot("src");
    for option in ["--overwrite=changed", "--overwrite=always"] {
        env.pcopy([option, "src", "dst"]).ok().counts(0, 1, 0);
        before.assert_untouched();
        assert_eq!(env.stat("dst/file").ino(), env.stat("src/file").ino());
    }
});

both_modes!(
    a_destination_link_that_points_to_the_source_file_is_replaced,
    |env| {
        env.file("src/file", "precious").mtime(1_000, 1);
        env.symlink("dst/file", "../src/file");
        let before = env.snapshot("src");
        env.pcopy(["src", "dst"]).ok();
        before.assert_untouched();
        env.assert_same("src", "dst");
        assert!(!env.stat("dst/file").is_symlink());
    }
);

// ---- links at the destination -----------------------------------------------------------------

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

both_modes!(a_link_in_the_target_directory_is_not_followed, |env| {
    env.file("folder/file", "x");
    env.folder("outside");
    env.symlink("dst/folder", "../outside");
    let run = env.pcopy(["-t", "dst", "folder"]).exits(2);
    assert!(
        run.stderr
            .contains("dst/folder: a symbolic link is in the way"),
        "{run}"
    );
    assert!(!env.exists("outside/file"));
    // The target directory itself is named, so it may be one.
    env.symlink("link", "outside");
    env.pcopy(["-t", "link", "folder"]).ok();
    env.assert_same("folder", "outside/folder");
});

both_modes!(
    a_destination_folder_that_is_a_link_fails_and_says_so,
    |env| {
        env.file("outside/keep", "outside").mtime(1_000, 1);
        env.at("outside").mode(0o700).mtime(1_000, 2);
        env.file("src/folder/file", "x");
        env.file("src/folder/deeper/file", "x");
        env.folder("src/empty").mode(0o777);
        env.file("src/other/file", "x");
        env.symlink("dst/folder", "../outside");
        env.symlink("dst/empty", "../outside");
        let outside = env.snapshot("outside");
        env.pcopy(["src", "dst"]).exits(1).fails_only(&[
            ("dst/folder", "symbolic link"),
            ("dst/empty", "symbolic link"),
        ]);
        outside.assert_untouched();
        env.assert_same("src/other", "dst/other");
        assert!(env.stat("dst/folder").is_symlink(), "the link stays");
    }
);

// ---- while others are at work -----------------------------------------------------------------

/// Does something again and again, without pause, until it is told to stop.
///
/// Gives back how often it was done, so that a test can see that it was done at all.
fn meanwhile<T>(disturb: impl Fn() + Sync, work: impl FnOnce() -> T) -> (u64, T) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    // Stops the other thread when `work` panics as well.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let result = thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                disturb();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let result = {
            let _stop = Stop(&stop);
            work()
        };
        other
            .join()
            .expect("the thread that disturbs found something wrong");
        result
    });
    (rounds.into_inner(), result)
}

/// Swaps two names atomically, so that there is always something under both.
fn swap(one: &PathBuf, other: &PathBuf) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// Exit statuses that a run may have while its tree changes under it.
#[track_caller]
fn ended_in_order(run: &Run) {
    assert!(matches!(run.status.code(), Some(0 | 1)), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
}

/// How long each of the swapping tests goes on.
const SWAPPING: Duration = Duration::from_millis(2500);

both_modes!(
    a_source_folder_swapped_for_a_link_leads_nowhere_outside,
    |env| {
        for i in 0..20 {
            env.file(format!("src/folder/deeper/file-{i}"), "inside");
            env.file(format!("outside/deeper/file-{i}"), "OUTSIDE");
            env.file(format!("outside/deeper/secret-{i}"), "OUTSIDE");
        }
        env.symlink("link", env.inner_path("outside"));
        let outside = env.snapshot("outside");
        let (folder, link) = (env.path("src/folder"), env.path("link"));
        let (swaps, runs) = meanwhile(
            || swap(&folder, &link),
            || {
                let started = Instant::now();
                let mut runs = 0;
                while started.elapsed() < SWAPPING || runs < 5 {
                    let run = env.pcopy(["-j", "4", "src", "dst"]);
                    ended_in_order(&run);
                    if env.exists("dst/folder") && env.stat("dst/folder").is_dir() {
                        let copy = env.snapshot("dst/folder");
                        for (path, entry) in &copy.entries {
                            let name = String::from_utf8_lossy(path);
                            assert!(
                                !name.contains("secret"),
                                "{name} was copied from outside:\n{run}"
                            );
                            assert_ne!(entry.size, 7, "{name} was copied from outside:\n{run}");
                        }
                    }
                    fs::remove_dir_all(env.path("dst")).unwrap();
                    runs += 1;
                }
                runs
            },
        );
        println!("{swaps} swaps during {runs} runs");
        assert!(swaps > runs, "nothing was tried");
        outside.assert_untouched();
    }
);

both_modes!(
    a_destination_folder_swapped_for_a_link_leads_nowhere_outside,
    |env| {
        for i in 0..40 {
            env.file(format!("src/folder/file-{i}"), format!("{i}"));
            env.file(format!("src/folder/deeper/file-{i}"), format!("{i}"));
        }
        env.folder("src/folder/deeper").mode(0o700);
        env.file("outside/file-1", "OUTSIDE").mtime(1_000, 1);
        env.file("outside/deeper/file-1", "OUTSIDE").mtime(1_000, 1);
        env.at("outside/deeper").mode(0o755).mtime(1_000, 2);
        env.at("outside").mode(0o755).mtime(1_000, 3);
        let outside = env.snapshot("outside");
        env.folder("dst/folder");
        env.symlink("link", env.inner_path("outside"));
        let (folder, link) = (env.path("dst/folder"), env.path("link"));
        let (swaps, runs) = meanwhile(
            || swap(&folder, &link),
            || {
                let started = Instant::now();
                let mut runs = 0;
                while started.elapsed() < SWAPPING || runs < 5 {
                    let run = env.pcopy(["-j", "4", "--overwrite", "always", "src", "dst"]);
                    ended_in_order(&run);
                    outside.assert_untouched();
                    runs += 1;
                }
                runs
            },
        );
        println!("{swaps} swaps during {runs} runs");
        assert!(swaps > runs, "nothing was tried");
        outside.assert_untouched();
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
            // The name stands for a link, a FIFO, and the file again.
            swap(&file, &link);
            swap(&file, &link);
            swap(&file, &fifo);
            swap(&file, &fifo);
        };
        let (swaps, runs) = meanwhile(disturb, || {
            let started = Instant::now();
            let mut runs = 0;
            while started.elapsed() < SWAPPING || runs < 5 {
                // Opening a FIFO that nobody writes to must not hang either.
                let run = env
                    .command(["src", "dst"])
                    .within(Duration::from_secs(30))
                    .run();
                ended_in_order(&run);
                if env.exists("dst/file") && env.stat("dst/file").is_file() {
                    assert_eq!(env.read("dst/file"), b"inside", "{run}");
                }
                fs::remove_dir_all(env.path("dst")).unwrap();
                runs += 1;
            }
            runs
        });
        println!("{swaps} times during {runs} runs");
        assert!(swaps > runs, "nothing was tried");
    }
);

both_modes!(a_private_file_is_at_no_moment_readable_by_others, |env| {
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
    // Looks at every file under whatever name, as soon as there is one.
    let look = |folder: &PathBuf| {
        for found in fs::read_dir(folder).into_iter().flatten().flatten() {
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
        look(&new);
        look(&replaced);
    };
    let (looks, ()) = meanwhile(watch, || {
        for _ in 0..3 {
            env.command(["src", "new"]).after("umask 000").run().ok();
            fs::remove_dir_all(&new).unwrap();
        }
        env.command(["src", "dst"]).after("umask 000").run().ok();
    });
    println!("{looks} looks");
    assert!(looks > 10, "nobody looked");
    env.assert_same("src", "dst");
});

both_modes!(a_private_folder_is_at_no_moment_open_to_others, |env| {
    for i in 0..200 {
        env.file(format!("src/private/file-{i}"), pattern(20_000, i))
            .mode(0o644);
    }
    env.at("src/private").mode(0o700);
    let folder = env.path("dst/private");
    let watch = || {
        if let Ok(stat) = fs::symlink_metadata(&folder) {
            assert_eq!(
                stat.mode() & 0o077,
                0,
                "others may enter: {:o}",
                stat.mode()
            );
        }
    };
    let (looks, ()) = meanwhile(watch, || {
        for _ in 0..5 {
            env.command(["src", "dst"]).after("umask 000").run().ok();
            fs::remove_dir_all(env.path("dst")).unwrap();
        }
    });
    assert!(looks > 10, "nobody looked");
});

both_modes!(
    a_reader_sees_the_old_file_or_the_new_one_and_never_none,
    |env| {
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
                "a mix or a part of {} bytes",
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
        let (reads, ()) = meanwhile(read, || {
            for round in 1..15 {
                write_source(round);
                env.pcopy(["src", "dst"]).ok();
            }
        });
        println!("{reads} reads");
        assert!(reads > 10, "nobody read");
        env.assert_same("src", "dst");
    }
);

both_modes!(a_program_that_runs_can_be_replaced, |env| {
    // Writing into it would give "Text file busy".
    fs::create_dir(env.path("dst")).unwrap();
    fs::copy("/bin/sleep", env.path("dst/program")).unwrap();
    env.file("src/program", "new").mode(0o755);
    let mut child = std::process::Command::new(env.path("dst/program"))
        .arg("600")
        .spawn()
        .unwrap();
    let run = env.pcopy(["src", "dst"]);
    child.kill().unwrap();
    child.wait().unwrap();
    run.ok();
    env.assert_same("src", "dst");
});

both_modes!(two_runs_at_once_make_a_whole_copy, |env| {
    for i in 0..300 {
        env.file(format!("src/{}/file-{i}", i % 10), pattern(5_000, i));
    }
    let first = env.command(["src", "dst"]).start();
    let second = env.command(["src", "dst"]).start();
    let (first, second) = (first.wait(), second.wait());
    ended_in_order(&first);
    ended_in_order(&second);
    // What one of them found half done, a third one repairs.
    env.pcopy(["src", "dst"]).ok();
    compare::assert_same(&env.snapshot("src"), &env.snapshot("dst"), Properties::KEPT);
});

both_modes!(removing_the_destination_meanwhile_ends_in_order, |env| {
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
    let (_, ()) = meanwhile(remove, || {
        for _ in 0..5 {
            let run = env
                .command(["src", "dst"])
                .within(Duration::from_secs(30))
                .run();
            assert!(matches!(run.status.code(), Some(0..=2)), "{run}");
            assert!(!run.stderr.contains("panicked"), "{run}");
        }
    });
});

both_modes!(a_device_named_as_destination_is_not_replaced, |env| {
    env.file("file", "x");
    env.fifo("fifo");
    env.pcopy(["file", "fifo"])
        .exits(2)
        .stderr_has("fifo is a device, FIFO or socket");
    assert_eq!(
        FileType::from_raw_mode(env.stat("fifo").mode()),
        FileType::Fifo
    );
    // In a tree it is an entry like any other.
    env.file("src/name", "x");
    env.fifo("dst/name");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});
