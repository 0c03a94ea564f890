//! The context of a run: settings, identity, targets and shared memory.

use rustix::fs::Mode;
use rustix::process::Pid;

use crate::config::Config;
use crate::fs::proc::umask;
use crate::run_number::RunNumber;
use crate::scoreboard::Scoreboard;
use crate::targets::Targets;

/// State that every worker reads.
///
/// A run has one context. Threads share it, and forked workers inherit it.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) targets: Targets,
    pub(crate) scoreboard: Scoreboard,
}

impl Context {
    /// Returns the number in the temporary names of this run.
    ///
    /// It is found when the first name needs it: most runs make none, and ten small files would
    /// pay for it with a tenth of their time. Parent and workers see the same one.
    pub(crate) fn run(&self) -> RunNumber {
        let find = || RunNumber::of_process(self.identity.parent).bits();
        RunNumber::from_bits(self.scoreboard.run_number(find))
    }
}

/// Who runs pcopy, and which run this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// The umask that pcopy was started with.
    pub(crate) umask: u32,
    /// The effective user is root.
    pub(crate) is_root: bool,
    /// The effective group.
    pub(crate) group: u32,
    /// The process of the parent.
    pub(crate) parent: Pid,
}

impl Identity {
    /// Reads the identity of this process.
    pub(crate) fn read() -> Self {
        Self {
            umask: umask(),
            is_root: rustix::process::geteuid().is_root(),
            group: rustix::process::getegid().as_raw(),
            parent: rustix::process::getpid(),
        }
    }

    /// Sets the umask to 0 if modes are kept: new files get exactly the mode that the code passes.
    /// If not, the kernel applies the umask, or the default ACL of a directory instead.
    pub(crate) fn clear_umask(config: &Config) {
        if config.preserve.mode.is_wanted() {
            rustix::process::umask(Mode::empty());
        }
    }
}
