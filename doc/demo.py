#!/usr/bin/env python3
"""Records a real run of pcopy in a terminal and writes it as an animated SVG: doc/demo.svg.

    pip install pyte
    cargo build --release --workspace
    doc/demo.py                     # needs FUSE: the source is made as slow as a disk

The run copies a generated directory of photos. The second command shows what a repeated run does.
Nothing of the pictures is drawn by hand: the bytes that pcopy writes go through a terminal
emulator, and each screen that it shows becomes a frame.
"""

import argparse
import fcntl
import html
import os
import pty
import random
import select
import struct
import subprocess
import tempfile
import termios
import time
import unicodedata
from pathlib import Path

import pyte

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 80, 9
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 19, 14
COLOURS = {"cyan": "#56b6c2", "red": "#e06c75", "green": "#98c379", "default": "#dcdfe4"}
FRAME_SECONDS = 0.25
LAST_FRAME_SECONDS = 4


def make_photos(directory):
    """Makes photos of random size, the same ones each time."""
    chance = random.Random(1)
    for album, count in [("2022/Island", 40), ("2023/日本旅行", 50), ("2023/Kreta", 60)]:
        (directory / album).mkdir(parents=True)
        for number in range(count):
            size = chance.randrange(1 << 20, 6 << 20)
            path = directory / album / f"IMG_{number + 1000}.jpg"
            path.write_bytes(chance.randbytes(1 << 10) * (size >> 10))


def record(argv, cwd, screen, stream, frames, start):
    """Runs a command in a terminal and appends the screens that it shows as (seconds, lines)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update(TERM="xterm-256color", LANG="C.UTF-8", LC_ALL="C.UTF-8")
        os.execvp(argv[0], argv)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    last = 0
    while True:
        ready, _, _ = select.select([terminal], [], [], FRAME_SECONDS)
        if ready:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            stream.feed(data)
        if time.monotonic() - last >= FRAME_SECONDS:
            last = time.monotonic()
            take_frame(screen, frames, last - start)
    take_frame(screen, frames, time.monotonic() - start)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def take_frame(screen, frames, seconds):
    lines = []
    for row in range(ROWS):
        # Runs of cells with one colour: (column, text, colour).
        runs = []
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            if cell.data in ("", " "):
                continue
            wide = unicodedata.east_asian_width(cell.data[0]) in "WF"
            previous = runs[-1] if runs else None
            if previous and previous[2] == cell.fg and previous[3] == column and not wide:
                previous[1] += cell.data
                previous[3] = column + 1
            else:
                runs.append([column, cell.data, cell.fg, column + (2 if wide else 1)])
        lines.append([(column, text, colour) for column, text, colour, _ in runs])
    if not frames or frames[-1][1] != lines:
        frames.append((seconds, lines))


def to_svg(frames):
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = ROWS * LINE_HEIGHT + 2 * MARGIN
    length = frames[-1][0] + LAST_FRAME_SECONDS
    style, groups = [], []
    for number, (begin, lines) in enumerate(frames):
        end = frames[number + 1][0] if number + 1 < len(frames) else length
        first, last = 100 * begin / length, 100 * end / length
        style.append(
            f"@keyframes f{number}{{0%,{first:.3f}%{{visibility:hidden}}"
            f"{first + 0.001:.3f}%,{last:.3f}%{{visibility:visible}}"
            f"{min(last + 0.001, 100):.3f}%,100%{{visibility:hidden}}}}"
            f"#f{number}{{animation:f{number} {length:.2f}s step-end infinite}}"
        )
        texts = []
        for row, runs in enumerate(lines):
            y = MARGIN + row * LINE_HEIGHT + 14
            for column, text, colour in runs:
                x = MARGIN + column * CELL_WIDTH
                fill = COLOURS.get(colour, COLOURS["default"])
                cells = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
                texts.append(
                    f'<text x="{x:.1f}" y="{y}" fill="{fill}" textLength="{cells * CELL_WIDTH:.1f}"'
                    f' lengthAdjust="spacingAndGlyphs">{html.escape(text)}</text>'
                )
        groups.append(f'<g id="f{number}">{"".join(texts)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="14" '
        f'xml:space="preserve"><title>pcopy copies a directory of photos</title>'
        f"<style>g{{visibility:hidden}}{''.join(style)}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#282c34"/>{"".join(groups)}</svg>\n'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default=ROOT / "target/release", type=Path, help="directory with pcopy and faultfs")
    parser.add_argument("--out", default=ROOT / "doc/demo.svg", type=Path)
    parser.add_argument("--text", action="store_true", help="also print some of the screens")
    args = parser.parse_args()
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    frames = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        work = Path(work)
        (work / "stick").mkdir()
        make_photos(work / "real")
        slow = work / "slow"
        slow.mkdir()
        faulty = subprocess.Popen(
            [args.bin / "faultfs", "--keep", "--head", "8,60", work / "real", slow]
        )
        try:
            while not os.path.ismount(slow):
                time.sleep(0.05)
            (work / "pcopy").symlink_to(args.bin.resolve() / "pcopy")
            (work / "photos").symlink_to("slow")
            start = time.monotonic()
            for _ in range(2):
                stream.feed("\x1b[32m$\x1b[0m pcopy photos stick/photos\r\n".encode())
                take_frame(screen, frames, time.monotonic() - start)
                time.sleep(0.5)
                record(["./pcopy", "photos", "stick/photos"], work, screen, stream, frames, start)
                time.sleep(1)
        finally:
            subprocess.run(["fusermount3", "-u", slow], check=True)
            faulty.wait()
    args.out.write_text(to_svg(frames))
    if args.text:
        for seconds, lines in frames[:: max(1, len(frames) // 8)] + frames[-1:]:
            print(f"--- {seconds:.1f} s")
            for runs in lines:
                line = ""
                for column, text, _ in runs:
                    line += " " * (column - len(line)) + text
                print(line)


if __name__ == "__main__":
    main()
