"""Echo's lines: bytes to lines and back. Specification: tests/echo/__init__.py."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.core.errors import PeerError

LINE_LIMIT = 1000  # bytes with the newline: ours


class Lines:
    """Cuts a stream into lines. Raises the error of whoever sends: the constructor's argument."""

    def __init__(self, error: type[PeerError]) -> None:
        self._error = error
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield whole lines, newlines included."""
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            if end >= LINE_LIMIT:
                raise self._error("a line is too long", "too-long")
            line = bytes(self._rest[: end + 1])
            del self._rest[: end + 1]
            yield line
        if len(self._rest) >= LINE_LIMIT:
            raise self._error("a line is too long", "too-long")


def split(line: bytes, error: type[PeerError]) -> tuple[str, str]:
    """Return (word, rest) of a line. Raises the error for what is not UTF-8."""
    try:
        word, _, rest = line[:-1].decode().partition(" ")
    except UnicodeDecodeError as cause:
        raise error("a line is not UTF-8", "encoding") from cause
    return word, rest


def line(word: str, rest: str = "") -> bytes:
    """Make a line; newlines inside become spaces, as a line cannot hold them."""
    return " ".join(filter(None, (word, rest.replace("\n", " ")))).encode() + b"\n"


def row(cells: list[str]) -> bytes:
    """Make a row."""
    return line("row", "\t".join(cells))
