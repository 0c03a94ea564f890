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

both_modes!(mkpath_creates_missing_parents, |env| {
    small_tree(env);
    env.file("file", "file");
    for (arguments, source, copy) in [
        (&["src", "x/y/dst"][..], "src", "x/y/dst"),
        (&["src", "into/y/dst/"], "src", "into/y/dst/src"),
        (&["-t", "t/y/dst", "src"], "src", "t/y/dst/src"),
        (
            &["src", "file", "several/y/dst"],
            "src",
            "several/y/dst/src",
        ),
        (&["file", "f/y/name"], "file", "f/y/name"),
    ] {
        env.pcopy([&["--mkpath"], arguments].concat()).ok();
        env.assert_same(source, copy);
    }
});

both_modes!(a_slash_or_dots_mean_into_the_directory, |env| {
    small_tree(env);
    env.file("file", "file");
    env.dir("real");
    for (destination, copy) in [
        ("old/", "old/src"),
        ("old//", "old/src"),
        ("old/.", "old/src"),
        ("old/deep/..", "old/src"),
        ("new/", "new/src"),
        ("new-dots/./", "new-dots/src"),
        ("link/", "real/src"),
    ] {
        env.dir("old/deep");
        env.file("old/mine", "mine");
        env.symlink("link-to-be", "real");
        fs::rename(env.path("link-to-be"), env.path("link")).unwrap();
        env.pcopy(["src", destination]).ok();
        env.assert_same("src", copy);
        env.pcopy(["src/", destination])
            .ok()
            .counts(0, SMALL_TREE_LEAVES, 0);
        env.pcopy(["file", destination]).ok();
        env.assert_same("file", Path::new(copy).with_file_name("file"));
        assert!(
            !env.exists("old/a"),
            "{destination}: poured into the directory"
        );
        let _ = fs::remove_dir_all(env.path("old"));
    }
    for (directory, destination, copy) in [("a", ".", "a/src"), ("a/b", "..", "a/src")] {
        let _ = fs::remove_dir_all(env.path("a"));
        env.dir("a/b");
        let source = env.inner_path("src");
        let run = env.command([source.as_os_str(), destination.as_ref()]);
        run.after(&format!("cd {directory}")).run().ok();
        env.assert_same("src", copy);
    }
});

both_modes!(a_source_without_a_name_becomes_the_directory, |env| {
    small_tree(env);
    for (number, source) in ["src/.", "src/./", "src/a/..", "src/a/../"]
        .iter()
        .enumerate()
    {
        let copy = format!("dst-{number}");
        env.pcopy([source, &*format!("{copy}/")]).ok();
        env.assert_same("src", &copy);
    }
    env.command([".", "../in/"]).after("cd src").run().ok();
    env.assert_same("src", "in");
    env.pcopy(["-t", "target", "src/."]).ok();
    env.assert_same("src", "target");
    // Two of them would be mixed.
    env.dir("other");
    let run = env.pcopy(["src/.", "other", "dst"]);
    refused(env, run, "src/.: it has no name of its own");
});

both_modes!(no_target_directory_means_the_destination_itself, |env| {
    small_tree(env);
    env.file("file", "file");
    env.dir("dir");
    env.symlink("link", "dir");
    env.pcopy(["-T", "src", "new/"]).ok();
    env.assert_same("src", "new");
    env.pcopy(["-T", "src", "link/"]).ok();
    env.assert_same("src", "dir");
    env.command(["-T", "../src", "."])
        .after("mkdir here && cd here")
        .run()
        .ok();
    env.assert_same("src", "here");
    env.pcopy(["-T", "file", "name"]).ok();
    env.assert_same("file", "name");
    for (arguments, words) in [
        (&["-T", "file", "dir"][..], "dir is a directory"),
        (&["-T", "file", "dst/"], "dst/ ends in a slash"),
        (&["-T", "file", "src", "dst"], "-T takes one source"),
        (&["-T", "-t", "dst", "src"], "contradict"),
    ] {
        refused(env, env.pcopy(arguments), words);
    }
});

once!(only_the_last_component_is_created, |env| {
    small_tree(env);
    env.file("file", "file");
    for arguments in [
        &["src", "a/b/c"][..],
        &["src", "a/b"],
        &["src", "a/b/"],
        &["src", "a/b/."],
        &["-T", "src", "a/b/"],
        &["-t", "a/b", "src"],
        &["file", "a/b"],
        &["file", "a/b/"],
        &["src", "file", "a/b"],
        &["-n", "src", "a/b"],
    ] {
        let run = env.pcopy(arguments);
        refused(
            env,
            run,
            "there is no a; --mkpath creates missing directories",
        );
        assert!(!env.exists("a"), "{arguments:?}");
    }
    env.dir("a");
    env.pcopy(["src", "a/b/"]).ok();
    env.assert_same("src", "a/b/src");
});

both_modes!(directories_made_on_the_way_have_the_usual_mode, |env| {
    small_tree(env);
    for (mkpath, destination, made) in [
        (
            &["--mkpath"][..],
            "plain/x/y/",
            &["plain", "plain/x", "plain/x/y"][..],
        ),
        (&[], "z/", &["z"]),
    ] {
        let run = env.command([mkpath, &["src", destination]].concat());
        run.after("umask 027").run().ok();
        for path in made {
            assert_eq!(env.stat(path).mode() & 0o7777, 0o750, "{path}");
        }
        env.assert_same("src", Path::new(destination).join("src"));
    }
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
        env.inner_path("elsewhere/../dst"),
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
        (
            &["--mkpath", "one", "missing/parents/one"],
            "missing/parents",
        ),
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
        "two/same/.: it has no name of its own",
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
