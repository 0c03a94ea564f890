//! `--retries`: what failed for a reason that can pass is tried again at the end of the run.

use rustix::process::Signal;

use crate::env::Env;
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::targets::refused;

/// Makes a tree in which files and a directory cannot be opened at first. The directory fails so many
/// times.
fn passing_faults(env: &Env, closed: u32) -> Option<FaultFs> {
    for i in 0..20 {
        env.file(format!("real/{}/file-{i}", i % 3), pattern(10_000, i));
    }
    env.file("real/0/bad", pattern(5000, 90)).mtime(7, 0);
    env.file("real/1/large", pattern(34 << 20, 91));
    env.file("real/1/linked", pattern(100, 92));
    env.hard_link("real/2/other-name", "real/1/linked");
    env.file("real/closed/inside/deep", "x");
    env.at("real/closed").mtime(5, 5);
    env.at("real/0").mtime(6, 6);
    let mut options = vec!["--fault".to_owned(), format!("eio-open:closed:{closed}")];
    for fault in ["bad:2", "large:1", "linked:1"] {
        options.extend(["--fault".to_owned(), format!("eio-open:{fault}")]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    FaultFs::mount(env, "real", "src", &options)
}

all_modes!(what_passes_is_copied_in_the_end, |env| {
    let Some(_faulty) = passing_faults(env, 1) else {
        return;
    };
    let options = ["-v", "--retries=3", "--retry-wait=0.1", "--failed-to=list"];
    let run = env
        .pcopy([&options[..], &["src", "dst"]].concat())
        .exits(0)
        .counts(25, 0, 0);
    // One line for each round, and no errors.
    for line in run.complaints() {
        assert!(
            line.contains(" for a reason that can pass; trying "),
            "{run}"
        );
    }
    assert_eq!(run.complaints().len(), 2, "{run}");
    let entries = run.finished_entries();
    for name in [
        "src/0/bad",
        "src/1/large",
        "src/closed/inside/deep",
        "src/closed/",
    ] {
        let lines = entries.iter().filter(|(_, entry)| entry == name).count();
        assert_eq!(lines, 1, "{name}:\n{run}");
    }
    assert_eq!(env.read("list"), b"");
    // Times of directories and hard links too.
    env.assert_same("real", "dst");
});

both_modes!(what_does_not_pass_fails_once, |env| {
    let Some(faulty) = passing_faults(env, 99) else {
        return;
    };
    let run = env
        .pcopy([
            "--retries=1",
            "--retry-wait=0",
            "--failed-to=list",
            "src",
            "dst",
        ])
        .exits(1)
        .counts(23, 0, 2);
    let complaints = run.complaints();
    let errors: Vec<_> = complaints
        .iter()
        .filter(|it| it.contains("Input/output"))
        .collect();
    assert_eq!(errors.len(), 2, "{run}");
    assert_eq!(complaints.len(), 3, "{run}");
    let list = String::from_utf8(env.read("list")).unwrap();
    let mut failed: Vec<&str> = list.split_terminator('\0').collect();
    failed.sort_unstable();
    assert_eq!(failed, ["0/bad", "closed"], "{run}");
    drop(faulty);
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
});

both_modes!(a_signal_ends_the_wait, |env| {
    let Some(_faulty) = passing_faults(env, 99) else {
        return;
    };
    let running = env
        .command(["--retries=9", "--retry-wait=1000", "src", "dst"])
        .start();
    running.await_stderr("it waits", |text| text.contains("again in 1000 s (1 of 9)"));
    running.signal(Signal::TERM);
    let run = running.wait().exits(143);
    // What was to be tried again has failed.
    let errors = run.complaints().into_iter();
    let errors: Vec<_> = errors.filter(|it| it.contains("Input/output")).collect();
    assert!(
        errors.iter().any(|it| it.contains("src/0/bad: open")),
        "{run}"
    );
    assert!(errors.iter().any(|it| it.contains("src/closed: ")), "{run}");
    env.snapshot("dst").assert_no_temporaries();
});

both_modes!(other_errors_are_final, |env| {
    env.file("src/a", "x");
    env.file("dst/a/below", "in the way");
    let run = env.pcopy(["--retries=5", "--retry-wait=1000", "src", "dst"]);
    run.exits(1).fails_only(&[("dst/a", "in the way")]);
});

once!(a_wait_needs_retries, |env| {
    env.file("src/a", "x");
    refused(
        env,
        env.pcopy(["--retry-wait=3", "src", "dst"]),
        "--retry-wait needs --retries",
    );
});
