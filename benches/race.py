#!/usr/bin/env python3
"""Race pcopy against other copiers, one row of work at a time.

    benches/race.py tree            one row
    benches/race.py tree again      several rows
    benches/race.py all             every row
    benches/race.py list            print the rows and their goals
    benches/race.py clean           remove the data directory

The rows:

tree        a kernel source tree (about 80,000 files, 1.2 GiB), tmpfs to tmpfs
tree-ext4   the same tree, copied within one file system on a loop device in
tree-xfs    RAM; XFS and btrfs can share extents between source and copy;
tree-btrfs  needs root
tree-bare, tree-ext4-bare, tree-xfs-bare, tree-btrfs-bare
            the same, but pcopy keeps as little as cpz does: contents, and
            modes with the umask applied
flat        40,000 files of 8 KiB in one directory, tmpfs
big         one file of 2 GiB, tmpfs
big-ext4    the same on ext4
again       a second run over a finished copy of the tree: nothing to do
slow        2,000 files in 100 directories; source and destination are on a
            FUSE pass-through (tests/faultfs) that delays every call by 0.5 ms;
            no -j; mounted anew for each run, so nothing is cached
slow-busy   the same with 5 ms, beside four busy loops
hdd         60 files of 8 MiB from a disk with one head to tmpfs: 8 ms a seek,
            150 MiB/s, one read at a time (faultfs --head), nothing cached
hdd-small   5,000 files of 20 KiB in 50 directories, from the same disk
tiny        a directory of ten small files: the cost of starting
one-far     one file of 20 MiB on a FUSE pass-through that delays each read by
            40 ms; the destination is on tmpfs
one-near    one file of 2 GiB, 5 ms for each read
cold        the tree on ext4 on a real disk, nothing cached, to tmpfs; needs root
disk        the same, to the same disk, until `sync -f` has ended
fsync       the files of `slow` from tmpfs to ext4 on a real disk: pcopy --fsync,
            and the others until `sync -f` has ended; needs root
fsync-flush the same on ext4 on a disk in RAM whose cache takes 5 ms to flush; needs root
verify      60 files of 8 MiB from tmpfs to ext4 on a real disk, read back from there and
            compared, until `sync -f` has ended; needs root
checksum    compare a finished copy of the tree by contents; `b3sum` reads both sides
            with one process for each core
half        the tree without half of its files (--exclude)
sparse      a file of 8 GiB with 64 MiB of data in 64 places, tmpfs
memory      peak private memory of a copier and all its children on the tree,
            sampled from /proc/*/smaps_rollup
syscalls    system calls on files and sockets for one small file: strace's
            count for 2,000 files minus its count for 1,000
mpi         the tree by 2 and 4 ranks on this machine: mpirun pcopy --mode mpi,
            and dcp; needs mpirun, and a pcopy built with --features mpi.
            `pcopy-mpi alone` is 2 ranks, without the time in which mpirun runs an MPI
            program that does nothing (mpi_start.c)
mpi-slow    5,700 files in 300 directories on the device of `slow`, with six workers in
            all: by 2 ranks of pcopy, in one process mode, and by 6 ranks of dcp;
            and with as many workers as pcopy finds right, against 2 ranks of dcp
mpi-jobs    111,111 empty directories by 2 ranks: processor time for each job
            of the lead, and of the relay for each job that it passes on
progress    the tree with the progress bar drawn on a terminal, and without

`floor` (floor.c, built if cc is installed) runs beside the copiers. It does the
least work that copies a tree of plain files and keeps their modes and times. No
copier that keeps everything can be much faster. The goals do not count it.

How it is measured. In each round every program runs once, in a new random
order, so that a change in the machine's speed affects all programs alike. The
first round is not counted. It warms the caches and checks that each copy has as
many entries and bytes as its source. A program that fails, hangs or copies too
little drops out of the row, and the reason is printed. The time runs from
posix_spawn to wait4. Removing the last destination, `sync` (if the file system
is on a disk) and mounting are not timed. Ratios are ratios of medians. pcopy
runs with its default options.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import platform
import pty
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.dont_write_bytecode = True  # No __pycache__ in the project.
from arena import DEVICES, GIB, MIB, WIDE_JOBS, Arena, Skip, arena, free_gib, measure_tree, unmount  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent
# The longest that a single run may take, in seconds.
RUN_LIMIT = 600
BARE = ["--no-preserve=all"]  # The umask applies to modes, as it does in cpz.


class Failure(Exception):
    """A program failed to copy; the text says why."""


# ---------------------------------------------------------------- programs


@dataclasses.dataclass(frozen=True)
class Program:
    """A program in a race. command() replaces {src}, {dst} and {parent} (of dst) in argv."""

    name: str
    argv: list[str]
    on_terminal: bool = False
    launcher: tuple[str, ...] = ()
    beyond_launcher: bool = False

    def command(self, src: Path, dst: Path) -> list[str]:
        paths = {"src": src, "dst": dst, "parent": dst.parent}
        return [*self.launcher, *(word.format(**paths) for word in self.argv)]

    @property
    def is_pcopy(self) -> bool:
        return self.name.startswith("pcopy")

    def with_path(self, path: Path) -> Program:
        return dataclasses.replace(self, argv=[str(path), *self.argv[1:]])

    def renamed(self, old: str, new: str) -> Program:
        return dataclasses.replace(self, name=self.name.replace(old, new, 1))

    def is_selected(self, only: set[str]) -> bool:
        """Whether --only names this program, in full (`cp-a`) or by how it begins (`cp`)."""
        key = re.sub("[ -]+", "-", self.name)
        return not only or any(key == word or key.startswith(word + "-") for word in only)


def peer(name: str, command: str = "") -> Program:
    return Program(name, (command or name + " {src} {dst}").split())


# cpx always copies into its destination directory, so its destination is the parent.
COPIERS = [
    peer("cpz"),
    peer("fcp"),
    peer("xcp -r"),
    peer("cpx -a", "cpx -a {src} {parent}"),
    peer("cp -a"),
    peer("cp -r"),
    peer("rcp"),
    peer("rcp --preserve"),
    peer("rsync -a", "rsync -a {src}/ {dst}/"),
    peer("rclone copy", "rclone copy --links {src} {dst}"),
]
# Programs that skip files which are already copied.
UPDATERS = [
    peer("cp -auT"),
    peer("cpx --resume", "cpx -a --resume {src} {parent}"),
    peer("rcp --overwrite", "rcp --overwrite --preserve {src} {dst}"),
    peer("rsync -a", "rsync -a {src}/ {dst}/"),
    peer("rclone copy", "rclone copy --links {src} {dst}"),
]


def launched(name: str, ranks: int, command: str, beyond_launcher: bool = False) -> Program:
    mpirun = f"mpirun --allow-run-as-root --oversubscribe --bind-to none -n {ranks}"
    return Program(name, command.split(), launcher=tuple(mpirun.split()), beyond_launcher=beyond_launcher)


MPI = [
    *(launched(f"pcopy-mpi -n{n}", n, "pcopy --mode=mpi {src} {dst}") for n in (2, 4)),
    launched("pcopy-mpi alone", 2, "pcopy --mode=mpi {src} {dst}", beyond_launcher=True),
    *(launched(f"dcp -n{n}", n, "dcp -p {src} {dst}") for n in (2, 4)),
]
# As many workers in all, and as many as each of them chooses.
MPI_SLOW = [
    launched("pcopy-mpi -n2 -j3", 2, "pcopy --mode=mpi -j3 {src} {dst}"),
    *(launched(f"dcp -n{n}", n, "dcp -p {src} {dst}") for n in (2, 6)),
    MPI[0],
]
# The part that is measured is the last word of the name.
MPI_JOBS = [launched(f"pcopy-mpi {part}", 2, "pcopy --mode=mpi {src} {dst}") for part in ("lead", "relay")]
MPI_START = "mpi_start"
FLOOR = Program("floor", ["floor", "{src}", "{dst}"])


def pcopy_programs(flags: list[str], suffix: str = "", on_terminal: bool = False) -> list[Program]:
    return [
        Program(f"pcopy-{mode}{suffix}", ["pcopy", f"--mode={mode}", *flags, "{src}", "{dst}"], on_terminal)
        for mode in ("thread", "process")
    ]


def version(path: Path) -> str:
    """Returns the first line that the program prints about its version."""
    flag = "version" if path.name == "rclone" else "--version"
    output = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    line = (output.stdout + output.stderr).strip().split("\n")[0]
    return line if path.name in line else f"{path.name} {line}"


# ------------------------------------------------------------------ running


def wait(pid: int, name: str, observe: Callable[[int], None] | None) -> int:
    """Waits for a child that leads a process group, and kills the group on any error.

    `observe` is called with the child's pid while it runs.
    """

    def time_out(_signal: int, _frame: object) -> None:
        raise Failure(f"{name}: still running after {RUN_LIMIT} s")

    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(RUN_LIMIT)
    try:
        if observe:
            observe(pid)
        return os.waitstatus_to_exitcode(os.wait4(pid, 0)[1])
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        os.wait4(pid, 0)
        raise
    finally:
        signal.alarm(0)


def run(argv: list[str], stderr: Path, observe: Callable[[int], None] | None = None) -> float:
    """Runs a command with its stderr in a file or on a terminal. Returns the seconds it took."""
    path = shutil.which(argv[0]) or argv[0]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(stderr), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY, 0o600),
    ]
    start = time.perf_counter()
    pid = os.posix_spawn(path, argv, os.environ, file_actions=actions, setpgroup=0)
    code = wait(pid, argv[0], observe)
    seconds = time.perf_counter() - start
    if code != 0:
        messages = stderr.read_text(errors="replace").split("\n") if stderr.is_file() else []
        raise Failure(f"exit status {code}: {' | '.join(filter(None, messages))[:200]}")
    return seconds


@contextlib.contextmanager
def terminal() -> Iterator[Path]:
    """Opens a pseudo-terminal, discards everything written to it, and yields its path."""
    ours, theirs = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(ours, 65536):
                pass

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        yield Path(os.ttyname(theirs))
    finally:
        os.close(theirs)  # The reader sees the end of the terminal.
        reader.join(5)
        os.close(ours)


# ---------------------------------------------------------------- measuring


def measure_seconds(program: Program, place: Arena) -> tuple[float, str]:
    argv = program.command(place.src, place.dst)
    if program.on_terminal:
        with terminal() as tty:
            return run(argv, tty), ""
    if program.beyond_launcher:
        nothing = run([*program.launcher, MPI_START], place.log)
        return max(0.001, run(argv, place.log) - nothing), ""
    return run(argv, place.log), ""


def measure_durable(program: Program, place: Arena) -> tuple[float, str]:
    """Measures until everything is on the disk. --fsync says that the program sees to that itself."""
    seconds, note = measure_seconds(program, place)
    if "--fsync" not in program.argv:
        seconds += run(["sync", "-f", str(place.real_dst)], place.log)
    return seconds, note


def process_tree(root: int) -> Iterator[int]:
    """Yields a process and all its descendants."""
    children = collections.defaultdict(list)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name may contain anything, so the fields after it begin at the last ")".
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            children[int(stat[1])].append(int(process.name))
    pending = [root]
    while pending:
        yield (pid := pending.pop())
        pending += children[pid]


def private_mib(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0  # The process has ended.
    return sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.M)) / 1024


def measure_memory(program: Program, place: Arena) -> tuple[float, str]:
    peak, max_processes = 0.0, 0

    def sample(pid: int) -> None:
        nonlocal peak, max_processes
        # WNOWAIT leaves the exit status for run() to collect.
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            processes = list(process_tree(pid))
            peak = max(peak, sum(map(private_mib, processes)))
            max_processes = max(max_processes, len(processes))
            time.sleep(0.003)

    run(program.command(place.src, place.dst), place.log, sample)
    return peak, f"{max_processes} processes" if max_processes > 1 else ""


def strace(program: Program, place: Arena, directory: str) -> collections.Counter[str]:
    """Counts the system calls of one run by name, with those of its children."""
    table = place.log.with_name("strace")
    command = program.command(place.src / directory, place.dst.parent / directory)
    # Only calls on files and sockets: how often a waiting program yields depends on the machine.
    calls = "trace=%file,%desc,%network"
    run(["strace", "-f", "-c", "-e", calls, "-o", str(table), *command], place.log)
    counts: collections.Counter[str] = collections.Counter()
    for line in table.read_text().splitlines():
        words = line.split()
        if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
            counts[words[-1]] = int(words[3])
    return counts


def measure_syscalls(program: Program, place: Arena) -> tuple[float, str]:
    if not shutil.which("strace"):
        raise Skip("needs strace")
    once, twice = (strace(program, place, directory) for directory in ("1000", "2000"))
    each = {name: (twice[name] - once[name]) / 1000 for name in twice}
    note = ", ".join(f"{name} {n:.2f}" for name, n in sorted(each.items(), key=lambda x: -x[1]) if n >= 0.02)
    return sum(each.values()), f"{once.total()} for 1,000; each: {note}"


def processor_seconds(pid: int) -> float:
    """Returns the processor time of all threads of a process, and 0 once it has ended."""
    times = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(time.read_text().split()[0]) for time in times) / 1e9


def parts_of_run(root: int) -> dict[str, int]:
    """Returns the process numbers of the parts of a run by two ranks, or nothing before it has begun."""
    parts = {}
    for pid in process_tree(root):
        title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        if title in ("pcopy: node 0", "pcopy: node 1"):
            parts[title[-6:]] = pid
    if len(parts) < 2:
        return {}

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    lead = parent(parts["node 0"])
    return {**parts, "lead": lead, "relay": parent(lead)}


def measure_jobs(program: Program, place: Arena) -> tuple[float, str]:
    """Measures the processor time of the lead, or of its relay, for each job, in µs.

    The relay passes on the jobs of the other node. Its share of them is its share of the processor time
    of both nodes, as all jobs are alike.
    """
    parts: dict[str, int] = {}
    begun: dict[str, float] = {}
    used: dict[str, float] = {}

    def sample(pid: int) -> None:
        # WNOWAIT leaves the exit status for run() to collect.
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with contextlib.suppress(OSError):
                parts.update(parts or parts_of_run(pid))
                now = {name: processor_seconds(part) for name, part in parts.items()}
                # Without what MPI does before it begins and after it ends.
                if not all(now.values()):
                    return
                used.update(now)
                begun.update({name: seconds for name, seconds in now.items() if name not in begun})
            time.sleep(0.01)

    run(program.command(place.src, place.dst), place.log, sample)
    if not used:
        raise Failure("no lead and two nodes seen")
    spent = {name: used[name] - begun[name] for name in used}
    share = spent["node 1"] / (spent["node 0"] + spent["node 1"])
    jobs = {"lead": WIDE_JOBS, "relay": WIDE_JOBS * share}
    part = program.name.split()[-1]
    return spent[part] / jobs[part] * 1e6, f"{jobs[part]:.0f} jobs, {spent[part]:.3f} s"


# --------------------------------------------------------------------- rows


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal for pcopy in a row: at most `limit` times the figure of a rival."""

    limit: float
    rival: str = ""  # A name, "best peer", "best other" (all but cpz), or "" for an absolute limit.
    modes: tuple[str, ...] = ("pcopy-thread", "pcopy-process")

    def __str__(self) -> str:
        return f"at most {self.limit:g}" + (f" x {self.rival}" if self.rival else "")


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    source: str
    goals: list[Goal]
    place: str = "tmpfs"
    programs: list[Program] = dataclasses.field(default_factory=lambda: pcopy_programs([]) + COPIERS)
    measure: Callable[[Program, Arena], tuple[float, str]] = measure_seconds
    unit: str = "s"
    rounds: float = 1  # A factor on --rounds.
    gib: int = 4  # The memory that the row needs.
    checked: bool = True


KEPT = [Goal(1.12, "cpz"), Goal(1.0, "best other")]
FULL = [*pcopy_programs([]), *COPIERS, FLOOR]
AS_LITTLE = pcopy_programs(BARE) + COPIERS[:2]
BIG = [Goal(0.85, "best peer")]
EXACT = [program for jobs in (16, 64) for program in pcopy_programs([f"-j{jobs}"], f" -j{jobs}")]


def times_plain(limit: float, suffix: str) -> list[Goal]:
    """Returns the goals of pcopy with an option, as a factor on pcopy without it in the same mode."""
    return [Goal(limit, mode, (mode + suffix,)) for mode in ("pcopy-thread", "pcopy-process")]


DURABLE = times_plain(1.1, " --fsync")
# Half of the kernel's files, and half of those of a generated tree.
HALF = [f"--exclude={rule}" for rule in ("/drivers", "/sound", "file-*[02468].c")]
B3SUM = "find {src} {dst} -type f -print0 | xargs -0 -n 500 -P $(nproc) b3sum --num-threads 1"
SYNCED = pcopy_programs([]) + pcopy_programs(["--fsync"], " --fsync") + COPIERS
ROWS = [
    Row("tree", "tree", [Goal(1.05, "cpz"), Goal(0.5, "cp -a"), Goal(0.5, "cpx -a")], programs=FULL),
    *(Row(f"tree-{kind}", "tree", KEPT, kind, FULL, gib=9) for kind in ("ext4", "xfs", "btrfs")),
    Row("tree-bare", "tree", [Goal(1.0, "cpz")], programs=AS_LITTLE),
    *(Row(f"tree-{kind}-bare", "tree", [Goal(1.0, "cpz")], kind, AS_LITTLE, gib=9) for kind in ("ext4", "xfs", "btrfs")),
    Row("flat", "flat", [Goal(0.9, "best peer")]),
    Row("big", "big", BIG, gib=5),
    Row("big-ext4", "big", BIG, "ext4", gib=11),
    Row("again", "tree", [Goal(0.6, "cp -auT")], "finished", pcopy_programs([]) + UPDATERS),
    Row("slow", "small", [Goal(0.15, "rcp"), Goal(0.125, "cpz"), Goal(1.05, "best -j")], "slow",
        pcopy_programs([]) + EXACT + COPIERS, gib=1),
    Row("slow-busy", "small", [Goal(1.3, "best -j")], "slow-busy", pcopy_programs([]) + EXACT, gib=1),
    Row("hdd", "photos", [Goal(1.05, "best peer")], "head", gib=2),
    Row("hdd-small", "letters", [Goal(1.05, "best peer")], "head", gib=1),
    Row("tiny", "tiny", [Goal(1.25, "cp -a", ("pcopy-thread",)), Goal(1.8, "cp -a", ("pcopy-process",))],
        rounds=40, gib=1),
    Row("one-far", "film", [Goal(1.0, "cp -a")], "far", gib=1),
    Row("one-near", "big", [Goal(0.3, "cp -a")], "near", gib=7),
    Row("cold", "tree", [Goal(0.7, "best peer")], "cold"),
    Row("disk", "tree", [Goal(0.9, "best peer")], "disk", measure=measure_durable),
    Row("fsync", "small", DURABLE, "durable", SYNCED, measure_durable, gib=1),
    Row("fsync-flush", "small", DURABLE, "flush", SYNCED, measure_durable, gib=3),
    Row("verify", "photos", times_plain(2.2, " --verify"), "durable",
        pcopy_programs([]) + pcopy_programs(["--verify"], " --verify"), measure_durable, gib=1),
    Row("checksum", "tree", [Goal(1.2, "b3sum")], "finished",
        pcopy_programs(["-c"]) + [Program("b3sum", ["sh", "-c", B3SUM])]),
    Row("half", "tree", times_plain(0.6, " half"), programs=pcopy_programs([]) + pcopy_programs(HALF, " half"),
        checked=False),
    Row("sparse", "sparse", [Goal(1.0, "best peer")], gib=10),
    Row("memory", "tree", [Goal(64)], measure=measure_memory, unit="MiB", rounds=0.6),
    Row("syscalls", "counted", [Goal(9, "", ("pcopy-thread",)), Goal(10, "", ("pcopy-process",))],
        measure=measure_syscalls, unit="calls", rounds=0.2, gib=1, checked=False),
    Row("mpi", "tree",
        [Goal(1.15, "pcopy-process", ("pcopy-mpi alone",)), *(Goal(0.6, f"dcp -n{n}", (f"pcopy-mpi -n{n}",)) for n in (2, 4))],
        programs=[*pcopy_programs([]), *MPI]),
    Row("mpi-slow", "medium",
        [Goal(0.85, "dcp -n6", ("pcopy-mpi -n2 -j3",)), Goal(0.85, "dcp -n2", ("pcopy-mpi -n2",))], "slow",
        [pcopy_programs([])[1], pcopy_programs(["-j6"], " -j6")[1], *MPI_SLOW], gib=1),
    Row("mpi-jobs", "wide", [Goal(4, "", ("pcopy-mpi lead",)), Goal(3, "", ("pcopy-mpi relay",))],
        programs=MPI_JOBS, measure=measure_jobs, unit="µs"),
    Row("progress", "tree",
        times_plain(1.01, " bar"),
        programs=pcopy_programs(["--progress=never"], "", True) + pcopy_programs(["--progress=always"], " bar", True), rounds=3),
]  # fmt: skip


@dataclasses.dataclass
class Result:
    row: Row
    figures: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: str = ""

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(figures) for name, figures in self.figures.items()}

    def best(self, but: str = "") -> str:
        """Returns the best program that is not pcopy."""
        ours = ("pcopy", FLOOR.name)
        rivals = {n: m for n, m in self.medians().items() if not n.startswith(ours) and n != but}
        return min(rivals, key=lambda name: rivals[name], default="")

    def verdicts(self) -> Iterator[str]:
        medians = self.medians()
        for goal in self.row.goals:
            exact = [name for name in medians if " -j" in name]
            best = min(exact, key=lambda name: medians[name], default="")
            rivals = {"best peer": self.best(), "best other": self.best("cpz"), "best -j": best}
            rival = rivals.get(goal.rival, goal.rival)
            if goal.rival and not rival:
                continue
            if rival and rival not in medians:
                continue
            name = f" ({rival})" if rival != goal.rival else ""
            for mode in goal.modes:
                if mode in medians:
                    # An absolute limit must hold in every run, so the worst one counts.
                    reached = medians[mode] / medians[rival] if rival else max(self.figures[mode])
                    verdict = "reached" if reached <= goal.limit else "MISSED"
                    yield f"{mode}: {reached:.3g}, {goal}{name}: {verdict}"


def check(program: Program, place: Arena) -> str:
    """Checks that the copy is complete. Returns a note if holes were filled."""
    source, copy = measure_tree(place.real_src), measure_tree(place.real_dst)
    if copy[:2] != source[:2]:
        raise Failure(f"{program.name} copied {copy[0]} entries, {copy[1]} bytes of {source[0]}, {source[1]}")
    return f"takes {copy[2] >> 20} MiB of disk" if copy[2] > 2 * source[2] + MIB else ""


def race(row: Row, place: Arena, programs: list[Program], rounds: int, slow_after: float) -> Result:
    """Runs the rounds. Programs slower than `slow_after` in the warm-up have one counted round."""
    result = Result(row)
    slow: set[str] = set()
    for number in range(rounds + 1):
        order = [p for p in programs if p.name not in result.failed and (number < 2 or p.name not in slow)]
        # The state in which a program leaves the kernel's free lists affects the next program, so the
        # order is random. It is the same in every race.
        random.Random(number).shuffle(order)
        for program in order:
            if sys.stderr.isatty():
                print(f"\r\033[K{row.name}: round {number} of {rounds}, {program.name}", end="", file=sys.stderr)
            place.clear()
            try:
                figure, note = row.measure(program, place)
                if number == 0 and row.checked:
                    note = check(program, place) or note
            except Failure as why:
                result.failed[program.name] = str(why)
                result.figures.pop(program.name, None)
                continue
            if note:
                result.notes[program.name] = note
            if number:
                result.figures.setdefault(program.name, []).append(figure)
            elif row.unit == "s" and figure > slow_after:
                slow.add(program.name)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return result


# ---------------------------------------------------------------- reporting


def show(figure: float, unit: str) -> str:
    if unit == "s" and figure < 0.1:
        figure, unit = figure * 1000, "ms"
    return f"{figure:#.3g} {unit}" if figure < 100 else f"{figure:.0f} {unit}"


def report(result: Result) -> None:
    row, medians = result.row, result.medians()
    print(f"\n== {row.name} ==")
    if result.skipped:
        print(f"skipped: {result.skipped}")
        return
    ours, cpz = medians.get("pcopy-thread"), medians.get("cpz")
    print(f"{'program':<20}{'median':>12}{'min':>12}{'max':>12}{'x pcopy':>9}{'x cpz':>8}{'rounds':>8}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        figures = result.figures[name]
        shown = "".join(f"{show(f, row.unit):>12}" for f in (median, min(figures), max(figures)))
        ratios = "".join(f"{median / of:>{w}.2f}" if of else f"{'-':>{w}}" for of, w in ((ours, 9), (cpz, 8)))
        print(f"{name:<20}{shown}{ratios}{len(figures):>8}  {result.notes.get(name, '')}".rstrip())
    for name, why in result.failed.items():
        print(f"{name:<20}  out: {why}")
    for verdict in result.verdicts():
        print(f"  {verdict}")


def markdown(results: list[Result], versions: dict[str, str]) -> None:
    """Prints the race as one table, with the best of each row in bold."""
    names = list(dict.fromkeys(name for result in results for name in result.figures))
    print(f"\n{datetime.date.today()}, {machine()}; {', '.join(versions.values())}. Medians; the best in bold.\n")
    print("| work | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for result in results:
        medians = result.medians()
        best = min(medians.values(), default=0)
        cells = [show(medians[name], result.row.unit) if name in medians else "" for name in names]
        cells = [f"**{c}**" if medians.get(n) == best else c for n, c in zip(names, cells, strict=True)]
        print(f"| {result.row.name} | " + " | ".join(cells) + " |")
    print()
    for result in results:
        for verdict in result.verdicts():
            print(f"- {result.row.name}: {verdict}")


def machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({cpu[1] if cpu else platform.machine()}), {memory:.0f} GiB, Linux {platform.release()}"


def as_json(results: list[Result], versions: dict[str, str]) -> str:
    rows = {
        r.row.name: {
            "unit": r.row.unit,
            "skipped": r.skipped,
            "programs": {
                name: {"median": median, "min": min(r.figures[name]), "max": max(r.figures[name]),
                       "note": r.notes.get(name, ""), "figures": r.figures[name]}
                for name, median in r.medians().items()
            },
            "failed": r.failed,
            "verdicts": list(r.verdicts()),
        }
        for r in results
    }  # fmt: skip
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"date": now, "machine": machine(), "versions": versions, "rows": rows}, indent=1)


# --------------------------------------------------------------------- main


def run_row(row: Row, args: argparse.Namespace) -> Result:
    programs = [p.with_path(args.pcopy) if p.is_pcopy else p for p in row.programs if p.is_selected(args.only)]
    if args.old:
        ours = [p for p in row.programs if p.is_pcopy and p.is_selected(args.only)]
        programs += [p.with_path(args.old).renamed("pcopy-", "pcopy-old-") for p in ours]
    programs = [p for p in programs if shutil.which(p.argv[0]) and all(map(shutil.which, p.launcher[:1]))]
    try:
        if not programs:
            raise Skip("no program to run")
        if free_gib(args.data) < row.gib:
            raise Skip(f"needs {row.gib} GiB of free memory")
        with arena(args.data, row.source, row.place, args.built / "faultfs", args.disk) as place:
            return race(row, place, programs, max(1, round(args.rounds * row.rounds)), args.slow_after)
    except Skip as why:
        return Result(row, skipped=str(why))


def build(rows: list[Row], args: argparse.Namespace) -> None:
    """Builds the programs that the race needs, apart from a pcopy named with --pcopy."""
    if shutil.which("cc") and any(FLOOR in row.programs and FLOOR.is_selected(args.only) for row in rows):
        source = PROJECT / "benches" / "floor.c"
        subprocess.run(["cc", "-O2", "-pthread", "-o", args.data / FLOOR.name, source], check=True)
    if shutil.which("mpicc") and any(program.beyond_launcher for row in rows for program in row.programs):
        source = PROJECT / "benches" / f"{MPI_START}.c"
        subprocess.run(["mpicc", "-O2", "-o", args.data / MPI_START, source], check=True)
    os.environ["PATH"] += f":{args.data}"
    if args.pcopy:
        args.pcopy = args.pcopy.resolve(strict=True)
        args.built = args.pcopy.parent
        return
    args.built = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")) / "release"
    args.pcopy = args.built / "pcopy"
    cargo = ["cargo", "build", "--release"]
    with_mpi = any(program.launcher for row in rows for program in row.programs) and shutil.which("mpicc")
    features = ["--features", "mpi"] if with_mpi else []
    if any(program.is_pcopy and program.is_selected(args.only) for row in rows for program in row.programs):
        subprocess.run([*cargo, *features, "--bin", "pcopy"], cwd=PROJECT, check=True)
    if any(row.place in DEVICES or row.place == "flush" for row in rows):
        # If this fails, only the rows on such devices are skipped.
        subprocess.run([*cargo, "-p", "faultfs"], cwd=PROJECT, check=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="names of rows, or: all, list, clean")
    option = parser.add_argument
    option("--rounds", type=int, default=5, help="counted rounds; tiny has 40 times, progress 3 times as many [%(default)s]")
    option("--pcopy", type=Path, metavar="FILE", help="a pcopy to race, with faultfs beside it [built with cargo]")
    option("--old", type=Path, metavar="FILE", help="another pcopy to race, such as one from before a change")
    option("--only", default="", metavar="NAMES", help="race only these, as in pcopy-thread,cpz,cp-a,rsync")
    option("--data", type=Path, metavar="DIR", default=Path("/dev/shm/pcopy-race"),
           help="where the data is kept; should be in RAM [%(default)s]")
    option("--disk", type=Path, metavar="DIR", default=Path("/var/tmp"),
           help="where cold, disk and fsync make a disk image of up to 8 GiB; must be on a real disk [%(default)s]")
    option("--peers", type=Path, metavar="DIR", action="append", default=[],
           help="search this directory for copiers before PATH")
    option("--slow-after", type=float, metavar="SECS", default=15,
           help="run a program only once if it takes longer than this [%(default)s]")
    option("--json", type=Path, metavar="FILE", help="write every figure to this file")
    option("--markdown", action="store_true", help="end with a table to paste")
    args = parser.parse_args()
    args.only = set(filter(None, args.only.split(",")))
    known = {row.name for row in ROWS} | {"all", "list", "clean"}
    if unknown := set(args.rows) - known:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return args


def stop(signum: int, _frame: object) -> None:
    """Exits through the cleanup, which unmounts and removes everything, and ignores further signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def main() -> int:
    args = arguments()
    if "list" in args.rows:
        for row in ROWS:
            print(f"{row.name:<18}{'; '.join(map(str, row.goals))}")
        return 0
    if "clean" in args.rows:
        unmount(args.data / "run" / "mnt")
        shutil.rmtree(args.data, ignore_errors=True)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    os.environ["PATH"] = ":".join([*map(str, args.peers), os.environ["PATH"]])
    rows = [row for row in ROWS if row.name in args.rows or "all" in args.rows]
    args.data.mkdir(parents=True, exist_ok=True)
    build(rows, args)
    lock = open(args.data / "lock", "w")  # Held until this program ends.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another race is running in {args.data}")

    racing = [program for row in rows for program in row.programs if program.is_selected(args.only)]
    paths = {p.argv[0]: shutil.which(args.pcopy if p.is_pcopy else p.argv[0]) for p in racing}
    versions = {n: version(Path(path)) for n, path in paths.items() if path and n != FLOOR.name}
    print(machine(), *versions.values(), sep="\n", flush=True)
    results = []
    for row in rows:
        results.append(run_row(row, args))
        report(results[-1])
        if args.json:
            args.json.write_text(as_json(results, versions))
    if args.markdown:
        markdown(results, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
