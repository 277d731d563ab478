"""Reading strangers' SQL in processes of their own, so that hostile text costs its sender an error and nobody else.

There are two requests: read() gives an Analysis, rewrite() puts masks where tables are scanned (bigquery_rewrite.py).

Analysts keeps a few worker processes. Each reads one text at a time under limits of time, memory, files and depth; one
that dies or is slow is killed and replaced, and its text is an opaque Analysis, or stays as it is. What was read is
kept by a hash of the text and its defaults; what a worker died of is not, as a loaded machine may have been the reason.

A worker is this Python with an empty environment, without secrets; it gets texts on stdin as JSON, and answers on
stdout with a pickle, of which only the values of proxy/core/warehouse.py are accepted: a worker that a text took over
could say anything. Both are framed by four bytes of length. It ends when stdin does, so it cannot outlive the gateway
for long.

Left out: fairness between senders (a session asks one at a time); the same text asked for twice at once is read twice.

Source: bigquery note 12, Robustness.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, BinaryIO, Final, TypeVar

from proxy.core import warehouse
from proxy.core.warehouse import Analysis, AnalysisLimits, Replacement, Rewritten, unknown

# The longest that a text may take. An IN list of 20,000 numbers takes 0.7 s (bigquery note 12); the rest is for a
# machine under load.
READ_SECONDS_LIMIT: Final = 2.0
# A fresh worker imports the parser: 0.4 s alone, some seconds on a machine that starts.
START_SECONDS_LIMIT: Final = 30.0
# A process that was killed is gone in milliseconds.
END_SECONDS_LIMIT: Final = 1.0
# Address space of a worker. 256 KB of text make a tree of up to some 200 MB; the interpreter takes 100 MB.
MEMORY_BYTES_LIMIT: Final = 1024 * 1024 * 1024
# An answer about a text of 256 KB quotes it once, and names its columns and tables a few times.
ANSWER_BYTES_LIMIT: Final = 16 * 1024 * 1024
# Texts that one worker reads before another takes its place, against what an interpreter never gives back.
READS_LIMIT: Final = 2_000
# Texts that wait for a worker; at 1 ms each, the last of them waits for 128 ms with two workers.
WAITING_LIMIT: Final = 256
# What is kept: texts of applications; and about 16 MB of them in all.
CACHED_TEXT_LIMIT: Final = 64 * 1024
CACHED_TEXTS_LIMIT: Final = 4_096
CACHED_CHARACTERS_LIMIT: Final = 8 * 1024 * 1024

_HEAD: Final = struct.Struct(">I")
_READY: Final = b"ready"
_VALUES: Final = frozenset({
    "Analysis", "Statement", "Effect", "TableName", "Origin", "ResultColumn", "StarColumns", "Outputs", "Rewritten",
})  # fmt: skip
_MAIN: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from proxy.policy.bigquery_workers import work; work(int(sys.argv[2]))"
)
_TOO_MANY: Final = "too many texts wait to be read"
_TOO_SLOW: Final = "the text took too long or too much to be read"

Answer = TypeVar("Answer", Analysis, Rewritten)


class Analysts:
    """The reading of SQL as a service of the gate. One event loop only; close() at the end."""

    def __init__(
        self,
        limits: AnalysisLimits | None = None,
        *,
        workers: int = 2,
        read_seconds: float = READ_SECONDS_LIMIT,
        memory_bytes: int = MEMORY_BYTES_LIMIT,
    ) -> None:
        self._limits = limits or AnalysisLimits()
        self._read_seconds = read_seconds
        self._memory_bytes = memory_bytes
        self._places = asyncio.Semaphore(workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._waiting = 0
        self._kept: OrderedDict[bytes, Analysis | Rewritten] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._characters = 0
        self._closed = False

    async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
        """Read a text; what cannot be read, or not in time, is an opaque Analysis. Never raises but when cancelled."""
        if len(text) > self._limits.text_bytes:
            return unknown(text, f"the text is longer than {self._limits.text_bytes} bytes")
        found = await self._answer(Analysis, text, project, dataset)
        return unknown(text, found) if isinstance(found, str) else found

    async def rewrite(
        self, text: str, project: str, dataset: str | None, scans: Mapping[str, tuple[Replacement, ...]]
    ) -> Rewritten:
        """Replace the scans of some tables ("project.dataset.table") in a text; one that cannot be stays as it is.

        Never raises but when cancelled.
        """
        if len(text) > self._limits.text_bytes:
            return Rewritten(text, why=f"the text is longer than {self._limits.text_bytes} bytes")
        given = {table: [(each.column, each.expression) for each in columns] for table, columns in scans.items()}
        found = await self._answer(Rewritten, text, project, dataset, given)
        return Rewritten(text, why=found) if isinstance(found, str) else found

    async def _answer(
        self, kind: type[Answer], text: str, project: str, dataset: str | None, scans: _Scans | None = None
    ) -> Answer | str:
        """What is kept, else what a worker says; or why there is nothing."""
        key = _key(text, project, dataset, scans)
        kept = self._kept.get(key)
        if isinstance(kept, kind):
            self._kept.move_to_end(key)
            return kept
        if self._waiting >= WAITING_LIMIT:
            return _TOO_MANY
        request = {"text": text, "project": project, "dataset": dataset, "scans": scans}
        self._waiting += 1
        try:
            async with self._places:
                found = await self._ask(kind, request)
        finally:
            self._waiting -= 1
        if found is None:
            return _TOO_SLOW
        self._keep(key, len(text) if isinstance(found, Analysis) else len(text) + len(found.text), found)
        return found

    async def start(self) -> None:
        """Start one worker ahead of the first text, and see that it works. Raises OSError or TimeoutError."""
        worker = await self._worker()
        self._idle.append(worker)

    async def close(self) -> None:
        """End all workers."""
        self._closed = True
        self._idle.clear()
        for worker in tuple(self._all):
            await self._end(worker)

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return tuple(worker.pid for worker in self._all)

    async def _ask(self, kind: type[Answer], request: dict[str, Any]) -> Answer | None:
        if self._closed:
            return None
        limits = asdict(self._limits) | {"trusted_routines": sorted(self._limits.trusted_routines)}
        request = {**request, "limits": limits}
        worker: _Worker | None = None
        done = False
        try:
            worker = self._idle.pop() if self._idle else await self._worker()
            async with asyncio.timeout(self._read_seconds):
                answer = await worker.ask(json.dumps(request).encode())
            found = _unpickle(answer)
            if not isinstance(found, kind):
                raise pickle.UnpicklingError(f"the answer is no {kind.__name__}")
            done = True
            return found
        except Exception:  # fails closed: a worker that died, is slow or talks nonsense costs this text its reading
            return None
        finally:
            if worker is not None:
                if done and worker.reads < READS_LIMIT and not self._closed:
                    self._idle.append(worker)
                else:
                    await self._end(worker)

    async def _worker(self) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", _MAIN, json.dumps(sys.path), str(self._memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
        )  # fmt: skip
        worker = _Worker(process)
        self._all.add(worker)
        try:
            async with asyncio.timeout(START_SECONDS_LIMIT):
                if await worker.answer() != _READY:
                    raise OSError("a worker did not start")
        except BaseException:
            await self._end(worker)
            raise
        return worker

    async def _end(self, worker: _Worker) -> None:
        """Kill a worker; a cancellation meanwhile leaves it killed all the same."""
        worker.kill()
        self._all.discard(worker)
        await worker.gone()

    def _keep(self, key: bytes, size: int, answer: Analysis | Rewritten) -> None:
        if size > CACHED_TEXT_LIMIT or key in self._kept:
            return
        self._kept[key] = answer
        self._sizes[key] = size
        self._characters += size
        while len(self._kept) > CACHED_TEXTS_LIMIT or self._characters > CACHED_CHARACTERS_LIMIT:
            oldest, _ = self._kept.popitem(last=False)
            self._characters -= self._sizes.pop(oldest)


class _Worker:
    """One process and its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self.reads = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, request: bytes) -> bytes:
        self.reads += 1
        self._stdin.write(_HEAD.pack(len(request)) + request)
        await self._stdin.drain()
        return await self.answer()

    async def answer(self) -> bytes:
        (size,) = _HEAD.unpack(await self._stdout.readexactly(_HEAD.size))
        if size > ANSWER_BYTES_LIMIT:
            raise OSError("an answer is too long")
        return await self._stdout.readexactly(size)

    def kill(self) -> None:
        """End it; one whose output has ended is ending by itself (asyncio would complain of a signal to the dead)."""
        self._stdin.close()
        if not self._stdout.at_eof():
            self._signal()

    def _signal(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def gone(self) -> None:
        try:
            async with asyncio.timeout(END_SECONDS_LIMIT):
                await self._process.wait()
        except TimeoutError:  # it closed its output and lives on
            self._signal()
            await self._process.wait()


class _Unpickler(pickle.Unpickler):
    """Makes values of proxy/core/warehouse.py and nothing else."""

    def find_class(self, module: str, name: str) -> Any:  # the base class's own signature
        if module == warehouse.__name__ and name in _VALUES:
            return getattr(warehouse, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an answer")


def _unpickle(answer: bytes) -> Analysis | Rewritten:
    found = _Unpickler(io.BytesIO(answer)).load()
    if type(found) not in (Analysis, Rewritten):
        raise pickle.UnpicklingError("the answer is neither an Analysis nor a text")
    made: Analysis | Rewritten = found
    return made


# Table -> its columns, each with its expression: Replacement as JSON has it.
_Scans = dict[str, list[tuple[str, str]]]


def _key(text: str, project: str, dataset: str | None, scans: _Scans | None) -> bytes:
    digest = hashlib.sha256(json.dumps([project, dataset, scans]).encode())
    digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def work(memory_bytes: int) -> None:
    """The life of a worker process: read texts from stdin until it ends."""
    import resource  # here and not above: only a worker limits itself

    # The parser is never imported into the gateway's own process.
    from proxy.policy.bigquery import analyse
    from proxy.policy.bigquery_rewrite import rewrite

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    analyse("SELECT 1", "warm", None)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    _say(stdout, _READY)
    while head := stdin.read(_HEAD.size):
        request = json.loads(stdin.read(_HEAD.unpack(head)[0]))
        given = request["limits"]
        given["trusted_routines"] = frozenset(given["trusted_routines"])
        asked = (request["text"], request["project"], request["dataset"])
        found: Analysis | Rewritten
        if request["scans"] is None:
            found = analyse(*asked, AnalysisLimits(**given))
        else:
            scans = {table: tuple(Replacement(*each) for each in given) for table, given in request["scans"].items()}
            found = rewrite(*asked, scans, AnalysisLimits(**given))
        _say(stdout, pickle.dumps(found, protocol=5))


def _say(stdout: BinaryIO, answer: bytes) -> None:
    stdout.write(_HEAD.pack(len(answer)) + answer)
    stdout.flush()
