//! `--partial`: large files that were interrupted go on where they stopped.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::env::{Env, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::processes::has_group_ended;
use crate::run::Running;

const MIB: usize = 1 << 20;
/// Two workers copy it in three chunks.
const SIZE: usize = 40 * MIB;

/// Returns the temporary file in `dst`.
fn partial(env: &Env) -> Option<PathBuf> {
    let entries = env.path("dst").read_dir().ok()?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|it| it == "tmp"))
}

/// Returns the number of steps that are marked as whole: what follows the contents.
fn marks(env: &Env, size: usize) -> usize {
    let read = || {
        let mut file = fs::File::open(partial(env)?).ok()?;
        file.seek(SeekFrom::Start(size as u64 + 1)).ok()?;
        let mut marks = Vec::new();
        file.read_to_end(&mut marks).ok()?;
        Some(marks.iter().filter(|&&mark| mark != 0).count())
    };
    read().unwrap_or(0)
}

/// Changes the first byte of a step that is marked as whole, and returns its offset.
fn spoil_marked_step(env: &Env) -> usize {
    let path = partial(env).expect("kills and signals leave the file");
    let bytes = fs::read(&path).unwrap();
    let first = bytes[SIZE + 1..].iter().position(|&mark| mark != 0);
    // Sixteen marks belong to a chunk of 14 steps, of 1 MiB each.
    let mark = first.expect("a step is marked");
    let offset = (mark / 16 * 14 + mark % 16) * MIB;
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset as u64)).unwrap();
    file.write_all(&[!bytes[offset]]).unwrap();
    offset
}

fn kill(running: Running) {
    let group = running.pid();
    running.signal_group(Signal::KILL);
    running.wait();
    eventually("all its processes have ended", || has_group_ended(group));
}

/// Interrupts a copy of `src`, shown at `mnt`, to `dst`, once some steps are marked.
fn interrupt(env: &Env, options: &[&str], signal: Signal) -> bool {
    env.file("src/large", pattern(SIZE, 1)).mtime(1_000, 1);
    env.file("dst/large", "old");
    let Some(faulty) = FaultFs::mount(env, "src", "mnt", &["--fault", "slow-read:large:40"]) else {
        return false;
    };
    let args = [&["-j2", "mnt", "dst"], options].concat();
    let running = env.command(args).start();
    eventually("some steps are marked", || {
        marks(env, SIZE) > 3 || !running.is_running()
    });
    assert!(running.is_running(), "{}", running.wait());
    if signal == Signal::KILL {
        kill(running);
    } else {
        running.signal(signal);
        running.wait().exits(128 + signal.as_raw());
    }
    drop(faulty);
    assert_eq!(env.read("dst/large"), b"old");
    true
}

both_modes!(a_killed_copy_goes_on_where_it_stopped, |env| {
    if !interrupt(env, &["--partial"], Signal::KILL) {
        return;
    }
    // What is marked is not read again: a byte there shows that.
    let marked = spoil_marked_step(env);
    let Some(faulty) = FaultFs::mount(env, "src", "mnt", &[]) else {
        return;
    };
    env.pcopy(["-j2", "--partial", "mnt", "dst"]).ok();
    drop(faulty);
    let (copy, source) = (env.read("dst/large"), env.read("src/large"));
    assert_eq!(copy.len(), source.len());
    let differing: Vec<usize> = (0..SIZE).filter(|&at| copy[at] != source[at]).collect();
    assert_eq!(differing, [marked]);
    assert!(partial(env).is_none());
});

both_modes!(what_is_there_is_compared_with_checksum, |env| {
    if !interrupt(env, &["--partial"], Signal::TERM) {
        return;
    }
    spoil_marked_step(env);
    let Some(faulty) = FaultFs::mount(env, "src", "mnt", &[]) else {
        return;
    };
    env.pcopy(["-j1", "--partial", "-c", "--verify", "mnt", "dst"])
        .ok();
    drop(faulty);
    env.assert_same("src", "dst");
    assert!(partial(env).is_none());
});

both_modes!(what_does_not_fit_is_removed, |env| {
    for change in [
        "touch -d @5 src/large",
        "rm src/large; mkdir -p src",
        "chmod 600 src/large",
    ] {
        if !interrupt(env, &["--partial"], Signal::KILL) {
            return;
        }
        let left = partial(env).unwrap();
        env.sh(change);
        env.pcopy(["--partial", "src", "dst"]).ok();
        assert!(!left.exists() && partial(env).is_none(), "{change}");
        if env.exists("src/large") {
            env.assert_same("src", "dst");
        }
    }
    // Without the option, what is left is removed as any temporary file.
    if interrupt(env, &["--partial"], Signal::KILL) {
        env.pcopy(["src", "dst"]).ok();
        assert!(partial(env).is_none());
        env.assert_same("src", "dst");
    }
});

both_modes!(ten_kills_lose_little, |env| {
    // The real program, at full speed: each kill may cost each of two workers a chunk at most.
    env.file("src/large", pattern(4 * SIZE, 1)).mtime(1_000, 1);
    let mut kills = 0;
    while kills < 10 {
        let before = marks(env, 4 * SIZE);
        let running = env
            .command(["-j2", "--partial", "--reflink=never", "src", "dst"])
            .start();
        eventually("a step more is marked", || {
            marks(env, 4 * SIZE) > before || !running.is_running()
        });
        if !running.is_running() {
            running.wait().ok();
            break;
        }
        kill(running);
        kills += 1;
    }
    env.pcopy(["-j2", "--partial", "src", "dst"]).ok();
    env.assert_same("src", "dst");
    assert!(partial(env).is_none());
});
