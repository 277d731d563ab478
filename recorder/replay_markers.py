"""Lists the markers of a tape: ``gatecast replay --markers``."""

from __future__ import annotations

import sys

from recorder.escape import visible
from recorder.player_index import TapeIndex
from recorder.player_options import ReplayOptions
from recorder.player_screen import clock_text
from recorder.progress import ProgressLine
from recorder.reader import TapeReader


def print_markers(tape: TapeReader, options: ReplayOptions) -> None:
    """Print a line for each marker: its time on the tape (what --from takes), its command (what --command takes), label
    and text.
    """
    wall0_ns = tape.header.wall0_ns
    start, stop = options.start_ns(wall0_ns), options.stop_ns(wall0_ns)
    index = TapeIndex(tape)
    with ProgressLine("looking for markers", sys.stderr) as progress:

        def tell() -> bool:
            progress(int(index.looked_through * 1000), 1000)
            return False

        for marker in index.markers(index.record_at(start - 1) if start else -1, tell):
            if stop is not None and marker.t_ns > stop:
                break
            if marker.t_ns >= start:
                progress.clear()
                command = index.at(marker.command) if marker.command >= 0 else None
                number = f"Q{command.ordinal + 1}" if command is not None and command.n == marker.command else ""
                at = f"{clock_text(marker.t_ns)}.{marker.t_ns // 1_000_000 % 1000:03d}"
                line = f"{at:>12}  {number:<6}  {marker.label:<9}  {marker.text}".rstrip()
                sys.stdout.write(visible(line).replace("\n", " ") + "\n")
                if sys.stdout.isatty():
                    sys.stdout.flush()
    sys.stdout.flush()
