"""What a row costs under a mask: nanoseconds of CPU a row for rows.py and copy.py.

Rows are (int, text, text, int) of about 65 bytes on the wire, in stretches of 64 KiB as they come from a socket.
The best of some rounds is printed: other work on the machine only ever adds. Run: python benchmarks/rows.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from struct import pack

from protocols.postgres import rows
from protocols.postgres.copy import CopyMask
from protocols.postgres.rows import count_rows, first_rows, rewrite_rows
from proxy.core.events import CellMask
from proxy.core.statement import Copy

ROWS = 200_000
ROUNDS = 7
STRETCH_BYTES = 64 * 1024

Cells = Sequence[CellMask | None]


def best(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest round."""
    seconds = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        seconds = min(seconds, time.process_time() - started)
    return seconds


def show(name: str, work: Callable[[], object], size_bytes: int) -> None:
    seconds = best(work)
    print(f"{name:44} {seconds / ROWS * 1e9:7.0f} ns a row {size_bytes / seconds / 1e6:8.0f} MB/s")


def encode(row: Sequence[bytes]) -> bytes:
    body = pack(">H", len(row)) + b"".join(pack(">i", len(cell)) + cell for cell in row)
    return b"D" + pack(">I", len(body) + 4) + body


def redact(cell: bytes) -> bytes:
    return b"[redacted]"


def leave(cell: bytes) -> bytes:
    return cell


def bench_rows(table: Sequence[Sequence[bytes]]) -> None:
    wire = b"".join(map(encode, table))
    stretches = []
    start = 0
    while start < len(wire):
        end, _ = count_rows(memoryview(wire)[: start + STRETCH_BYTES], start)
        stretches.append(wire[start:end])
        start = end
    cases: dict[str, Cells] = {
        "one text column, constant": [None, b"[redacted]", None, None],
        "one text column, function": [None, redact, None, None],
        "one text column, function leaves it": [None, leave, None, None],
        "last column, constant": [None, None, None, b"0"],
        "two text columns, constants": [None, b"[redacted]", b"***", None],
        "two text columns, functions": [None, redact, redact, None],
    }
    generate = rows.GENERATE_MINIMUM_BYTES
    for walk, minimum in (("generated", generate), ("loops", 1 << 60)):
        rows.GENERATE_MINIMUM_BYTES = minimum  # type: ignore[misc]  # to compare both walks
        for name, cells in cases.items():

            def work(cells: Cells = cells) -> None:
                for stretch in stretches:
                    rewrite_rows(stretch, cells)

            show(f"rewrite_rows: {name} ({walk})", work, len(wire))
    rows.GENERATE_MINIMUM_BYTES = generate  # type: ignore[misc]
    show("count_rows", lambda: count_rows(wire, 0), len(wire))
    show("first_rows", lambda: first_rows(wire, ROWS, [(23, False), (25, False), (25, True), (23, False)]), len(wire))


def bench_copy(table: Sequence[Sequence[bytes]]) -> None:
    text = Copy("out", "t", (), "client", "text", "\t", "\\N", False, '"', '"', False, None)
    csv = Copy("out", "t", (), "client", "csv", ",", "", False, '"', '"', False, None)
    binary = Copy("out", "t", (), "client", "binary", "\t", "\\N", False, '"', '"', False, None)
    header = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
    streams = {
        "text": (text, b"".join(b"\t".join(row) + b"\n" for row in table)),
        "csv": (csv, b"".join(b",".join(row) + b"\n" for row in table)),
        "csv, all quoted": (csv, b"".join(b",".join(b'"%b"' % cell for cell in row) + b"\n" for row in table)),
        "binary": (binary, header + b"".join(encode(row)[5:] for row in table) + b"\xff\xff"),
    }
    for name, (copy, data) in streams.items():
        for kind, cell in (("constant", b"[redacted]"), ("function", redact)):

            def work(copy: Copy = copy, data: bytes = data, cell: CellMask = cell) -> None:
                mask = CopyMask(copy, [None, cell, None, None], 4, "UTF8")
                for at in range(0, len(data), STRETCH_BYTES):
                    mask.feed(data[at : at + STRETCH_BYTES])
                mask.finish()

            show(f"CopyMask.feed: {name}, {kind}", work, len(data))
    lines = [b"\t".join(row) + b"\n" for row in table]
    messages = [b"d" + pack(">I", len(line) + 4) + line for line in lines]
    wires = [b"".join(messages[at : at + 1000]) for at in range(0, ROWS, 1000)]

    def work_messages() -> None:
        mask = CopyMask(text, [None, b"[redacted]", None, None], 4, "UTF8")
        for wire in wires:
            mask.feed_messages(wire)

    show("CopyMask.feed_messages: text, constant", work_messages, sum(map(len, wires)))


def main() -> None:
    table = [
        (b"%d" % number, b"user%d@example.com" % number, b"some name %d" % (number % 977), b"%d" % (number % 100))
        for number in range(ROWS)
    ]
    bench_rows(table)
    bench_copy(table)


if __name__ == "__main__":
    main()
