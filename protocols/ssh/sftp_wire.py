"""SFTP version 3: a channel's data to packets and back, requests to values, replies of the gate to bytes.

Cutter finds the packets in what comes in any pieces. A packet is handed on whole, except where its body is bulk that
nobody decodes (WRITE, DATA, the names of a directory, extended replies): of these the head comes first and the body as
it arrives. Nothing that a small window could keep from arriving is waited for, and no body is copied here.

OPERATIONS and EXTENSIONS list every request that is understood: its verb, the layout of its fields, whether the target
follows a symbolic link at the end of its path, and whether it changes what a path means. Left out: versions 4 to 6, and
every extension that is not listed.

Specification: draft-ietf-secsh-filexfer-02; OpenSSH's PROTOCOL file, section 4. SYMLINK has its arguments in OpenSSH's
order (what the link holds, then where it is), as all clients and nearly all servers do, against the draft.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

PACKET_LIMIT: Final = 256 * 1024 + 1024  # OpenSSH's SFTP_MAX_MSG_LENGTH, and a header: ssh note 6
READ_LIMIT: Final = 255 * 1024  # what OpenSSH's sftp-server reads and writes at most at once (sftp-server.c)
HANDLE_LIMIT: Final = 256  # the draft, section 4 (and 6.2): a handle is at most 256 bytes
PATH_LIMIT: Final = 32 * 1024  # Windows' 32,767 characters; Linux's PATH_MAX is 4,096
EXTENSIONS_LIMIT: Final = 256  # pairs in a VERSION; OpenSSH has 11: ours
LANGUAGE: Final = b""

VERSION_NUMBER: Final = 3

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = 13, 14, 15, 16, 17, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201

FX_OK, FX_EOF, FX_NO_SUCH_FILE, FX_PERMISSION_DENIED, FX_FAILURE, FX_BAD_MESSAGE = 0, 1, 2, 3, 4, 5
FX_OP_UNSUPPORTED = 8
STATUS_TEXTS: Final[Mapping[int, str]] = {
    0: "ok", 1: "end of file", 2: "no such file", 3: "permission denied", 4: "failure", 5: "bad message",
    6: "no connection", 7: "connection lost", 8: "operation unsupported",
}  # fmt: skip

FXF_READ, FXF_WRITE, FXF_APPEND, FXF_CREAT, FXF_TRUNC, FXF_EXCL = 1, 2, 4, 8, 16, 32
FLAG_NAMES: Final = ((1, "read"), (2, "write"), (4, "append"), (8, "create"), (16, "truncate"), (32, "exclusive"))

ATTR_SIZE, ATTR_UIDGID, ATTR_PERMISSIONS, ATTR_TIMES, ATTR_EXTENDED = 1, 2, 4, 8, 0x80000000

U32: Final = Struct(">I")
U64: Final = Struct(">Q")
IDENTIFIED: Final = Struct(">IBI")  # length, type, request id
EXTENT: Final = Struct(">QI")  # offset, length
LIMITS: Final = Struct(">QQQQ")  # limits@openssh.com: packet, read, write, open handles (0: no limit)
COUNTED_BYTES: Final = 13  # length, type, id, and the length or count of what follows: DATA, NAME


class Malformed(Exception):
    """A peer's bytes are no SFTP; the text says how. It never leaves the Contents: they make a Broken of it."""


class Unfit(Exception):
    """A request that is well formed but cannot be passed: it is answered with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request. verb '' is plumbing: nobody decides on it.

    layout: p path, h handle, u number, q long number, a attributes, s another string, each in the order of the wire.
    follow: for each path, whether the target follows a symbolic link at its end. moves: afterwards other paths may
    mean something else.
    """

    code: int
    name: str
    layout: str
    verb: str = ""
    follow: tuple[bool, ...] = ()
    moves: bool = False


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of a file, as far as they were given."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    permissions: int | None = None
    times: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the user, decoded."""

    id: int
    operation: Operation
    paths: tuple[bytes, ...] = ()
    handles: tuple[bytes, ...] = ()
    numbers: tuple[int, ...] = ()
    attributes: Attributes | None = None


OPERATIONS: Final[Mapping[int, Operation]] = {
    each.code: each
    for each in (
        Operation(OPEN, "open", "pua", "file-read", (True,)),  # file-write or both, by its flags
        Operation(CLOSE, "close", "h"),
        Operation(READ, "read", "hqu"),
        Operation(WRITE, "write", "hqs"),
        Operation(LSTAT, "lstat", "p", "file-stat", (False,)),
        Operation(FSTAT, "fstat", "h"),
        Operation(SETSTAT, "setstat", "pa", "file-setstat", (True,)),
        Operation(FSETSTAT, "fsetstat", "ha", "file-setstat"),
        Operation(OPENDIR, "opendir", "p", "file-list", (True,)),
        Operation(READDIR, "readdir", "h"),
        Operation(REMOVE, "remove", "p", "file-remove", (False,)),
        Operation(MKDIR, "mkdir", "pa", "file-mkdir", (False,), moves=True),
        Operation(RMDIR, "rmdir", "p", "file-rmdir", (False,)),
        Operation(REALPATH, "realpath", "s"),
        Operation(STAT, "stat", "p", "file-stat", (True,)),
        Operation(RENAME, "rename", "pp", "file-rename", (False, False), moves=True),
        Operation(READLINK, "readlink", "p", "file-readlink", (False,)),
        Operation(SYMLINK, "symlink", "pp", "file-link", (True, False), moves=True),
    )
}

# By name, with the version that a server announces. A hard link of a symbolic link may be one to what that points to
# (POSIX leaves it open), so its first path is followed as well.
EXTENSIONS: Final[Mapping[bytes, tuple[bytes, Operation]]] = {
    each.name.encode(): (version, each)
    for version, each in (
        (b"1", Operation(EXTENDED, "posix-rename@openssh.com", "pp", "file-rename", (False, False), moves=True)),
        (b"2", Operation(EXTENDED, "statvfs@openssh.com", "p", "file-statvfs", (True,))),
        (b"2", Operation(EXTENDED, "fstatvfs@openssh.com", "h", "file-statvfs")),
        (b"1", Operation(EXTENDED, "hardlink@openssh.com", "pp", "file-link", (True, False), moves=True)),
        (b"1", Operation(EXTENDED, "fsync@openssh.com", "h")),
        (b"1", Operation(EXTENDED, "lsetstat@openssh.com", "pa", "file-setstat", (False,))),
        (b"1", Operation(EXTENDED, "limits@openssh.com", "")),
        (b"1", Operation(EXTENDED, "expand-path@openssh.com", "s")),
        (b"1", Operation(EXTENDED, "copy-data", "hqqhq", "file-copy")),
        (b"1", Operation(EXTENDED, "home-directory", "s")),
        (b"1", Operation(EXTENDED, "users-groups-by-id@openssh.com", "ss")),
    )
}
# Those that are answered with a NAME, as REALPATH is: PROTOCOL 4.9 and 4.11.
NAMING: Final = frozenset({"expand-path@openssh.com", "home-directory"})


class Piece(NamedTuple):
    """Bytes start to end of source: a packet or its head (first), or some of its body. rest: what follows of it."""

    source: bytes
    start: int
    end: int
    first: bool
    rest: int


# Given a packet's first bytes (buffer, where it starts, how many are there, its length in all): how many bytes are
# its head, behind which the body may be handed on in pieces; 0: it is wanted whole. At least 9 bytes are there.
HeadRule = Callable[[bytes | bytearray, int, int, int], int]


class Cutter:
    """Cuts one direction of a channel into pieces of packets."""

    def __init__(self, head: HeadRule) -> None:
        self._head = head
        self._sources: deque[bytes] = deque()
        self._at = 0  # in the first source
        self._partial = bytearray()
        self._left = 0  # of the body that is being handed on
        self.waiting = 0  # bytes that were fed and not yet handed on

    def feed(self, data: bytes) -> None:
        """Take data; next() gives them back as pieces."""
        if data:
            self._sources.append(data)
            self.waiting += len(data)

    def next(self) -> Piece | None:
        """Return the next piece, None if it takes more data. Raises Malformed."""
        if self._left:
            return self._body()
        while True:
            buffer: bytes | bytearray
            if self._partial or not self._sources:
                buffer, at, have = self._partial, 0, len(self._partial)
            else:
                buffer, at = self._sources[0], self._at
                have = len(buffer) - at
            need, total = self._need(buffer, at, have)
            if have >= need:
                break
            if not self._pull(need - have):
                return None
        self._left = total - need
        self.waiting -= need
        if buffer is self._partial:
            source = bytes(self._partial)
            self._partial.clear()
            return Piece(source, 0, need, True, self._left)
        assert isinstance(buffer, bytes)
        self._advance(at + need)
        return Piece(buffer, at, at + need, True, self._left)

    def clear(self) -> None:
        """Forget all that waits."""
        self._sources.clear()
        self._partial.clear()
        self._at = self._left = self.waiting = 0

    def drain(self) -> bytes:
        """Return what waits, and forget it: whole packets, heads without their bodies, and what is neither."""
        kept = bytearray()
        try:
            while (piece := self.next()) is not None:
                if piece.first:
                    kept += piece.source[piece.start : piece.end]
        except Malformed:
            pass
        kept += self._partial
        for source in self._sources:
            kept += memoryview(source)[self._at :]
            self._at = 0
        self.clear()
        return bytes(kept)

    def _body(self) -> Piece | None:
        if not self._sources:
            return None
        source, at = self._sources[0], self._at
        end = min(len(source), at + self._left)
        self._left -= end - at
        self.waiting -= end - at
        self._advance(end)
        return Piece(source, at, end, False, self._left)

    def _advance(self, to: int) -> None:
        if to == len(self._sources[0]):
            self._sources.popleft()
            self._at = 0
        else:
            self._at = to

    def _need(self, buffer: bytes | bytearray, at: int, have: int) -> tuple[int, int]:
        if have < U32.size:
            return U32.size, U32.size
        total = U32.unpack_from(buffer, at)[0] + U32.size
        if not IDENTIFIED.size <= total <= PACKET_LIMIT:  # the shortest is INIT
            raise Malformed(f"a packet of {total} bytes")
        if have < IDENTIFIED.size:
            return IDENTIFIED.size, total
        head = self._head(buffer, at, have, total)
        return (min(head, total) if head else total), total

    def _pull(self, wanted: int) -> bool:
        """Move what there is of the wanted bytes into the partial packet; False if nothing came."""
        if not self._sources:
            return False
        source, at = self._sources[0], self._at
        # All that is left of this source is too little for what is needed, so it is moved whole the first time.
        end = min(len(source), at + wanted) if self._partial else len(source)
        self._partial += memoryview(source)[at:end]
        self._advance(end)
        return True


def write_head(source: bytes, start: int, rest: int) -> tuple[bytes, int, int]:
    """Read a WRITE's head, with rest bytes behind it: the handle, the offset, the size. Raises Malformed."""
    handle_at = start + COUNTED_BYTES
    extent_at = handle_at + int(U32.unpack_from(source, start + IDENTIFIED.size)[0])
    offset, size = EXTENT.unpack_from(source, extent_at)
    if size != rest:
        raise Malformed("a WRITE whose data are not as long as it says")
    return source[handle_at:extent_at], offset, size


def request_head(buffer: bytes | bytearray, at: int, have: int, total: int) -> int:
    """The HeadRule of what a user sends: the data of a WRITE follow its head."""
    if buffer[at + 4] != WRITE:
        return 0
    if total < COUNTED_BYTES:
        raise Malformed("a WRITE without a handle")
    if have < COUNTED_BYTES:
        return COUNTED_BYTES
    size: int = U32.unpack_from(buffer, at + 9)[0]
    if size > HANDLE_LIMIT:
        raise Malformed(f"a handle of {size} bytes")
    if COUNTED_BYTES + size + EXTENT.size > total:
        raise Malformed("a WRITE that is too short")
    return COUNTED_BYTES + size + EXTENT.size


class Fields:
    """Reads the fields of one packet in order. Raises Malformed where it ends too early."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._at = at
        self._end = end

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return self._end - self._at

    def u32(self) -> int:
        """Read a number of 4 bytes."""
        return int(self._number(U32))

    def u64(self) -> int:
        """Read a number of 8 bytes."""
        return int(self._number(U64))

    def string(self) -> bytes:
        """Read a string: its length, then as many bytes."""
        size = self.u32()
        if size > self.left:
            raise Malformed("a string that goes beyond its packet")
        self._at += size
        return self._data[self._at - size : self._at]

    def attributes(self) -> Attributes:
        """Read ATTRS (draft, section 5)."""
        flags = self.u32()
        size = self.u64() if flags & ATTR_SIZE else None
        owner = (self.u32(), self.u32()) if flags & ATTR_UIDGID else None
        permissions = self.u32() if flags & ATTR_PERMISSIONS else None
        times = (self.u32(), self.u32()) if flags & ATTR_TIMES else None
        if flags & ATTR_EXTENDED:
            count = self.u32()
            if count * 8 > self.left:
                raise Malformed("attributes that go beyond their packet")
            for _ in range(2 * count):
                self.string()
        return Attributes(size, owner, permissions, times)

    def _number(self, struct: Struct) -> int:
        if struct.size > self.left:
            raise Malformed("a packet that ends too early")
        try:
            value: int = struct.unpack_from(self._data, self._at)[0]
        except StructError as error:
            raise Malformed("a packet that ends too early") from error
        self._at += struct.size
        return value


def decode_request(source: bytes, start: int, end: int) -> Request:
    """Decode a whole request. Raises Malformed, or Unfit for what is answered without asking the target."""
    code = source[start + 4]
    fields = Fields(source, start + 5, end)
    request_id = fields.u32()
    operation = OPERATIONS.get(code)
    if code == EXTENDED:
        known = EXTENSIONS.get(fields.string())
        operation = known[1] if known else None
    if operation is None:
        raise Unfit(FX_OP_UNSUPPORTED, "gatecast: this request is not supported")
    paths: list[bytes] = []
    handles: list[bytes] = []
    numbers: list[int] = []
    attributes = None
    for letter in operation.layout:
        match letter:
            case "p":
                paths.append(_path(fields.string()))
            case "h":
                handles.append(_handle(fields.string()))
            case "u":
                numbers.append(fields.u32())
            case "q":
                numbers.append(fields.u64())
            case "a":  # some clients leave out the attributes where they have none to give
                attributes = fields.attributes() if fields.left else Attributes()
            case _:
                fields.string()
    return Request(request_id, operation, tuple(paths), tuple(handles), tuple(numbers), attributes)


def _path(path: bytes) -> bytes:
    # A target written in C would cut the path at its NUL: what is decided on must be what is meant.
    if b"\0" in path:
        raise Unfit(FX_BAD_MESSAGE, "gatecast: a path with a NUL")
    if len(path) > PATH_LIMIT:
        raise Unfit(FX_BAD_MESSAGE, "gatecast: a path that is too long")
    return path


def _handle(handle: bytes) -> bytes:
    if len(handle) > HANDLE_LIMIT:
        raise Malformed(f"a handle of {len(handle)} bytes")
    return handle


def string(value: bytes) -> bytes:
    """Encode a string."""
    return U32.pack(len(value)) + value


def packet(code: int, body: bytes) -> bytes:
    """Encode a packet of this type; body begins with the id, or with INIT's and VERSION's number."""
    return U32.pack(len(body) + 1) + bytes((code,)) + body


def status(request_id: int, code: int, text: str) -> bytes:
    """Encode a STATUS."""
    message = string(text.encode("utf-8", "replace"))
    return packet(STATUS, U32.pack(request_id) + U32.pack(code) + message + string(LANGUAGE))


def realpath(request_id: int, path: bytes) -> bytes:
    """Encode a REALPATH request."""
    return packet(REALPATH, U32.pack(request_id) + string(path))


def lstat(request_id: int, path: bytes) -> bytes:
    """Encode an LSTAT request."""
    return packet(LSTAT, U32.pack(request_id) + string(path))


def init() -> bytes:
    """Encode the INIT that is sent in place of a user's who offers more than version 3."""
    return packet(INIT, U32.pack(VERSION_NUMBER))


def version_for_user(source: bytes, start: int, end: int) -> bytes | None:
    """Return the VERSION to give to the user, without the extensions that are not decoded; None: as it is.

    Raises Malformed for a version above 3: nobody offered it.
    """
    fields = Fields(source, start + 5, end)
    number = fields.u32()
    if number > VERSION_NUMBER:
        raise Malformed(f"version {number}, which nobody offered")
    kept = bytearray()
    stripped = False
    for _ in range(EXTENSIONS_LIMIT):
        if not fields.left:
            break
        name, data = fields.string(), fields.string()
        known = EXTENSIONS.get(name)
        if known is not None and known[0] == data:
            kept += string(name) + string(data)
        else:
            stripped = True
    if fields.left:
        raise Malformed("too many extensions")
    return packet(VERSION, U32.pack(number) + bytes(kept)) if stripped else None


def limits_for_user(source: bytes, start: int, end: int, handles: int) -> bytes | None:
    """Return the reply to limits@openssh.com with nothing above our own limits; None: as it is. Raises Malformed."""
    fields = Fields(source, start + 5, end)
    request_id = fields.u32()
    if fields.left < LIMITS.size:
        raise Malformed("limits that are too short")
    given = LIMITS.unpack_from(source, start + IDENTIFIED.size)
    # 0 is "no limit" (handles), or "not told" (the others): either way ours is the one that holds.
    ours = (PACKET_LIMIT - 1024, READ_LIMIT, READ_LIMIT, handles)
    limits = tuple(min(one, other) if one else other for one, other in zip(given, ours, strict=True))
    return None if limits == given else packet(EXTENDED_REPLY, U32.pack(request_id) + LIMITS.pack(*limits))


def status_text(code: int) -> str:
    """Name a status code."""
    return STATUS_TEXTS.get(code, f"status {code}")


def flag_words(flags: int) -> str:
    """The flags of an OPEN in words, separated by commas; unknown ones as a number."""
    words = [name for bit, name in FLAG_NAMES if flags & bit]
    unknown = flags & ~sum(bit for bit, _ in FLAG_NAMES)
    return ",".join([*words, f"{unknown:#x}"] if unknown else words)
