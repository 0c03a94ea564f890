//! Sources and destinations that overlap: the source is never harmed.

use std::os::unix::fs::MetadataExt;

use crate::env::Env;
use crate::noise::pattern;

/// Creates a source tree whose every change is noticed.
fn precious(env: &Env) {
    env.file("src/file", "precious").mtime(1_000, 1);
    env.file("src/inner/file", pattern(100_000, 1))
        .mtime(1_000, 2);
    env.symlink("src/link", "file");
    env.hard_link("src/inner/twin", "src/file");
    env.at("src/inner").mtime(1_000, 3);
    env.at("src").mtime(1_000, 4);
}

const SAME: &str = "source and destination are the same directory";
const INSIDE: &str = "the destination lies inside the source";

/// Runs pcopy, which must refuse for this reason before it writes anything into the source.
#[track_caller]
fn refused(env: &Env, args: &[&str], reason: &str) {
    let before = env.snapshot("src");
    let run = env.pcopy(args);
    before.assert_untouched();
    let run = run.exits(2).stdout_is_empty().stderr_has(reason);
    assert_eq!(
        run.complaints().len(),
        1,
        "one line with the reason:\n{run}"
    );
}

// ---- the same directory, and a directory into itself ----------------------------------------

once!(a_directory_onto_itself_is_refused_under_every_name, |env| {
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
        // With a slash at its end it would mean into.
        refused(env, &["-T", "src", name], SAME);
        refused(env, &[name, "src"], SAME);
        refused(env, &["-nT", "src", name], SAME);
    }
    // Below "." it gets its own name again.
    refused(env, &["-t", ".", "src"], SAME);
});

once!(a_directory_into_itself_is_refused_under_every_name, |env| {
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
        refused(env, &["src", name], INSIDE);
        refused(env, &["-t", name, "src"], INSIDE);
    }
    refused(env, &["-t", "src", "src"], INSIDE);
    refused(env, &["src", "src/"], INSIDE);
    refused(env, &["-t", "src/inner", "src"], INSIDE);
    // A dangling link may be refused for another reason.
    let before = env.snapshot("src");
    env.pcopy(["src", "dangling-into-src"]).exits(2);
    before.assert_untouched();
});

once!(a_good_source_beside_a_bad_one_is_not_started, |env| {
    precious(env);
    env.file("good/file", "good");
    refused(env, &["good", "src", "src/inner"], INSIDE);
});

once!(bind_mounts_hide_nothing, |env| {
    let script =
        "mkdir -p src/inner alias outer; mount --bind src alias; mount --bind src/inner outer";
    let Some(env) = env.mounted(script) else {
        return;
    };
    precious(&env);
    refused(&env, &["src", "alias"], SAME);
    refused(&env, &["alias", "src"], SAME);
    refused(&env, &["src", "alias/new"], INSIDE);
    refused(&env, &["src", "alias/inner"], INSIDE);
    // The destination lies in the source, although every directory above it is elsewhere.
    refused(&env, &["src", "outer"], INSIDE);
    refused(&env, &["src", "outer/new"], INSIDE);
    refused(&env, &["-t", "outer", "src"], INSIDE);
});

both_modes!(a_copy_beside_the_source_is_allowed, |env| {
    precious(env);
    // These names only look as if one lay inside the other.
    env.pcopy(["src", "src-2"]).ok();
    env.assert_same("src", "src-2");
    env.pcopy(["src/inner", "src/copy-of-inner"]).ok();
    env.assert_same("src/inner", "src/copy-of-inner");
});

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

both_modes!(
    a_destination_hidden_by_a_mount_in_the_source_is_allowed,
    |env| {
        let script = "mkdir -p src/x other; mount --bind src/x other; mount -t tmpfs tmpfs src/x; echo x > src/x/file; echo x > src/file";
        let Some(env) = env.mounted(script) else {
            return;
        };
        env.pcopy(["src", "other"]).ok();
        env.assert_same("src", "other");
    }
);

// ---- found during the run -------------------------------------------------------------------

both_modes!(a_followed_link_to_the_destination_fails_alone, |env| {
    env.file("src/a/file", "x");
    env.symlink("src/a/link", env.inner_path("dst/a"));
    let reason = "directory is the destination itself";
    env.pcopy(["-L", "src", "dst"])
        .exits(1)
        .fails_only(&[("src/a/link", reason)]);
    env.assert_same("src/a/file", "dst/a/file");
});

both_modes!(the_destination_mounted_in_the_source_fails_alone, |env| {
    let Some(env) =
        env.mounted("mkdir -p src/a/mnt dst/a; echo x > src/a/file; mount --bind dst/a src/a/mnt")
    else {
        return;
    };
    let reason = "directory is the destination itself";
    env.pcopy(["src", "dst"])
        .exits(1)
        .fails_only(&[("src/a/mnt", reason)]);
    env.assert_same("src/a/file", "dst/a/file");
});

both_modes!(
    a_destination_mounted_in_the_source_is_not_copied_for_ever,
    |env| {
        let script = "mkdir -p src/mnt dst; mount --bind dst src/mnt";
        let Some(env) = env.mounted(script) else {
            return;
        };
        precious(&env);
        let run = env.pcopy(["src", "dst"]);
        assert!(matches!(run.status.code(), Some(1 | 2)), "{run}");
        assert!(!env.exists("dst/mnt/mnt/mnt"), "{run}");
        assert_eq!(env.read("src/file"), b"precious");
    }
);

both_modes!(
    a_directory_whose_entry_would_land_on_the_source_is_skipped,
    |env| {
        // The entry x/src/src would be copied to x/src, which is the source itself.
        env.file("x/src/file", "precious").mtime(1_000, 1);
        env.file("x/src/src/file", "would overwrite x/src/file");
        env.file("x/src/src/more", "would be added to x/src");
        env.file("x/src/other/file", "other");
        let before = env.snapshot("x/src");
        let run = env.pcopy(["x/src", "x"]).exits(1);
        before.assert_untouched();
        assert_eq!(run.complaints().len(), 1, "{run}");
        run.stderr_has("x/src: ");
        // The rest arrives.
        assert_eq!(env.read("x/file"), b"precious");
        env.assert_same("x/src/other", "x/other");
    }
);

both_modes!(
    a_directory_whose_entry_would_land_on_the_source_deeper_down_is_skipped,
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
    // The first source would be copied to x/b, which is the second source.
    let run = env.pcopy(["-t", "x", "a/b", "x/b"]);
    assert!(matches!(run.status.code(), Some(1 | 2)), "{run}");
    before.assert_untouched();
});

both_modes!(a_source_is_not_replaced_by_another_one, |env| {
    env.file("new/b/f", "other");
    env.file("x/b/f", "mine");
    let run = env.pcopy(["new/b", "x/b/f", "x"]).exits(1);
    run.fails_only(&[("x/b/f", "would replace another source of this run")]);
    assert_eq!(env.read("x/b/f"), b"mine");
    assert_eq!(env.read("x/f"), b"mine");
});

both_modes!(a_named_source_is_never_a_leftover, |env| {
    let name = "dst/.pcopy.0123456789abcdef.7.12.tmp";
    env.file(name, "to be rescued");
    env.pcopy([name, "dst/rescued"]).ok();
    assert_eq!(env.read("dst/rescued"), b"to be rescued");
    assert!(env.exists(name));
});

// ---- the same file --------------------------------------------------------------------------

both_modes!(a_source_that_is_already_at_the_destination_is_kept, |env| {
    env.file("x/a", "hi");
    env.hard_link("dir/b", "x/a");
    env.pcopy(["x/a", "dir/b", "dir"]).ok();
    assert_eq!(env.stat("x/a").ino(), env.stat("dir/b").ino());
    assert_eq!(env.read("dir/a"), b"hi");
});

both_modes!(a_file_onto_itself_is_kept, |env| {
    env.file("file", "precious").mtime(1_000, 1);
    env.hard_link("hard", "file");
    env.symlink("soft", "file");
    env.dir("directory");
    env.hard_link("directory/file", "file");
    env.symlink("here", ".");
    let before = env.snapshot("");
    let options: [&[&str]; 3] = [&[], &["--overwrite=always"], &["--sparse=always"]];
    for copy in [
        "file",
        "./file",
        "hard",
        "soft",
        "directory",
        "directory/file",
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
    env.at("directory").mtime(
        before.entry("directory").mtime.0,
        before.entry("directory").mtime.1,
    );
    before.assert_untouched();
});

both_modes!(a_file_that_is_already_the_same_inode_is_kept, |env| {
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

both_modes!(a_link_never_replaces_what_it_leads_to, |env| {
    env.file("A/x", "the only copy");
    env.symlink("B/x", "../A/x");
    env.symlink("B/other", "nowhere");
    for options in [&["-T", "B", "A"][..], &["-n", "-T", "B", "A"]] {
        env.pcopy(options)
            .fails_only(&[("A/x", "create: source is a link to this entry")]);
        assert_eq!(env.read("A/x"), b"the only copy");
    }
    assert!(env.path("A/other").is_symlink());
    // Also a link that is named, and one with several names.
    env.symlink("link", "A/x");
    env.pcopy(["-a", "link", "A/x"]).exits(1);
    env.hard_link("B/y", "B/x");
    env.file("A/y", "another");
    env.pcopy(["-T", "B", "A"]).exits(1);
    assert_eq!(env.read("A/x"), b"the only copy");
});
