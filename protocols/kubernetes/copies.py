"""What kubectl cp copies: its command line, and the files in its tar stream.

kubectl cp runs tar in the container: `tar cf - PATH` gives files, `tar -xmf - -C DIR` takes them. TarFiles reads such a
stream as it passes, cut anywhere: of each file the name, the size, the SHA-256; contents are hashed and never held. It
knows ustar, the long names of GNU and the extended headers of pax.

What is not exactly such a stream is said once (`broken`), and nothing of it is read from there: readers of tar differ
in what they make of a malformed one, and a list of files that the target did not see would be worse than none. Names
are told as they stand in the stream; where they end up is the reader's to decide.

Left out: the holes of sparse files (named, without a hash), values of other extended headers, and kubectl's retries of
a download (`sh -c "tar cf - PATH | tail -c+N"`): these are commands of a shell.
Source: k8s.io/kubectl/pkg/cmd/cp; POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; tar(5).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

BLOCK: Final = 512
META_LIMIT: Final = 1024 * 1024  # bytes of a long name or an extended header; Linux' PATH_MAX is 4096
SIZE_LIMIT: Final = 1 << 60  # bytes of one file: more is no size

FileKind = Literal["file", "dir", "symlink", "hardlink", "sparse", "other"]

_KINDS: Final[dict[bytes, FileKind]] = {
    b"\0": "file",
    b"0": "file",
    b"7": "file",  # contiguous: as an ordinary one
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "other",  # devices, FIFOs
    b"4": "other",
    b"5": "dir",
    b"6": "other",
    b"S": "sparse",
}
_META: Final = frozenset(b"LKxg")
_ZEROS: Final = bytes(BLOCK)
_RECORD: Final = re.compile(rb"([1-9][0-9]{0,7}) ")
_IN: Final = frozenset({
    ("tar", "-xmf", "-"),
    ("tar", "-xf", "-"),
    ("tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy by kubectl cp. direction: as the target sees it; path: what is read, or the directory that is filled."""

    direction: Literal["in", "out"]
    path: str


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file of a copy. sha256: of its whole contents, "" where they are not whole, or it has none; link: its target.

    complete: all of it was there.
    """

    name: str
    size: int
    sha256: str
    kind: FileKind
    complete: bool = True
    link: str = ""


def read_copy(argv: Sequence[str]) -> Copy | None:
    """Read a command line; None if it is not exactly one that kubectl cp runs."""
    words = tuple(argv)
    if words in _IN:
        return Copy("in", ".")
    if words[:-2] in _IN and words[-2] == "-C" and not words[-1].startswith("-"):
        return Copy("in", words[-1])
    if words[:3] == ("tar", "cf", "-") and len(words) == 4 and not words[3].startswith("-"):
        return Copy("out", words[3])
    return None


def probed_directory(argv: Sequence[str]) -> str | None:
    """Return the path of the question that kubectl cp asks before it copies (`test -d PATH`); None if it is none."""
    return argv[2] if len(argv) == 3 and tuple(argv[:2]) == ("test", "-d") else None


@dataclass(slots=True)
class _Said:
    """What headers have said of the next file, or of all that follow."""

    name: str = ""
    link: str = ""
    size: int = -1
    sparse: bool = False

    def over(self, other: _Said) -> _Said:
        """These words, and where there are none, others."""
        return _Said(
            self.name or other.name,
            self.link or other.link,
            self.size if self.size >= 0 else other.size,
            self.sparse or other.sparse,
        )


class _Malformed(Exception):
    """This is no tar stream."""


class TarFiles:
    """Files out of a tar stream."""

    def __init__(self) -> None:
        self.begun = False
        """A header was read: it is a tar stream. Before that it may still be anything."""
        self.broken = False
        """What came is no tar stream, or no longer one."""
        self.held = b""
        """Where broken: what came just before the piece that broke it, and belongs to no file that was told of."""
        self._over = False
        self._block = bytearray()  # a header that is not whole
        self._file: CopiedFile | None = None
        self._meta = b""  # the type of the long name or extended header that is being read
        self._text = bytearray()  # its contents
        self._left = 0  # bytes of contents to come
        self._padding = 0  # zeros to come, to the next block
        self._digest = hashlib.sha256()
        self._next = _Said()
        self._global = _Said()
        self._zeros = 0  # blocks of zeros in a row; two end the archive
        self._maps = False  # blocks of a sparse file's map follow its header

    def feed(self, data: bytes) -> list[CopiedFile]:
        """Take a piece of the stream; return the files that are whole now. Never raises."""
        files: list[CopiedFile] = []
        if self._over:
            return files
        before = bytes(self._block)
        view = memoryview(data)
        at, stop = 0, len(data)
        try:
            while at < stop:
                if self._left:
                    at = self._contents(view, at, files)
                elif self._padding:
                    step = min(self._padding, stop - at)
                    at += step
                    self._padding -= step
                else:
                    at = self._header(view, at, files)
        except _Malformed:
            self.broken = True
            self.held = before
            files += self._cut_off()
        return files

    def finish(self) -> list[CopiedFile]:
        """Take the end of the stream; return the file that is cut off by it, if one is. Later calls return none."""
        if not self._over and self._block:
            self.broken = True
            self.held = bytes(self._block)
        return self._cut_off()

    def _cut_off(self) -> list[CopiedFile]:
        file, self._file = self._file, None
        self._over = True
        self._block.clear()
        self._text.clear()
        if file is None:
            return []
        came = 0 if self._maps else file.size - self._left
        return [CopiedFile(file.name, came, "", file.kind, complete=False, link=file.link)]

    # -- contents -------------------------------------------------------------------------------------

    def _contents(self, view: memoryview, at: int, files: list[CopiedFile]) -> int:
        piece = view[at : at + self._left]
        if self._meta:
            self._text += piece
        else:
            self._digest.update(piece)
        self._left -= len(piece)
        if not self._left:
            if self._meta:
                self._take_meta()
            else:
                self._done(files)
        return at + len(piece)

    def _done(self, files: list[CopiedFile]) -> None:
        file, self._file = self._file, None
        assert file is not None
        whole = file.kind == "file"
        sha256 = self._digest.hexdigest() if whole else ""
        files.append(CopiedFile(file.name, file.size, sha256, file.kind, link=file.link))

    # -- headers --------------------------------------------------------------------------------------

    def _header(self, view: memoryview, at: int, files: list[CopiedFile]) -> int:
        piece = view[at : at + BLOCK - len(self._block)]
        self._block += piece
        if len(self._block) == BLOCK:
            block = bytes(self._block)
            self._block.clear()
            if self._maps:
                self._maps = block[504] != 0
                if not self._maps:
                    self._begin_contents(files)
            else:
                self._take_header(block, files)
        return at + len(piece)

    def _take_header(self, block: bytes, files: list[CopiedFile]) -> None:
        if block == _ZEROS:
            self._zeros += 1
            return
        if self._zeros >= 2:
            raise _Malformed  # behind the end of the archive
        self._zeros = 0
        _check_sum(block)
        self.begun = True
        kind, size = block[156:157], _number(block[124:136])
        if block[156] in _META:
            if size > META_LIMIT:
                raise _Malformed
            self._meta, self._left, self._padding = kind, size, -size % BLOCK
            if not size:
                self._take_meta()
            return
        said, self._next = self._next.over(self._global), _Said()
        if said.size >= 0:
            size = said.size
        known = _KINDS.get(kind)
        if known is None:
            raise _Malformed
        if known == "file" and said.sparse:
            known = "sparse"
        if size and known not in ("file", "sparse"):
            raise _Malformed  # readers differ in whether contents follow
        name = said.name or _name(block)
        if known == "file" and kind in (b"\0", b"0") and name.endswith("/") and not size:
            known = "dir"  # before ustar
        link = said.link or _text(block[157:257]) if known in ("symlink", "hardlink") else ""
        self._file = CopiedFile(name, size, "", known, link=link)
        self._maps = kind == b"S" and block[482] != 0
        if not self._maps:
            self._begin_contents(files)

    def _begin_contents(self, files: list[CopiedFile]) -> None:
        file = self._file
        assert file is not None
        self._meta = b""
        self._left, self._padding = file.size, -file.size % BLOCK
        self._digest = hashlib.sha256()
        if not file.size:
            self._done(files)

    def _take_meta(self) -> None:
        """Take a long name, or an extended header, that is whole."""
        meta, text = self._meta, bytes(self._text)
        self._meta = b""
        self._text.clear()
        match meta:
            case b"L":
                self._next.name = _text(text)
            case b"K":
                self._next.link = _text(text)
            case b"x":
                self._next = _extended(text).over(self._next)
            case _:
                self._global = _extended(text).over(self._global)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _name(block: bytes) -> str:
    name = _text(block[:100])
    # GNU's own headers have times where ustar has the prefix.
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _check_sum(block: bytes) -> None:
    """Raise _Malformed unless the sum is right, of bytes or (in old archives) of signed bytes."""
    said = _number(block[148:156])
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 0x20
    if said != unsigned and said != unsigned - 256 * sum(byte >= 0x80 for byte in rest):
        raise _Malformed


def _number(field: bytes) -> int:
    """Read a number: octal digits, or base 256 where the first bit is set."""
    if field[0] >= 0x80:
        number = int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    else:
        digits = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]*", digits):
            raise _Malformed
        number = int(digits or b"0", 8)
    if not 0 <= number < SIZE_LIMIT:
        raise _Malformed
    return number


def _extended(text: bytes) -> _Said:
    """Read an extended header: records of "LENGTH KEY=VALUE\\n", the length with its own digits."""
    said = _Said()
    at = 0
    while at < len(text):
        found = _RECORD.match(text, at)
        end = at + int(found[1]) if found else 0
        if found is None or end > len(text) or end <= found.end() or text[end - 1] != 0x0A:
            raise _Malformed
        key, mark, value = text[found.end() : end - 1].partition(b"=")
        if not mark:
            raise _Malformed
        _take_record(said, key, value)
        at = end
    return said


def _take_record(said: _Said, key: bytes, value: bytes) -> None:
    match key:
        case b"path" | b"GNU.sparse.name":
            if key != b"path" or not said.sparse:
                said.name = value.decode("utf-8", "backslashreplace")
        case b"linkpath":
            said.link = value.decode("utf-8", "backslashreplace")
        case b"size":
            if not re.fullmatch(rb"[0-9]{1,19}", value) or int(value) >= SIZE_LIMIT:
                raise _Malformed
            said.size = int(value)
        case _:
            pass
    if key.startswith(b"GNU.sparse."):
        said.sparse = True
