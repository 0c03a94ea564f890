//! Messages share a terminal, a pipe or a log file with those of other programs.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use crate::env::{Env, bytes_path};

/// Runs pcopy and returns its exit status and each write(2) to stderr: a datagram socket keeps
/// the boundaries between them.
fn writes_to_stderr(env: &Env, args: &[&str]) -> (Option<i32>, Vec<String>) {
    let (reader, stderr) = UnixDatagram::pair().unwrap();
    let status = Command::new(env.program(false))
        .args(["--mode", env.mode().name()])
        .args(args)
        .current_dir(env.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(OwnedFd::from(stderr))
        .status()
        .unwrap();
    reader.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut writes = Vec::new();
    while let Ok(length) = reader.recv(&mut buffer) {
        writes.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
    }
    (status.code(), writes)
}

both_modes!(each_message_is_one_write, |env| {
    env.file("src/a", "a");
    env.file("src/b", "b");
    env.file("dst/b/c", "in the way");
    let (status, writes) = writes_to_stderr(env, &["src", "dst"]);
    assert_eq!(status, Some(1));
    assert_eq!(writes.len(), 2, "an error and the summary: {writes:?}");
    for line in &writes {
        assert!(
            line.starts_with("pcopy: ") && line.ends_with('\n'),
            "{line:?}"
        );
        assert_eq!(line.lines().count(), 1, "{line:?}");
    }

    let (status, writes) = writes_to_stderr(env, &["nowhere", "dst"]);
    assert_eq!((status, writes.len()), (Some(2), 1), "{writes:?}");

    let (status, writes) = writes_to_stderr(env, &["--no-such-option", "src", "dst"]);
    assert_eq!((status, writes.len()), (Some(2), 1), "{writes:?}");
    assert!(
        writes[0].starts_with("error: unexpected argument"),
        "{writes:?}"
    );
});

both_modes!(a_name_can_not_turn_its_line_around, |env| {
    env.file("src/x\u{202e}gpj.exe", "x");
    env.file("dst/x\u{202e}gpj.exe/y", "in the way");
    env.file(bytes_path(b"src/\x1b[2J"), "x");
    env.file(bytes_path(b"dst/\x1b[2J/y"), "in the way");
    env.pcopy(["src", "dst"]).exits(1).fails_only(&[
        (r"$'dst/x\xe2\x80\xaegpj.exe'", "in the way"),
        (r"$'dst/\x1b[2J'", "in the way"),
    ]);
});
