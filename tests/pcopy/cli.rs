//! The command line: its options, its help, and the plan of a dry run.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::env::bytes_path;
use crate::targets::refused;
use crate::trees::{SMALL_TREE_LEAVES, small_tree};

once!(help_and_version_are_there, |env| {
    let short = env.pcopy(["-h"]).exits(0);
    let long = env
        .pcopy(["--help"])
        .exits(0)
        .stdout_has_line("Examples:")
        .stdout_has_line("Exit status:");
    assert!(
        short.stdout().len() < long.stdout().len(),
        "-h prints less than --help"
    );
    for option in [
        "--mode",
        "--jobs",
        "--target-directory",
        "--preserve",
        "--dry-run",
        "--stall-timeout",
    ] {
        assert!(
            short.stdout().contains(option),
            "{option} is missing:\n{short}"
        );
    }
    let first = concat!("pcopy ", env!("CARGO_PKG_VERSION"));
    let short = env.pcopy(["-V"]).exits(0);
    assert_eq!(short.stdout(), format!("{first}\n"));
    let version = env.pcopy(["--version"]).exits(0).stdout_has_line(first);
    let text = version.stdout();
    let second = text.lines().nth(1).unwrap();
    assert!(
        second.starts_with("commit ") && second.contains("linux"),
        "{second}"
    );
});

once!(wrong_usage_is_explained, |env| {
    refused(env, env.pcopy([""; 0]), "usage: pcopy SRC... DST");
    refused(
        env,
        env.pcopy(["src"]),
        "for example: pcopy src /mnt/backup/src",
    );
    refused(
        env,
        env.pcopy(["--progess", "never", "src", "dst"]),
        "'--progress'",
    );
    refused(
        env,
        env.command(["--mode", "treads", "src", "dst"])
            .without_mode()
            .run(),
        "thread",
    );
    refused(env, env.pcopy(["-j", "0", "src", "dst"]), "0");
    refused(env, env.pcopy(["-j", "many", "src", "dst"]), "many");
    refused(
        env,
        env.pcopy(["--preserve", "colour", "src", "dst"]),
        "colour",
    );
    refused(env, env.pcopy(["", "dst"]), "");
});

once!(thread_mode_is_the_default, |env| {
    small_tree(env);
    let run = env.command(["-v", "src", "dst"]).without_mode().run().ok();
    let mut workers = run.entries_by_worker().into_keys();
    assert!(
        workers.all(|worker| worker.starts_with("[thread ")),
        "{run}"
    );
    env.assert_same("src", "dst");
});

once!(after_two_dashes_no_name_is_an_option, |env| {
    env.file("-src/--help", "x");
    env.pcopy(["--", "-src", "-dst"]).ok();
    env.assert_same("./-src", "./-dst");
});

both_modes!(names_need_not_be_utf8, |env| {
    let (source, copy) = (bytes_path(b"src-\xff"), bytes_path(b"dst-\xfe\n"));
    env.file(source.join(bytes_path(b"\xf0(")), "x");
    env.pcopy([&source, &copy]).ok();
    env.assert_same(&source, &copy);
});

both_modes!(the_number_of_jobs_does_not_change_the_copy, |env| {
    small_tree(env);
    for jobs in ["1", "2", "17"] {
        let copy = format!("dst-{jobs}");
        env.pcopy(["-j", jobs, "src", &copy])
            .ok()
            .counts(SMALL_TREE_LEAVES, 0, 0);
        env.assert_same("src", Path::new(&copy));
    }
});

// ---- dry run --------------------------------------------------------------------------------

both_modes!(a_dry_run_prints_the_plan_and_writes_nothing, |env| {
    env.file("src/new", "new");
    env.file("src/size", "longer");
    env.file("src/same", "same").mtime(3, 3);
    env.file("src/time", "time").mtime(4, 4);
    env.file("src/directory/inside", "inside");
    env.symlink("src/link", "new");
    env.file("src/conflict", "x");
    env.file("dst/size", "short");
    env.file("dst/same", "same").mtime(3, 3);
    env.file("dst/time", "time").mtime(4, 5);
    env.file("dst/conflict/x", "in the way");
    let (source, copy) = (env.snapshot("src"), env.snapshot("dst"));
    for name in ["-n", "--dry-run"] {
        let run = env
            .pcopy([name, "src", "dst"])
            .exits(1)
            .fails_only(&[("dst/conflict", "in the way")])
            .stdout_has_line("copy src/new (new)")
            .stdout_has_line("copy src/link (new)")
            .stdout_has_line("replace src/size (size differs)")
            .stdout_has_line("replace src/time (time differs)")
            .stdout_has_line("make src/directory/ (new)")
            .stdout_has_line("copy src/directory/inside (new)");
        assert!(
            !run.stdout().contains("conflict"),
            "an entry that fails is not in the plan:\n{run}"
        );
        for stays in ["leave ", "merge "] {
            assert!(!run.stdout().contains(stays), "only changes:\n{run}");
        }
        env.pcopy([name, "-v", "src", "dst"])
            .exits(1)
            .stdout_has_line("replace src/time (time differs)")
            .stdout_has_line("leave src/same (unchanged)")
            .stdout_has_line("merge src/ (directory exists)");
    }
    source.assert_untouched();
    copy.assert_untouched();
    assert_eq!(env.stat("dst").mtime_nsec(), copy.entry("").mtime.1);
});

both_modes!(a_dry_run_creates_no_destination, |env| {
    small_tree(env);
    env.hard_link("src/a/twin", "src/a/b.txt");
    let run = env.pcopy(["-n", "--mkpath", "src", "x/dst"]).ok();
    assert!(!env.exists("x"));
    assert!(
        run.stdout()
            .lines()
            .any(|line| line.starts_with("link src/a/")),
        "one of the two names would be a link:\n{run}"
    );
});

both_modes!(a_run_does_what_the_dry_run_printed, |env| {
    small_tree(env);
    env.hard_link("src/a/twin", "src/a/b.txt");
    env.file("dst/empty-file", "not empty");
    let plan = env.pcopy(["-n", "src", "dst"]).ok();
    let done = env.pcopy(["-v", "src", "dst"]).ok();
    let mut planned: Vec<String> = plan
        .stdout()
        .lines()
        .filter(|line| !line.starts_with("merge "))
        .map(|line| {
            line.split_once(' ')
                .unwrap()
                .1
                .rsplit_once(" (")
                .unwrap()
                .0
                .to_owned()
        })
        .collect();
    let finished = done.finished_entries().into_iter().map(|(_, entry)| entry);
    let mut copied: Vec<String> = finished.filter(|entry| entry != "src/").collect();
    planned.sort();
    copied.sort();
    assert_eq!(planned, copied, "{plan}\n{done}");
});

both_modes!(a_run_links_what_the_dry_run_counted, |env| {
    env.file("src/a", "content");
    env.hard_link("src/b", "src/a");
    env.pcopy(["src", "dst"]).ok();
    env.file("src/a", "longer content");
    for option in ["changed", "older", "never", "always"] {
        let args = ["--overwrite", option, "src", "dst"];
        let planned = env.pcopy([&["-n"][..], &args].concat()).ok().summary();
        let done = env.pcopy(args).ok().summary();
        assert_eq!(planned.copied, done.copied, "{option}");
        // Gives the next option something to do.
        env.file("src/a", format!("content for {option}"));
    }
});
