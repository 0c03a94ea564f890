"""Where the races of race.py are run: their data, file systems and mounts.

Everything lies in one data folder. What took time to make (the kernel tree)
stays there for the next race; what belongs to one row is under `run` in it and
is unmounted and removed when the row ends, also when it ends by a signal.
"""

from __future__ import annotations

import contextlib
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
    """A row cannot be run on this machine; the text says why."""


def quiet(*argv: object) -> None:
    """Runs a helper command; its complaint becomes the reason for skipping."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Skip(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-200:]}")


def free_gib(data: Path) -> float:
    available = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    disk = os.statvfs(data)
    return min(int(available[1]) * KIB if available else GIB, disk.f_bavail * disk.f_frsize) / GIB


# --------------------------------------------------------------------- data


def build_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a data folder unless an earlier run did; half-filled ones never count."""
    if not folder.exists():
        print(f"preparing {folder} ...", file=sys.stderr)
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(folder)
    return folder


def fill_tree(folder: Path) -> None:
    """The kernel source where Debian's package is, else a tree of the same shape."""
    if KERNEL.exists():
        quiet("tar", "-xf", KERNEL, "-C", folder, "--strip-components=1")
    else:
        generate_tree(folder)


def generate_tree(root: Path) -> None:
    """80,000 files in 5,500 folders; sizes log-normal, like the kernel's (median 4 KiB, mean 15 KiB)."""
    rng = random.Random(61)
    text = rng.randbytes(32 * MIB)
    folders = [root]
    while len(folders) < 5500:
        above = rng.choice(folders)
        if len(above.parts) - len(root.parts) < 8:
            folders.append(above / f"folder-{len(folders)}")
            folders[-1].mkdir()
    crowd = [rng.paretovariate(1.2) for _ in folders]
    for number, home in enumerate(rng.choices(folders, crowd, k=80_000)):
        size = min(int(rng.lognormvariate(math.log(4200), 1.6)), 24 * MIB)
        start = rng.randrange(len(text) - size)
        (home / f"file-{number}.c").write_bytes(text[start : start + size])
    for number, home in enumerate(rng.choices(folders, k=56)):
        (home / f"link-{number}").symlink_to("../file.c")


def fill_files(count: int, size: int, folders: int, root: Path) -> None:
    """Equal files, spread over `folders` folders (0: all in the root itself)."""
    content = random.Random(count).randbytes(size)
    for number in range(count):
        home = root / f"folder-{number % folders}" if folders else root
        home.mkdir(exist_ok=True)
        (home / f"file-{number}").write_bytes(content)


def fill_counted(root: Path) -> None:
    for count in (1000, 2000):
        (root / str(count)).mkdir()
        fill_files(count, KIB, 0, root / str(count))


def fill_big(root: Path) -> None:
    block = random.Random(2).randbytes(32 * MIB)
    with open(root / "file", "wb") as file:
        for _ in range(2 * GIB // len(block)):
            file.write(block)


def fill_sparse(root: Path) -> None:
    block = random.Random(8).randbytes(MIB)
    with open(root / "file", "wb") as file:
        for place in range(64):
            file.seek(place * 128 * MIB)
            file.write(block)
        file.truncate(8 * GIB)


def census(folder: Path) -> tuple[int, int, int]:
    """Entries, bytes of regular files, and bytes of disk they take, below a folder."""
    entries = size = disk = 0
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            for entry in listing:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    size += found.st_size
                    disk += found.st_blocks * 512
    return entries, size, disk


FILLERS: dict[str, Callable[[Path], None]] = {
    "tree": fill_tree,
    "flat": functools.partial(fill_files, 40_000, 8 * KIB, 0),
    "big": fill_big,
    "small": functools.partial(fill_files, 2_000, 2 * KIB, 100),
    "tiny": functools.partial(fill_files, 10, 200, 0),
    "sparse": fill_sparse,
    "counted": fill_counted,
}


# ------------------------------------------------- arenas: where a race runs


class Arena:
    """A source, a destination, and how to make things as before the last run."""

    def __init__(self, base: Path, source: Path, log: Path, on_disk: bool = False) -> None:
        self.src = self.real_src = source
        # Same last name as the source, for copiers that insist on it.
        self.dst = self.real_dst = base / "dst" / source.name
        self.log = log
        self.on_disk = on_disk

    def clear(self) -> None:
        subprocess.run(["rm", "-rf", self.real_dst.parent], check=True)
        self.real_dst.parent.mkdir()
        if self.on_disk:
            # Nothing of the last run's writing and of its removal may be left
            # for the next one to wait for.
            subprocess.run(["sync", "-f", self.real_dst.parent], check=True)
            os.statvfs(self.real_dst.parent)  # Makes XFS finish freeing its inodes.
            time.sleep(0.2)


class FinishedArena(Arena):
    """The copy is complete and stays so."""

    def clear(self) -> None:
        if not self.dst.exists():
            super().clear()
            subprocess.run(["cp", "-a", self.src, self.dst], check=True)


class SlowArena(Arena):
    """Source and destination behind a slow mount, mounted anew for each run."""

    def __init__(self, backing: Path, source: Path, log: Path, mountpoint: Path, faultfs: Path) -> None:
        super().__init__(backing, source, log)
        self.backing, self.mountpoint, self.faultfs = backing, mountpoint, faultfs
        self.src, self.dst = (mountpoint / p.relative_to(backing) for p in (self.real_src, self.real_dst))
        self.server: subprocess.Popen[bytes] | None = None

    def clear(self) -> None:
        self.close()
        super().clear()
        argv: list[str | Path] = [self.faultfs, self.backing, self.mountpoint, "--delay-ms", "0.5"]
        # In a group of its own: Ctrl-C must end the copier first.
        self.server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        if not self.server.stdout or self.server.stdout.readline().strip() != b"ready":
            raise Skip("the slow file system did not start")

    def close(self) -> None:
        if self.server:
            self.server.communicate()  # The end of its stdin ends it.
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
def loop_device(image: Path, mountpoint: Path, kind: str) -> Iterator[None]:
    """A file system of this kind in a file in the data folder; gone afterwards."""
    if os.geteuid() != 0:
        raise Skip("needs root, for mounting")
    # Nothing may be left for the kernel to initialise while a race is on.
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
def arena(data: Path, source_name: str, place: str, faultfs: Path) -> Iterator[Arena]:
    """Builds one up, with the source in it, and clears it away."""
    source = build_once(data / source_name, FILLERS[source_name])
    base, log, mountpoint = data / "run", data / "run" / "stderr", data / "run" / "mnt"
    unmount(mountpoint)  # Left by a race that was killed.
    shutil.rmtree(base, ignore_errors=True)
    mountpoint.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: subprocess.run(["rm", "-rf", "--one-file-system", base], check=False))
        if place == "slow":
            if not faultfs.exists():
                raise Skip(f"no {faultfs}: cargo build --release --example faultfs")
            backing = base / "backing"
            backing.mkdir()
            quiet("cp", "-a", source, backing)
            slow = SlowArena(backing, backing / source.name, log, mountpoint, faultfs)
            stack.callback(slow.close)
            yield slow
        elif place == "finished":
            yield FinishedArena(base, source, log)
        elif place == "tmpfs":
            yield Arena(base, source, log)
        else:
            stack.enter_context(loop_device(base / "image", mountpoint, place))
            quiet("cp", "-a", source, mountpoint)
            yield Arena(mountpoint, mountpoint / source.name, log, on_disk=True)
