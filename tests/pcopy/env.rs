//! A test's environment: a temporary directory, entries in it, and pcopy running in it.
//!
//! Paths given to the builders and to pcopy are relative to that directory. It is also pcopy's
//! working directory, so that messages can be compared word by word.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FileType, StatVfsMountFlags, access, mknodat, statvfs};
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::compare::{self, Properties};
use crate::created::Created;
use crate::mounts::Namespace;
use crate::outcome::Run;
use crate::run::{Pcopy, Running, normalize_children};
use crate::snapshot::Snapshot;

/// How long a run, or anything else that a test waits for, may take before it counts as hanging.
///
/// Generous: everything takes a hundredth of this on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The user and group that stand for a normal user if the tests run as root.
pub(crate) const NOBODY: u32 = 65534;

/// The engines of pcopy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Thread,
    Process,
    /// Three nodes, joined by a relay of the tests.
    Mpi,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Thread => "thread",
            Mode::Process => "process",
            Mode::Mpi => "mpi",
        }
    }
}

/// Prints that the calling test is skipped, and why.
///
/// It writes to the real standard error, past the test harness, so that the line is seen.
#[track_caller]
pub(crate) fn skip(reason: impl Display) {
    let reason = reason.to_string();
    let reason = reason.trim().replace('\n', "; ");
    assert!(
        std::env::var_os("PCOPY_TEST_NO_SKIP").is_none(),
        "would be skipped ({reason}), but PCOPY_TEST_NO_SKIP is set"
    );
    let test = thread::current().name().unwrap_or("?").to_owned();
    // A closed standard error cannot be helped.
    let _ = writeln!(io::stderr(), "skipped: {test}: {reason}");
}

/// Returns true if the tests run as root.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// Returns true, and prints it, if the tests do not run as root.
#[track_caller]
pub(crate) fn skipped_without_root() -> bool {
    if !is_root() {
        skip("needs root");
    }
    !is_root()
}

/// Polls a condition until it holds; fails the test if it never does.
///
/// For conditions that no event announces, such as a new file.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < DEADLINE,
            "not true after {DEADLINE:?}: {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// A temporary directory, and the way to run pcopy in it.
pub(crate) struct Env {
    mode: Mode,
    /// The path by which this process reaches the directory.
    root: PathBuf,
    /// The mount namespace in which the directory is seen, if it has its own.
    namespace: Option<Namespace>,
    /// Removed with the environment; dropped last.
    temp: TempDir,
}

/// The space that the tests need in memory.
const MEMORY: u64 = 4 << 30;

/// Returns the directory in which all tests make theirs, as it is at the first call: one in memory, where
/// thousands of files are made and removed in half of the time, unless the user has named another one.
fn directory_of_all() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(choose_directory)
}

fn choose_directory() -> PathBuf {
    if let Some(named) = std::env::var_os("PCOPY_TEST_DIR") {
        return named.into();
    }
    let memory = PathBuf::from("/dev/shm");
    let has_space = statvfs(&memory).is_ok_and(|stat| {
        stat.f_bavail * stat.f_frsize >= MEMORY && !stat.f_flag.contains(StatVfsMountFlags::NOEXEC)
    });
    if std::env::var_os("TMPDIR").is_none()
        && has_space
        && access(&memory, Access::WRITE_OK).is_ok()
    {
        memory
    } else {
        std::env::temp_dir()
    }
}

impl Env {
    /// Creates one in the directory of all tests.
    pub(crate) fn new(mode: Mode) -> Env {
        normalize_children();
        let base = directory_of_all();
        let temp = tempfile::Builder::new()
            .prefix("pcopy-test-")
            .tempdir_in(base)
            .unwrap_or_else(|e| panic!("temporary directory in {}: {e}", base.display()));
        // A normal user must be able to pass through it.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = temp.path().canonicalize().unwrap();
        Env {
            mode,
            root,
            namespace: None,
            temp,
        }
    }

    /// Creates another environment in a mount namespace of its own, prepared by a script.
    ///
    /// `sh -e` runs the script in the environment's directory. If it fails, the test has to be
    /// skipped: this function prints that and returns `None`.
    #[track_caller]
    pub(crate) fn mounted(&self, script: &str) -> Option<Env> {
        if skipped_without_root() {
            return None;
        }
        let mut env = Env::new(self.mode);
        match Namespace::new(&env.root, script) {
            Ok(namespace) => {
                env.root = PathBuf::from(format!(
                    "/proc/{}/root{}",
                    namespace.pid(),
                    env.root.display()
                ));
                env.namespace = Some(namespace);
                Some(env)
            }
            Err(reason) => {
                skip(reason);
                None
            }
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes the mode of the runs that follow.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Returns the path of an entry for this process.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Returns the path of an entry as a program sees it that runs in the environment.
    pub(crate) fn inner_path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join(path)
    }

    // ---- create entries ---------------------------------------------------------------------

    /// Creates a file with this content, and its directories.
    #[track_caller]
    pub(crate) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Created {
        let path = self.with_parents(path);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Created(path)
    }

    #[track_caller]
    pub(crate) fn dir(&self, path: impl AsRef<Path>) -> Created {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Created(path)
    }

    #[track_caller]
    pub(crate) fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Created {
        let path = self.with_parents(path);
        std::os::unix::fs::symlink(target, &path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Created(path)
    }

    /// Creates another name for an existing entry, which may also be a link or a FIFO.
    #[track_caller]
    pub(crate) fn hard_link(&self, path: impl AsRef<Path>, existing: impl AsRef<Path>) -> Created {
        let path = self.with_parents(path);
        rustix::fs::linkat(CWD, self.path(existing), CWD, &path, AtFlags::empty())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Created(path)
    }

    /// Creates a FIFO, socket or device.
    #[track_caller]
    pub(crate) fn special(&self, path: impl AsRef<Path>, kind: FileType, device: u64) -> Created {
        let path = self.with_parents(path);
        mknodat(CWD, &path, kind, 0o644.into(), device)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Created(path)
    }

    #[track_caller]
    pub(crate) fn fifo(&self, path: impl AsRef<Path>) -> Created {
        self.special(path, FileType::Fifo, 0)
    }

    #[track_caller]
    pub(crate) fn socket(&self, path: impl AsRef<Path>) -> Created {
        self.special(path, FileType::Socket, 0)
    }

    /// Creates a file of `size` bytes that is a hole except for the given data.
    #[track_caller]
    pub(crate) fn sparse(
        &self,
        path: impl AsRef<Path>,
        size: u64,
        data: &[(u64, &[u8])],
    ) -> Created {
        let path = self.with_parents(path);
        let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        file.set_len(size).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        Created(path)
    }

    /// Returns an existing entry, to change its metadata.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> Created {
        Created(self.path(path))
    }

    #[track_caller]
    fn with_parents(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    // ---- examine entries --------------------------------------------------------------------

    #[track_caller]
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(path);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Returns the metadata of an entry, of a link its own.
    #[track_caller]
    pub(crate) fn stat(&self, path: impl AsRef<Path>) -> fs::Metadata {
        let path = self.path(path);
        fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Returns true if there is an entry, even a dangling link.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Records a tree with all its metadata.
    #[track_caller]
    pub(crate) fn snapshot(&self, path: impl AsRef<Path>) -> Snapshot {
        Snapshot::take(&self.path(path))
    }

    /// Fails, with a list of all differences, unless `copy` is a faithful copy of `source`.
    #[track_caller]
    pub(crate) fn assert_same(&self, source: impl AsRef<Path>, copy: impl AsRef<Path>) {
        compare::assert_same(
            &self.snapshot(source),
            &self.snapshot(copy),
            Properties::KEPT,
        );
    }

    // ---- run programs -----------------------------------------------------------------------

    /// Runs pcopy with these arguments to its end.
    #[track_caller]
    pub(crate) fn pcopy<I>(&self, args: I) -> Run
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(args).run()
    }

    /// Prepares a run of pcopy.
    pub(crate) fn command<I>(&self, args: I) -> Pcopy<'_>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        Pcopy::new(self, args.collect())
    }

    /// Starts `pcopy -v` and returns when it is in the middle of its work.
    #[track_caller]
    pub(crate) fn start_and_await_entries(&self, args: &[&str]) -> Running {
        let running = self.command([&["-v"], args].concat()).start();
        running.await_stdout("some entries", |text| text.lines().count() > 20);
        running
    }

    /// Returns true, and prints it, if a program is missing.
    #[track_caller]
    pub(crate) fn skipped_without(&self, program: &str) -> bool {
        let is_missing = self.sh(&format!("command -v {program} || true")).is_empty();
        if is_missing {
            skip(format_args!("needs {program}"));
        }
        is_missing
    }

    /// Returns true, and prints it, if strace(1) is missing or may not trace.
    #[track_caller]
    pub(crate) fn skipped_without_strace(&self) -> bool {
        let script = "strace -f -o /dev/null true 2>&1 >/dev/null || echo failed";
        let reason = self.sh(script);
        if !reason.is_empty() {
            skip(format_args!("needs strace: {reason}"));
        }
        !reason.is_empty()
    }

    /// Runs a shell script in the environment, which must succeed, and returns its output.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let mut argv = self.entering();
        argv.extend(["sh", "-ec", script].map(OsString::from));
        let output = self
            .command_for(&argv)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "sh: {script}\n{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns the beginning of a command line that enters the environment's namespace.
    pub(crate) fn entering(&self) -> Vec<OsString> {
        let Some(namespace) = &self.namespace else {
            return Vec::new();
        };
        let pid = namespace.pid().to_string();
        ["nsenter", "-m", "-w", "-t", &pid, "--"]
            .map(OsString::from)
            .into()
    }

    /// Returns a command for a command line that begins with [`Env::entering`].
    pub(crate) fn command_for(&self, argv: &[OsString]) -> Command {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).env("LC_ALL", "C");
        for variable in ["PCOPY_JOBS", "PCOPY_PROGRESS"] {
            command.env_remove(variable);
        }
        if self.namespace.is_none() {
            command.current_dir(&self.root);
        }
        command
    }

    /// Returns the path of the program under test, which a normal user can execute on request.
    pub(crate) fn program(&self, unprivileged: bool) -> PathBuf {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            std::env::var_os("PCOPY_TEST_PROGRAM").map_or_else(
                || env!("CARGO_BIN_EXE_pcopy").into(),
                |path| fs::canonicalize(path).unwrap(),
            )
        });
        let is_private = |path: &Path| {
            path.ancestors()
                .any(|part| fs::metadata(part).is_ok_and(|found| found.mode() & 0o001 == 0))
        };
        if !unprivileged || !is_private(program) {
            return program.clone();
        }
        self.reachable(program, ".program-under-test")
    }

    /// Copies a program to where a normal user can execute it.
    pub(crate) fn reachable(&self, program: &Path, name: &str) -> PathBuf {
        let reachable = self.temp.path().join(name);
        if !reachable.exists() {
            // Not by this process: another test's child would inherit the file while it is open for
            // writing, and the system would not run it (ETXTBSY).
            let copied = Command::new("cp").arg(program).arg(&reachable).status();
            assert!(
                copied.unwrap().success(),
                "cannot copy {}",
                program.display()
            );
        }
        reachable
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        // Unmount first, so that the entries on the mounts need not be removed one by one.
        self.namespace = None;
        if !is_root() {
            // A normal user cannot empty directories without the w bit.
            let _ = Command::new("chmod")
                .args(["-R", "u+rwx"])
                .arg(self.temp.path())
                .output();
        }
    }
}

/// Returns a path of raw bytes.
pub(crate) fn bytes_path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}
