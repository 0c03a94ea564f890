#!/usr/bin/env python3
"""Draws how the number of workers grows over a run, on several devices: benches/workers.svg.

    pip install matplotlib
    cargo build --release --workspace
    benches/workers.py              # needs FUSE, and 2 GiB of RAM

Each run copies the data of a row of race.py with `--debug`, which prints each decision: how many
workers there are, and how many of them may copy contents at one time.
"""

import argparse
import os
import re
import subprocess
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plot  # noqa: E402

from arena import Arena, Skip, arena  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent

# Rows of race.py: the name, the source, the place, and what it is.
RUNS = [
    ("hdd", "photos", "head", "60 files of 8 MiB, a disk with one head"),
    ("slow", "small", "slow", "2,100 files, 0.5 ms a call"),
    ("tree", "tree", "tmpfs", "the kernel tree in RAM"),
]
LINE = re.compile(r"debug: ([\d.]+) s: (\d+) workers, (\w+) copy contents")
SUMMARY = re.compile(r" in (?:(\d+) min )?([\d.]+) s\b")
MODES = {"thread": "tab:blue", "process": "tab:orange"}


def decisions(pcopy: Path, mode: str, place: Arena) -> tuple[list[tuple[float, int, int]], float]:
    """Runs pcopy. Returns (time, workers, workers that copy contents) of each decision, and the end."""
    place.clear()
    argv = [pcopy, f"--mode={mode}", "--debug", "--progress=never", place.src, place.dst]
    run = subprocess.run(argv, capture_output=True, text=True, check=True)
    text = run.stdout + run.stderr
    found = [(float(time), int(n), int(n) if k == "all" else int(k)) for time, n, k in LINE.findall(text)]
    minutes, seconds = SUMMARY.findall(text)[-1]
    return found, 60 * float(minutes or 0) + float(seconds)


def draw(axis: plot.Axes, runs: dict[str, tuple[list[tuple[float, int, int]], float]], start: int, title: str) -> None:
    for mode, (found, end) in runs.items():
        # A run begins with a worker for each core, and one of them may copy contents.
        points = [(0.0, start, 1), *found]
        points.append((max(end, points[-1][0]), *points[-1][1:]))
        times = [point[0] for point in points]
        for column, style, what in ((1, "-", "workers"), (2, ":", "copy contents at most")):
            values = [min(point[column], point[1]) for point in points]
            axis.step(times, values, style, where="post", color=MODES[mode], label=f"{mode}: {what}")
    axis.set_yscale("log", base=2)
    axis.set_ylim(0.9, 80)
    axis.set_yticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds")
    axis.set_title(title, fontsize="medium")
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    release = PROJECT / "target" / "release"
    parser.add_argument("--pcopy", type=Path, default=release / "pcopy", help="[%(default)s]")
    parser.add_argument("--data", type=Path, default=Path("/dev/shm/pcopy-race"), help="[%(default)s]")
    parser.add_argument("--out", type=Path, default=PROJECT / "benches" / "workers.svg", help="[%(default)s]")
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    figure, axes = plot.subplots(1, len(RUNS), figsize=(13, 3.8), layout="constrained")
    for axis, (name, source, place, what) in zip(axes, RUNS, strict=True):
        try:
            with arena(args.data, source, place, args.pcopy.parent / "faultfs", Path("/var/tmp")) as built:
                runs = {mode: decisions(args.pcopy, mode, built) for mode in MODES}
        except Skip as why:
            raise SystemExit(f"{name}: {why}") from why
        draw(axis, runs, cores, f"{name}: {what}")
    axes[0].set_ylabel("workers")
    axes[0].legend(fontsize="small", loc="upper left")
    # Nothing that differs from run to run but the data.
    matplotlib.rcParams["svg.hashsalt"] = "pcopy"
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
