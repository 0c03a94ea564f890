//! The relay of the tests (tests/relay), which joins several pcopies on this machine.

use std::path::{Path, PathBuf};

use crate::env::{Env, skip};

/// How many nodes there are: the lead's, and two that can be lost.
pub(crate) const NODES: usize = 3;

/// Returns the path of the program. Cargo builds it beside the directory of this test program.
fn path() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let directory = program.parent().and_then(Path::parent).unwrap();
    directory.join("relay")
}

/// Returns true, and prints it, if the relay was not built.
#[track_caller]
pub(crate) fn is_missing() -> bool {
    let is_missing = !path().exists();
    if is_missing {
        let path = path();
        skip(format_args!(
            "{} is missing: cargo build -p relay",
            path.display()
        ));
    }
    is_missing
}

/// Returns the program, which a normal user can execute on request.
pub(crate) fn program(env: &Env, unprivileged: bool) -> PathBuf {
    if unprivileged {
        env.reachable(&path(), ".relay")
    } else {
        path()
    }
}
