//! `faultfs`: a FUSE file system that passes everything through to a folder, slowly or with faults.
//!
//! It stands for two things that a plain folder cannot be: the slow file system of the benchmarks
//! (every call takes `--delay-ms`, many calls at a time) and the broken one of the tests.
//!
//! ```text
//! faultfs SOURCE MOUNTPOINT [--delay-ms 0.5] [--ttl-ms 1000] [--fault KIND:NAME[:ARG]]...
//!         [--no-permissions] [--keep]
//! ```
//!
//! It stays in the foreground, prints `ready` on stdout once the mount can be used, and unmounts on
//! SIGINT, on SIGTERM and when its stdin reaches end-of-file: hold a pipe to it and the mount goes
//! when the holder does, however that ends. `--keep` leaves stdin alone. It also ends when somebody
//! else unmounts. The unmount is lazy and requests still pending are aborted (`ENOTCONN`), so
//! ending never waits for anyone.
//!
//! # Faults
//!
//! NAME is the name of an entry, wherever in the tree (`/` for the root itself); a `*` at its end
//! stands for any rest.
//!
//! | fault | what happens |
//! |---|---|
//! | `eio:NAME:OFFSET` | reading the byte at OFFSET or any after it fails with `EIO` (pages before it can be read) |
//! | `hang-read:NAME` | reads are never answered |
//! | `dead-read:NAME` | the same, and nothing but the unmount ends the wait |
//! | `hang-list:NAME` | listing the folder is never answered |
//! | `slow-read:NAME:MS` | each read request (up to 128 KiB of readahead) takes MS milliseconds more |
//! | `shrink:NAME:SIZE` | after the first read the file is truncated to SIZE, once |
//! | `grow:NAME:BYTES` | after the first read BYTES zeros are appended, once |
//! | `log:NAME:BYTES` | the same after the first read of every open: the file only grows |
//! | `hide-holes:NAME` | lseek(2) takes the whole file for data, as on NFS 3 and SMB |
//! | `change-once:NAME` | after the first read the content changes in place, once: same size, new mtime |
//! | `touch:NAME` | the same after the first read of every open |
//! | `vanish:NAME` | the entry is listed, but looking it up says `ENOENT` |
//! | `eio-write:NAME:OFFSET` | a write that reaches the byte at OFFSET or any after it fails with `EIO` |
//! | `eio-close:NAME` | closing the file fails with `EIO`, as if late writes had failed |
//! | `lie-chmod:NAME`, `lie-chown:NAME`, `lie-utimens:NAME` | the call succeeds and changes nothing |
//! | `refuse-rename:NAME`, `no-rename:NAME` | renaming from or to NAME fails with `EPERM`, `ENOSYS` |
//! | `enospc:BYTES` | once BYTES have been written through the mount, writes fail with `ENOSPC` |
//!
//! "After the first read" means: before its answer is sent, so that whoever has read anything can
//! rely on the change having happened. The change is made to the file in SOURCE. Attributes of
//! files with a changing fault are not cached, so a reader sees the change at its next `fstat`.
//!
//! A reader stuck in a `hang-*` fault can be ended with a fatal signal, as on a hard NFS mount: its
//! request is answered with `EINTR` once the signal is pending (see [`hung`]).
//!
//! # Lesser file systems
//!
//! Options make the whole mount less than Linux expects, as servers and other systems' disks are.
//!
//! | option | what happens |
//! |---|---|
//! | `--create-mask OCTAL` | these bits are cut from the modes of new entries, as by a server's umask |
//! | `--mtime-at-flush` | closing a file that was created or written sets its mtime to now |
//! | `--fold-case` | names that differ in case only are one; its first spelling is kept |
//! | `--xattr-max N` | an attribute of more than N bytes fails with `E2BIG`, more than N in all with `ENOSPC` |
//! | `--fill-holes` | holes take space like zeros; no `SEEK_HOLE`, no `fallocate` |
//! | `--volatile-inodes` | each lookup finds another inode number |
//! | `--no-hard-links` | linking fails with `EPERM` |
//!
//! # Faithfulness
//!
//! Inode numbers, link counts, block counts, times, modes, owners, extended attributes and ACLs are
//! those of SOURCE. Permissions are checked by the kernel (`default_permissions`, unless
//! `--no-permissions`), and what a caller creates belongs to the caller. As root the mount is open
//! to all users, with devices and setuid; otherwise it belongs to the user who mounted it.
//!
//! Not supported: `O_TMPFILE`; `ioctl` (so no reflinks and no inode flags); creation times;
//! `copy_file_range` on the server (the kernel reads and writes instead); taking setuid and setgid
//! bits from a file that a user without privileges writes to; default ACLs that grant more than
//! the umask; inode numbers of other file systems mounted inside SOURCE (they are made up).
//! Each folder that the kernel remembers takes one descriptor.

mod convert;
mod delay;
mod faults;
mod hung;
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

/// How many threads serve calls. A slow call occupies none of them.
const THREADS: usize = 8;

/// A slow or faulty view of a folder, mounted elsewhere.
#[derive(Parser)]
struct Args {
    /// The folder to show.
    source: PathBuf,
    /// Where to show it.
    mountpoint: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// A fault, see the top of tests/faultfs/src/main.rs; can be given several times.
    #[arg(long = "fault", value_name = "KIND:NAME[:ARG]")]
    faults: Vec<OsString>,
    /// Stay mounted when stdin ends.
    #[arg(long)]
    keep: bool,
}

/// Why the program ends.
enum End {
    /// By a signal or the end of stdin: the mount is still there.
    Asked,
    /// The mount is gone already.
    Unmounted(io::Result<()>),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let faults = Faults::parse(&args.faults)?;
    // Every thread inherits this; a sleep would otherwise last 50 microseconds longer than asked.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    raise_open_files()?;
    // Modes arrive with the caller's umask applied; ours must play no part.
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
            // An unreadable stdin counts as ended.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            ends.send(End::Asked)
        });
    }

    // Whoever started us may not care to read this.
    let _ = writeln!(io::stdout(), "ready");
    match end.recv()? {
        End::Asked => {
            let unmounted = unmount(&mountpoint);
            // If nobody uses the mount any more the session ends now, and in good order.
            let _ = end.recv_timeout(Duration::from_millis(100));
            unmounted?;
        }
        End::Unmounted(result) => result?,
    }
    // Not by return: that would wait for threads. Closing /dev/fuse aborts what is still pending.
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

/// One descriptor is needed for each folder that the kernel remembers.
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
        ends.send(End::Asked)
    });
    Ok(())
}

/// Takes the mount away from the tree at once, even while it is in use.
///
/// By command, since only fuser knows the mount and its own unmount is refused while a file is open.
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
