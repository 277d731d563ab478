"""A Content between two pipes: run by sftp -D and scp -S in place of the server, it runs the server itself.

    python content_pump.py SETTINGS.json LOG.jsonl COMMAND...

SETTINGS: {"content": "sftp" | "scp" (its argv is the last word of COMMAND), "deny": [[verb glob, object glob]],
"hold": [...the same], "record": [globs], "cut": bytes a piece at most, 0 = as they come}.
LOG: one line for each command, verdict and result.
The policy is in settings, the waist is not here: a permit is a name only.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from protocols.ssh.scp import scp_content  # noqa: E402
from protocols.ssh.sftp import sftp_content  # noqa: E402
from proxy.core.errors import Refused  # noqa: E402
from proxy.core.events import Command  # noqa: E402
from proxy.core.session import Permit  # noqa: E402
from proxy.core.verdict import Deny  # noqa: E402
from proxy.terminal.content import Ask, Broken, Content, Done, Settings, Step, ToTarget, ToUser  # noqa: E402

PIECE = 64 * 1024
AHEAD = 64  # pieces that may wait for a writer before its source is read on


class Pump:
    """One running channel."""

    def __init__(self, settings: dict[str, Any], log: Path, argv: list[str]) -> None:
        self.settings = settings
        self.log: IO[str] = log.open("a", encoding="utf-8")
        self.events: queue.Queue[tuple[str, bytes]] = queue.Queue(AHEAD)
        self.server = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self.outs: dict[str, queue.Queue[bytes | None]] = {name: queue.Queue() for name in ("target", "out", "err")}
        about = Settings(7, "box", settings.get("login", "alice"), tuple(settings.get("record", ())))
        content = sftp_content(about) if settings["content"] == "sftp" else scp_content(argv[-1], about)
        if content is None:
            raise SystemExit("no content for this")
        self.content: Content = content
        self.code: int | None = None

    def run(self) -> int:
        """Pump until the server has ended; returns its exit status."""
        streams = {"target": self.server.stdin, "out": sys.stdout.buffer, "err": sys.stderr.buffer}
        writers = [
            threading.Thread(target=self._write, args=(stream, self.outs[name]), daemon=True)
            for name, stream in streams.items()
        ]
        readers = [
            threading.Thread(target=self._read, args=(name, stream, self.outs[to]), daemon=True)
            for name, stream, to in (
                ("user", sys.stdin.buffer, "target"),
                ("out", self.server.stdout, "out"),
                ("err", self.server.stderr, "err"),
            )
        ]
        for thread in (*writers, *readers):
            thread.start()
        self._loop()
        for each in self.outs.values():
            each.put(None)
        self.code = self.server.wait()
        for writer in writers:
            writer.join()
        self._do(self.content.ended(time.monotonic()))
        return self.code

    def _loop(self) -> None:
        open_ends = {"out", "err"}
        while open_ends and self.code is None:
            name, data = self.events.get()
            now = time.monotonic()
            if name == "user":
                if data:
                    self._do(self.content.from_user(data, now))
                else:
                    self._do(self.content.user_eof(now))
                    self.outs["target"].put(None)
            elif data:
                self._do(self.content.from_target("out" if name == "out" else "err", data, now))
            else:
                open_ends.discard(name)
                if name == "out":
                    self._do(self.content.target_eof(now))

    def _do(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case ToTarget():
                    self.outs["target"].put(step.data)
                case ToUser():
                    self.outs[step.stream].put(step.data)
                case Ask():
                    self._decide(step)
                case Done():
                    result = step.result
                    self._tell("done", step.permit.command, tag=result.tag, count=result.row_count, **result.details)
                case Broken():
                    self._tell("broken", None, text=step.text)
                    self.outs["err"].put(step.text.encode() + b"\n")
                    self.server.kill()
                    self.code = 1

    def _decide(self, ask: Ask) -> None:
        command = ask.command
        now = time.monotonic()
        if self._matches("hold", command):
            self._tell("held", command)
            self._do(self.content.waiting(ask, 'held by rule "test"'))
        if self._matches("deny", command):
            self._tell("denied", command)
            self._do(self.content.refused(ask, Refused(Deny("test", "not here")), now))
            return
        self._tell("allowed", command)
        if ask.data:
            self.outs["target"].put(ask.data)
        self._do(self.content.allowed(ask, cast(Permit, SimpleNamespace(command=command)), now))

    def _matches(self, key: str, command: Command) -> bool:
        verbs = [command.verb, *(part.verb for part in command.parts)]
        return any(
            fnmatchcase(verb, one) and any(fnmatchcase(name, other) for name in command.objects)
            for one, other in self.settings.get(key, ())
            for verb in verbs
        )

    def _tell(self, what: str, command: Command | None, **more: object) -> None:
        entry: dict[str, object] = {"what": what, **more}
        if command is not None:
            entry |= {"verb": command.verb, "text": command.text, "objects": list(command.objects)}
            entry["facts"] = dict(command.facts)
        self.log.write(json.dumps(entry) + "\n")
        self.log.flush()

    def _read(self, name: str, stream: IO[bytes], other: queue.Queue[bytes | None]) -> None:
        size = self.settings.get("cut") or PIECE
        while True:
            while other.qsize() > AHEAD:
                time.sleep(0.001)
            data = os.read(stream.fileno(), size)
            self.events.put((name, data))
            if not data:
                return

    def _write(self, stream: IO[bytes], source: queue.Queue[bytes | None]) -> None:
        while (data := source.get()) is not None:
            try:
                view = memoryview(data)
                while view:
                    view = view[stream.write(view) :]
                stream.flush()
            except OSError:
                continue  # whoever read it has left; what comes is dropped
        if stream is self.server.stdin:
            stream.close()


if __name__ == "__main__":
    pump = Pump(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3:])
    status = pump.run()
    pump.log.close()
    os._exit(status)  # a reader may still wait for a user who says nothing more
