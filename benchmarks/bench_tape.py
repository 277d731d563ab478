"""The recorder by itself: how much it writes, at what CPU, and how many commands a second it makes durable.

    python -m benchmarks.bench_tape [--quick] [--json]

Throughput: one writer's tape in mode written, plain and encrypted, beside writing the same bytes to a file, in one run
and in turns; the best of some rounds each, as other work on the machine only ever takes away. The data is a mixture of
PostgreSQL rows, JSON, a terminal's output and random bytes (the recorder note's, 50:25:20:5). CPU is that of the whole
process, so of all its threads.

Commits: sessions in a loop of one durable command (COMMAND and VERDICT), then an answer of 4 KiB; all on one event
loop. Beside it the same blocks written to a file for each session, which is then fdatasynced: at once on the loop, or
by eight threads. Once on the disk as it is, and once on a disk that takes a millisecond longer to sync, as those of
clouds do (both sides sleep: a stand-in for such a disk, not a measurement of one).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgpack
import uvloop
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from proxy.app import SWITCH_INTERVAL_SECONDS
from recorder.cipher import Recipient
from recorder.disk import Disk
from recorder.seal import SealKey
from recorder.tape import GATE, OUT, USER, Kind, Recorder, Tape

SIZES: Final = (64, 1024, 32 * 1024, 256 * 1024)
SESSIONS: Final = (1, 16, 128, 1000)
ROUNDS: Final = 3
ANSWER: Final = 4096
EXTRA_SECONDS: Final = 0.001
SYNC_THREADS: Final = 8

_pack: Final[Callable[[object], bytes]] = msgpack.Packer(use_bin_type=True).pack


class SlowDisk(Disk):
    """A disk whose syncs take longer."""

    def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
        super().write_through(descriptor, offset, data)
        time.sleep(EXTRA_SECONDS)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        time.sleep(EXTRA_SECONDS)


def material(size: int, total: int) -> list[bytes]:
    """Records of that size, together about total bytes."""
    chance = random.Random(7)  # the same bytes in every run
    words = [f"{chance.randrange(16**8):08x}" for _ in range(2000)]
    found = []
    for _ in range(max(1, total // size)):
        sort = chance.random()
        piece = bytearray()
        while len(piece) < size:
            if sort < 0.5:
                name, cents = chance.choice(words), chance.randrange(10**6)
                piece += f"D\0\0\0\x3c\0\4{cents:08d}{name}@example.org active 2026-11-{cents % 28 + 1:02d}".encode()
            elif sort < 0.75:
                piece += json.dumps({"v": chance.choice(words), "n": chance.randrange(10**5), "f": [1, 2]}).encode()
            elif sort < 0.95:
                piece += f"\x1b[32m{chance.choice(words)}\x1b[0m  {chance.randrange(1000)} ok\r\n".encode()
            else:
                piece += chance.randbytes(size)
        found.append(bytes(piece[:size]))
    return found


def raw_write(folder: Path, records: Sequence[bytes]) -> None:
    """Write the records to a file, as many together as a block holds."""
    descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    step = max(1, 256 * 1024 // len(records[0]))
    for i in range(0, len(records), step):
        os.write(descriptor, b"".join(records[i : i + step]))
    os.close(descriptor)


def tape_write(folder: Path, records: Sequence[bytes], recipients: Sequence[Recipient]) -> None:
    """Record them."""

    async def body() -> None:
        recorder = Recorder(folder / "tapes", SealKey.generate())
        tape = recorder.open(
            protocol="postgres", identity={"subject": "x"}, target="t", mode="written", recipients=recipients
        )
        for record in records:
            tape.append(OUT, Kind.WIRE, record)
        await tape.written()
        await tape.close("closed")
        recorder.close()

    asyncio.run(body())


def measured(work: Callable[[Path], None], size_bytes: int, count: int) -> dict[str, float]:
    """The best of the rounds: MB/s, records/s, and the least CPU s/GB."""
    wall, cpu, disk = float("inf"), float("inf"), 0
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="gatecast-bench-") as name:
            started, used = time.perf_counter(), time.process_time()
            work(Path(name))
            wall, cpu = min(wall, time.perf_counter() - started), min(cpu, time.process_time() - used)
            disk = sum(file.stat().st_size for file in Path(name).rglob("*.gct"))
    return {
        "mb_s": size_bytes / wall / 1e6,
        "records_s": count / wall,
        "cpu_s_gb": cpu / size_bytes * 1e9,
        "ratio": disk / size_bytes,
    }


def throughput(total: int) -> list[dict[str, Any]]:
    """A row for each size of records."""
    recipient = Recipient.of(X25519PrivateKey.generate().public_key())
    rows = []
    for size in SIZES:
        records = material(size, total if size > 64 else total // 4)
        whole = size * len(records)
        rows.append({
            "record": size,
            "raw": measured(lambda at, records=records: raw_write(at, records), whole, len(records)),
            "tape": measured(lambda at, records=records: tape_write(at, records, ()), whole, len(records)),
            "encrypted": measured(
                lambda at, records=records: tape_write(at, records, [recipient]), whole, len(records)
            ),
        })  # fmt: skip
    return rows


def _command(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    text = f"SELECT abalance FROM pgbench_accounts WHERE aid = {number * 7919 % 1_000_000}"
    return {"verb": "SELECT", "kind": "read", "text": text}, {"rule": "developers-read", "verdict": "allow"}


async def _shared(folder: Path, disk: Disk, sessions: int, seconds: float) -> tuple[float, list[float]]:
    recorder = Recorder(folder, SealKey.generate(), disk=disk)
    tapes = [
        recorder.open(protocol="postgres", identity={"subject": "x"}, target="t", mode="durable")
        for _ in range(sessions)
    ]
    answer = material(ANSWER, ANSWER)[0]
    waits: list[float] = []
    started = time.perf_counter()
    end = started + seconds

    async def one(tape: Tape) -> int:
        count = 0
        while (now := time.perf_counter()) < end:
            command, verdict = _command(count)
            verdict["command"] = tape.append(USER, Kind.COMMAND, _pack(command), command)
            tape.append(GATE, Kind.VERDICT, _pack(verdict), verdict)
            await tape.commit()
            waits.append(time.perf_counter() - now)
            tape.append(OUT, Kind.WIRE, answer)
            count += 1
        return count

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(tape)) for tape in tapes]
    rate = sum(task.result() for task in tasks) / (time.perf_counter() - started)
    for tape in tapes:
        await tape.close("closed")
    recorder.close()
    return rate, waits


async def _each(folder: Path, extra: float, sessions: int, seconds: float, threads: int) -> tuple[float, list[float]]:
    """A file for each session, and an fdatasync for each command."""
    answer = material(ANSWER, ANSWER)[0]
    waits: list[float] = []
    started = time.perf_counter()
    end = started + seconds
    pool = ThreadPoolExecutor(threads) if threads else None
    loop = asyncio.get_running_loop()

    def sync(descriptor: int) -> None:
        os.fdatasync(descriptor)
        if extra:
            time.sleep(extra)

    async def one(number: int) -> int:
        descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        count, pending = 0, b""
        while (now := time.perf_counter()) < end:
            command, verdict = _command(count)
            os.write(descriptor, pending + _pack(command) + _pack(verdict))
            if pool is None:
                sync(descriptor)
                await asyncio.sleep(0)
            else:
                await loop.run_in_executor(pool, sync, descriptor)
            waits.append(time.perf_counter() - now)
            pending = answer
            count += 1
        os.close(descriptor)
        return count

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(sessions)]
    rate = sum(task.result() for task in tasks) / (time.perf_counter() - started)
    if pool is not None:
        pool.shutdown()
    return rate, waits


def commits(seconds: float) -> list[dict[str, Any]]:
    """A row for each number of sessions and each disk."""
    rows = []
    for extra in (0.0, EXTRA_SECONDS):
        for sessions in SESSIONS:
            row: dict[str, Any] = {"sessions": sessions, "extra_ms": extra * 1000}
            for name, work in (
                ("shared", lambda at: _shared(at, SlowDisk() if extra else Disk(), sessions, seconds)),  # noqa: B023
                ("file each", lambda at: _each(at, extra, sessions, seconds, 0)),  # noqa: B023
                ("by threads", lambda at: _each(at, extra, sessions, seconds, SYNC_THREADS)),  # noqa: B023
            ):
                best: dict[str, float] = {"rate": 0.0}
                for _ in range(ROUNDS):
                    with tempfile.TemporaryDirectory(prefix="gatecast-bench-") as folder:
                        used = time.process_time()
                        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                            rate, waits = runner.run(work(Path(folder)))
                        cpu = time.process_time() - used
                    waits.sort()
                    if rate > best["rate"]:
                        best = {
                            "rate": rate,
                            "p50_ms": waits[len(waits) // 2] * 1000,
                            "p99_ms": waits[len(waits) * 99 // 100] * 1000,
                            "cpu_us": cpu / len(waits) * 1e6,
                        }
                row[name] = best
            rows.append(row)
    return rows


def report(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = ["| record | raw MB/s | tape MB/s | of raw | records/s | CPU s/GB | encrypted MB/s | CPU s/GB | size |"]
    lines.append("|---" * 9 + "|")
    for row in found["throughput"]:
        raw, tape, sealed = row["raw"], row["tape"], row["encrypted"]
        lines.append(
            f"| {row['record']} B | {raw['mb_s']:.0f} | {tape['mb_s']:.0f} | {tape['mb_s'] / raw['mb_s']:.2f} "
            f"| {tape['records_s']:,.0f} | {tape['cpu_s_gb']:.2f} | {sealed['mb_s']:.0f} | {sealed['cpu_s_gb']:.2f} "
            f"| {tape['ratio']:.2f} |"
        )
    lines += ["", "| disk | sessions | commits/s | p50, p99 ms | CPU us | file each | ratio | by 8 threads | ratio |"]
    lines.append("|---" * 9 + "|")
    for row in found["commits"]:
        ours, each, threads = row["shared"], row["file each"], row["by threads"]
        disk = f"+{row['extra_ms']:.0f} ms" if row["extra_ms"] else "native"
        lines.append(
            f"| {disk} | {row['sessions']:,} | {ours['rate']:,.0f} | {ours['p50_ms']:.2f}, {ours['p99_ms']:.1f} "
            f"| {ours['cpu_us']:.0f} | {each['rate']:,.0f} | {ours['rate'] / each['rate']:.1f} "
            f"| {threads['rate']:,.0f} | {ours['rate'] / threads['rate']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_tape", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the data and of the time")
    parser.add_argument("--json", action="store_true", help="the numbers, for programs")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    total, seconds = (20_000_000, 0.4) if options.quick else (200_000_000, 3.0)
    found = {"throughput": throughput(total), "commits": commits(seconds)}
    print(json.dumps(found, indent=2) if options.json else report(found))


if __name__ == "__main__":
    main()
