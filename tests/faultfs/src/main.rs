//! `faultfs`: a FUSE file system that passes a directory through, slowly or with faults.
//!
//! It plays two things that a plain directory cannot be: the slow file system of the benchmarks,
//! on which every call takes `--delay-ms`, and the broken one of the tests.
//!
//! ```text
//! faultfs SOURCE MOUNTPOINT [--delay-ms 0.5] [--head SEEK_MS,MIB_S] [--ttl-ms 1000]
//!         [--flush-ms MS]
//!         [--fault KIND:NAME[:ARG]]... [--no-permissions] [--keep]
//! ```
//!
//! It stays in the foreground and prints `ready` on stdout once the mount can be used. It unmounts
//! on SIGINT, on SIGTERM and at the end of its stdin: hold a pipe to it, and the mount ends with
//! the holder, however that ends. `--keep` ignores stdin. It also ends if another program
//! unmounts. The unmount is lazy and aborts pending requests (`ENOTCONN`), so it never waits.
//!
//! # Faults
//!
//! NAME is the name of an entry anywhere in the tree, and `/` is the root. A name that ends in `*`
//! is a prefix.
//!
//! | fault | effect |
//! |---|---|
//! | `eio:NAME:OFFSET` | to read the byte at OFFSET, or any after it, fails with `EIO`; the pages before it can be read |
//! | `eio-open:NAME:N` | to open the file or directory fails with `EIO`, the first N times |
//! | `hang-read:NAME` | reads are never answered |
//! | `dead-read:NAME` | the same, and only the unmount ends the wait |
//! | `hang-list:NAME` | to list the directory is never answered |
//! | `slow-read:NAME:MS` | each read request (up to 128 KiB of readahead) takes MS milliseconds longer |
//! | `shrink:NAME:SIZE` | after the first read the file is truncated to SIZE, once |
//! | `grow:NAME:BYTES` | after the first read BYTES zeros are appended, once |
//! | `log:NAME:BYTES` | the same, after the first read of each open file: the file only grows |
//! | `hide-holes:NAME` | lseek(2) reports the whole file as data, as on NFS 3 and SMB |
//! | `change-once:NAME` | after the first read the content changes in place, once: same size, new mtime |
//! | `touch:NAME` | the same, after the first read of each open file |
//! | `vanish:NAME` | the entry is listed, but its lookup fails with `ENOENT` |
//! | `eio-write:NAME:OFFSET` | a write to the byte at OFFSET, or to any after it, fails with `EIO` |
//! | `flip:NAME:OFFSET` | a write stores another bit in the byte at OFFSET; the writer's cache does not show it |
//! | `flip-once:NAME:OFFSET` | the same, for the first write of the mount to such a byte |
//! | `eio-close:NAME` | to close the file fails with `EIO`, as if late writes had failed |
//! | `lie-chmod:NAME`, `lie-chown:NAME`, `lie-utimens:NAME` | the call succeeds and changes nothing |
//! | `refuse-rename:NAME`, `no-rename:NAME` | to rename from or to NAME fails with `EPERM`, `ENOSYS` |
//! | `enospc:BYTES` | after BYTES have been written through the mount, writes fail with `ENOSPC` |
//!
//! "After the first read" means before its answer is sent: a program that has read something can
//! rely on the change. The change is made to the file in SOURCE. The kernel does not cache the
//! attributes of such files, so the next `fstat` shows the change.
//!
//! A fatal signal ends a process that waits for a `hang-*` fault, as on a hard NFS mount: its
//! request is answered with `EINTR` once the signal is pending (see [`hang`]).
//!
//! # A disk with one head
//!
//! With `--head 8,150` the reads of all files go through one head ([`head`]): one at a time, at 150
//! MiB/s, and 8 ms for a seek unless the read begins within 1 MiB of where the last one ended, in
//! the same file. Only reads of contents take this time. Writes, names and metadata do not.
//!
//! The kernel's page cache stands before the head, as before a real disk. It does not hide the
//! disk: a new mount has nothing in it, and without `FOPEN_KEEP_CACHE` the kernel forgets the
//! contents of a file whenever it is opened. So each copy of a file reads it from the disk, once.
//! The readahead is that of the kernel (128 KiB, the double for sequential readers).
//!
//! # A disk with a slow cache
//!
//! With `--flush-ms 5` a sync takes 5 ms longer, and syncs take turns, as a disk flushes its cache.
//! An image of a file system in SOURCE, mounted through a loop device, is a disk of this kind.
//!
//! # Lesser file systems
//!
//! Options make the whole mount support less than Linux expects, like the disks of other systems
//! and some servers.
//!
//! | option | effect |
//! |---|---|
//! | `--create-mask OCTAL` | these bits are removed from the modes of new entries, as by a server's umask |
//! | `--mtime-at-flush` | to close a file that was created or written sets its mtime to now |
//! | `--fold-case` | names that differ only in case are one; the first spelling is kept |
//! | `--hide-twins` | as on FAT with `iocharset=utf8`: names are found as they are, and to create one that differs only in case from another fails with `EEXIST` |
//! | `--xattr-max N` | an attribute of more than N bytes fails with `E2BIG`, more than N in all with `ENOSPC` |
//! | `--fill-holes` | holes are stored as zeros; no `SEEK_HOLE`, no `fallocate` |
//! | `--volatile-inodes` | each lookup returns another inode number |
//! | `--rename-links` | as on SMB, to rename one link of a file to another one removes the first; elsewhere that does nothing |
//! | `--no-hard-links` | to create a hard link fails with `EPERM` |
//!
//! # Fidelity
//!
//! Inode numbers, link counts, block counts, times, modes, owners, extended attributes and ACLs are
//! those of SOURCE. The kernel checks permissions (`default_permissions`) unless
//! `--no-permissions` is given, and a new entry belongs to its creator. As root the mount is open
//! to all users, with devices and setuid; otherwise it belongs to the user who mounted it.
//!
//! Not supported: `O_TMPFILE`; `ioctl`, and so reflinks and inode flags; creation times;
//! `copy_file_range` on the server (the kernel reads and writes instead); the loss of setuid and
//! setgid bits when a normal user writes to a file; default ACLs that grant more than the umask;
//! inode numbers of other file systems mounted inside SOURCE (they are invented).
//! Each directory that the kernel remembers takes one descriptor.

mod convert;
mod delay;
mod faults;
mod hang;
mod head;
mod inodes;
mod metadata;
mod open_files;
mod passthrough;
mod requests;
mod settings;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit, umask};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::faults::Faults;
use crate::passthrough::Passthrough;
use crate::settings::Settings;

/// The number of threads that serve calls. A slow call occupies none of them.
const THREADS: usize = 8;

/// Mount a slow or faulty view of a directory.
#[derive(Parser)]
struct Args {
    /// The directory to show
    source: PathBuf,
    /// Where to mount the view
    mountpoint: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// A fault, as listed in tests/faultfs/src/main.rs (repeatable)
    #[arg(long = "fault", value_name = "KIND:NAME[:ARG]")]
    faults: Vec<OsString>,
    /// Stay mounted when stdin ends
    #[arg(long)]
    keep: bool,
}

/// Why the program ends.
enum End {
    /// A signal or the end of stdin: the mount still exists.
    Requested,
    /// The mount is already gone.
    Unmounted(io::Result<()>),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let faults = Faults::parse(&args.faults)?;
    // Every thread inherits this. Otherwise a sleep would last up to 50 microseconds too long.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    raise_open_files()?;
    // The kernel has applied the caller's umask to modes. Ours must not apply as well.
    umask(Mode::empty());

    let config = config(&args.settings);
    let file_system = Passthrough::new(&args.source, args.settings, faults)
        .with_context(|| format!("cannot open {}", args.source.display()))?;
    let mountpoint = args
        .mountpoint
        .canonicalize()
        .with_context(|| format!("cannot find {}", args.mountpoint.display()))?;

    let (ends, end) = mpsc::channel();
    // Before mounting, so that no signal can leave a mount behind.
    listen_for_signals(ends.clone())?;
    let session = Session::new(file_system, &mountpoint, &config)
        .with_context(|| format!("cannot mount on {}", mountpoint.display()))?;
    let session_ends = ends.clone();
    thread::spawn(move || session_ends.send(End::Unmounted(session.run())));
    if !args.keep {
        thread::spawn(move || {
            // A stdin that cannot be read counts as ended.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            ends.send(End::Requested)
        });
    }

    // The program that started this one may not read it.
    let _ = writeln!(io::stdout(), "ready");
    match end.recv()? {
        End::Requested => {
            let unmounted = unmount(&mountpoint);
            // An unused mount ends its session now, which is the clean way.
            let _ = end.recv_timeout(Duration::from_millis(100));
            unmounted?;
        }
        End::Unmounted(result) => result?,
    }
    // To return would wait for threads. The close of /dev/fuse aborts pending requests.
    exit(0)
}

fn config(settings: &Settings) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![MountOption::FSName("faultfs".to_owned())];
    if !settings.no_permissions {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    if geteuid().is_root() {
        config.acl = SessionACL::All;
        config.mount_options.extend([MountOption::Dev, MountOption::Suid]);
    }
    config
}

/// Raises the limit of descriptors: each directory that the kernel remembers needs one.
fn raise_open_files() -> rustix::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
}

fn listen_for_signals(ends: Sender<End>) -> io::Result<()> {
    let (mut receiver, sender) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGINT, sender.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGTERM, sender)?;
    thread::spawn(move || {
        let _ = receiver.read(&mut [0]);
        ends.send(End::Requested)
    });
    Ok(())
}

/// Unmounts at once, even if the mount is in use.
///
/// A command does it, because fuser's own unmount fails while a file is open.
fn unmount(mountpoint: &Path) -> anyhow::Result<()> {
    let (program, options): (_, &[&str]) = if geteuid().is_root() {
        ("umount", &["-l", "--"])
    } else {
        ("fusermount3", &["-u", "-z", "--"])
    };
    let status = Command::new(program).args(options).arg(mountpoint).status()?;
    anyhow::ensure!(status.success(), "cannot unmount {}", mountpoint.display());
    Ok(())
}
