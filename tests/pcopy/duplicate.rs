//! `--duplicate`: copies beside their sources.

use crate::trees::{SMALL_TREE_LEAVES, small_tree};

both_modes!(a_copy_is_made_beside_each_source, |env| {
    small_tree(env);
    env.file("dir/notes.txt", "notes").mtime(3, 3);
    env.symlink("link", "src");
    env.pcopy(["--duplicate", "src/", "dir/notes.txt", "link"])
        .ok()
        .counts(2 * SMALL_TREE_LEAVES + 1, 0, 0);
    env.assert_same("src", "src (copy)");
    env.assert_same("src", "link (copy)");
    env.assert_same("dir/notes.txt", "dir/notes.txt (copy)");
    env.command(["--duplicate", "."])
        .after("cd src")
        .run()
        .exits(2);
    env.pcopy(["--duplicate=~", "src/a/.."]).ok();
    env.assert_same("src", "src~");
    env.pcopy(["--duplicate=.old", "-P", "link"]).ok();
    assert!(env.stat("link.old").is_symlink());
});

both_modes!(the_locale_chooses_the_ending, |env| {
    env.file("src/f", "x");
    let run = env.command(["--duplicate", "src", "src/f"]);
    // The copy of the file would land in a source.
    run.after("export LC_ALL=zh_CN.UTF-8").run().exits(2);
    let run = env.command(["--duplicate", "src"]);
    run.after("export LC_ALL=zh_CN.UTF-8").run().ok();
    env.assert_same("src", "src[复件]");
    let run = env.command(["--duplicate", "src"]);
    run.after("export LC_ALL= LC_MESSAGES=C LANG=zh_CN")
        .run()
        .ok();
    env.assert_same("src", "src (copy)");
});

once!(an_existing_duplicate_is_refused, |env| {
    small_tree(env);
    env.file("file", "file");
    env.dir("src (copy)");
    env.symlink("file (copy)", "nowhere");
    for name in ["src", "file"] {
        env.pcopy(["--duplicate", name])
            .exits(2)
            .stderr_has(&format!("{name} (copy) exists"));
        env.pcopy(["-n", "--duplicate", name]).exits(2);
    }
    // Nothing is copied then.
    env.file("third", "x");
    env.pcopy(["--duplicate", "third", "file"]).exits(2);
    assert!(!env.exists("third (copy)"));
    env.pcopy(["--duplicate=/x", "src"]).exits(2);
    env.pcopy(["--duplicate=", "src"]).exits(2);
    env.pcopy(["--duplicate", "-t", "dst", "src"]).exits(2);
    env.pcopy(["--duplicate", "/"]).exits(2).stderr_has("root");
});
