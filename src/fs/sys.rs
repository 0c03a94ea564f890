//! System calls that no library offers safely. The only unsafe code of pcopy.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Allocates zeroed words that this process shares with every process it forks from now on.
///
/// They start at a page boundary and are never freed: they live as long as the run. Pages that
/// are never touched cost no memory.
pub(crate) fn shared_words(count: usize) -> io::Result<&'static [AtomicU64]> {
    let start = shared_memory(count)?;
    // SAFETY: the mapping has `count` words, page-aligned, zeroed and never unmapped. Any bit
    // pattern is a valid `AtomicU64`, and every process accesses the words as such.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), count) })
}

/// Allocates a word to wait on with futex(2), shared as those of [`shared_words`] are.
pub(crate) fn shared_futex() -> io::Result<&'static AtomicU32> {
    let start = shared_memory(1)?;
    // SAFETY: the mapping is page-aligned, zeroed and never unmapped. Any bit pattern is a valid
    // `AtomicU32`, and every process accesses the word as such.
    Ok(unsafe { &*start.cast::<AtomicU32>() })
}

/// A date and time of day as local clocks show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalTime {
    pub(crate) year: i32,
    /// From 1 to 12.
    pub(crate) month: i32,
    pub(crate) day: i32,
    pub(crate) hour: i32,
    pub(crate) minute: i32,
    pub(crate) second: i32,
}

/// Returns the second since 1970 of a local time. `None` if there is no such day or time.
pub(crate) fn second_of(time: &LocalTime) -> Option<i64> {
    if time.hour > 23 || time.minute > 59 || time.second > 59 {
        return None;
    }
    // SAFETY: all fields are numbers or pointers, which may be zero and null.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    parts.tm_year = time.year - 1900;
    parts.tm_mon = time.month - 1;
    parts.tm_mday = time.day;
    parts.tm_hour = time.hour;
    parts.tm_min = time.minute;
    parts.tm_sec = time.second;
    // The time zone decides whether it is summer time.
    parts.tm_isdst = -1;
    // SAFETY: `parts` is a valid `tm`. The environment, which may name the time zone, is never
    // changed by pcopy.
    let second = unsafe { libc::mktime(&raw mut parts) };
    // A day that does not exist becomes another one.
    let is_same_day = (parts.tm_year, parts.tm_mon, parts.tm_mday)
        == (time.year - 1900, time.month - 1, time.day);
    // The type differs between architectures.
    #[allow(clippy::useless_conversion)]
    is_same_day.then(|| i64::from(second))
}

/// Maps zeroed memory for so many words of 64 bits. It is never unmapped.
fn shared_memory(count: usize) -> io::Result<*mut libc::c_void> {
    let length = count
        .checked_mul(size_of::<AtomicU64>())
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
    Ok(start)
}

/// The side of a fork that the code is running on.
pub(crate) enum Fork {
    /// The process that forked, with the child's process ID.
    Parent(Pid),
    Child,
}

/// Panics in debug builds if this process has more than one thread.
///
/// Only a process with one thread may fork and go on running Rust code. A lock that another thread
/// held would stay locked in the child forever.
fn assert_single_threaded() {
    if cfg!(debug_assertions) {
        // If the threads cannot be listed, assume one.
        let tasks =
            std::fs::read_dir("/proc/self/task").and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let threads = tasks.map_or(1, |tasks| tasks.len());
        assert_eq!(threads, 1, "fork with more than one thread");
    }
}

/// Forks this process. The caller must be its only thread.
pub(crate) fn fork() -> io::Result<Fork> {
    assert_single_threaded();
    // SAFETY: with one thread, no other thread can hold a lock, so the child may run any code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Forks a sibling: a process whose parent is the caller's parent (CLONE_PARENT in clone(2)).
///
/// The caller's parent reaps the new process, and the new process can ask to die with that parent.
/// So a worker may outlive the fork server, but never the run. The caller must be the only thread
/// of its process.
pub(crate) fn fork_sibling() -> io::Result<Fork> {
    assert_single_threaded();
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2), except for the child's
    // parent. The child goes on with a copy of this stack. With one thread, glibc's own state needs
    // no care: its malloc locks are free, and it caches no process ID.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, without running destructors or exit handlers.
///
/// A forked process must leave those to the process it was forked from.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// Gives the calling thread its own descriptor table and current directory.
///
/// Threads that share a table take its lock at every open and close, and count a reference at
/// every other call. A table with one user needs neither. A container may forbid this (EPERM or
/// ENOSYS).
pub(crate) fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: the calling worker thread has received no descriptors except those of the targets.
    // These live until the process ends, and the copied table has them under the same numbers. No
    // descriptor crosses between threads afterwards: jobs and reports carry none.
    unsafe { unshare_unsafe(UnshareFlags::FILES | UnshareFlags::FS) }?;
    Ok(())
}

/// Gives the calling thread its own copy of the process's credentials.
///
/// Every open file holds a reference to its opener's credentials. Threads that share them pass
/// the cache line of that counter back and forth with each open and close. With copies a kernel
/// tree takes 0.9 times as long (2 cores).
pub(crate) fn own_credentials() {
    // This changes nothing, since the flag is off already. But setting it makes the kernel install
    // a new copy (cap_task_prctl, commit_creds), and no call does only that.
    let _ = rustix::thread::set_keep_capabilities(false);
}

/// Closes a descriptor and returns the error that dropping it would ignore.
///
/// A network file system may report only here that data did not arrive (EIO, ENOSPC, EDQUOT).
pub(crate) fn close(fd: OwnedFd) -> rustix::io::Result<()> {
    // SAFETY: the descriptor is owned, and ownership ends here.
    match unsafe { rustix::io::try_close(fd.into_raw_fd()) } {
        // Linux has closed the descriptor by then.
        Err(rustix::io::Errno::INTR) => Ok(()),
        result => result,
    }
}

/// Closes a descriptor that a forked process has inherited and never uses: a process that cannot be
/// killed must not hold a pipe open.
pub(crate) fn close_inherited(fd: BorrowedFd<'_>) {
    // SAFETY: only a forked process calls this. The owner's destructor runs in the parent alone,
    // and nothing uses the number here, so it is closed once.
    unsafe { rustix::io::close(fd.as_raw_fd()) };
}

/// Takes a shared lock of a byte of a file. Returns true if another open file has it too.
///
/// The lock belongs to the open file, and so to all processes that have inherited that (fcntl(2),
/// "Open file description locks"). The byte need not exist.
pub(crate) fn share_lock(file: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let call = |command, kind| {
        // SAFETY: all fields are numbers, which may be zero.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        lock.l_start = byte as libc::off_t & libc::off_t::MAX;
        lock.l_len = 1;
        // SAFETY: the descriptor is open, and `lock` outlives the call.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(lock.l_type),
        }
    };
    let unlocked = libc::F_UNLCK as libc::c_short;
    let found = call(libc::F_OFD_GETLK, libc::F_WRLCK as libc::c_short)?;
    call(libc::F_OFD_SETLK, libc::F_RDLCK as libc::c_short)?;
    Ok(found != unlocked)
}

/// Duplicates the descriptor of this number, which the command line names.
pub(crate) fn duplicate(number: i32) -> rustix::io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF);
    }
    // SAFETY: the borrow lasts for this call, and no other thread closes a descriptor meanwhile. If
    // the number is not open, the call fails (EBADF).
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
}

/// Takes over an open descriptor that this process has inherited, and closes it at the next exec.
/// `None` if the number is not open, or stands for a standard stream.
pub(crate) fn adopt_descriptor(number: i32) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: the call takes any number. It fails if the number is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return None;
    }
    // SAFETY: the descriptor is open. Who started this process has handed it over, so that nothing
    // else in it owns the number.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets the supplementary groups of this process, which must have one thread. Returns false if that
/// is not allowed.
pub(crate) fn set_groups(groups: &[u32]) -> bool {
    // SAFETY: the pointer and the length are those of the slice, which the call only reads.
    unsafe { libc::setgroups(groups.len(), groups.as_ptr()) == 0 }
}

/// Whether stdout was closed when the program was started.
static WAS_STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Returns true if stdout was closed when the program was started. Before `main`, the standard
/// library opens /dev/null in its place. Output would be lost silently there.
pub(crate) fn is_stdout_closed_at_start() -> bool {
    // Uses the array, so that the linker keeps it.
    std::hint::black_box(&AT_START);
    WAS_STDOUT_CLOSED.load(Relaxed)
}

// SAFETY: the C library calls the function once, before `main` and the start of the standard
// library. It only makes a system call and stores a flag.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = {
    extern "C" fn look_at_stdout() {
        // SAFETY: fcntl(2) with F_GETFD takes any number and changes nothing.
        let is_closed = unsafe { libc::fcntl(1, libc::F_GETFD) } == -1;
        WAS_STDOUT_CLOSED.store(is_closed, Relaxed);
    }
    look_at_stdout
};

/// listxattrat(2), since Linux 6.13. New system calls have one number on all architectures but a
/// few, which are left out.
const LISTXATTRAT: Option<libc::c_long> = if cfg!(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "powerpc64",
    target_arch = "s390x",
    target_arch = "loongarch64"
)) && cfg!(target_pointer_width = "64")
{
    Some(465)
} else {
    None
};

/// Lists the attributes of an entry in a directory, without opening it and without /proc.
///
/// # Errors
/// ENOSYS if the kernel is older; EPERM if a container's filter does not know the call.
pub(crate) fn listxattrat(
    dir: BorrowedFd<'_>,
    name: &CStr,
    follow: bool,
    buffer: &mut [u8],
) -> rustix::io::Result<usize> {
    let Some(number) = LISTXATTRAT else {
        return Err(rustix::io::Errno::NOSYS);
    };
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: the name ends in NUL, and the kernel writes at most the buffer's length to it.
    let length = unsafe {
        libc::syscall(
            number,
            dir.as_raw_fd(),
            name.as_ptr(),
            flags,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(length).map_err(|_| {
        let errno = io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default();
        rustix::io::Errno::from_raw_os_error(errno)
    })
}

/// Reads a clock of clock_gettime(2). rustix would look for the vDSO at its first use, which takes
/// a system call and must not happen in a signal handler.
fn read_clock(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to the structure and to nothing else. If it fails, it stays as it is.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

/// Returns the seconds since the machine was started, including those in which it slept.
pub(crate) fn seconds_since_boot() -> u64 {
    read_clock(libc::CLOCK_BOOTTIME).tv_sec as u64
}

/// Returns true if this process ignores a signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to `action`. If it fails,
    // that stays zeroed, which is a valid value.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Milliseconds within which a second signal counts as the first one: timeout(1) sends its signal
/// to the process and then to the process group.
const SAME_SIGNAL: u64 = 100;

/// Stores the first stop signal in `caught`, and ends the process at once on the next one.
pub(crate) fn stop_on(signal: i32, caught: Arc<AtomicUsize>) -> io::Result<()> {
    /// Time of the first signal in milliseconds; shared by all signals.
    static FIRST: AtomicU64 = AtomicU64::new(0);
    let action = move || {
        let time = read_clock(libc::CLOCK_MONOTONIC);
        let now = time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000;
        match FIRST.compare_exchange(0, now, Relaxed, Relaxed) {
            Ok(_) => caught.store(signal as usize, Relaxed),
            Err(first) if now - first > SAME_SIGNAL => exit_now(128 + signal),
            Err(_) => {}
        }
    };
    // SAFETY: the action uses only what signal-safety(7) allows: atomic memory, clock_gettime(2)
    // and _exit(2).
    unsafe { signal_hook::low_level::register(signal, action) }.map(drop)
}

/// Shows `title` in ps(1) as this process's command line, cut to the size of the original one.
///
/// It overwrites the program's arguments, so only forked processes may call it: they do not read
/// the arguments any more.
pub(crate) fn set_command_line(title: &str) {
    /// A forked process has them at the same place, so only the first one looks.
    static ARGUMENTS: OnceLock<Option<(usize, usize)>> = OnceLock::new();
    let Some((start, size)) = *ARGUMENTS.get_or_init(find_arguments) else {
        return;
    };
    let start: *mut u8 = ptr::with_exposed_provenance_mut(start);
    let Ok(title) = CString::new(title) else {
        return;
    };
    let bytes = title.as_bytes();
    let length = bytes.len().min(size.saturating_sub(1));
    // SAFETY: `find_arguments` returns a part of this process's own writable stack, above `main`,
    // where the kernel put the argument strings. This process has one thread and does not read
    // them again. `length` is less than `size`.
    unsafe {
        ptr::write_bytes(start, 0, size);
        ptr::copy_nonoverlapping(bytes.as_ptr(), start, length);
    }
}

/// Returns the address and size of the argument strings of this process.
fn find_arguments() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 48 and 49 of proc_pid_stat(5) are the start and end. Field 2 is the name in
    // parentheses and may contain spaces, so count from field 3, after the last `)`.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ').skip(48 - 3);
    let start: usize = fields.next()?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    let size = end.checked_sub(start).filter(|_| start != 0)?;
    Some((start, size))
}

/// Returns the processor time of a thread of this process, or of another process with one thread.
pub(crate) fn cpu_time(thread: Pid) -> Option<Duration> {
    let read = |clock: libc::clockid_t| {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: clock_gettime(2) takes any clock and writes to `time`, which outlives the call.
        let result = unsafe { libc::clock_gettime(clock, &mut time) };
        (result == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    };
    // What pthread_getcpuclockid(3) and clock_getcpuclockid(3) make of a number: the exact time
    // (2, CPUCLOCK_SCHED) of the thread (4, CPUCLOCK_PERTHREAD_MASK) or process.
    let clock = !thread.as_raw_nonzero().get() << 3;
    read(clock | 4 | 2).or_else(|| read(clock | 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_words_are_zeroed_writable_and_page_aligned() {
        let words = shared_words(1000).unwrap();
        assert_eq!(words.len(), 1000);
        assert_eq!(words.as_ptr().addr() % 4096, 0);
        assert!(words.iter().all(|word| word.load(Relaxed) == 0));
        words[999].store(7, Relaxed);
        assert_eq!(words[999].load(Relaxed), 7);
    }

    #[test]
    fn an_ignored_signal_is_recognised() {
        // The standard library ignores SIGPIPE before `main`, and nothing handles SIGWINCH.
        assert!(is_ignored(libc::SIGPIPE));
        assert!(!is_ignored(libc::SIGWINCH));
    }

    #[test]
    fn threads_and_other_processes_have_processor_time() {
        let own = cpu_time(rustix::thread::gettid()).unwrap();
        assert!(own > Duration::ZERO);
        let parent = rustix::process::getppid().unwrap();
        assert!(cpu_time(parent).is_some());
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for count in [0, usize::MAX, usize::MAX / 16] {
            assert!(shared_words(count).is_err());
        }
    }
}
