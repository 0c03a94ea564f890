#!/usr/bin/env python3
"""Draws how many jobs one lead hands out if there are 1 to 1,000 nodes: benches/nodes.svg.

    pip install matplotlib
    benches/nodes.py                # takes ten minutes on a quiet machine, and 200 MiB

Runs src/scheduler/many_nodes.rs: a real lead, and nodes that are made up and answer at once. The
numbers of nodes are measured in turns. Prints the medians as a table.
"""

import argparse
import os
import re
import statistics
import subprocess
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plot  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent
NODES = [1, 10, 100, 1000]
TEST = ["cargo", "test", "--release", "--lib", "many_nodes", "--", "--ignored", "--nocapture"]
LINE = re.compile(r"(\d+) nodes: \d+ jobs in [\d.]+ s: (\d+) jobs/s, ([\d.]+) µs .*?, (\d+) MiB")
# What is to be reached: jobs a second, and the lead's processor time for each job in µs.
JOBS_GOAL, TIME_GOAL = 400_000, 4


def measure(nodes: int) -> tuple[float, float, float]:
    """Returns jobs a second, the lead's processor time for each job in µs, and MiB of memory."""
    environment = os.environ | {"PCOPY_NODES": str(nodes)}
    run = subprocess.run(TEST, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    found = LINE.search(run.stdout)
    if not found or int(found[1]) != nodes:
        raise SystemExit(f"no result in:\n{run.stdout}")
    return float(found[2]), float(found[3]), float(found[4])


def draw(axis: plot.Axes, columns: list[list[float]], goal: float, title: str) -> None:
    """Draws the medians as a line, all figures as points, and the goal."""
    axis.plot(NODES, [statistics.median(figures) for figures in columns], "-", color="tab:blue", label="median")
    for nodes, figures in zip(NODES, columns, strict=True):
        axis.plot([nodes] * len(figures), figures, "o", color="tab:blue", alpha=0.5, markersize=4)
    axis.axhline(goal, linestyle=":", color="tab:red", label="goal")
    axis.set_xscale("log")
    axis.set_xticks(NODES, [f"{nodes:,}" for nodes in NODES])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("nodes")
    axis.set_title(title, fontsize="medium")
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--out", type=Path, default=PROJECT / "benches" / "nodes.svg", help="[%(default)s]")
    args = parser.parse_args()
    figures: dict[int, list[tuple[float, float, float]]] = {nodes: [] for nodes in NODES}
    for _ in range(args.rounds):
        for nodes in NODES:
            figures[nodes].append(measure(nodes))
    print("| nodes | jobs/s | the lead's processor for each job | memory |\n|---|---|---|---|")
    for nodes in NODES:
        rate, used, memory = (statistics.median(column) for column in zip(*figures[nodes], strict=True))
        print(f"| {nodes:,} | {round(rate, -3):,.0f} | {used:.1f} µs | {memory:.0f} MiB |")
    figure, (left, right) = plot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw(left, [[rate / 1000 for rate, _, _ in figures[nodes]] for nodes in NODES], JOBS_GOAL / 1000, "thousand jobs a second")
    draw(right, [[used for _, used, _ in figures[nodes]] for nodes in NODES], TIME_GOAL, "µs of the lead's processor for a job")
    left.legend(fontsize="small", loc="lower left")
    # Nothing that differs from run to run but the data.
    matplotlib.rcParams["svg.hashsalt"] = "pcopy"
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
