//! `--delete`: DST becomes a mirror of SRC, and nothing that SRC has is ever deleted.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use rustix::fs::FileType;
use rustix::process::Signal;

use crate::compare::{self, Properties};
use crate::env::{Env, Mode, NOBODY, eventually, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::noise::{pattern, seed};
use crate::trees::slow_tree;

/// A source, and a destination that has the same and more.
fn more_at_destination(env: &Env) {
    env.file("src/kept", "kept").mtime(1_000, 1);
    env.file("src/a/kept", "kept").mtime(1_000, 2);
    env.at("src/a").mtime(1_000, 3);
    env.sh("cp -a src dst");
    env.file("dst/old", "old");
    env.symlink("dst/a/link", "/etc");
    env.fifo("dst/a/fifo");
    env.file("dst/a/tree/deep/er/file", "old");
    env.dir("dst/a/tree/empty");
}

const EXTRANEOUS: u64 = 8;

// ---- what is deleted --------------------------------------------------------------------------

both_modes!(what_only_the_destination_has_is_removed, |env| {
    more_at_destination(env);
    env.dir("outside");
    env.file("outside/file", "outside");
    env.symlink("dst/a/tree/out", "../../../outside");
    let before = env.snapshot("dst");
    let run = env.pcopy(["-n", "--delete", "src", "dst"]).ok();
    before.assert_untouched();
    let lines = run.stdout();
    let planned: Vec<_> = lines
        .lines()
        .filter(|it| it.starts_with("delete "))
        .collect();
    assert_eq!(planned.len() as u64, EXTRANEOUS + 1, "{run}");
    for line in [
        "delete dst/old",
        "delete dst/a/tree/deep/er/",
        "delete dst/a/tree/out",
    ] {
        assert!(planned.contains(&line), "{run}");
    }
    env.pcopy(["--delete", "src", "dst"])
        .ok()
        .stderr_has("2 files unchanged at dst, 9 deleted");
    env.assert_same("src", "dst");
    assert_eq!(env.read("outside/file"), b"outside");
    env.pcopy(["--delete", "src", "dst"])
        .ok()
        .summary_ends_with("nothing to do");
});

both_modes!(
    directories_of_others_are_emptied_if_that_is_allowed,
    |env| {
        if skipped_without_root() {
            return;
        }
        env.file("src/kept", "kept");
        env.sh(&format!(
            "mkdir -p dst/sealed/below && touch dst/sealed/below/file dst/file
         chmod 0 dst/sealed/below && chmod 500 dst/sealed && chown -R {NOBODY}:{NOBODY} src dst"
        ));
        env.at("dst").mode(0o500);
        env.at("src").mode(0o500);
        env.command(["--delete", "src", "dst"])
            .unprivileged()
            .run()
            .ok();
        env.assert_same("src", "dst");
    }
);

both_modes!(what_stays_in_the_way_is_named, |env| {
    // Something else fails: the name of its backup is taken.
    env.file("src/file", "new");
    env.file("src/dir/file", "new");
    env.file("src/failing", "new");
    env.file("dst/file/x", "in the way");
    env.file("dst/dir", "in the way");
    env.file("dst/failing~", "");
    env.file("dst/failing", "old").mtime(1, 1);
    env.file("src/failing~", "of the source");
    let run = env.pcopy(["--delete", "-b", "src", "dst"]).exits(1);
    let run = run.stderr_has("nothing was deleted, because");
    assert_eq!(run.summary().failed, 3, "{run}");
    for (path, reason) in [
        ("dst/file", "create: a directory of that name is in the way"),
        (
            "dst/dir",
            "open directory: a file of that name is in the way",
        ),
        ("dst/failing", "keep backup: "),
    ] {
        let line = format!("pcopy: {path}: {reason}");
        assert!(
            run.complaints().iter().any(|it| it.starts_with(&line)),
            "{run}"
        );
    }
    assert_eq!(env.read("dst/file/x"), b"in the way");
});

all_modes!(what_is_in_the_way_is_removed_and_the_entry_copied, |env| {
    env.file("src/file", "file");
    env.hard_link("src/link", "src/file");
    env.file("src/dir/file", "file");
    env.file("src/other/file", "file");
    env.file("dst/file/in/the/way", "");
    env.file("dst/link/too", "");
    env.file("dst/dir", "");
    env.symlink("dst/other", "/etc");
    let before = env.snapshot("dst");
    env.pcopy(["-n", "--delete", "src", "dst"])
        .ok()
        .stdout_has_line("delete dst/file/in/the/")
        .stdout_has_line("delete dst/other")
        .stdout_has_line("copy src/other/file (new)");
    before.assert_untouched();
    env.pcopy(["--delete", "src", "dst"]).ok().counts(4, 0, 0);
    env.assert_same("src", "dst");
    env.pcopy(["--delete", "src", "dst"]).ok().counts(0, 4, 0);
});

all_modes!(at_most_so_many_entries_are_deleted, |env| {
    more_at_destination(env);
    let count = || env.snapshot("dst").entries.len() as u64;
    let all = count();
    env.pcopy(["--delete", "--max-delete=3", "src", "dst"])
        .exits(1)
        .stderr_has("--max-delete=3 is reached: ");
    assert_eq!(count(), all - 3);
    env.pcopy(["--delete", "--max-delete=5", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

all_modes!(a_wide_directory_and_a_deep_one_are_removed, |env| {
    env.file("src/kept", "kept");
    env.sh(
        "mkdir -p dst/wide && cd dst && seq -f 'wide/%.0f' 3000 | xargs touch
         seq -f 'also-%.0f' 2000 | xargs touch
         for i in $(seq 300); do mkdir directory; touch file; cd directory; done",
    );
    env.pcopy(["--delete", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

// ---- what is not ------------------------------------------------------------------------------

both_modes!(an_empty_source_deletes_nothing_unless_forced, |env| {
    env.dir("src");
    env.file("dst/precious", "x");
    env.pcopy(["--delete", "src", "dst"])
        .exits(1)
        .stderr_has("src: is empty, so nothing was deleted (--delete=force allows that)");
    assert!(env.exists("dst/precious"));
    env.pcopy(["--delete=force", "src", "dst"]).ok();
    assert!(!env.exists("dst/precious"));
    env.pcopy(["--delete", "src", "dst"]).ok();
});

both_modes!(
    nothing_is_deleted_if_the_source_was_not_seen_as_a_whole,
    |env| {
        more_at_destination(env);
        env.file("src/b/unreadable", "x");
        env.sh("mkdir real && cp -a src real/ && cp -a dst saved && mkdir mounted");
        for fault in ["eio:unreadable:0", "vanish:b", "vanish:unreadable"] {
            env.sh("rm -rf dst && cp -a saved dst");
            let Some(_faulty) = FaultFs::mount(env, "real", "mounted", &["--fault", fault]) else {
                return;
            };
            let run = env.pcopy(["--delete", "mounted/src", "dst"]);
            if fault == "vanish:unreadable" {
                // All directories were listed: only the name is gone.
                run.exits(3).stderr_has("deleted");
                assert!(!env.exists("dst/old"));
            } else {
                // A directory that vanished is not known: its copy stays.
                run.exits(1)
                    .stderr_has("nothing was deleted, because not everything could be copied");
                assert!(env.exists("dst/old") && env.exists("dst/a/tree/deep/er/file"));
            }
        }
    }
);

both_modes!(an_unreadable_directory_keeps_everything, |env| {
    if skipped_without_root() {
        return;
    }
    more_at_destination(env);
    env.file("src/b/file", "x");
    env.at("src/b").mode(0);
    env.sh(&format!("chown -R {NOBODY}:{NOBODY} src dst"));
    env.command(["--delete", "src", "dst"])
        .unprivileged()
        .run()
        .exits(1)
        .stderr_has("nothing was deleted, because not everything could be copied");
    assert!(env.exists("dst/old") && env.exists("dst/a/tree/deep/er/file"));
});

both_modes!(mount_points_stay_and_are_named, |env| {
    let script = "mkdir -p src dst/old/mounted dst/bound dst/other && touch src/kept dst/other/x
                  mount -t tmpfs none dst/old/mounted && touch dst/old/mounted/x dst/old/y
                  mkdir bound && touch bound/x && mount --bind bound dst/bound";
    let Some(env) = env.mounted(script) else {
        return;
    };
    let run = env.pcopy(["--delete", "src", "dst"]);
    run.exits(1).fails_only(&[
        ("dst/old/mounted", "delete: is a mount point, and stays"),
        ("dst/bound", "delete: is a mount point, and stays"),
    ]);
    assert!(env.exists("dst/old/mounted/x") && env.exists("bound/x"));
    assert!(!env.exists("dst/old/y") && !env.exists("dst/other"));
});

both_modes!(
    a_source_that_is_unmounted_meanwhile_deletes_nothing_it_had,
    |env| {
        let script = "mkdir -p src/disk dst/disk && mount -t tmpfs none src/disk
                  cd src && for i in $(seq 400); do echo $i >disk/$i; echo $i >$i; done
                  cd .. && cp -a src/. dst/ && touch dst/old dst/disk/old";
        let Some(env) = env.mounted(script) else {
            return;
        };
        let running = env
            .command(["-v", "--delete", "--overwrite=always", "src", "dst"])
            .start();
        running.await_stdout("some entries", |out| out.lines().count() > 5);
        env.sh("umount -l src/disk");
        running.wait();
        for i in 1..=400 {
            assert!(env.exists(format!("dst/disk/{i}")), "dst/disk/{i}");
            assert!(env.exists(format!("dst/{i}")), "dst/{i}");
        }
    }
);

both_modes!(
    a_source_that_is_unmounted_before_it_is_listed_deletes_nothing,
    |env| {
        let script = "mkdir -p src/disk dst/disk && mount -t tmpfs none src/disk
                  echo x >src/disk/x && cp -a src/disk/x dst/disk/ && touch dst/old";
        let Some(env) = env.mounted(script) else {
            return;
        };
        // One worker copies this first, for about two seconds.
        env.file("src/first", pattern(2 << 20, 1));
        let args = ["-j1", "--bwlimit=1M", "--delete", "src", "dst"];
        let running = env.command(args).start();
        eventually("it copies", || env.exists("dst/first"));
        env.sh("umount -l src/disk");
        let run = running.wait().exits(1);
        run.stderr_has("src/disk: was unmounted meanwhile, so nothing was deleted");
        assert!(env.exists("dst/disk/x") && env.exists("dst/old"));
        // What is gone for good is deleted by the next run.
        env.pcopy(["--delete", "src", "dst"]).ok();
        assert!(!env.exists("dst/disk/x") && !env.exists("dst/old"));
    }
);

both_modes!(temporary_files_of_live_runs_stay, |env| {
    env.file("src/kept", "kept");
    let Some(_slow) = slow_tree(env, 0) else {
        return;
    };
    env.sh("mkdir mirror-of && touch mirror-of/kept");
    let running = env
        .command(["src", "dst/other"])
        .after("mkdir -p dst/other")
        .start();
    eventually("a temporary file", || {
        std::fs::read_dir(env.path("dst/other")).is_ok_and(|mut dir| {
            dir.any(|it| {
                it.unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".pcopy.")
            })
        })
    });
    env.pcopy(["--delete", "mirror-of", "dst"]);
    running.wait().ok();
    env.assert_same("src", "dst/other");
});

// ---- killed -----------------------------------------------------------------------------------

both_modes!(a_killed_run_deletes_nothing_that_the_source_has, |env| {
    let Some(_slow) = slow_tree(env, 120) else {
        return;
    };
    env.sh("cp -a real dst && mkdir -p dst/old/tree && touch dst/old/tree/file dst/3/old");
    let kept = env.snapshot("real");
    for round in 0..6_u64 {
        env.sh("touch dst/again; rm -rf dst/5");
        let running = env.command(["-j3", "-v", "--delete", "src", "dst"]).start();
        let lines = [0, 1, 40, 80, 110, 150][round as usize];
        // Until so many lines were printed, or the run has ended.
        eventually("some lines", || {
            running.lines() >= lines || !running.is_running()
        });
        let signal = [Signal::KILL, Signal::TERM][round as usize % 2];
        running.signal_group(signal);
        running.wait();
        let now = env.snapshot("dst");
        for path in kept.entries.keys() {
            let is_lost = !now.entries.contains_key(path) && !path.starts_with(b"5");
            assert!(!is_lost, "{} is lost", path.escape_ascii());
        }
    }
    env.pcopy(["--delete", "src", "dst"]).ok();
    env.assert_same("real", "dst");
});

#[test]
fn killed_workers_delete_everything_once() {
    let env = &Env::new(Mode::Process);
    env.file("src/kept", "kept");
    env.sh("for i in $(seq 40); do mkdir -p dst/$i/below; (cd dst/$i/below; seq 50 | xargs touch); done");
    let Some(_slow) = FaultFs::mount(env, "dst", "mounted", &["--delay-ms", "0.5"]) else {
        return;
    };
    let running = env
        .command(["-j3", "-v", "--delete", "src", "mounted"])
        .start();
    for lines in [5, 300, 800] {
        eventually("some lines", || {
            running.lines() >= lines || !running.is_running()
        });
        if let Some(worker) = running.workers().first() {
            worker.signal(Signal::KILL);
        }
    }
    let run = running.wait().ok();
    let mut names: Vec<_> = run
        .finished_entries()
        .into_iter()
        .map(|(_, it)| it)
        .collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "each entry is printed once");
    env.assert_same("src", "dst");
}

// ---- refusals ---------------------------------------------------------------------------------

once!(a_mirror_has_one_directory_as_its_source, |env| {
    env.file("src/file", "x");
    env.dir("dst/inner");
    for (args, reason) in [
        (
            &["--delete", "src/file", "dst"][..],
            "--delete needs a directory as SRC",
        ),
        (
            &["--delete", "src", "src/file", "dst"],
            "--delete takes one SRC",
        ),
        (
            &["--max-delete=3", "src", "dst"],
            "--max-delete needs --delete",
        ),
        (
            &["--delete", "--duplicate", "src"],
            "--delete does not go with --duplicate",
        ),
        (
            &["--delete", "-T", "dst/inner", "dst"],
            "lies inside dst, and would be deleted",
        ),
    ] {
        env.pcopy(args).exits(2).stderr_has(reason);
    }
});

// ---- beside rsync -----------------------------------------------------------------------------

/// How a random entry looks on one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Look {
    Missing,
    File(u8),
    Link,
    Directory,
    Fifo,
}

fn looks() -> impl Strategy<Value = (Look, Look)> {
    let look = prop_oneof![
        2 => Just(Look::Missing),
        4 => (0..3_u8).prop_map(Look::File),
        1 => Just(Look::Link),
        3 => Just(Look::Directory),
        1 => Just(Look::Fifo),
    ];
    let same = look.clone().prop_map(|look| (look, look));
    prop_oneof![1 => same, 2 => (look.clone(), look)]
}

const NAMES: [&str; 5] = ["a", "b~", "c", "d", "\u{e4} e"];

/// Creates a tree of entries that look like this.
pub(crate) fn build(env: &Env, root: &Path, looks: &[Look]) {
    build_below(env, root, looks, &mut 0, 0);
    if root == Path::new("src") {
        // A source that is never empty. rsync leaves times alone that are nearly right, so that of
        // the directory is an old one.
        env.file("src/kept", "kept").mtime(1_000, 0);
        env.at("src").mtime(2_000, 0);
    }
}

fn build_below(env: &Env, root: &Path, looks: &[Look], next: &mut usize, depth: u32) {
    env.dir(root);
    for name in NAMES {
        let Some(look) = looks.get(*next) else {
            break;
        };
        *next += 1;
        let path = root.join(name);
        match *look {
            Look::Missing => {}
            Look::File(content) => {
                let size = 10 + usize::from(content) * 1000;
                env.file(&path, pattern(size, content.into()))
                    .mtime(1_000 + i64::from(content), 7);
            }
            Look::Link => drop(env.symlink(&path, "c").mtime(1_000, 0)),
            Look::Fifo => drop(env.special(&path, FileType::Fifo, 0).mtime(1_000, 0)),
            Look::Directory if depth > 3 => drop(env.dir(&path).mtime(2_000, 0)),
            Look::Directory => build_below(env, &path, looks, next, depth + 1),
        }
    }
    env.at(root).mtime(2_000, 0);
}

/// Returns the looks of the source, and those of the destination.
pub(crate) fn unzip(pairs: &[(Look, Look)]) -> (Vec<Look>, Vec<Look>) {
    pairs.iter().copied().unzip()
}

/// Runs a comparison with rsync in new environments: for a few random pairs of trees, or as many as
/// `PCOPY_TEST_CASES` asks for. The last argument of the comparison chooses between its variants.
pub(crate) fn for_random_pairs(
    env: &Env,
    few: u32,
    compare: impl Fn(&Env, &[(Look, Look)], usize),
) {
    if env.skipped_without("rsync") {
        return;
    }
    let asked = std::env::var("PCOPY_TEST_CASES").ok();
    let config = Config {
        cases: asked.and_then(|it| it.parse().ok()).unwrap_or(few),
        rng_seed: RngSeed::Fixed(seed()),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let input = (prop::collection::vec(looks(), 1..40), any::<usize>());
    TestRunner::new(config)
        .run(&input, |(pairs, choice)| {
            compare(&Env::new(env.mode()), &pairs, choice);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

both_modes!(random_mirrors_are_those_of_rsync, |env| {
    for_random_pairs(env, 12, |env, pairs, _| {
        let (source, destination) = unzip(pairs);
        build(env, Path::new("src"), &source);
        build(env, Path::new("dst"), &destination);
        env.sh("cp -a dst theirs && rsync -aHAX --delete src/ theirs/");
        let planned = env.pcopy(["-n", "--delete", "src", "dst"]).ok().stdout();
        let planned = planned
            .lines()
            .filter(|it| it.starts_with("delete "))
            .count();
        let run = env.pcopy(["-v", "--delete", "src", "dst"]).ok();
        let done = run
            .stdout()
            .lines()
            .filter(|it| it.contains("] delete "))
            .count();
        assert_eq!(planned, done, "{run}");
        let (theirs, ours) = (env.snapshot("theirs"), env.snapshot("dst"));
        compare::assert_same(&theirs, &ours, Properties::KEPT);
        env.assert_same("src", "dst");
        let run = env.pcopy(["--delete", "src", "dst"]).ok();
        assert_eq!(run.summary().copied, 0, "{run}");
    });
});

// ---- filters --------------------------------------------------------------------------------

both_modes!(
    what_a_rule_excludes_stays_unless_that_is_to_be_deleted,
    |env| {
        if env.skipped_without("rsync") {
            return;
        }
        for name in ["kept", "a.o", "sub/b.o", "sub/kept", "build/x"] {
            env.file(format!("src/{name}"), name).mtime(1_000, 0);
        }
        for name in ["old", "c.o", "sub/d.o", "gone/e.o", "gone/x", "build/y"] {
            env.file(format!("before/{name}"), name).mtime(2_000, 0);
        }
        env.file("before/sub/b.o", "older").mtime(500, 0);
        let rules = ["--exclude=*.o", "--exclude=/build/"];
        for delete in ["--delete", "--delete-excluded"] {
            env.sh("rm -rf dst theirs; cp -a before dst; cp -a before theirs");
            let theirs = format!("rsync -aHAX {delete} {} src/ theirs/", rules.join(" "));
            env.sh(&theirs);
            let args = [&rules[..], &[delete, "src", "dst"]].concat();
            let deletions = |options: &[&str]| {
                let run = env.pcopy([options, &args[..]].concat()).ok();
                let lines = run.stdout();
                lines.lines().filter(|it| it.contains("delete ")).count()
            };
            let planned = deletions(&["-n"]);
            assert_eq!(planned, deletions(&["-v"]));
            // rsync deletes during the copy, so times of directories differ.
            let names = |copy: &str| env.sh(&format!("cd {copy}; find . | sort"));
            assert_eq!(names("theirs"), names("dst"));
            assert!(env.exists("dst/c.o") == (delete == "--delete"));
            env.pcopy(&args).ok().stderr_has("nothing to do");
        }
    }
);

once!(what_only_the_source_can_say_is_refused_with_delete, |env| {
    env.dir("src");
    let options =
        "--gitignore --exclude-caches --exclude-if-present=x --files-from=/dev/null --parents";
    for option in options.split(' ') {
        env.pcopy(["--delete", option, "src", "dst"])
            .exits(2)
            .stderr_has("--delete does not go with");
    }
});
