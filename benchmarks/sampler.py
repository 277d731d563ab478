"""Runs gatecast and samples where its process spends CPU time: ``python -m benchmarks.sampler FILE serve ...``

The kernel sends SIGPROF after every millisecond of the process's CPU time, in Python or in C; the handler runs at the
next byte code of the main thread and counts the stack. So C code (a system call, zstd, SHA-256) counts for the Python
line that called it, which is what can be changed. On an untraced process it costs a few per cent, where cProfile
doubles the time of small functions and so shifts the picture. FILE gets one line a stack when the process ends:
"outer;...;inner count" (the "folded" form that flame graph tools read).
"""

from __future__ import annotations

import atexit
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from proxy.cli import main

INTERVAL_SECONDS: Final = 0.001

_Stack = tuple[tuple[CodeType, int], ...]
_stacks: Counter[_Stack] = Counter()


def _sample(_: int, frame: FrameType | None) -> None:
    stack = []
    while frame is not None:
        stack.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    _stacks[tuple(stack)] += 1


def _write(path: Path) -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    root = str(Path(__file__).parents[1])
    lines = []
    for stack, count in _stacks.items():
        names = []
        for code, line in reversed(stack):
            place = code.co_filename.removeprefix(root).lstrip("/")
            if "/lib/" in place or place.startswith("lib"):
                place = place.rpartition("/")[2]
            names.append(f"{place}:{code.co_qualname}:{line}".replace(";", ","))
        lines.append(f"{';'.join(names)} {count}\n")
    path.write_text("".join(lines))


if __name__ == "__main__":
    atexit.register(_write, Path(sys.argv[1]).absolute())
    signal.signal(signal.SIGPROF, _sample)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
    sys.exit(main(sys.argv[2:]))
