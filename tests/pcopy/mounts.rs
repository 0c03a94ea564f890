//! Mount namespaces for tests, so that no mount outlives its test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Mounts exFAT at `mnt` through FUSE.
pub(crate) const EXFAT: &str =
    "command -v mount.exfat-fuse >/dev/null || { echo 'needs exfat-fuse' >&2; exit 1; }
mkdir mnt; truncate -s 200M image; mkfs.exfat image >/dev/null
loop=$(losetup -f --show image); mount.exfat-fuse $loop mnt >/dev/null 2>&1; losetup -d $loop";
/// Mounts FAT at `mnt` by the kernel's driver, or by fusefat if the kernel has none.
///
/// One thread of fusefat: with several it crashes now and then.
pub(crate) const FAT: &str = "mkdir mnt; truncate -s 200M image; mkfs.vfat image >/dev/null
mount -t vfat -o loop image mnt 2>/dev/null || fusefat -s -o rw+ image mnt >&2 2>/dev/null
mountpoint -q mnt || { echo 'neither the kernel nor fusefat mounts FAT here' >&2; exit 1; }";

/// A mount namespace. A process that waits inside keeps it alive.
pub(crate) struct Namespace {
    keeper: Child,
    stdin: Option<ChildStdin>,
}

impl Namespace {
    /// Creates a namespace and runs a script for `sh -e` in it, which makes the mounts.
    pub(crate) fn new(dir: &Path, script: &str) -> Result<Namespace, String> {
        let mut keeper = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{script}\necho ready\nexec cat"))
            .current_dir(dir)
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

    pub(crate) fn pid(&self) -> u32 {
        self.keeper.id()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The keeper ends with its stdin.
        self.stdin = None;
        let _ = self.keeper.wait();
    }
}
