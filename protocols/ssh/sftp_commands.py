"""SFTP requests as Commands: which files they are about, by the names that the target itself gives them.

A path is decided on by its real name. The gate asks the target (REALPATH) for the directory that the path's last part
is in, so that neither `..` nor a symbolic link on the way hides where it leads; and where the operation would follow a
symbolic link at the very end, for the whole path as well. Both names are objects of the command if they differ: an
allow needs all objects, a deny one.

Where the target gives no answer (a directory that does not exist) the path is joined and shortened as text, and
facts["resolved"] is False. Such a request is decided, and taped, but never sent: if it is allowed it is answered with
the status that the target gave to REALPATH. For what REALPATH cannot resolve may open all the same: OpenSSH's follows
32 links and 4,096 characters in all, the kernel 40 and as many in each. Two cases do no harm and pass: a name in a
known directory where there is nothing (LSTAT says so; some servers' REALPATH wants an existing file), and what a new
symbolic link holds, for that is resolved when somebody goes there.

What this cannot promise: a path may come to mean something else between the answer and the operation, if somebody else
on the target (or another channel of the same user) moves a link at that moment, or while a human decides; and a server
whose REALPATH does not resolve links (OpenSSH's does) hides them. Text that is not UTF-8 is shown as \\xNN.

facts: path (the first object), paths (all), flags (of an OPEN), via "sftp", resolved, login.

Specification: draft-ietf-secsh-filexfer-02 sections 6.3 to 6.11; OpenSSH's PROTOCOL file, section 4.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from protocols.ssh.sftp_wire import (
    FXF_READ,
    FXF_WRITE,
    OPEN,
    SYMLINK,
    Attributes,
    Request,
    flag_words,
)
from protocols.ssh.transfers import FILE_VERBS, shown
from proxy.core.events import Command
from proxy.terminal.content import Settings

PROTOCOL = "ssh"


@dataclass(slots=True)
class Place:
    """One path of a request. Of parent and whole, those that are not None are to be asked of the target.

    real_parent and real_whole are its answers: None where it had none. loose: its text will do in that case.
    """

    raw: bytes
    parent: bytes | None
    last: bytes
    whole: bytes | None
    real_parent: bytes | None = None
    real_whole: bytes | None = None
    loose: bool = False

    def names(self, home: bytes) -> tuple[list[str], bool]:
        """Return the absolute names that the path may stand for, and whether the target vouched for them."""
        names: list[bytes] = []
        if self.real_parent is not None:
            names.append(self.real_parent.rstrip(b"/") + b"/" + self.last)
        if self.real_whole is not None and self.real_whole not in names:
            names.append(self.real_whole)
        resolved = bool(names) and (self.whole is None or self.real_whole is not None)
        return [as_text(name) for name in names or [absolute(self.raw, home)]], resolved


def place(raw: bytes, follow: bool) -> Place:
    """Tell what to ask about a path. An empty one stands for where the target starts."""
    trimmed = raw.rstrip(b"/") if raw.strip(b"/") else raw[:1]
    head, slash, last = trimmed.rpartition(b"/")
    if last in (b"", b".", b".."):  # the root, or what has no name of its own
        return Place(raw, None, b"", trimmed or b".")
    # A slash at the end makes the target follow a link there.
    whole = trimmed if follow or trimmed != raw else None
    return Place(raw, head or (b"/" if slash else b"."), last, whole)


def places(request: Request) -> list[Place]:
    """The paths of a request, in the order of its objects."""
    paths = request.paths
    if request.operation.code == SYMLINK:
        holds, link = paths
        if not holds.startswith(b"/"):  # it counts from where the link is
            holds = link.rstrip(b"/").rpartition(b"/")[0] + (b"/" if b"/" in link.rstrip(b"/") else b"") + holds
        held = place(holds, True)
        held.loose = True
        return [place(link, False), held]
    return [place(path, follow) for path, follow in zip(paths, request.operation.follow, strict=True)]


def absolute(path: bytes, start: bytes) -> bytes:
    """Make a path absolute and drop `.`, `..` and doubled slashes, by its text alone."""
    return b"/" + posixpath.normpath(posixpath.join(start, path)).lstrip(b"/")


def real_name(answer: bytes) -> bytes | None:
    """A name that REALPATH gave, if it is of use: absolute, nothing left to resolve."""
    return absolute(answer, b"/") if answer.startswith(b"/") and b"\0" not in answer else None


def as_text(path: bytes) -> str:
    """A path as text for rules, tape and people."""
    return path.decode("utf-8", "backslashreplace")


def command(request: Request, names: Sequence[Sequence[str]], resolved: bool, settings: Settings) -> Command:
    """Make the Command of a request. names: for each of its paths or handles, what it stands for."""
    objects = tuple(dict.fromkeys(name for each in names for name in each))
    firsts = [each[0] for each in names]
    facts: dict[str, object] = {
        "path": firsts[0],
        "paths": objects,
        "via": "sftp",
        "resolved": resolved,
        "login": settings.login,
    }
    verb = request.operation.verb
    verbs = [verb]
    more = ""
    if request.operation.code == OPEN:
        flags = request.numbers[0]
        facts["flags"] = flag_words(flags)
        verbs = open_verbs(flags)
        more = f" ({flag_words(flags)})" if flags != FXF_READ else ""
    elif request.attributes is not None and verb == "file-setstat":
        more = f" ({_changes(request.attributes)})"
    elif verb == "file-link":
        more = " (hard)" if request.operation.code != SYMLINK else ""
    elif verb == "file-copy":
        more = _extent(request.numbers)
    text = " -> ".join(shown(name) for name in firsts) + _also(firsts, objects) + more

    def one(name: str) -> Command:
        return Command(
            PROTOCOL, name, FILE_VERBS[name], f"{name} {text}", objects=objects, facts=facts, flow=settings.flow
        )

    if len(verbs) == 1:
        return one(verbs[0])
    whole = one("file-write")
    return Command(
        PROTOCOL, whole.verb, whole.kind, whole.text, objects=objects, facts=facts, flow=settings.flow,
        parts=tuple(one(name) for name in verbs),
    )  # fmt: skip


def open_verbs(flags: int) -> list[str]:
    """Which verbs an OPEN is: what may create, empty or add to a file writes, even where it says only READ.

    Source: draft 6.3; sftp-server.c: without WRITE a file is opened for reading, and O_TRUNC works even so.
    """
    verbs = []
    if flags & FXF_READ or not flags & FXF_WRITE:
        verbs.append("file-read")
    if flags & ~FXF_READ:
        verbs.append("file-write")
    return verbs


def _also(firsts: Sequence[str], objects: Sequence[str]) -> str:
    others = [shown(name) for name in objects if name not in firsts]
    return f" (a link to {', '.join(others)})" if others else ""


def _changes(attributes: Attributes) -> str:
    words = []
    if attributes.size is not None:
        words.append(f"size {attributes.size}")
    if attributes.owner is not None:
        words.append(f"owner {attributes.owner[0]}:{attributes.owner[1]}")
    if attributes.permissions is not None:
        words.append(f"mode {attributes.permissions & 0o7777:04o}")
    if attributes.times is not None:
        words.append("times")
    return ", ".join(words) or "nothing"


def _extent(numbers: Sequence[int]) -> str:
    start, length, to = numbers
    size = f"{length} bytes" if length else "to its end"  # copy-data: 0 is up to the end
    return "" if (start, length, to) == (0, 0, 0) else f" (from {start}, {size}, to {to})"
