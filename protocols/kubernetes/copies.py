"""The tar of kubectl cp: who is copying what, and which files pass, without holding them.

kubectl cp runs tar in the container and speaks tar itself: ``tar cf - PATH`` out, ``tar -xmf - -C DIR`` in, ``test -d``
before it. read_copy tells these argvs; TarFiles takes the stream in any pieces and gives each file with its name, its
size and the SHA-256 of its content. What is no tar says so once, and is left alone.

Known: ustar, GNU long names, pax paths and sizes. Left out: sparse files, whose content here is what passes.
Source: kubectl/pkg/cmd/cp/cp.go; POSIX pax, ustar and pax formats; the standard library's tarfile for heads.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

BLOCK_BYTES: Final = 512
EXTENSION_LIMIT: Final = 256 * 1024  # of a long name, or of a pax head: PATH_MAX is 4 KiB, and a head has few records
NAME_LIMIT: Final = 4096  # PATH_MAX
_EXTRACT: Final = (("tar", "-xmf", "-"), ("tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-"))
_CONTENT: Final = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE})
_KINDS: Final = {
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "link",
}


@dataclass(frozen=True, slots=True)
class Copy:
    """What a kubectl cp copies. direction: as seen from the container. path: there."""

    direction: Literal["in", "out"]
    path: str


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """One entry of the tar. sha256: of the content, in hex, "" where there is none or not all of it came."""

    name: str
    kind: str
    size: int
    sha256: str
    complete: bool


def read_copy(argv: Sequence[str]) -> Copy | None:
    """Tell whether a command is the tar of kubectl cp; None for any other."""
    words = tuple(argv)
    if len(words) == 4 and words[:3] == ("tar", "cf", "-"):
        return Copy("out", words[3])
    for extract in _EXTRACT:
        if words == extract:
            return Copy("in", ".")
        if len(words) == len(extract) + 2 and words[:-2] == extract and words[-2] == "-C":
            return Copy("in", words[-1])
    return None


class TarFiles:
    """Reads a tar as it passes."""

    def __init__(self) -> None:
        self.broken = False  # it is no tar, or not one that can be read on
        self._block = bytearray()  # of a head
        self._left = 0  # of the content
        self._padding = 0
        self._info: tarfile.TarInfo | None = None
        self._hash: Any = None
        self._extension: bytearray | None = None
        self._named: dict[str, str] = {}  # what an extension says of the next entry
        self._over = False

    def feed(self, data: bytes) -> list[CopiedFile]:
        """Take a piece; return the entries that are whole now."""
        found: list[CopiedFile] = []
        view = memoryview(data)
        while len(view) and not self.broken and not self._over:
            if self._left:
                view = self._content(view, found)
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                wanted = BLOCK_BYTES - len(self._block)
                self._block += view[:wanted]
                view = view[wanted:]
                if len(self._block) == BLOCK_BYTES:
                    self._head(bytes(self._block), found)
                    self._block.clear()
        return found

    def finish(self) -> list[CopiedFile]:
        """The stream has ended: return what was in the middle. Safe to call twice."""
        info, self._info = self._info, None
        if info is None or self._extension is not None or not self._left:
            return []
        return [CopiedFile(self._name(info), _kind(info), info.size - self._left, "", False)]

    def _content(self, view: memoryview, found: list[CopiedFile]) -> memoryview:
        piece = view[: self._left]
        self._left -= len(piece)
        if self._extension is not None:
            self._extension += piece
        elif self._hash is not None:
            self._hash.update(piece)
        if not self._left:
            self._entry_ends(found)
        return view[len(piece) :]

    def _head(self, block: bytes, found: list[CopiedFile]) -> None:
        if not any(block):
            self._over = True  # two blocks of zeros end an archive; what follows is padding
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            self.broken = True
            return
        size = self._named.pop("size", "")
        if size:
            if not size.isdecimal() or len(size) > 18:
                self.broken = True
                return
            info.size = int(size)
        self._info = info
        extends = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        has_content = extends or info.type in _CONTENT or info.type not in tarfile.SUPPORTED_TYPES
        self._left = info.size if has_content else 0
        if self._left < 0 or (extends and self._left > EXTENSION_LIMIT):
            self.broken = True
            return
        self._padding = -self._left % BLOCK_BYTES
        self._extension = bytearray() if extends else None
        self._hash = hashlib.sha256() if info.type in _CONTENT else None
        if not self._left:
            self._entry_ends(found)

    def _entry_ends(self, found: list[CopiedFile]) -> None:
        info, self._info = self._info, None
        assert info is not None
        if self._extension is not None:
            self._extend(info.type, bytes(self._extension))
            self._extension = None
            return
        digest = self._hash.hexdigest() if self._hash is not None else ""
        size = info.size if self._hash is not None else 0
        found.append(CopiedFile(self._name(info), _kind(info), size, digest, True))
        self._named.clear()

    def _extend(self, kind: bytes, data: bytes) -> None:
        if kind == tarfile.GNUTYPE_LONGNAME:
            self._named["path"] = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind == tarfile.XHDTYPE:
            at = 0
            while at < len(data):
                digits, _, _ = data[at : at + 12].partition(b" ")
                size = int(digits) if digits.isdigit() else 0
                record = data[at : at + size]
                if size <= len(digits) + 1 or not record.endswith(b"\n"):
                    self.broken = True
                    return
                name, _, value = record[len(digits) + 1 : -1].partition(b"=")
                if name in (b"path", b"size"):
                    self._named[name.decode()] = value.decode("utf-8", "surrogateescape")
                at += size

    def _name(self, info: tarfile.TarInfo) -> str:
        name = self._named.get("path", info.name)[:NAME_LIMIT]
        return name.encode("utf-8", "replace").decode()


def _kind(info: tarfile.TarInfo) -> str:
    return "file" if info.type in _CONTENT else _KINDS.get(info.type, "special file")
