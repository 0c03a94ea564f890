"""The data, file systems and mounts for the races of race.py.

Everything is kept in one data directory, but for images of disks, which need a
real disk. Sources such as the kernel tree take time to make and stay there for
the next race. Everything else of a row is under `run`. It is unmounted and
removed when the row ends, even by a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

KERNEL = Path("/usr/src/linux-source-6.1.tar.xz")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Skip(Exception):
    """A row cannot run on this machine; the text says why."""


def quiet(*argv: object) -> None:
    """Runs a helper command. If it fails, its message becomes the reason for skipping."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Skip(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-200:]}")


def free_gib(data: Path) -> float:
    available = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    disk = os.statvfs(data)
    return min(int(available[1]) * KIB if available else GIB, disk.f_bavail * disk.f_frsize) / GIB


# --------------------------------------------------------------------- data


def build_once(directory: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a data directory unless an earlier run has filled it completely."""
    if not directory.exists():
        print(f"preparing {directory} ...", file=sys.stderr)
        unfinished = directory.with_name(directory.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(directory)
    return directory


def fill_tree(directory: Path) -> None:
    """Unpacks the kernel source of Debian's package, or generates a tree of the same shape."""
    if KERNEL.exists():
        quiet("tar", "-xf", KERNEL, "-C", directory, "--strip-components=1")
    else:
        generate_tree(directory)


def generate_tree(root: Path) -> None:
    """Makes 80,000 files in 5,500 directories.

    The sizes are log-normal, like those of the kernel: median 4 KiB, mean 15 KiB.
    """
    rng = random.Random(61)
    text = rng.randbytes(32 * MIB)
    directories = [root]
    while len(directories) < 5500:
        parent = rng.choice(directories)
        if len(parent.parts) - len(root.parts) < 8:
            directories.append(parent / f"dir-{len(directories)}")
            directories[-1].mkdir()
    weights = [rng.paretovariate(1.2) for _ in directories]
    for number, parent in enumerate(rng.choices(directories, weights, k=80_000)):
        size = min(int(rng.lognormvariate(math.log(4200), 1.6)), 24 * MIB)
        start = rng.randrange(len(text) - size)
        (parent / f"file-{number}.c").write_bytes(text[start : start + size])
    for number, parent in enumerate(rng.choices(directories, k=56)):
        (parent / f"link-{number}").symlink_to("../file.c")


def fill_files(count: int, size: int, directories: int, root: Path) -> None:
    """Makes equal files, spread over so many directories (0: all in the root)."""
    content = random.Random(count).randbytes(size)
    for number in range(count):
        parent = root / f"dir-{number % directories}" if directories else root
        parent.mkdir(exist_ok=True)
        (parent / f"file-{number}").write_bytes(content)


# Subdirectories of each directory of `wide`, and how deep they are.
WIDE, WIDE_DEPTH = 10, 5
# A directory is a job, and another one if it has subdirectories.
WIDE_JOBS = sum(WIDE**depth for depth in range(WIDE_DEPTH + 1)) + sum(WIDE**depth for depth in range(WIDE_DEPTH))


def fill_wide(root: Path, depth: int = WIDE_DEPTH) -> None:
    for number in range(WIDE if depth else 0):
        (root / str(number)).mkdir()
        fill_wide(root / str(number), depth - 1)


def fill_counted(root: Path) -> None:
    for count in (1000, 2000):
        (root / str(count)).mkdir()
        fill_files(count, KIB, 0, root / str(count))


def fill_big(root: Path) -> None:
    block = random.Random(2).randbytes(32 * MIB)
    with open(root / "file", "wb") as file:
        for _ in range(2 * GIB // len(block)):
            file.write(block)


def fill_film(root: Path) -> None:
    (root / "file").write_bytes(random.Random(3).randbytes(20 * MIB))


def fill_sparse(root: Path) -> None:
    block = random.Random(8).randbytes(MIB)
    with open(root / "file", "wb") as file:
        for place in range(64):
            file.seek(place * 128 * MIB)
            file.write(block)
        file.truncate(8 * GIB)


def measure_tree(directory: Path) -> tuple[int, int, int]:
    """Returns the number of entries, the bytes of regular files, and the disk space they take."""
    entries = size = disk = 0
    pending = [str(directory)]
    while pending:
        with os.scandir(pending.pop()) as listing:
            for entry in listing:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    size += stat.st_size
                    disk += stat.st_blocks * 512
    return entries, size, disk


FILLERS: dict[str, Callable[[Path], None]] = {
    "tree": fill_tree,
    "flat": functools.partial(fill_files, 40_000, 8 * KIB, 0),
    "big": fill_big,
    "film": fill_film,
    "small": functools.partial(fill_files, 2_000, 2 * KIB, 100),
    "medium": functools.partial(fill_files, 5_700, 2 * KIB, 300),
    "wide": fill_wide,
    "tiny": functools.partial(fill_files, 10, 200, 0),
    "sparse": fill_sparse,
    "counted": fill_counted,
    "photos": functools.partial(fill_files, 60, 8 * MIB, 0),
    "letters": functools.partial(fill_files, 5_000, 20 * KIB, 50),
}


# ------------------------------------------------------------------- arenas


class Arena:
    """A source and a destination. clear() prepares them for the next run."""

    def __init__(self, base: Path, source: Path, log: Path, on_disk: bool = False) -> None:
        self.src = self.real_src = source
        # The same last component as the source: cpx copies into a parent directory.
        self.dst = self.real_dst = base / "dst" / source.name
        self.log = log
        self.on_disk = on_disk

    def clear(self) -> None:
        subprocess.run(["rm", "-rf", self.real_dst.parent], check=True)
        self.real_dst.parent.mkdir()
        if self.on_disk:
            # Finishes the last run's writes and their removal now, so that the next run does
            # not wait for them.
            subprocess.run(["sync", "-f", self.real_dst.parent], check=True)
            os.statvfs(self.real_dst.parent)  # Makes XFS finish freeing its inodes.
            time.sleep(0.2)


class FinishedArena(Arena):
    """An arena whose copy is complete and stays there."""

    def clear(self) -> None:
        if not self.dst.exists():
            super().clear()
            subprocess.run(["cp", "-a", self.src, self.dst], check=True)


class ColdArena(Arena):
    """An arena of which nothing is cached when a run begins."""

    def clear(self) -> None:
        super().clear()
        subprocess.run(["sync", "-f", self.src], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")


@dataclasses.dataclass(frozen=True)
class Device:
    """A slow device that faultfs plays."""

    options: list[str]
    has_destination: bool = True  # The destination is on it too, not on tmpfs.
    busy: int = 0  # Loops that keep the processors busy beside the race.


DEVICES = {
    "slow": Device(["--delay-ms", "0.5"]),
    "slow-busy": Device(["--delay-ms", "5"], busy=4),
    "far": Device(["--fault", "slow-read:*:40"], has_destination=False),
    "near": Device(["--fault", "slow-read:*:5"], has_destination=False),
    "head": Device(["--head", "8,150"], has_destination=False),
}


class SlowArena(Arena):
    """An arena on a slow device, which is mounted anew for each run."""

    def __init__(self, backing: Path, source: Path, log: Path, mountpoint: Path, faultfs: Path, device: Device) -> None:
        super().__init__(backing, source, log)
        self.backing, self.mountpoint, self.faultfs, self.device = backing, mountpoint, faultfs, device
        self.src = mountpoint / self.real_src.relative_to(backing)
        if device.has_destination:
            self.dst = mountpoint / self.real_dst.relative_to(backing)
        self.server: subprocess.Popen[bytes] | None = None

    def clear(self) -> None:
        self.close()
        super().clear()
        argv: list[str | Path] = [self.faultfs, self.backing, self.mountpoint, *self.device.options]
        # In a process group of its own, so that Ctrl-C ends the copier first.
        self.server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        if not self.server.stdout or self.server.stdout.readline().strip() != b"ready":
            raise Skip("the slow file system did not start")

    def close(self) -> None:
        if self.server:
            self.server.communicate()  # Closes its stdin, which makes it exit.
            self.server = None
            unmount(self.mountpoint)


def unmount(mountpoint: Path) -> None:
    for _ in range(50):
        if not os.path.ismount(mountpoint):
            return
        if subprocess.run(["umount", mountpoint], capture_output=True, check=False).returncode != 0:
            time.sleep(0.1)
    subprocess.run(["umount", "-l", mountpoint], check=False)


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keeps the processors busy with something else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def slow_disk(base: Path, faultfs: Path) -> Iterator[Path]:
    """Yields a directory in RAM in which it takes 5 ms to sync a file. An image there is a slow disk."""
    if not faultfs.exists():
        raise Skip(f"no {faultfs}: cargo build --release -p faultfs")
    backing, mountpoint = base / "backing", base / "slow"
    backing.mkdir()
    mountpoint.mkdir()
    argv: list[str | Path] = [faultfs, backing, mountpoint, "--flush-ms", "5"]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    try:
        if not server.stdout or server.stdout.readline().strip() != b"ready":
            raise Skip("the slow disk did not start")
        yield mountpoint
    finally:
        server.communicate()
        unmount(mountpoint)


@contextlib.contextmanager
def loop_device(image: Path, mountpoint: Path, kind: str) -> Iterator[None]:
    """Makes and mounts a file system in an image file, and removes both afterwards."""
    if os.geteuid() != 0:
        raise Skip("needs root, for mounting")
    # All of it is initialised now: the kernel must not do that during a race.
    options = ["-E", "lazy_itable_init=0,lazy_journal_init=0", "-F"] if kind == "ext4" else ["-f"]
    try:
        image.touch()
        os.truncate(image, 8 * GIB)
        quiet(f"mkfs.{kind}", "-q", *options, image)
        quiet("mount", "-o", "loop", "-t", kind, image, mountpoint)
        yield
    finally:
        unmount(mountpoint)
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def arena(data: Path, source_name: str, place: str, faultfs: Path, disk: Path) -> Iterator[Arena]:
    """Builds an arena with its source, and removes it afterwards. Images of disks are in `disk`."""
    source = build_once(data / source_name, FILLERS[source_name])
    base, log, mountpoint = data / "run", data / "run" / "stderr", data / "run" / "mnt"
    unmount(mountpoint)  # A race that was killed may have left it.
    shutil.rmtree(base, ignore_errors=True)
    mountpoint.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: subprocess.run(["rm", "-rf", "--one-file-system", base], check=False))
        if place in DEVICES:
            if not faultfs.exists():
                raise Skip(f"no {faultfs}: cargo build --release -p faultfs")
            backing = base / "backing"
            backing.mkdir()
            quiet("cp", "-a", source, backing)
            slow = SlowArena(backing, backing / source.name, log, mountpoint, faultfs, DEVICES[place])
            stack.callback(slow.close)
            stack.enter_context(busy_loops(DEVICES[place].busy))
            yield slow
        elif place == "finished":
            yield FinishedArena(base, source, log)
        elif place == "tmpfs":
            yield Arena(base, source, log)
        elif place == "flush":
            image = stack.enter_context(slow_disk(base, faultfs)) / "image"
            stack.enter_context(loop_device(image, mountpoint, "ext4"))
            yield Arena(mountpoint, source, log, on_disk=True)
        elif place in ("cold", "disk", "durable"):
            stack.enter_context(loop_device(disk / "pcopy-race.image", mountpoint, "ext4"))
            if place == "durable":
                yield Arena(mountpoint, source, log, on_disk=True)
                return
            quiet("cp", "-a", source, mountpoint)
            parent = base if place == "cold" else mountpoint
            yield ColdArena(parent, mountpoint / source.name, log, on_disk=place == "disk")
        else:
            stack.enter_context(loop_device(base / "image", mountpoint, place))
            quiet("cp", "-a", source, mountpoint)
            yield Arena(mountpoint, mountpoint / source.name, log, on_disk=True)
