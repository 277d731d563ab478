"""The repair of one segment file: compare it with the log, append what it lacks, cut a torn end off, end it.

What recover.py and sweep.py have in common. The steps are those of recover.py's docstring, 2 to 4. Every write
goes behind the last good block, so an interrupted repair leaves those, and is simply done again.

Left out: headers and .keys files, directories, syncing: the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from recorder.disk import Disk
from recorder.errors import FormatError
from recorder.format import TRAILER_BYTES, Block, BlockType, Header, decode_block_header, encode_trailer
from recorder.salvage import Tail, crash_end, make_gap, scan
from recorder.seal import SealKey, leaf_hash

OUTPUT_BYTES: Final = 1024 * 1024  # written at once

Entries = Iterable[tuple[bool, bytes, bytes]]  # (full, block header, stored payload or leaf), in the order of the log
Status = Literal["crashed", "continued", "closed", "failed", "refused"]
_STATUS: Final[dict[str, Status]] = {
    "crashed": "crashed",
    "continued": "continued",
    "closed": "closed",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one segment. restored: blocks from the log; gaps: all of its GAP blocks.

    blocks: its DATA and GAP blocks; root: of its tree, as in its seal (empty if refused).
    """

    sid: str
    track: str
    segment: int
    path: Path
    status: Status
    restored: int
    gaps: int
    cut_bytes: int
    reason: str
    blocks: int = 0
    root: bytes = b""


class Refused(Exception):
    """The file contradicts the log: it is left as it is."""


class Repair:
    """One open segment file; body is what is good in it, and later what it will be."""

    def __init__(self, disk: Disk, descriptor: int, header: Header) -> None:
        """Scan the file, whose header is good. Raises OSError."""
        self._disk = disk
        self._descriptor = descriptor
        self._size = disk.size(descriptor)
        self.body, self._tail = scan(disk, descriptor, header)
        good = self._tail.end + TRAILER_BYTES if self._tail is not None else self.body.end
        self.cut_bytes = max(0, self._size - good)
        self._written = self.body.end
        self._out = bytearray()
        self._log_tail: Tail | None = None
        self._log_tail_bytes = bytearray()
        self._log_tail_blocks = 0
        self.restored = 0
        self._root = b""
        self.problem = ""  # why not all of the log could be used

    @property
    def end_status(self) -> str:
        """The status in the seal that came back, "" if none did."""
        tail = self._tail or self._log_tail
        return tail.status if tail is not None and tail.sealed else ""

    def follow(self, entries: Entries) -> None:
        """Compare with the log's entries and append what is new.

        Raises Refused before anything was written; OSError.
        """
        sealed = self._tail is not None and not self._tail.crashed
        leaves = list(self.body.leaves)
        if self._tail is not None and sealed:
            leaves += self._tail.leaves
        known = len(leaves)
        for full, head, rest in entries:
            leaf = leaf_hash(head, rest) if full else rest
            seq = int.from_bytes(head[8:16], "little")  # decoding all of a header that the leaf covers takes 4 us
            if seq < known and leaf == leaves[seq]:
                continue
            try:
                block = decode_block_header(head, self.body.end)
            except FormatError as error:
                self.problem = f"the log has something that is no block ({error.reason})"
                return
            if block.seq < known:
                raise Refused(f"block {block.seq} is not the one that the log speaks of")
            if sealed:
                raise Refused("the log goes on behind the seal")
            if block.type is BlockType.DATA and self._log_tail is None:
                if not self.body.fits(block):
                    self.problem = f"a hole: block {self.body.count} is neither in the file nor in the log"
                    return
                self._append(block, full, head, rest, leaf)
            elif self._tail is not None or not self._take_tail(block, full, head, rest):
                return

    def _append(self, block: Block, full: bool, head: bytes, rest: bytes, leaf: bytes) -> None:
        self._tail = None  # if there is one, it is a CRASHSEAL that knew less
        if full:
            self._out += head
            self._out += rest
            self._out += self.body.add(block, leaf, rest)
            self.restored += 1
        else:
            self._out += make_gap(self.body, block, head, leaf)
        if len(self._out) >= OUTPUT_BYTES:
            self._flush()

    def _take_tail(self, block: Block, full: bool, head: bytes, rest: bytes) -> bool:
        if self._log_tail is None:
            self._log_tail = Tail(self.body)
        tail = self._log_tail
        if not full or tail.sealed or not tail.take(block, head, rest):
            self._log_tail = None
            self._log_tail_bytes.clear()
            return False
        self._log_tail_bytes += head
        self._log_tail_bytes += rest
        self._log_tail_bytes += tail.chain
        self._log_tail_blocks += 1
        return True

    def finish(self, status: Literal["crashed", "continued"], reason: str, key: SealKey, apart: bool = False) -> None:
        """Write all that is to come; without a seal from file or log, one with the status. Raises OSError.

        apart: sync before the trailer is written, so that where one is, all is. With a log that is not needed.
        """
        log_tail = self._log_tail
        if self._tail is not None:
            self._root = self._tail.root
            trailer = encode_trailer(self._tail.index_offset)
            end = self._tail.end
            if (
                self._size == end + TRAILER_BYTES
                and self._disk.read_at(self._descriptor, TRAILER_BYTES, end) == trailer
            ):
                return
            self._written = end
            self._out += trailer
        elif log_tail is not None and log_tail.sealed:
            self._root = log_tail.root
            self._out += self._log_tail_bytes + encode_trailer(log_tail.index_offset)
            self.restored += self._log_tail_blocks
        else:
            text = f"{reason}; {self.problem}" if self.problem else reason
            end_bytes, self._root = crash_end(self.body, key, status, text)
            self._out += end_bytes
        if apart:
            trailer = bytes(self._out[-TRAILER_BYTES:])
            del self._out[-TRAILER_BYTES:]
            self._flush()
            self._disk.sync_all(self._descriptor)
            self._out += trailer
        self._flush()

    def _flush(self) -> None:
        """Write what is to be appended; before the first of it, cut off what is in its place."""
        if self._size > self._written:
            self._disk.truncate(self._descriptor, self._written)
        self._disk.write_at(self._descriptor, self._out, self._written)
        self._size = self._written = self._written + len(self._out)
        self._out = bytearray()

    def result(self, path: Path, status: Literal["crashed", "continued"], reason: str) -> Recovered:
        """Say what became of the file after finish()."""
        header = self.body.header
        track = str(header.map_.get("track"))
        end = _STATUS.get(self.end_status, status)
        text = "; ".join(filter(None, (reason if end != "closed" else "", self.problem)))
        body = self.body
        return Recovered(
            sid=header.sid,
            track=track,
            segment=header.segment,
            path=path,
            status=end,
            restored=self.restored,
            gaps=len(body.gaps),
            cut_bytes=self.cut_bytes,
            reason=text,
            blocks=body.count,
            root=self._root,
        )
