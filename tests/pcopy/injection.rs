//! System calls that fail: each call that pcopy makes, with each error, at several occurrences.
//!
//! strace(1) injects the errors. Whatever fails, the run must end with exit status 0 and a faithful
//! copy, or with another status and a line that names the failure. A second run without errors must
//! then complete the copy.
//!
//! A test runs a sample that `PCOPY_TEST_SEED` selects. With `PCOPY_TEST_INJECT=all` it runs
//! everything, which takes ten minutes, and prints each violation as it finds it.
//! `PCOPY_TEST_INJECT=CALL:ERROR:WHEN`, as in a violation, repeats one injection, and
//! `PCOPY_TEST_INJECT=CALL` all of one call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use crate::acl::{ACCESS_ACL, AclTag, NO_ID, acl};
use crate::compare::{Properties, differences};
use crate::env::{Env, is_root};
use crate::noise::{Random, pattern, seed};
use crate::outcome::Run;
use crate::snapshot::Snapshot;

const ERRORS: [&str; 9] = [
    "EIO",
    "ENOSPC",
    "EPERM",
    "EACCES",
    "EINVAL",
    "ENOSYS",
    "EOPNOTSUPP",
    "ENOMEM",
    "EINTR",
];

/// How many injections the sample has for each system call.
const SAMPLES_PER_CALL: usize = 1;

/// Injections that found a fault once, always tried.
const FOUND: [(&str, &str, When); 3] = [
    ("ppoll", "EINVAL", When::Every),
    ("lseek", "EIO", When::Nth(2)),
    ("getdents64", "EIO", When::Nth(2)),
];

/// How long one run may take. It takes a fiftieth of this on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The classes of strace(1) for calls about files and messages, and the calls that start workers.
const CLASSES: &str = "%file,%desc,%network,clone,clone3,fork,vfork";

/// Calls of these classes whose failure says nothing about pcopy. Memory is the C library's
/// business, and strace itself starts the program. An injected close leaves the descriptor open,
/// which the kernel never does; `faults.rs` has a file whose close fails.
const NOT_INJECTED: [&str; 4] = ["mmap", "execve", "execveat", "close"];

/// The errors by which a file system says that it cannot do something at all.
const REFUSALS: [&str; 5] = ["EPERM", "EACCES", "EINVAL", "ENOSYS", "EOPNOTSUPP"];

/// What a warning says that the destination does not support, and the differences that follow.
/// Without its owner a file has no set-user-ID mode, and an ACL is a part of the mode.
const WARNINGS: [(&str, &[&str]); 5] = [
    ("file modes", &[": mode: "]),
    ("file ownership", &[": owner: ", ": mode: "]),
    ("some extended attributes", &[": xattr ", ": mode: "]),
    ("these timestamps", &[": mtime: "]),
    ("these hard links", &[": hard links: "]),
];

/// The options of each run. The second makes calls that the first does not.
const OPTIONS: [&[&str]; 2] = [&["-j3"], &["-j3", "--fsync", "--sparse=always"]];

// ---- the trees ------------------------------------------------------------------------------

/// Creates a source with a little of everything.
fn zoo(env: &Env) {
    env.file("src/changed", pattern(5_000, 1))
        .mode(0o640)
        .mtime(1_000_000_000, 1);
    env.file("src/same", "same").mtime(1_000_000_001, 2);
    env.file("src/empty", "");
    env.symlink("src/link", "changed").mtime(1_000_000_002, 3);
    env.symlink("src/new-link", "nowhere");
    env.fifo("src/fifo").mode(0o620).mtime(1_000_000_003, 4);
    env.file("src/hard/one", pattern(3_000, 2)).mode(0o600);
    env.hard_link("src/hard/two", "src/hard/one");
    env.hard_link("src/three", "src/hard/one");
    for i in 0..24 {
        env.file(format!("src/files/{i}"), pattern(700, i))
            .mode(if i % 2 == 0 { 0o644 } else { 0o755 });
    }
    env.file("src/tree/a/b/c/file", "deep");
    env.dir("src/tree/empty")
        .mode(0o711)
        .mtime(1_000_000_004, 5);
    env.dir("src/tree/a/b").mode(0o555).mtime(1_000_000_005, 6);
    let data = pattern(20_000, 3);
    env.sparse("src/sparse", 4 << 20, &[(0, &data), (3 << 20, &data)]);
    // Large enough for chunks, but quickly copied.
    let chunked = env.sparse(
        "src/chunked",
        40 << 20,
        &[(9 << 20, &data), (33 << 20, &data)],
    );
    let file = File::options().write(true).open(chunked.path()).unwrap();
    // Without this it is copied in one piece.
    let _ = fallocate(&file, FallocateFlags::empty(), 0, 40 << 20);
    drop(file);
    env.at("src/chunked").mtime(1_000_000_006, 7);
    env.file("src/attributes", "x").try_xattr("user.one", "1");
    env.dir("src/tree/a").try_xattr("user.two", "2");
    let entries = [
        (AclTag::UserObj, 6, NO_ID),
        (AclTag::User, 4, 1234),
        (AclTag::GroupObj, 0, NO_ID),
        (AclTag::Mask, 4, NO_ID),
        (AclTag::Other, 0, NO_ID),
    ];
    env.file("src/acl", "x")
        .try_xattr(ACCESS_ACL, acl(&entries));
    if is_root() {
        env.file("src/foreign", "x").owner(1234, 4321).mode(0o4755);
        env.dir("src/tree/foreign").owner(1234, 4321);
    }
    env.at("src").mode(0o750).mtime(1_000_000_007, 8);
}

/// Creates a destination that has some of the entries already, of an older version.
fn older_destination(env: &Env) {
    env.file("dst/changed", "old").mtime(900_000_000, 1);
    env.file("dst/same", "same").mtime(1_000_000_001, 2);
    env.symlink("dst/link", "elsewhere");
    env.file("dst/fifo", "not a FIFO");
    env.file("dst/hard/one", "old");
    env.file("dst/three", "old");
    env.file("dst/tree/a/b/c/file", "old").mode(0o600);
    env.dir("dst/tree/a/b").mode(0o555);
    env.dir("dst/tree/empty").try_xattr("user.old", "old");
}

// ---- the calls ------------------------------------------------------------------------------

/// A system call that pcopy makes.
struct Call {
    name: String,
    /// How often the dynamic loader and the Rust runtime make it first. No program survives that.
    by_loader: u32,
    /// The options with which pcopy makes it.
    options: &'static [&'static str],
}

/// Finds out which calls pcopy makes.
fn calls(env: &Env) -> Vec<Call> {
    let mut found: BTreeMap<String, Call> = BTreeMap::new();
    for options in OPTIONS {
        older_destination(env);
        let trace = env.path("trace");
        let classes = format!("trace={CLASSES}");
        env.command([options, &["src", "dst"]].concat())
            .under(&[
                "strace",
                "-f",
                "-qq",
                "-o",
                trace.to_str().unwrap(),
                "-e",
                &classes,
            ])
            .run()
            .ok();
        env.assert_same("src", "dst");
        remove_destination(env);
        let text = String::from_utf8_lossy(&fs::read(&trace).unwrap()).into_owned();
        let loader = loader_calls(&text);
        for name in text.lines().filter_map(call_name) {
            if !NOT_INJECTED.contains(&name) && !found.contains_key(name) {
                let call = Call {
                    name: name.to_owned(),
                    by_loader: loader.get(name).copied().unwrap_or(0),
                    options,
                };
                found.insert(name.to_owned(), call);
            }
        }
    }
    assert!(found.len() > 20, "only {} calls", found.len());
    found.into_values().collect()
}

/// Returns the name in a line `PID NAME(...`, or nothing for the second half of a call.
fn call_name(line: &str) -> Option<&str> {
    let (name, _) = line
        .split_once(char::is_whitespace)?
        .1
        .trim()
        .split_once('(')?;
    let has_name = name.starts_with(|c: char| c.is_ascii_lowercase());
    // That is how strace names a call that it does not know; it takes no such name.
    let is_known = !name.starts_with("syscall_0x");
    (has_name && is_known).then_some(name)
}

/// Counts the calls up to the first of the Rust runtime, a poll of the standard streams.
fn loader_calls(trace: &str) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    for name in trace.lines().filter_map(call_name) {
        *counts.entry(name).or_insert(0) += 1;
        if name == "poll" {
            break;
        }
    }
    counts
}

// ---- the injections -------------------------------------------------------------------------

/// The occurrences of a call that fail, counted in each thread or process by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    Nth(u32),
    Every,
}

/// One experiment.
struct Injection<'a> {
    call: &'a Call,
    error: &'a str,
    when: When,
}

impl Display for Injection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.call.name, self.error)?;
        match self.when {
            When::Nth(n) => write!(f, "{n}"),
            When::Every => f.write_str("every"),
        }
    }
}

impl Injection<'_> {
    /// Returns the argument of strace(1) that makes it.
    fn argument(&self) -> String {
        let (name, error, first) = (&self.call.name, self.error, self.call.by_loader + 1);
        match self.when {
            When::Nth(n) => format!("{name}:error={error}:when={}", first + n - 1),
            When::Every => format!("{name}:error={error}:when={first}+"),
        }
    }

    fn is_tried(&self) -> bool {
        let name = &*self.call.name;
        let is_endless = match self.error {
            // A call that is always interrupted is rightly tried for ever.
            "EINTR" => self.when == When::Every,
            // Each message is tried for an eighth of a second, with one worker after the other.
            "ENOMEM" => self.when == When::Every && name.starts_with("send"),
            _ => false,
        };
        !is_endless
    }

    fn is_refusal(&self) -> bool {
        REFUSALS.contains(&self.error)
    }

    /// Returns true for a difference that a run with these warnings may leave although it ends
    /// well.
    fn excuses(&self, difference: &str, warnings: &str) -> bool {
        let is_of_call = match &*self.call.name {
            // Holes take space where nothing can be said about them. The contents are the same.
            "lseek" | "ftruncate" => {
                self.is_refusal() && difference.contains(": allocated bytes: ")
            }
            // A source entry that cannot have attributes has none to lose.
            "flistxattr" | "listxattr" => {
                ["ENOSYS", "EOPNOTSUPP"].contains(&self.error) && difference.contains(": xattr ")
            }
            // A worker has reported a temporary file, and the parent never got the report. A
            // socket does not lose messages. The next run removes the file.
            "recvfrom" => difference.contains(".tmp: entry: source missing"),
            _ => false,
        };
        // What was refused where nothing shows that it is held elsewhere is a warning.
        let is_warned = || {
            WARNINGS.iter().any(|(warning, kinds)| {
                warnings.contains(&format!("does not support {warning}"))
                    && kinds.iter().any(|kind| difference.contains(kind))
            })
        };
        is_of_call || self.is_refusal() && is_warned()
    }
}

/// Returns the injections to try, in a fixed order.
fn injections<'a>(calls: &'a [Call], wanted: Option<&'a str>) -> Vec<Injection<'a>> {
    if let Some(one) = wanted.filter(|text| text.contains(':')) {
        let mut parts = one.splitn(3, ':');
        let mut next = || parts.next().expect("PCOPY_TEST_INJECT=CALL:ERROR:WHEN");
        let (name, error, when) = (next(), next(), next());
        let call = calls.iter().find(|call| call.name == name);
        let when = match when {
            "every" => When::Every,
            number => When::Nth(number.parse().expect("WHEN is a number or \"every\"")),
        };
        let call = call.unwrap_or_else(|| panic!("pcopy does not call {name}"));
        return vec![Injection { call, error, when }];
    }
    let mut random = Random::new(seed());
    let mut list = Vec::new();
    let is_wanted = |call: &&Call| wanted.is_none_or(|name| name == "all" || name == call.name);
    for call in calls.iter().filter(is_wanted) {
        let mut of_call = Vec::new();
        for error in ERRORS {
            // One more, so that other seeds reach deeper.
            let somewhere = When::Nth(3 + random.below(40) as u32);
            let occurrences = [
                When::Nth(1),
                When::Nth(2),
                When::Nth(10),
                When::Every,
                somewhere,
            ];
            for when in occurrences {
                of_call.push(Injection { call, error, when });
            }
        }
        of_call.retain(Injection::is_tried);
        if wanted.is_none() {
            let mut sample = Vec::new();
            for (_, error, when) in FOUND.into_iter().filter(|it| it.0 == call.name) {
                sample.push(Injection { call, error, when });
            }
            for _ in 0..SAMPLES_PER_CALL {
                sample.push(of_call.swap_remove(random.below(of_call.len() as u64) as usize));
            }
            of_call = sample;
        }
        list.append(&mut of_call);
    }
    list
}

// ---- the verdict ----------------------------------------------------------------------------

/// Runs pcopy with an injection, and then without. Returns what should not have happened.
fn violations(env: &Env, source: &Snapshot, injection: &Injection) -> Vec<String> {
    older_destination(env);
    let args = [injection.call.options, &["src", "dst"]].concat();
    let argument = injection.argument();
    let running = env.command(&args).injecting(&argument).start();
    let ended = running.ends_within(LIMIT);
    if !ended {
        running.signal_group(rustix::process::Signal::KILL);
    }
    let run = running.wait();
    let mut found = Vec::new();
    if !ended {
        found.push(format!("no end within {LIMIT:?}: {run}"));
    } else if fails_in_loader(&run) {
        return found;
    } else {
        judge(env, source, injection, &run, &mut found);
    }

    let again = env.pcopy(&args);
    if again.status.code() != Some(0) || !again.complaints().is_empty() {
        found.push(format!("the second run fails: {again}"));
    }
    let copy = env.snapshot("dst");
    copy.assert_no_temporaries();
    let mut left = differences(source, &copy, Properties::KEPT);
    left.retain(|difference| !injection.excuses(difference, ""));
    if !left.is_empty() {
        let left = left.join("; ");
        found.push(format!("the second run leaves: {left}\nfirst {run}"));
    }
    found
}

/// Judges the first run by its status, its messages and the copy.
fn judge(env: &Env, source: &Snapshot, injection: &Injection, run: &Run, found: &mut Vec<String>) {
    if run.stderr.contains("panicked at") {
        found.push(format!("panic: {run}"));
    }
    let is_named = run
        .complaints()
        .iter()
        .any(|line| line.starts_with("pcopy: "));
    match run.status.code() {
        Some(0) => {
            let mut left = differences(source, &env.snapshot("dst"), Properties::KEPT);
            left.retain(|difference| !injection.excuses(difference, &run.stderr));
            if !left.is_empty() {
                found.push(format!("exit 0 with: {}\n{run}", left.join("; ")));
            }
        }
        // Without write(2) no message can be written.
        Some(1..=3) if is_named || injection.call.name.starts_with("write") => {}
        Some(1..=3) => found.push(format!("nothing is named: {run}")),
        _ => found.push(format!("unexpected status: {run}")),
    }
}

/// Returns true if the program did not start.
fn fails_in_loader(run: &Run) -> bool {
    run.status.code() == Some(127) && run.stderr.contains("loading shared libraries")
}

fn remove_destination(env: &Env) {
    if fs::remove_dir_all(env.path("dst")).is_err() {
        env.sh("chmod -R u+rwx dst; rm -r dst");
    }
}

fn every_failure_is_survived_or_named(env: &Env) {
    if env.skipped_without_strace() {
        return;
    }
    zoo(env);
    let wanted = std::env::var("PCOPY_TEST_INJECT").ok();
    let calls = calls(env);
    let source = env.snapshot("src");
    let injections = injections(&calls, wanted.as_deref());
    let mut report = Vec::new();
    for injection in &injections {
        for violation in violations(env, &source, injection) {
            let line = format!("{} mode: {injection}: {violation}", env.mode().name());
            if wanted.is_some() {
                // Past the test harness: a whole run takes long.
                let _ = writeln!(io::stderr(), "VIOLATION {line}");
            }
            report.push(line);
        }
        if env.exists("dst") {
            remove_destination(env);
        }
    }
    source.assert_untouched();
    let kinds: BTreeSet<&str> = report
        .iter()
        .filter_map(|line| line.split(": ").nth(1))
        .collect();
    assert!(
        report.is_empty(),
        "{} of {} injections: {kinds:?}\n{}",
        kinds.len(),
        injections.len(),
        report.join("\n")
    );
}

both_modes!(any_system_call_may_fail, |env| {
    every_failure_is_survived_or_named(env);
});
