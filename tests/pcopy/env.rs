//! A test's environment: a temporary folder, builders for what lies in it, and pcopy run in it.
//!
//! Paths given to the builders and to pcopy are relative to the folder, which is also
//! pcopy's working folder, so that messages can be compared word by word.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat,
    lsetxattr, mknodat, utimensat,
};
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::compare::{self, Properties, Snapshot};
use crate::run::{Pcopy, Run};

/// How long anything that a test waits for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The user and group that stand for "a normal user" where the tests run as root.
pub(crate) const NOBODY: u32 = 65534;

/// The two engines of pcopy, each of which has to keep every promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Thread,
    Process,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Thread => "thread",
            Mode::Process => "process",
        }
    }
}

/// Says that the test which calls this is not run, and why.
///
/// It writes to the real standard error, past the test harness: a skipped test shall be seen.
#[track_caller]
pub(crate) fn skip(reason: impl Display) {
    let reason = reason.to_string();
    let reason = reason.trim().replace('\n', "; ");
    assert!(
        std::env::var_os("PCOPY_TEST_NO_SKIP").is_none(),
        "would be skipped ({reason}), and PCOPY_TEST_NO_SKIP is set"
    );
    let test = thread::current().name().unwrap_or("?").to_owned();
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(io::stderr(), "skipped: {test}: {reason}");
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// True, after saying so, where the tests do not run as root.
#[track_caller]
pub(crate) fn skipped_without_root() -> bool {
    if !is_root() {
        skip("needs root");
    }
    !is_root()
}

/// Asks again and again until `condition` holds; fails the test when that takes too long.
///
/// For conditions that nobody announces, such as a file that appears.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < PATIENCE,
            "after {PATIENCE:?} still not so: {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that look random, are the same for the same seed, and have no block of zeros.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A small generator of numbers (xorshift64*), so that a failure can be had again from its seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // Zero would stay zero for ever.
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from 0 up to, not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// A temporary folder and the way to run pcopy in it.
pub(crate) struct Env {
    mode: Mode,
    /// The folder, as this process reaches it.
    root: PathBuf,
    /// Where the folder lies in a mount namespace of its own.
    namespace: Option<Namespace>,
    /// Removed with the environment; dropped last.
    temp: TempDir,
}

impl Env {
    pub(crate) fn new(mode: Mode) -> Env {
        Env::below(mode, std::env::temp_dir())
    }

    /// One in memory, where there is such a place, for tests that make very many files.
    pub(crate) fn in_memory(mode: Mode) -> Env {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        Env::below(mode, base)
    }

    fn below(mode: Mode, base: PathBuf) -> Env {
        let base = std::env::var_os("PCOPY_TEST_DIR").map_or(base, PathBuf::from);
        let temp = tempfile::Builder::new()
            .prefix("pcopy-test-")
            .tempdir_in(&base)
            .unwrap_or_else(|e| panic!("a temporary folder in {}: {e}", base.display()));
        // A normal user has to get through it.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = temp.path().canonicalize().unwrap();
        Env {
            mode,
            root,
            namespace: None,
            temp,
        }
    }

    /// A further environment in a mount namespace of its own, in which `script` has been run.
    ///
    /// `script` is for `sh -e`, in the environment's folder. Where it fails, the test is to be
    /// skipped: this says so and returns `None`.
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

    /// The same environment for runs in this mode.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The path, for this process, of something in the environment.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The path of something in the environment as a program run in it sees it.
    pub(crate) fn inner_path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join(path)
    }

    // ---- builders -------------------------------------------------------------------------

    /// A file with this content, in folders that are made as needed.
    #[track_caller]
    pub(crate) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Made {
        let path = self.place(path);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Made(path)
    }

    #[track_caller]
    pub(crate) fn folder(&self, path: impl AsRef<Path>) -> Made {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Made(path)
    }

    #[track_caller]
    pub(crate) fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Made {
        let path = self.place(path);
        std::os::unix::fs::symlink(target, &path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Made(path)
    }

    /// A further name at `path` for `existing`, which may be a link, a FIFO and so on.
    #[track_caller]
    pub(crate) fn hard_link(&self, path: impl AsRef<Path>, existing: impl AsRef<Path>) -> Made {
        let path = self.place(path);
        rustix::fs::linkat(CWD, self.path(existing), CWD, &path, AtFlags::empty())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Made(path)
    }

    /// A FIFO, socket or device.
    #[track_caller]
    pub(crate) fn special(&self, path: impl AsRef<Path>, kind: FileType, device: u64) -> Made {
        let path = self.place(path);
        mknodat(CWD, &path, kind, 0o644.into(), device)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Made(path)
    }

    #[track_caller]
    pub(crate) fn fifo(&self, path: impl AsRef<Path>) -> Made {
        self.special(path, FileType::Fifo, 0)
    }

    #[track_caller]
    pub(crate) fn socket(&self, path: impl AsRef<Path>) -> Made {
        self.special(path, FileType::Socket, 0)
    }

    /// A file of `size` bytes that is a hole but for the given pieces of data.
    #[track_caller]
    pub(crate) fn sparse(
        &self,
        path: impl AsRef<Path>,
        size: u64,
        pieces: &[(u64, &[u8])],
    ) -> Made {
        let path = self.place(path);
        let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        Made(path)
    }

    /// What already lies at `path`, to change its properties.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> Made {
        Made(self.path(path))
    }

    #[track_caller]
    fn place(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    // ---- looking --------------------------------------------------------------------------

    #[track_caller]
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(path);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// What `lstat` says.
    #[track_caller]
    pub(crate) fn stat(&self, path: impl AsRef<Path>) -> fs::Metadata {
        let path = self.path(path);
        fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Whether there is anything at `path`, be it a dangling link.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Everything below `path`, with all its properties, as of now.
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

    // ---- running --------------------------------------------------------------------------

    /// Runs pcopy with these arguments to its end.
    #[track_caller]
    pub(crate) fn pcopy<I>(&self, args: I) -> Run
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(args).run()
    }

    /// A run of pcopy that is still to be shaped, and then run or started.
    pub(crate) fn command<I>(&self, args: I) -> Pcopy<'_>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Pcopy::new(
            self,
            args.into_iter()
                .map(|arg| arg.as_ref().to_owned())
                .collect(),
        )
    }

    /// True, after saying so, where there is no such program.
    #[track_caller]
    pub(crate) fn skipped_without(&self, program: &str) -> bool {
        let missing = self.sh(&format!("command -v {program} || true")).is_empty();
        if missing {
            skip(format_args!("no {program}"));
        }
        missing
    }

    /// Runs a shell script in the environment, which must succeed; gives what it printed.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let mut argv = self.entering();
        argv.extend(["sh", "-ec", script].map(OsString::from));
        let output = self.spawnable(&argv).stdin(Stdio::null()).output().unwrap();
        assert!(
            output.status.success(),
            "sh: {script}\n{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The beginning of a command line that puts a program where the environment is.
    pub(crate) fn entering(&self) -> Vec<OsString> {
        match &self.namespace {
            None => Vec::new(),
            Some(namespace) => [
                "nsenter",
                "-m",
                "-w",
                "-t",
                &namespace.pid().to_string(),
                "--",
            ]
            .map(OsString::from)
            .into(),
        }
    }

    /// A command that runs in the environment's folder, once `argv` begins with the way there.
    pub(crate) fn spawnable(&self, argv: &[OsString]) -> Command {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).env("LC_ALL", "C");
        if self.namespace.is_none() {
            command.current_dir(&self.root);
        }
        command
    }

    /// The program under test, at a path that a normal user can reach.
    pub(crate) fn program(&self, by_user: bool) -> PathBuf {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            std::env::var_os("PCOPY_TEST_PROGRAM").map_or_else(
                || env!("CARGO_BIN_EXE_pcopy").into(),
                |path| fs::canonicalize(path).unwrap(),
            )
        });
        let closed_to_others = |path: &Path| {
            path.ancestors()
                .any(|part| fs::metadata(part).is_ok_and(|found| found.mode() & 0o001 == 0))
        };
        if !by_user || !closed_to_others(program) {
            return program.clone();
        }
        let reachable = self.temp.path().join(".program-under-test");
        if !reachable.exists() {
            fs::copy(program, &reachable).unwrap();
        }
        reachable
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        // Unmount first, so that what lies on the mounts need not be removed one by one.
        self.namespace = None;
        if !is_root() {
            // A normal user cannot empty folders without the w bit.
            let _ = Command::new("chmod")
                .args(["-R", "u+rwx"])
                .arg(self.temp.path())
                .output();
        }
    }
}

/// An entry of the environment, whose properties can be set one after the other.
///
/// The order is the caller's: a change of owner takes setuid bits and capabilities away.
pub(crate) struct Made(PathBuf);

impl Made {
    /// Its path, for this process.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    #[track_caller]
    pub(crate) fn mode(self, mode: u32) -> Made {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode))
            .unwrap_or_else(|e| panic!("chmod {}: {e}", self.0.display()));
        self
    }

    #[track_caller]
    pub(crate) fn owner(self, uid: u32, gid: u32) -> Made {
        chownat(
            CWD,
            &self.0,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap_or_else(|e| panic!("chown {}: {e}", self.0.display()));
        self
    }

    /// Sets the time of the last change, and leaves the time of the last access.
    #[track_caller]
    pub(crate) fn mtime(self, seconds: i64, nanoseconds: i64) -> Made {
        self.times(
            Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            Timespec {
                tv_sec: seconds,
                tv_nsec: nanoseconds,
            },
        )
    }

    #[track_caller]
    pub(crate) fn atime(self, seconds: i64, nanoseconds: i64) -> Made {
        self.times(
            Timespec {
                tv_sec: seconds,
                tv_nsec: nanoseconds,
            },
            Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
        )
    }

    #[track_caller]
    fn times(self, last_access: Timespec, last_modification: Timespec) -> Made {
        let times = Timestamps {
            last_access,
            last_modification,
        };
        utimensat(CWD, &self.0, &times, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|e| panic!("utimensat {}: {e}", self.0.display()));
        self
    }

    #[track_caller]
    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Made {
        lsetxattr(&self.0, name, value.as_ref(), XattrFlags::empty())
            .unwrap_or_else(|e| panic!("setxattr {name} {}: {e}", self.0.display()));
        self
    }

    /// Sets the attribute where the file system holds it, and says whether it does.
    pub(crate) fn try_xattr(&self, name: &str, value: impl AsRef<[u8]>) -> bool {
        lsetxattr(&self.0, name, value.as_ref(), XattrFlags::empty()).is_ok()
    }
}

/// A POSIX ACL as the bytes of its extended attribute.
///
/// Each entry is a tag, permissions, and the id of a named user or group.
pub(crate) fn acl(entries: &[(AclTag, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for &(tag, permissions, id) in entries {
        bytes.extend((tag as u16).to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// The id in an ACL entry that names nobody.
pub(crate) const ACL_NO_ID: u32 = u32::MAX;

/// The tags of ACL entries, in the order in which the entries have to come.
#[derive(Clone, Copy)]
pub(crate) enum AclTag {
    UserObj = 0x01,
    User = 0x02,
    GroupObj = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

/// A mount namespace, kept by a process that waits in it.
struct Namespace {
    keeper: Child,
    stdin: Option<ChildStdin>,
}

impl Namespace {
    fn new(folder: &Path, script: &str) -> Result<Namespace, String> {
        let mut keeper = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{script}\necho ready\nexec cat"))
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let output = keeper.wait_with_output().unwrap();
                return Err(format!(
                    "cannot prepare the mounts: {}",
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
        }
        let stdin = keeper.stdin.take();
        Ok(Namespace { keeper, stdin })
    }

    fn pid(&self) -> u32 {
        self.keeper.id()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.keeper.wait();
    }
}

/// A path of raw bytes.
pub(crate) fn bytes_path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}
