"""What a running kubectl cp brings onto the tape: its files, in the place of their bytes.

The bytes themselves are taped where the target's record_contents says so, before the first header of the archive, and
from where it shows that the stream is no archive. Source: issue 5; copies.py.
"""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

from protocols.kubernetes.copies import CopiedFile, Copy, TarFiles
from protocols.kubernetes.handshakes import FLOW
from proxy.core.events import Chunk, Result
from proxy.core.session import Permit, Session
from proxy.core.writers import UserWriter

Direction = Literal["in", "out"]


class Copying:
    """One copy."""

    def __init__(self, session: Session, permit: Permit, copy: Copy, to_user: UserWriter) -> None:
        self._session = session
        self._permit = permit
        self._copy = copy
        self._to_user = to_user
        self._files = TarFiles()
        self._taped = _kept(session, copy)

    def watch(self, data: bytes, direction: Direction) -> bool:
        """Look into a piece of one direction; returns whether the tape gets its bytes."""
        if self._copy.direction != direction:
            return True
        for file in self._files.feed(data):
            self._note(file)
        self._keep_broken()
        return self._taped or not self._files.begun  # before the first header it may be anything

    def finish(self, direction: Direction) -> None:
        """A direction has ended. Safe to call twice."""
        if self._copy.direction == direction:
            for file in self._files.finish():
                self._note(file)
            self._keep_broken()

    def _keep_broken(self) -> None:
        """What is no tar goes onto the tape as it is, from where that shows."""
        if not self._files.broken or self._taped:
            return
        self._taped = True
        self._session.mark("copy", "the stream is no tar archive: from here on it is on the tape as it is")
        held = self._files.held if self._files.begun else b""  # else it is there already
        if held and self._copy.direction == "in":
            self._session.ignored(held, FLOW)
        elif held:
            self._to_user.send(self._permit, Chunk(FLOW, "out", held, b"", _nothing))

    def _note(self, file: CopiedFile) -> None:
        way = "upload" if self._copy.direction == "in" else "download"
        details: dict[str, Any] = {
            "path": file.name, "direction": way, "size": file.size, "complete": file.complete,
        }  # fmt: skip
        if file.sha256:
            details["sha256"] = file.sha256
        self._session.result(self._permit, Result(file.kind, size_bytes=file.size, details=details))


def _nothing(data: bytes) -> bytes:
    """The framing of what was sent before."""
    return b""


def _kept(session: Session, copy: Copy) -> bool:
    """Whether the target's configuration wants the contents of this copy on the tape."""
    globs = session.target.settings.get("record_contents", ())
    return isinstance(globs, tuple) and any(fnmatch.fnmatchcase(copy.path, str(glob)) for glob in globs)
