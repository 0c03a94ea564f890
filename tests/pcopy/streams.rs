//! Sources named on the command line that are pipes, or links.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::noise::pattern;
use crate::run::Pcopy;

/// Runs pcopy under bash, with this redirection.
fn redirected<'a>(command: Pcopy<'a>, redirection: &str) -> Pcopy<'a> {
    command.under(&["bash", "-c", &format!("exec \"$@\" {redirection}"), "bash"])
}

both_modes!(a_pipe_is_read_to_its_end, |env| {
    if env.skipped_without("bash") {
        return;
    }
    env.file("data", pattern(3_000_000, 1));
    let slow = "< <(head -c 1000 data; sleep 0.5; tail -c +1001 data)";
    redirected(env.command(["/dev/stdin", "copy"]), slow)
        .run()
        .ok()
        .counts(1, 0, 0);
    assert!(env.read("copy") == env.read("data"));
    assert_eq!(env.stat("copy").mode() & 0o7777, 0o644);
    // It replaces a file, and lands in a directory under its own name.
    redirected(env.command(["/dev/fd/7", "copy"]), "7< <(echo hi)")
        .run()
        .ok();
    assert_eq!(env.read("copy"), b"hi\n");
    env.dir("dir");
    redirected(env.command(["/proc/self/fd/0", "dir"]), "< <(echo hi)")
        .run()
        .ok();
    assert_eq!(env.read("dir/0"), b"hi\n");
    env.snapshot(".").assert_no_temporaries();
});

both_modes!(a_file_that_a_pipe_replaces_keeps_its_metadata, |env| {
    if env.skipped_without("bash") {
        return;
    }
    for options in [&[][..], &["--no-preserve=all"], &["--inplace"]] {
        let mut file = env.file("copy", "old").mode(0o600);
        if crate::env::is_root() {
            file = file.owner(1000, 1001).mode(0o640);
        }
        let has_attribute = file.try_xattr("user.x", "value");
        let of = || {
            let stat = env.stat("copy");
            (stat.mode(), stat.uid(), stat.gid())
        };
        let before = of();
        let args = [options, &["/dev/stdin", "copy"]].concat();
        let run = redirected(env.command(args), "< <(echo new)").run().ok();
        assert_eq!(env.read("copy"), b"new\n");
        assert_eq!(of(), before, "{run}");
        if has_attribute {
            let mut value = [0; 5];
            let length = rustix::fs::getxattr(file.path(), "user.x", &mut value);
            assert_eq!((length, &value), (Ok(5), b"value"), "{run}");
        }
        fs::remove_file(file.path()).unwrap();
    }
});

both_modes!(several_pipes_and_files_are_copied_together, |env| {
    if env.skipped_without("bash") {
        return;
    }
    env.file("file", "x");
    let paths = ["/dev/fd/7", "file", "/dev/fd/8", "dst"];
    redirected(env.command(paths), "7< <(echo seven) 8< <(echo eight)")
        .run()
        .ok()
        .counts(3, 0, 0);
    assert_eq!(env.read("dst/7"), b"seven\n");
    assert_eq!(env.read("dst/8"), b"eight\n");
});

both_modes!(whatever_stdin_is_it_is_read, |env| {
    if env.skipped_without("bash") {
        return;
    }
    env.file("file", "x").mtime(1_000, 5);
    env.fifo("fifo");
    for (redirection, content) in [
        ("< /dev/null", ""),
        ("< file", "x"),
        ("<<< words", "words\n"),
        ("< fifo & echo late > fifo; wait $!", "late\n"),
    ] {
        let command = env.command(["/dev/stdin", "copy"]);
        let script = format!("\"$@\" {redirection}");
        let run = command.under(&["bash", "-c", &script, "bash"]).run().ok();
        assert_eq!(
            env.read("copy"),
            content.as_bytes(),
            "{redirection}:\n{run}"
        );
        fs::remove_file(env.path("copy")).unwrap();
    }
});

both_modes!(a_fifo_that_is_named_stays_a_fifo, |env| {
    env.fifo("fifo");
    env.pcopy(["fifo", "copy"]).ok().counts(1, 0, 0);
    assert!(env.stat("copy").file_type().is_fifo());
});

both_modes!(a_dry_run_reads_no_pipe, |env| {
    env.command(["-n", "/dev/stdin", "copy"])
        .under(&["sh", "-c", "echo text | { \"$@\" && cat; }", "sh"])
        .run()
        .ok()
        .stdout_has_line("copy /dev/stdin (new)")
        .stdout_has_line("text");
});

#[test]
fn a_pipe_is_not_read_twice() {
    use crate::env::{Env, Mode, eventually};
    use rustix::process::Signal;
    let env = &Env::new(Mode::Process);
    if env.skipped_without("bash") {
        return;
    }
    let command = env.command(["-v", "/dev/stdin", "copy"]);
    let running = redirected(command, "< <(echo first; sleep 2; echo second)").start();
    eventually("it has begun", || {
        env.path("copy").metadata().is_ok_and(|it| it.len() > 0)
    });
    running.workers()[0].signal(Signal::KILL);
    running.wait().exits(1).fails_only(&[(
        "/dev/stdin",
        "pipe can be read only once, and a worker was lost while reading",
    )]);
}

// ---- links ------------------------------------------------------------------------------------

both_modes!(a_link_that_is_named_can_be_copied_as_a_link, |env| {
    env.file("file", "x");
    env.dir("dir");
    for (link, target) in [
        ("to-file", "file"),
        ("to-dir", "dir"),
        ("dangling", "nowhere"),
    ] {
        env.symlink(link, target);
        for option in ["-P", "-d", "-a", "--no-dereference"] {
            let copy = format!("copy-of-{link}{option}");
            for copied in [1, 0] {
                let run = env.pcopy([option, link, &copy]).ok();
                assert_eq!(run.summary().copied, copied, "{run}");
                let read = fs::read_link(env.path(&copy)).unwrap();
                assert_eq!(read.to_str(), Some(target), "{run}");
            }
        }
    }
    assert!(!env.exists("dir/to-dir"));
    env.dir("into");
    env.pcopy(["-P", "to-file", "dir", "dangling", "into"]).ok();
    assert!(env.path("into/to-file").is_symlink() && env.path("into/dangling").is_symlink());
    // The last of -P and -L wins.
    env.pcopy(["-P", "-L", "to-file", "followed"]).ok();
    assert!(!env.path("followed").is_symlink());
});
