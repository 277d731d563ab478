"""What a command costs on a tape: microseconds of CPU for the two blocks of one small transaction.

The records are those of ``pgbench -S``: the message, COMMAND and VERDICT, committed; the answer and RESULT, written.
The best of some rounds is printed: other work on the machine only ever adds. Run: python -m benchmarks.tape
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgpack

from recorder.seal import SealKey
from recorder.tape import GATE, OUT, USER, Kind, Recorder, Tape

TRANSACTIONS: Final = 10_000
ROUNDS: Final = 7

_pack: Final[Callable[[object], bytes]] = msgpack.Packer(use_bin_type=True).pack


async def transactions(tape: Tape, count: int, columns: int) -> None:
    """Record count transactions whose answers have one row of that many columns."""
    row = b"x" * 10 * columns
    answer = b"T" + bytes(30 * columns) + b"D" + row + b"C\0\0\0\rSELECT 1\0Z\0\0\0\5I"
    names = [f"column{number}" for number in range(columns)]
    for number in range(count):
        text = f"SELECT abalance FROM pgbench_accounts WHERE aid = {number * 7919 % 1_000_000};"
        tape.append(USER, Kind.WIRE, b"Q\0\0\0\x40" + text.encode() + b"\0")
        command = tape.append(
            USER,
            Kind.COMMAND,
            _pack({"verb": "SELECT", "kind": "read", "text": text, "objects": ("public.pgbench_accounts",)}),
        )
        tape.append(GATE, Kind.VERDICT, _pack({"command": command, "rule": "developers-read", "verdict": "allow"}))
        await tape.commit()
        tape.append(OUT, Kind.WIRE, answer)
        result = {"command": command, "tag": "SELECT 1", "columns": names, "rows": [names], "count": 1, "bytes": 12}
        tape.append(GATE, Kind.RESULT, _pack(result))
        await tape.written()


def cost(directory: Path, columns: int) -> tuple[float, float]:
    """Return CPU microseconds a transaction in the best round, and bytes a transaction."""
    best = float("inf")
    size = 0
    with tempfile.TemporaryDirectory(prefix="gatecast-bench-tape-", dir=directory) as folder:
        recorder = Recorder(Path(folder), SealKey.generate())
        for _ in range(ROUNDS):
            best = min(best, asyncio.run(_round(recorder, columns)))
            files = list(Path(folder).rglob("*.gct"))
            size = sum(file.stat().st_size for file in files)
            for file in files:
                file.unlink()
        recorder.close()
    return best / TRANSACTIONS * 1e6, size / TRANSACTIONS


async def _round(recorder: Recorder, columns: int) -> float:
    tape = recorder.open(protocol="postgres", identity={"subject": "x"}, target="t", mode="written")
    started = time.process_time()
    await transactions(tape, TRANSACTIONS, columns)
    seconds = time.process_time() - started
    await tape.close("closed")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tape")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by cProfile")
    options = parser.parse_args()
    directory = Path(tempfile.gettempdir())
    if options.profile:
        with tempfile.TemporaryDirectory() as folder:
            recorder = Recorder(Path(folder), SealKey.generate())
            tape = recorder.open(protocol="postgres", identity={"subject": "x"}, target="t", mode="written")
            profile = cProfile.Profile()
            profile.runcall(asyncio.run, transactions(tape, TRANSACTIONS, 1))
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            recorder.close()
        return
    for columns in (1, 20):
        microseconds, size = cost(directory, columns)
        print(f"{columns:2} columns: {microseconds:5.1f} us and {size:,.0f} bytes a transaction")


if __name__ == "__main__":
    main()
