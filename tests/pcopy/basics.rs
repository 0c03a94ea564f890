//! What a person meets in the first minutes: what goes where, what is said, and how it ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::env::{Env, bytes_path, pattern, skip};
use crate::run::Run;

/// A tree with a little of everything that needs no privilege.
fn small_tree(env: &Env) {
    env.file("src/a/b.txt", "b")
        .mode(0o640)
        .mtime(1_000_000_000, 123_456_789);
    env.file("src/a/deeper/c", pattern(200_000, 1)).mode(0o755);
    env.file("src/empty-file", "");
    env.folder("src/empty-folder")
        .mode(0o711)
        .mtime(1_000_000_001, 1);
    env.symlink("src/link", "a/b.txt").mtime(1_000_000_002, 2);
    env.symlink("src/dangling", "nowhere");
    env.at("src/a").mtime(1_000_000_003, 3);
    env.at("src").mode(0o750).mtime(1_000_000_004, 4);
}

/// The number of entries in [`small_tree`] that are not folders.
const SMALL_TREE_LEAVES: u64 = 5;

// ---- what goes where --------------------------------------------------------------------------

both_modes!(a_folder_becomes_a_copy_and_the_summary_counts_it, |env| {
    small_tree(env);
    let run = env
        .pcopy(["src", "dst"])
        .ok()
        .counts(SMALL_TREE_LEAVES, 0, 0)
        .stdout_is_empty();
    assert_eq!(
        run.stderr.lines().count(),
        1,
        "one line, the summary:\n{run}"
    );
    env.assert_same("src", "dst");
});

both_modes!(thread_mode_is_the_default, |env| {
    small_tree(env);
    let run = env.command(["-v", "src", "dst"]).without_mode().run().ok();
    assert!(
        run.stdout()
            .lines()
            .all(|line| line.starts_with("[thread ")),
        "{run}"
    );
    env.assert_same("src", "dst");
});

both_modes!(missing_parents_of_the_destination_are_made, |env| {
    small_tree(env);
    env.pcopy(["src", "x/y/dst"]).ok();
    env.assert_same("src", "x/y/dst");
});

both_modes!(
    an_existing_destination_is_merged_into_and_keeps_what_only_it_has,
    |env| {
        small_tree(env);
        env.file("dst/a/only-here", "mine").mtime(5, 5);
        env.file("dst/other/only-here", "mine too");
        let before = env.snapshot("dst/other");
        env.pcopy(["src", "dst"])
            .ok()
            .counts(SMALL_TREE_LEAVES, 0, 0);
        before.assert_untouched();
        assert_eq!(env.read("dst/a/only-here"), b"mine");
        assert_eq!(env.stat("dst/a/only-here").mtime(), 5);
        assert!(!env.exists("dst/src"), "never DST/SRC");
        fs::remove_file(env.path("dst/a/only-here")).unwrap();
        fs::remove_dir_all(env.path("dst/other")).unwrap();
        env.at("dst/a").mtime(1_000_000_003, 3);
        env.at("dst").mtime(1_000_000_004, 4);
        env.assert_same("src", "dst");
    }
);

both_modes!(running_it_twice_gives_the_same_tree, |env| {
    small_tree(env);
    env.pcopy(["src", "dst"]).ok();
    let before = env.snapshot("dst");
    env.pcopy(["src", "dst"])
        .ok()
        .counts(0, SMALL_TREE_LEAVES, 0)
        .stderr_has("; nothing to do\n");
    before.assert_untouched();
});

both_modes!(several_sources_land_under_their_own_names, |env| {
    small_tree(env);
    env.file("more/x", "x");
    env.file("file", "file").mtime(7, 7);
    env.pcopy(["src/", "more", "./file", "dst"])
        .ok()
        .counts(SMALL_TREE_LEAVES + 2, 0, 0);
    env.assert_same("src", "dst/src");
    env.assert_same("more", "dst/more");
    env.assert_same("file", "dst/file");
});

both_modes!(
    a_target_directory_takes_each_source_under_its_own_name,
    |env| {
        small_tree(env);
        env.file("file", "file");
        env.pcopy(["-t", "one", "src"]).ok();
        env.assert_same("src", "one/src");
        env.pcopy(["--target-directory", "two", "src", "file"]).ok();
        env.assert_same("src", "two/src");
        env.assert_same("file", "two/file");
    }
);

both_modes!(a_file_goes_to_the_path_named, |env| {
    env.file("file", pattern(10_000, 3)).mode(0o600).mtime(3, 3);
    env.pcopy(["file", "new"]).ok().counts(1, 0, 0);
    env.assert_same("file", "new");
});

both_modes!(a_file_goes_into_a_folder_that_exists, |env| {
    env.file("file", "content");
    env.folder("folder");
    env.pcopy(["file", "folder"]).ok();
    env.assert_same("file", "folder/file");
});

both_modes!(a_file_replaces_a_file_that_differs, |env| {
    env.file("file", "new content");
    env.file("old", "old");
    env.pcopy(["file", "old"]).ok();
    env.assert_same("file", "old");
    env.pcopy(["file", "old"])
        .ok()
        .counts(0, 1, 0)
        .stderr_has("nothing to do");
});

both_modes!(links_on_the_command_line_are_followed, |env| {
    small_tree(env);
    env.symlink("src-link", "src");
    env.folder("real-dst");
    env.symlink("dst-link", "real-dst");
    env.pcopy(["src-link", "dst-link"]).ok();
    env.assert_same("src", "real-dst");
    assert!(env.stat("dst-link").is_symlink(), "the link itself stays");
    // A link to a file as well.
    env.file("file", "file");
    env.symlink("file-link", "file");
    env.pcopy(["file-link", "copied-file"]).ok();
    env.assert_same("file", "copied-file");
});

both_modes!(links_inside_are_copied_as_links, |env| {
    env.file("outside/file", "outside");
    env.symlink("src/to-folder", "../outside");
    env.symlink("src/to-file", "../outside/file");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
    assert!(env.stat("dst/to-folder").is_symlink());
});

both_modes!(an_empty_folder_is_copied, |env| {
    env.folder("src").mode(0o710).mtime(9, 9);
    env.pcopy(["src", "dst"]).ok().counts(0, 0, 0);
    let copy = env.stat("dst");
    assert!(copy.is_dir());
    assert_eq!(
        (copy.mode() & 0o7777, copy.mtime(), copy.mtime_nsec()),
        (0o710, 9, 9)
    );
});

both_modes!(
    names_that_look_like_options_can_be_given_after_two_dashes,
    |env| {
        env.file("-src/--help", "x");
        env.pcopy(["--", "-src", "-dst"]).ok();
        env.assert_same("./-src", "./-dst");
    }
);

both_modes!(names_need_not_be_utf8, |env| {
    let (source, copy) = (bytes_path(b"src-\xff"), bytes_path(b"dst-\xfe\n"));
    env.file(source.join(bytes_path(b"\xf0(")), "x");
    env.pcopy([&source, &copy]).ok();
    env.assert_same(&source, &copy);
});

both_modes!(absolute_paths_and_dots_mean_what_they_say, |env| {
    small_tree(env);
    env.folder("elsewhere");
    env.pcopy([
        env.inner_path("src/a/.."),
        env.inner_path("elsewhere/../dst/"),
    ])
    .ok();
    env.assert_same("src", "dst");
    env.command([".", "../dst-2"]).after("cd src").run().ok();
    env.assert_same("src", "dst-2");
});

// ---- what happens to what exists --------------------------------------------------------------

both_modes!(only_what_differs_is_replaced, |env| {
    env.file("src/same", "same");
    env.file("src/other-size", "new, and longer");
    env.file("src/other-time", "newer").mtime(2_000, 2);
    env.pcopy(["src", "dst"]).ok();
    env.file("dst/other-size", "old");
    env.file("dst/other-time", "older").mtime(2_000, 1);
    let before = env.snapshot("dst");
    env.pcopy(["src", "dst"]).ok().counts(2, 1, 0);
    env.assert_same("src", "dst");
    let inode = |path: &str| env.stat(path).ino();
    assert_eq!(
        inode("dst/same"),
        before.entry("same").inode.1,
        "left alone"
    );
    assert_ne!(
        inode("dst/other-size"),
        before.entry("other-size").inode.1,
        "replaced, not written into"
    );
    assert_ne!(
        inode("dst/other-time"),
        before.entry("other-time").inode.1,
        "replaced, not written into"
    );
});

both_modes!(
    what_is_not_a_folder_is_replaced_by_what_is_not_a_folder,
    |env| {
        env.file("src/file-for-link", "file");
        env.file("src/file-for-fifo", "file");
        env.symlink("src/link-for-file", "file-for-link");
        env.symlink("src/link-for-link", "target");
        env.fifo("src/fifo-for-file");
        env.symlink("dst/file-for-link", "outside");
        env.fifo("dst/file-for-fifo");
        env.file("dst/link-for-file", "file");
        env.symlink("dst/link-for-link", "old");
        env.file("dst/fifo-for-file", "");
        env.pcopy(["src", "dst"]).ok().counts(5, 0, 0);
        env.assert_same("src", "dst");
    }
);

both_modes!(a_name_of_255_bytes_can_be_replaced, |env| {
    let long = "n".repeat(255);
    env.file(format!("src/{long}"), "new");
    env.file(format!("dst/{long}"), "older");
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
});

both_modes!(a_folder_where_a_file_is_needed_fails_alone, |env| {
    small_tree(env);
    env.file("dst/a/b.txt/in-the-way", "x");
    env.pcopy(["src", "dst"])
        .exits(1)
        .fails_only(&[("dst/a/b.txt", "in the way")])
        .counts(SMALL_TREE_LEAVES - 1, 0, 1);
    assert_eq!(env.read("dst/a/b.txt/in-the-way"), b"x");
    env.assert_same("src/a/deeper", "dst/a/deeper");
});

both_modes!(a_file_where_a_folder_is_needed_fails_alone, |env| {
    small_tree(env);
    env.file("dst/a", "in the way").mtime(1, 1);
    let run = env
        .pcopy(["src", "dst"])
        .exits(1)
        .fails_only(&[("dst/a", "in the way")]);
    assert_eq!(run.summary().copied, SMALL_TREE_LEAVES - 2, "{run}");
    assert_eq!(env.read("dst/a"), b"in the way");
    env.assert_same("src/empty-file", "dst/empty-file");
});

// ---- how it refuses ---------------------------------------------------------------------------

/// Nothing was done: exit status 2, a message with these words, and no destination.
#[track_caller]
fn refused(env: &Env, run: Run, words: &str) {
    run.exits(2).stderr_has(words).stdout_is_empty();
    assert!(!env.exists("dst"), "something was written");
}

both_modes!(a_missing_source_is_refused, |env| {
    refused(env, env.pcopy(["missing", "dst"]), "missing");
    refused(
        env,
        env.pcopy(["missing", "dst"]),
        "No such file or directory",
    );
    small_tree(env);
    refused(
        env,
        env.pcopy(["src/empty-file/x", "dst"]),
        "Not a directory",
    );
    env.symlink("dangling", "nowhere");
    refused(env, env.pcopy(["dangling", "dst"]), "dangling");
    refused(env, env.pcopy(["-t", "dst", "src", "missing"]), "missing");
});

both_modes!(two_sources_of_one_name_are_not_mixed_up, |env| {
    env.file("one/same/x", "from one");
    env.file("two/same/x", "from two, longer");
    refused(env, env.pcopy(["one/same", "two/same", "dst"]), "dst/same");
    refused(
        env,
        env.pcopy(["-t", "dst", "one/same", "two/same/."]),
        "dst/same",
    );
});

both_modes!(a_file_is_no_folder_for_several_sources, |env| {
    small_tree(env);
    env.file("file", "file").mtime(4, 4);
    let before = env.snapshot("file");
    env.pcopy(["src", "src/a", "file"])
        .exits(2)
        .stderr_has("file");
    env.pcopy(["-t", "file", "src"]).exits(2).stderr_has("file");
    before.assert_untouched();
});

both_modes!(
    a_folder_does_not_replace_a_file_named_as_destination,
    |env| {
        small_tree(env);
        env.file("file", "file").mtime(4, 4);
        let before = env.snapshot("file");
        let run = env.pcopy(["src", "file"]);
        assert!(matches!(run.status.code(), Some(1 | 2)), "{run}");
        run.stderr_has("file");
        before.assert_untouched();
    }
);

both_modes!(wrong_usage_is_explained, |env| {
    refused(env, env.pcopy([""; 0]), "Usage");
    refused(env, env.pcopy(["src"]), "destination");
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

both_modes!(an_unwritable_destination_cannot_be_started, |env| {
    small_tree(env);
    env.at("src").mode(0o755);
    env.folder("closed").mode(0o555);
    let run = env.command(["src", "closed/dst"]).by_user().run();
    assert!(matches!(run.status.code(), Some(1 | 2)), "{run}");
    run.stderr_has("closed/dst").stderr_has("Permission denied");
});

// ---- what it says -----------------------------------------------------------------------------

both_modes!(help_and_version_are_there, |env| {
    let short = env.pcopy(["-h"]).exits(0);
    let long = env
        .pcopy(["--help"])
        .exits(0)
        .stdout_has_line("Examples:")
        .stdout_has_line("Exit status:");
    assert!(
        short.stdout().len() < long.stdout().len(),
        "the short help is the shorter one"
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
    let version = env.pcopy(["--version"]).exits(0);
    assert_eq!(
        version.stdout(),
        format!("pcopy {}\n", env!("CARGO_PKG_VERSION"))
    );
});

both_modes!(quiet_says_nothing_but_errors, |env| {
    small_tree(env);
    let run = env.pcopy(["-q", "src", "dst"]).exits(0).stdout_is_empty();
    assert_eq!(run.stderr, "");
    env.file("dst-2/a", "in the way");
    let run = env
        .pcopy(["-q", "src", "dst-2"])
        .exits(1)
        .fails_only(&[("dst-2/a", "in the way")]);
    assert_eq!(run.stderr.lines().count(), 1, "{run}");
});

both_modes!(verbose_names_each_entry_once_with_its_worker, |env| {
    small_tree(env);
    let running = env.command(["-v", "src", "dst"]).start();
    let parent = running.pid().as_raw_pid().to_string();
    let run = running.wait().ok();
    let word = match env.mode() {
        crate::env::Mode::Thread => "thread",
        crate::env::Mode::Process => "pid",
    };
    let mut entries = Vec::new();
    for line in run.stdout().lines() {
        let (worker, entry) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "))
            .unwrap_or_else(|| panic!("no worker in {line:?}:\n{run}"));
        let (kind, number) = worker.split_once(' ').unwrap_or_default();
        assert_eq!(kind, word, "{run}");
        assert!(
            number.parse::<u32>().is_ok_and(|number| number > 0),
            "{line:?}"
        );
        assert_ne!(number, parent, "the parent copies nothing itself");
        entries.push(entry.to_owned());
    }
    entries.sort();
    assert_eq!(
        entries,
        [
            "src/",
            "src/a/",
            "src/a/b.txt",
            "src/a/deeper/",
            "src/a/deeper/c",
            "src/dangling",
            "src/empty-file",
            "src/empty-folder/",
            "src/link",
        ],
        "{run}"
    );
});

both_modes!(a_pipe_gets_neither_colours_nor_carriage_returns, |env| {
    small_tree(env);
    env.file("dst/a", "in the way");
    let run = env.pcopy(["-v", "src", "dst"]).exits(1);
    for text in [run.stdout(), run.stderr.clone()] {
        assert!(!text.contains(['\x1b', '\r']), "{text:?}");
    }
});

both_modes!(
    a_terminal_gets_every_line_whole_and_no_rest_of_a_bar,
    |env| {
        for i in 0..300 {
            env.file(format!("src/folder-{}/file-{i}", i % 7), pattern(3_000, i));
        }
        env.file("dst/folder-3", "in the way");
        let mode = env.mode().name();
        let program = env.program(false);
        if std::process::Command::new("script")
            .arg("--version")
            .output()
            .is_err()
        {
            skip("needs script(1)");
            return;
        }
        // stdout and stderr come out of the one terminal that script makes.
        let text = env.sh(&format!(
            "script -qec 'stty cols 60; {} --mode {mode} -v src dst' /dev/null </dev/null || true",
            program.display()
        ));
        let lines: Vec<String> = text.split(['\n', '\r']).map(without_escapes).collect();
        for i in (0..300).filter(|i| i % 7 != 3) {
            let end = format!("] src/folder-{}/file-{i}", i % 7);
            let found = lines
                .iter()
                .filter(|line| line.starts_with('[') && line.ends_with(&end))
                .count();
            assert_eq!(found, 1, "lines that end in {end:?} in:\n{text}");
        }
        let failure = "pcopy: dst/folder-3: ";
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.starts_with(failure))
                .count(),
            1,
            "{text}"
        );
        let last = lines.iter().rfind(|line| !line.is_empty()).unwrap();
        assert!(
            last.starts_with("pcopy: ") && last.contains(" copied, "),
            "the summary comes last:\n{text}"
        );
    }
);

/// The text without the sequences that move a terminal's cursor or colour it.
fn without_escapes(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char == '\x1b' {
            // CSI: up to the first letter.
            while chars.next().is_some_and(|next| !next.is_ascii_alphabetic()) {}
        } else {
            text.push(char);
        }
    }
    text
}

both_modes!(each_failure_is_one_line_whatever_the_name, |env| {
    env.file(bytes_path(b"src/new\nline"), "x");
    env.file(bytes_path(b"src/not-utf8-\xff"), "x");
    env.file("src/plain name", "x");
    for name in [
        &b"dst/new\nline/x"[..],
        b"dst/not-utf8-\xff/x",
        b"dst/plain name/x",
    ] {
        env.file(bytes_path(name), "in the way");
    }
    env.pcopy(["src", "dst"])
        .exits(1)
        .counts(0, 0, 3)
        .fails_only(&[
            ("$'dst/new\\nline'", "in the way"),
            ("$'dst/not-utf8-\\xff'", "in the way"),
            ("dst/plain name", "in the way"),
        ]);
});

both_modes!(a_verbose_line_is_one_line_whatever_the_name, |env| {
    env.file(bytes_path(b"src/new\nline"), "x");
    let run = env.pcopy(["-v", "src", "dst"]).ok();
    assert_eq!(run.stdout().lines().count(), 2, "{run}");
});

both_modes!(a_dry_run_prints_the_plan_and_writes_nothing, |env| {
    env.file("src/new", "new");
    env.file("src/size", "longer");
    env.file("src/same", "same").mtime(3, 3);
    env.file("src/time", "time").mtime(4, 4);
    env.file("src/folder/inside", "inside");
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
            .stdout_has_line("leave src/same (unchanged)")
            .stdout_has_line("make src/folder/ (new)")
            .stdout_has_line("copy src/folder/inside (new)");
        assert!(
            !run.stdout().contains("conflict"),
            "what fails is not planned:\n{run}"
        );
    }
    source.assert_untouched();
    copy.assert_untouched();
    assert_eq!(env.stat("dst").mtime_nsec(), copy.entry("").mtime.1);
});

both_modes!(a_dry_run_into_nothing_makes_nothing, |env| {
    small_tree(env);
    env.hard_link("src/a/twin", "src/a/b.txt");
    let run = env.pcopy(["-n", "src", "x/dst"]).ok();
    assert!(!env.exists("x"));
    assert!(
        run.stdout()
            .lines()
            .any(|line| line.starts_with("link src/a/")),
        "one of the two names would be a link:\n{run}"
    );
});

both_modes!(the_plan_is_what_is_done, |env| {
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
    let mut made: Vec<String> = done
        .stdout()
        .lines()
        .map(|line| line.split_once("] ").unwrap().1.to_owned())
        .filter(|entry| entry != "src/")
        .collect();
    planned.sort();
    made.sort();
    assert_eq!(planned, made, "{plan}\n{done}");
});

both_modes!(overwrite_always_replaces_what_is_unchanged, |env| {
    small_tree(env);
    env.pcopy(["src", "dst"]).ok();
    let before = env.stat("dst/a/b.txt").ino();
    env.pcopy(["--overwrite", "always", "src", "dst"])
        .ok()
        .counts(SMALL_TREE_LEAVES, 0, 0);
    env.assert_same("src", "dst");
    assert_ne!(env.stat("dst/a/b.txt").ino(), before);
});

both_modes!(
    overwrite_never_leaves_what_exists_and_adds_what_is_missing,
    |env| {
        env.file("src/there", "new");
        env.file("src/missing", "new");
        env.file("dst/there", "old, kept");
        let run = env.pcopy(["--overwrite", "never", "src", "dst"]).ok();
        assert_eq!(run.summary().copied, 1, "{run}");
        assert_eq!(env.read("dst/there"), b"old, kept");
        env.assert_same("src/missing", "dst/missing");
    }
);

both_modes!(overwrite_older_replaces_only_what_is_older, |env| {
    env.file("src/older", "new").mtime(1_000, 5);
    env.file("src/newer", "new").mtime(1_000, 5);
    env.file("src/missing", "new");
    env.file("dst/older", "old").mtime(1_000, 4);
    env.file("dst/newer", "keep").mtime(1_000, 6);
    let run = env.pcopy(["--overwrite", "older", "src", "dst"]).ok();
    assert_eq!(run.summary().copied, 2, "{run}");
    assert_eq!(env.read("dst/newer"), b"keep");
    env.assert_same("src/older", "dst/older");
    env.assert_same("src/missing", "dst/missing");
});

both_modes!(the_number_of_jobs_changes_nothing_in_the_copy, |env| {
    small_tree(env);
    for jobs in ["1", "2", "17"] {
        let copy = format!("dst-{jobs}");
        env.pcopy(["-j", jobs, "src", &copy])
            .ok()
            .counts(SMALL_TREE_LEAVES, 0, 0);
        env.assert_same("src", Path::new(&copy));
    }
});

both_modes!(a_folder_made_for_files_has_the_usual_mode, |env| {
    env.file("one", "1");
    env.file("two", "2");
    for (arguments, made) in [
        (&["one", "two", "several"][..], "several"),
        (&["-t", "target", "one"], "target"),
        (&["one", "slash/"], "slash"),
        (&["one", "missing/parents/one"], "missing/parents"),
    ] {
        env.command(arguments).after("umask 027").run().ok();
        assert_eq!(env.stat(made).mode() & 0o7777, 0o750, "{made}");
    }
});
