//! The only unsafe code of pcopy: what the system offers and no library offers safely.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use rustix::time::{ClockId, clock_gettime};

/// Types for which memory full of zero bytes, shared between processes, is a valid value.
///
/// # Safety
/// Every bit pattern must be valid, and all access must be atomic.
pub(crate) unsafe trait Shareable: Sync {}

// SAFETY: they consist of `AtomicU64` alone, which holds any bit pattern.
unsafe impl Shareable for crate::scoreboard::WorkerSlot {}
// SAFETY: as above.
unsafe impl Shareable for crate::scoreboard::Common {}

/// Zeroed memory that this process shares with every process it forks from now on.
/// It is never given back: it lives as long as the run.
///
/// # Errors
/// What mmap(2) says, ENOMEM above all.
pub(crate) fn shared_memory<T: Shareable>(count: usize) -> io::Result<&'static [T]> {
    let length = count
        .checked_mul(size_of::<T>())
        .filter(|&bytes| bytes > 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new anonymous mapping overlaps nothing that exists.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is `length` bytes long, page-aligned, zeroed, never unmapped, and
    // `Shareable` says that zeroes are valid and that access from other processes is atomic.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<T>(), count) })
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The process that called; the child's number.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Panics in debug builds when this process has more than one thread: only a process with one
/// thread may fork and go on running Rust code, for a lock that another thread holds would stay
/// locked in the child for ever.
fn assert_single_threaded() {
    if cfg!(debug_assertions) {
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        assert_eq!(threads, 1, "fork with more than one thread");
    }
}

/// fork(2). The caller has one thread.
///
/// # Errors
/// EAGAIN or ENOMEM where the system allows no further process.
pub(crate) fn fork() -> io::Result<Fork> {
    assert_single_threaded();
    // SAFETY: with one thread there is no lock that another thread could hold; the child may
    // run any code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// fork(2), but the child becomes a sibling of the caller: its parent is the caller's parent,
/// which is told of its death and whose death the child is told of (clone(2), CLONE_PARENT).
/// So workers outlive the fork_server and never the run. The caller has one thread.
///
/// # Errors
/// As for [`fork`].
pub(crate) fn fork_sibling() -> io::Result<Fork> {
    assert_single_threaded();
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2) but for the child's
    // parent: the child goes on with a copy of this stack. glibc's own state needs no care
    // with one thread; its malloc locks are free, and it keeps no cached process number.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, without destructors or exit handlers: those belong to the
/// process that was forked.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// Gives the calling thread a table of descriptors and a current folder of its own. Threads that
/// share one table take its lock at every open and close, and count references at every call; a
/// table with one user needs neither.
///
/// # Errors
/// EPERM or ENOSYS where a container forbids it.
pub(crate) fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: the worker thread that calls this has received no descriptor but the roots,
    // which live until the process ends and stay open under the same numbers in the copied
    // table; no descriptor crosses between threads afterwards (jobs and reports carry none).
    unsafe { unshare_unsafe(UnshareFlags::FILES | UnshareFlags::FS) }?;
    Ok(())
}

/// Gives the calling thread a copy of the process's credentials for itself. Every open file
/// counts a reference to its opener's credentials; threads that open and close files side by
/// side otherwise pass that counter's cache line to and fro (kernel tree on 2 cores: 0.9 times
/// the time with copies).
pub(crate) fn own_credentials() {
    // Nothing is changed: the flag is off already. But setting it makes the kernel put a new
    // copy in place (cap_task_prctl, commit_creds), and no call does only that.
    let _ = rustix::thread::set_keep_capabilities(false);
}

/// close(2) that tells its error: a network file system may report only here that data did not
/// arrive.
///
/// # Errors
/// EIO, ENOSPC, EDQUOT. EINTR is none: Linux has closed the descriptor by then.
pub(crate) fn close(fd: OwnedFd) -> rustix::io::Result<()> {
    // SAFETY: the descriptor is owned, and given up here.
    match unsafe { rustix::io::try_close(fd.into_raw_fd()) } {
        Err(rustix::io::Errno::INTR) => Ok(()),
        result => result,
    }
}

/// A signal within so many milliseconds of the first one is the same: timeout(1) sends it to the
/// process and to its group.
const SAME_SIGNAL: u64 = 100;

/// InitialMeta a signal noted in `caught` the first time, and end the process at once the next time.
///
/// # Errors
/// What sigaction(2) says.
pub(crate) fn stop_on(signal: i32, caught: Arc<AtomicUsize>) -> io::Result<()> {
    static FIRST: AtomicU64 = AtomicU64::new(0);
    let action = move || {
        let time = clock_gettime(ClockId::Monotonic);
        let now = time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000;
        match FIRST.compare_exchange(0, now, Relaxed, Relaxed) {
            Ok(_) => caught.store(signal as usize, Relaxed),
            Err(first) if now - first > SAME_SIGNAL => exit_now(128 + signal),
            Err(_) => {}
        }
    };
    // SAFETY: the action does nothing but what signal-safety(7) allows: atomic memory,
    // clock_gettime(2), _exit(2).
    unsafe { signal_hook::low_level::register(signal, action) }.map(drop)
}

/// Shows `title` as this process's command line in ps(1), as far as the room of the original
/// arguments allows. Only for forked processes, which do not need them any more.
pub(crate) fn set_command_line(title: &str) {
    let Some((start, room)) = arguments_area() else {
        return;
    };
    let Ok(title) = CString::new(title) else {
        return;
    };
    let bytes = title.as_bytes();
    let length = bytes.len().min(room.saturating_sub(1));
    // SAFETY: `arguments_area` is this process's own writable stack above `main`, where the
    // kernel put the argument strings; this process is single-threaded and does not read them
    // again. `length` stays within it.
    unsafe {
        ptr::write_bytes(start, 0, room);
        ptr::copy_nonoverlapping(bytes.as_ptr(), start, length);
    }
}

/// Where the kernel put this process's argument strings: fields 48 and 49 of proc_pid_stat(5).
fn arguments_area() -> Option<(*mut u8, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Field 2 is the name in parentheses and may hold spaces; field 3 follows the last `)`.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ').skip(48 - 3);
    let start: usize = fields.next()?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    let room = end.checked_sub(start).filter(|_| start != 0)?;
    Some((ptr::with_exposed_provenance_mut(start), room))
}
