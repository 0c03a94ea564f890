//! Messages: what goes to stdout and stderr, and in which form.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::env::{Env, Mode, bytes_path};
use crate::noise::pattern;
use crate::trees::small_tree;

both_modes!(quiet_prints_only_errors, |env| {
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

all_modes!(verbose_prints_each_entry_once_with_its_worker, |env| {
    small_tree(env);
    let running = env.command(["-v", "src", "dst"]).start();
    let parent = running.pid().as_raw_pid().to_string();
    let run = running.wait().ok();
    let kind = match env.mode() {
        Mode::Thread => "[thread ".to_owned(),
        Mode::Process => "[pid ".to_owned(),
        Mode::Mpi => format!("[{} thread ", env.sh("uname -n").trim()),
    };
    let mut entries = Vec::new();
    for (worker, entry) in run.finished_entries() {
        let number = worker
            .strip_prefix(&kind)
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or_else(|| panic!("{worker:?} does not begin with {kind:?}:\n{run}"));
        assert!(
            number.parse::<u32>().is_ok_and(|number| number > 0),
            "{worker:?}"
        );
        assert_ne!(number, parent, "the parent copies nothing itself");
        entries.push(entry);
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
            "src/empty-directory/",
            "src/empty-file",
            "src/link",
        ],
        "{run}"
    );
});

both_modes!(a_closed_stdout_fails_if_it_was_wanted, |env| {
    small_tree(env);
    for (option, copy) in [("-n", "dst"), ("-v", "dst")] {
        env.command([option, "src", copy])
            .after("exec >&-")
            .run()
            .exits(1)
            .stderr_has("pcopy: standard output: write: Bad file descriptor");
    }
    env.assert_same("src", "dst");
    env.command(["src", "dst"]).after("exec >&-").run().ok();
});

// ---- form -----------------------------------------------------------------------------------

both_modes!(a_pipe_gets_neither_colours_nor_carriage_returns, |env| {
    small_tree(env);
    env.file("dst/a", "in the way");
    let run = env.pcopy(["-v", "src", "dst"]).exits(1);
    for text in [run.stdout(), run.stderr.clone()] {
        assert!(!text.contains(['\x1b', '\r']), "{text:?}");
    }
});

both_modes!(
    a_terminal_shows_whole_lines_and_no_remains_of_the_bar,
    |env| {
        for i in 0..300 {
            env.file(
                format!("src/directory-{}/file-{i}", i % 7),
                pattern(3_000, i),
            );
        }
        env.file("dst/directory-3", "in the way");
        let mode = env.mode().name();
        let program = env.program(false);
        if env.skipped_without("script") {
            return;
        }
        // script(1) provides one terminal for both stdout and stderr.
        let text = env.sh(&format!(
            "script -qec 'stty cols 60; {} --mode {mode} -v src dst' /dev/null </dev/null || true",
            program.display()
        ));
        let lines: Vec<String> = text.split(['\n', '\r']).map(without_escapes).collect();
        for i in (0..300).filter(|i| i % 7 != 3) {
            let end = format!("] src/directory-{}/file-{i}", i % 7);
            let found = lines
                .iter()
                .filter(|line| line.starts_with('[') && line.ends_with(&end))
                .count();
            assert_eq!(found, 1, "lines that end in {end:?} in:\n{text}");
        }
        let errors = lines
            .iter()
            .filter(|line| line.starts_with("pcopy: dst/directory-3: "));
        assert_eq!(errors.count(), 1, "{text}");
        let last: Vec<&String> = lines.iter().filter(|line| !line.is_empty()).collect();
        assert!(
            last[last.len() - 2].contains(" files copied to dst, ")
                && last[last.len() - 1].starts_with("pcopy: 1 failed (named above); "),
            "the summary comes last:\n{text}"
        );
    }
);

/// Removes the sequences that move a terminal's cursor or colour its text.
fn without_escapes(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char == '\x1b' {
            // A control sequence ends with a letter.
            while chars.next().is_some_and(|next| !next.is_ascii_alphabetic()) {}
        } else {
            text.push(char);
        }
    }
    text
}

both_modes!(each_error_is_one_line_whatever_the_name, |env| {
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

/// Characters that would move a terminal's cursor, turn its text around, or hide in it.
const HIDDEN: [char; 16] = [
    '\x07', '\r', '\x1b', '\x7f', '\u{9b}', '\u{ad}', '\u{61c}', '\u{200b}', '\u{200e}',
    '\u{200f}', '\u{2028}', '\u{202c}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{feff}',
];

both_modes!(no_name_reaches_the_terminal_raw, |env| {
    for hidden in HIDDEN {
        env.file(format!("src/a{hidden}txt.exe"), "x");
        env.file(format!("dst/b{hidden}txt.exe/x"), "in the way");
        env.file(format!("src/b{hidden}txt.exe"), "x");
    }
    // A balanced pair is shown with its effect by some programs.
    env.file("src/c\u{202e}txt\u{202c}.exe", "x");
    let odd = format!("missing-{}", String::from_iter(HIDDEN));
    let option = format!("--{odd}");
    let copied = HIDDEN.len() + 1;
    for (args, code, lines) in [
        (&["-n", "src", "dst"][..], 1, copied),
        (&["-v", "src", "dst"], 1, copied),
        (&[&odd, "dst"], 2, 0),
        (&[&option, "src", "dst"], 2, 0),
    ] {
        let run = env.pcopy(args).exits(code);
        let stdout = run.stdout();
        assert!(stdout.lines().count() >= lines, "{run}");
        for text in [&stdout, &run.stderr] {
            let raw = text.chars().find(|char| HIDDEN.contains(char));
            assert_eq!(raw, None, "in {text:?}");
        }
    }
});

/// Runs pcopy and returns its exit status and each write(2) to stdout and to stderr.
fn writes(env: &Env, args: &[&str]) -> (Option<i32>, [Vec<String>; 2]) {
    let (stdout, stdout_end) = Writes::pair();
    let (stderr, stderr_end) = Writes::pair();
    let mut command = Command::new(env.program(false));
    command
        .args(["--mode", env.mode().name()])
        .args(args)
        .current_dir(env.path(""))
        .stdin(Stdio::null())
        .stdout(stdout_end)
        .stderr(stderr_end);
    let mut child = command.spawn().unwrap();
    // Closes this process's copies of the ends, so that reading comes to an end.
    drop(command);
    let (stdout, stderr) = thread::scope(|scope| {
        let stdout = scope.spawn(|| stdout.read());
        let stderr = stderr.read();
        (stdout.join().unwrap(), stderr)
    });
    (child.wait().unwrap().code(), [stdout, stderr])
}

/// The reading end of a socket that keeps the boundaries between writes.
struct Writes(OwnedFd);

impl Writes {
    fn pair() -> (Writes, OwnedFd) {
        let (reader, writer) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Writes(reader), writer)
    }

    fn read(&self) -> Vec<String> {
        let mut buffer = vec![0; 1 << 20];
        let mut writes = Vec::new();
        loop {
            match rustix::io::read(&self.0, &mut buffer[..]).unwrap() {
                0 => return writes,
                length => writes.push(String::from_utf8(buffer[..length].to_vec()).unwrap()),
            }
        }
    }
}

both_modes!(each_message_is_one_write, |env| {
    small_tree(env);
    env.file("in-the-way/a", "x");
    // The number of writes to stderr.
    for (args, code, expected) in [
        (&["src", "dst"][..], 0, 1),
        (&["src", "in-the-way"], 1, 3),
        (&["-v", "src", "dst-2"], 0, 1),
        (&["-n", "src", "dst-3"], 0, 1),
        (&["missing", "dst"], 2, 1),
        (&["src", "src/inside"], 2, 1),
        (&["src"], 2, 1),
        (&["--no-such-option", "src", "dst"], 2, 1),
    ] {
        let (status, writes) = writes(env, args);
        assert_eq!(status, Some(code), "{args:?}: {writes:?}");
        for text in writes.iter().flatten() {
            assert!(text.ends_with('\n'), "{args:?}: half a line: {text:?}");
        }
        let [stdout, stderr] = writes;
        assert_eq!(stderr.len(), expected, "{args:?}: {stderr:#?}");
        let has_output = matches!(args[0], "-v" | "-n");
        assert_eq!(!stdout.is_empty(), has_output, "{args:?}: {stdout:#?}");
    }
});

// ---- output that cannot be written ----------------------------------------------------------

both_modes!(a_reader_of_stdout_may_go_away, |env| {
    for i in 0..1_500 {
        env.file(format!("src/{}/file-with-a-long-name-{i}", i % 30), "x");
    }
    // head(1) ends after one line, and /dev/full accepts none.
    for (name, script) in [
        ("head", "{ \"$0\" \"$@\" || test $? -le 1; } | head -n 1"),
        ("full", "\"$0\" \"$@\" > /dev/full || test $? -le 1"),
        ("closed", "\"$0\" \"$@\" >&- || test $? -le 1"),
    ] {
        let copy = format!("dst-{name}");
        let program = env.program(false);
        env.sh(&format!(
            "timeout 120 sh -ec '{script}' {} --mode {} -v src {copy} 2>stderr",
            program.display(),
            env.mode().name()
        ));
        let stderr = String::from_utf8(env.read("stderr")).unwrap();
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        if name == "full" {
            let message =
                "pcopy: standard output: write: No space left on device; continuing without it\n";
            assert_eq!(stderr.matches(message).count(), 1, "{stderr}");
        }
        // The next run completes the copy if this one has ended early.
        env.pcopy(["src", &copy]).ok();
        env.assert_same("src", &copy);
    }
});

both_modes!(
    messages_that_cannot_be_written_do_not_change_the_exit_status,
    |env| {
        env.file("src/file", "x");
        let program = env.program(false);
        let (program, mode) = (program.display(), env.mode().name());
        env.sh(&format!(
            "{program} --mode {mode} --progress=always src dst 2>/dev/full
         {program} --mode {mode} missing dst 2>/dev/full || test $? = 2"
        ));
        env.assert_same("src", "dst");
    }
);

both_modes!(
    messages_for_closed_streams_do_not_end_up_in_the_copy,
    |env| {
        // A file that is opened as descriptor 1 or 2 would receive the messages.
        env.file("src/a/file", "x");
        env.file("src/file", "x");
        env.file("dst/a", "in the way");
        for script in [
            "\"$0\" \"$@\" <&- >&- 2>&-",
            "\"$0\" \"$@\" 2>&-",
            "\"$0\" \"$@\" >&- 2>/dev/null",
        ] {
            let program = env.program(false);
            env.sh(&format!(
            "timeout 120 sh -c '{script}' {} --mode {} -v --overwrite always src dst || test $? -eq 1",
            program.display(),
            env.mode().name()
        ));
            env.assert_same("src/file", "dst/file");
            assert_eq!(env.read("dst/a"), b"in the way");
        }
    }
);
