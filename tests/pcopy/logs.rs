//! `--log-file` and `--failed-to`: files that a run leaves for people and for the next run.

use crate::env::{Env, bytes_path, is_root, skip};
use crate::targets::refused;
use crate::trees::small_tree;

/// Returns the lines of a log without their time and process, sorted.
#[track_caller]
fn messages(env: &Env, log: &str) -> Vec<String> {
    let text = String::from_utf8(env.read(log)).unwrap();
    let message = |line: &str| {
        let (time, rest) = line
            .split_once(" pcopy[")
            .unwrap_or_else(|| panic!("{text}"));
        let (process, message) = rest.split_once("]: ").unwrap();
        assert!(process.parse::<u32>().is_ok(), "{line}");
        // 2026-11-27T01:02:03.456+01:00
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(
            shape.replace('-', "+"),
            "0000+00+00T00:00:00.000+00:00",
            "{line}"
        );
        message.to_owned()
    };
    let mut messages: Vec<String> = text.lines().map(message).collect();
    messages.sort();
    messages
}

both_modes!(a_log_has_every_message_with_its_worker, |env| {
    small_tree(env);
    env.file("dst/a", "in the way");
    env.pcopy(["-q", "--log-file", "log", "src", "dst"])
        .exits(1);
    let found = messages(env, "log");
    let worker = format!(
        "[{} ",
        if env.mode() == crate::env::Mode::Thread {
            "thread"
        } else {
            "pid"
        }
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[2].starts_with(&worker), "{found:#?}");
    assert!(found[2].contains("] dst/a: open directory: "), "{found:#?}");
    assert!(found[0].contains("1 failed (named above)"), "{found:#?}");
    // Appended, with a line for each entry.
    env.pcopy(["-v", "--log-file", "log", "src", "dst-2"]).ok();
    let found = messages(env, "log");
    let entries = found.iter().filter(|line| line.contains("] src/"));
    assert_eq!(entries.count(), 9, "{found:#?}");
    // A refusal of the whole run is there too.
    env.pcopy(["--log-file", "log", "src", "src/below"])
        .exits(2);
    let found = messages(env, "log");
    assert!(
        found
            .iter()
            .any(|line| line.contains("lies inside the source")),
        "{found:#?}"
    );
});

once!(
    a_log_that_cannot_be_opened_keeps_the_run_from_starting,
    |env| {
        small_tree(env);
        for (option, words) in [
            ("--log-file=src", "src: open log: Is a directory"),
            (
                "--log-file=missing/log",
                "missing/log: open log: No such file or directory",
            ),
            ("--failed-to=src", "src: create list: Is a directory"),
            (
                "--failed-to=missing/list",
                "missing/list: create list: No such file or directory",
            ),
            (
                "--lock=missing/lock",
                "missing/lock: open lock: No such file or directory",
            ),
        ] {
            refused(env, env.pcopy([option, "src", "dst"]), words);
        }
    }
);

both_modes!(a_full_log_is_said_once_and_fails_the_run, |env| {
    small_tree(env);
    let run = env
        .pcopy(["-v", "--log-file=/dev/full", "src", "dst"])
        .exits(1);
    let complaints = run.complaints();
    assert_eq!(
        complaints,
        ["pcopy: /dev/full: write: No space left on device; continuing without it"],
        "{run}"
    );
    env.assert_same("src", "dst");
});

/// Returns the paths of a list, sorted.
fn list(env: &Env, path: &str) -> Vec<String> {
    let bytes = env.read(path);
    assert!(bytes.is_empty() || bytes.ends_with(b"\0"));
    let mut paths: Vec<String> = bytes
        .split(|&b| b == 0)
        .map(|path| path.escape_ascii().to_string())
        .collect();
    assert_eq!(paths.pop().as_deref(), Some(""));
    paths.sort();
    paths
}

both_modes!(a_list_has_what_failed_relative_to_its_source, |env| {
    small_tree(env);
    env.file(bytes_path(b"src/a/caf\xe9"), "x").mode(0o000);
    env.dir("src/closed").mode(0o333);
    env.file("other/no", "x").mode(0o000);
    env.file("single", "x").mode(0o000);
    env.dir("parent").mode(0o777);
    if !is_root() {
        skip("needs root");
        return;
    }
    env.sh("chown -R 65534:65534 src other single parent");
    let run = |args: &[&str]| {
        let options = ["--failed-to", "parent/list"];
        let run = env.command([&options, args].concat()).unprivileged();
        run.run().exits(1);
        list(env, "parent/list")
    };
    assert_eq!(run(&["src", "parent/dst"]), ["a/caf\\xe9", "closed"]);
    assert_eq!(run(&["single", "parent/copy"]), ["single"]);
    assert_eq!(
        run(&["src", "other", "single", "parent/all/"]),
        ["other/no", "single", "src/a/caf\\xe9", "src/closed"]
    );
    // Nothing failed: an empty list, and nothing else beside it.
    env.pcopy(["--failed-to", "parent/list", "src/a/deeper", "parent/b"])
        .ok();
    assert_eq!(list(env, "parent/list"), [""; 0]);
    let names = env.sh("ls -A parent");
    assert_eq!(
        names.split_whitespace().collect::<Vec<_>>(),
        ["all", "b", "dst", "list"]
    );
});
