//! Where the sources go, and which destinations are refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FileType;

use crate::env::Env;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::trees::{SMALL_TREE_LEAVES, small_tree};

both_modes!(
    a_directory_becomes_a_copy_and_the_summary_counts_it,
    |env| {
        small_tree(env);
        let run = env
            .pcopy(["src", "dst"])
            .ok()
            .counts(SMALL_TREE_LEAVES, 0, 0)
            .stdout_is_empty();
        assert_eq!(
            run.stderr.lines().count(),
            1,
            "the summary is the only line:\n{run}"
        );
        env.assert_same("src", "dst");
    }
);

both_modes!(missing_parents_of_the_destination_are_created, |env| {
    small_tree(env);
    env.pcopy(["src", "x/y/dst"]).ok();
    env.assert_same("src", "x/y/dst");
});

both_modes!(an_existing_destination_keeps_its_own_entries, |env| {
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

both_modes!(a_file_goes_to_the_given_path, |env| {
    env.file("file", pattern(10_000, 3)).mode(0o600).mtime(3, 3);
    env.pcopy(["file", "new"]).ok().counts(1, 0, 0);
    env.assert_same("file", "new");
});

both_modes!(a_file_goes_into_an_existing_directory, |env| {
    env.file("file", "content");
    env.dir("directory");
    env.pcopy(["file", "directory"]).ok();
    env.assert_same("file", "directory/file");
});

both_modes!(links_on_the_command_line_are_followed, |env| {
    small_tree(env);
    env.symlink("src-link", "src");
    env.dir("real-dst");
    env.symlink("dst-link", "real-dst");
    env.pcopy(["src-link", "dst-link"]).ok();
    env.assert_same("src", "real-dst");
    assert!(env.stat("dst-link").is_symlink(), "the link itself stays");
    // So are links to files.
    env.file("file", "file");
    env.symlink("file-link", "file");
    env.pcopy(["file-link", "copied-file"]).ok();
    env.assert_same("file", "copied-file");
});

both_modes!(an_empty_directory_is_copied, |env| {
    env.dir("src").mode(0o710).mtime(9, 9);
    env.pcopy(["src", "dst"]).ok().counts(0, 0, 0);
    let copy = env.stat("dst");
    assert!(copy.is_dir());
    assert_eq!(
        (copy.mode() & 0o7777, copy.mtime(), copy.mtime_nsec()),
        (0o710, 9, 9)
    );
});

both_modes!(absolute_paths_and_dots_are_resolved, |env| {
    small_tree(env);
    env.dir("elsewhere");
    env.pcopy([
        env.inner_path("src/a/.."),
        env.inner_path("elsewhere/../dst/"),
    ])
    .ok();
    env.assert_same("src", "dst");
    env.command([".", "../dst-2"]).after("cd src").run().ok();
    env.assert_same("src", "dst-2");
});

both_modes!(a_directory_created_for_files_has_the_usual_mode, |env| {
    env.file("one", "1");
    env.file("two", "2");
    for (arguments, created) in [
        (&["one", "two", "several"][..], "several"),
        (&["-t", "target", "one"], "target"),
        (&["one", "slash/"], "slash"),
        (&["one", "missing/parents/one"], "missing/parents"),
    ] {
        env.command(arguments).after("umask 027").run().ok();
        assert_eq!(env.stat(created).mode() & 0o7777, 0o750, "{created}");
    }
});

// ---- refused before anything is written -----------------------------------------------------

/// Fails unless pcopy exited with 2, printed these words, and created no destination.
#[track_caller]
pub(crate) fn refused(env: &Env, run: Run, words: &str) {
    run.exits(2).stderr_has(words).stdout_is_empty();
    assert!(!env.exists("dst"), "a destination was created");
}

once!(a_missing_source_is_refused, |env| {
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

once!(two_sources_of_one_name_are_refused, |env| {
    env.file("one/same/x", "from one");
    env.file("two/same/x", "from two, longer");
    refused(env, env.pcopy(["one/same", "two/same", "dst"]), "dst/same");
    refused(
        env,
        env.pcopy(["-t", "dst", "one/same", "two/same/."]),
        "dst/same",
    );
});

once!(a_file_cannot_take_several_sources, |env| {
    small_tree(env);
    env.file("file", "file").mtime(4, 4);
    let before = env.snapshot("file");
    env.pcopy(["src", "src/a", "file"])
        .exits(2)
        .stderr_has("file");
    env.pcopy(["-t", "file", "src"]).exits(2).stderr_has("file");
    before.assert_untouched();
});

once!(
    a_directory_does_not_replace_a_file_named_as_destination,
    |env| {
        small_tree(env);
        env.file("file", "file").mtime(4, 4);
        let before = env.snapshot("file");
        env.pcopy(["src", "file"]).exits(2).stderr_has("file");
        before.assert_untouched();
    }
);

once!(an_unwritable_destination_is_refused, |env| {
    small_tree(env);
    env.at("src").mode(0o755);
    env.dir("closed").mode(0o555);
    let run = env.command(["src", "closed/dst"]).unprivileged().run();
    run.exits(2)
        .stderr_has("cannot create the destination closed/dst")
        .stderr_has("Permission denied");
});

once!(
    a_destination_through_a_missing_directory_is_refused,
    |env| {
        small_tree(env);
        let before = env.snapshot("src");
        let run = env.pcopy(["src", "missing/../src/new"]);
        refused(env, run, "missing/../src/new");
        before.assert_untouched();
        assert!(!env.exists("missing"));
    }
);

once!(a_destination_that_is_a_dangling_link_is_refused, |env| {
    env.file("file", "x");
    env.symlink("link", "nowhere");
    refused(env, env.pcopy(["file", "link"]), "link");
    assert_eq!(
        fs::read_link(env.path("link")).unwrap(),
        Path::new("nowhere")
    );
});

once!(a_link_in_the_target_directory_is_not_followed, |env| {
    env.file("directory/file", "x");
    env.dir("outside");
    env.symlink("dst/directory", "../outside");
    env.pcopy(["-t", "dst", "directory"])
        .exits(2)
        .stderr_has("dst/directory: a symbolic link is in the way");
    assert!(!env.exists("outside/file"));
    // The target directory itself may be a link, because it is named.
    env.symlink("link", "outside");
    env.pcopy(["-t", "link", "directory"]).ok();
    env.assert_same("directory", "outside/directory");
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
    // In a tree it is replaced like any other entry.
    env.file("src/name", "x");
    env.fifo("dst/name");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});
