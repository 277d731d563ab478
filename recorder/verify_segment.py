"""Verification of one segment file: a strict pass, front to back, in constant memory but for the command index.

The first fault ends it, with its place (Bad). What the node's log says of the segment is compared on the way: the chain
values behind the blocks that it saw, the seal's root at the end. Everything is checked as far as it can be without any
key; the content of encrypted blocks only where a key of the caller's opens them.

Left out: how segments fit together (verify_tape.py); what "bytes to the target without an Allow" means is the
protocol's to say: here only the order COMMAND before its VERDICT is checked.
Source: format.py; recorder note, section 8.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack

from recorder.cipher import AuditorKey, SegmentCipher, unlock
from recorder.disk import is_live, open_regular
from recorder.errors import FormatError, NotATape, Truncated, UnknownVersion, Unreadable
from recorder.format import (
    BLOCK_HEADER_BYTES,
    CHAIN_BYTES,
    ENCRYPTED,
    HEADER_LIMIT,
    TABLE_LIMIT,
    TRAILER_BYTES,
    Block,
    BlockType,
    CommandEntry,
    Header,
    Joiner,
    Kind,
    Record,
    decode_block_header,
    decode_commands,
    decode_header,
    decode_index,
    decode_records,
    decode_trailer,
    fields,
    restore,
)
from recorder.reader import name_of, read_keys_file, stem_of
from recorder.seal import PublicKeys, Seal, Tree, chain_hash, decode_seal, header_hash, leaf_hash
from recorder.segment import CommandIndex
from recorder.verify_report import (
    ALTERED,
    CHECKED,
    ENCRYPTED_CONTENT,
    ERASED,
    UNKNOWN,
    Said,
)
from recorder.verify_report import INCOMPLETE as INCOMPLETE
from recorder.verify_report import VERIFIED as VERIFIED

# Which block types may follow (format.py, "Files"): stage 0 DATA, 1 COMMANDS, 2 INDEX, 3 sealed.
_STAGES: Final = {
    (0, BlockType.DATA): 0,
    (0, BlockType.GAP): 0,
    (0, BlockType.COMMANDS): 1,
    (0, BlockType.INDEX): 2,
    (1, BlockType.COMMANDS): 1,
    (1, BlockType.INDEX): 2,
    (2, BlockType.INDEX): 2,
    (2, BlockType.SEAL): 3,
    (2, BlockType.CRASHSEAL): 3,
}
_SCAN_BYTES: Final = 1024 * 1024


class Bad(Exception):
    """Ends the check of a segment."""

    def __init__(self, status: str, offset: int, block: int | None, reason: str) -> None:
        super().__init__(reason)
        self.status, self.offset, self.block, self.reason = status, offset, block, reason


class Missing(Bad):
    """A segment is not here; found is the number of the one that is in its place."""

    def __init__(self, number: int, found: int) -> None:
        super().__init__(ALTERED, 0, None, f"segment {number} is missing")
        self.found = found


class SegmentCheck:
    """The check of one segment; its attributes are what was found up to the first fault."""

    def __init__(
        self,
        path: Path,
        keys: PublicKeys,
        previous: SegmentCheck | None,
        decrypt: Sequence[AuditorKey],
        ask: Callable[[Header], Said | None],
    ) -> None:
        self.path = path
        self.said: Said | None = previous.said if previous else None
        self._ask = ask
        self._heads: Iterator[tuple[int, bytes, int]] = iter(())
        self._head: tuple[int, bytes, int] | None = None  # the next HEAD of this segment, if there is one
        self.size_bytes = path.stat().st_size
        self.header = Header(b"", {})
        self.seq = 0
        self.first_record: int = previous.next_record if previous else 0
        self.next_record: int = self.first_record
        self.commands = CommandIndex()
        self.commands_sealed = 0  # what the seal says, where they cannot be read
        self.content = CHECKED
        self.status = ""
        self.crashed = False
        self.root = b""
        self.key_id = ""
        self._keys = keys
        self._previous = previous
        self._decrypt = decrypt
        self._cipher: SegmentCipher | None = None
        self._t0_ns = self._first_ns = self._last_ns = self._data_t0_ns = 0
        self._floor_ns: int = max(previous._floor_ns, previous._data_t0_ns) if previous else 0
        self._stage = 0
        self._chain = b""
        self.data_head = b""  # the chain value behind the last DATA or GAP block
        self._tree = Tree()
        self._joiner = Joiner()
        self._last: Record | None = None
        self._readable = True
        self._gaps: list[list[int | bytes]] = []
        self._index_offset = 0
        # Not the entries but a hash of them: constant memory, whatever the file says.
        self._start = 0
        self._index_found, self._index_said = sha256(), sha256()
        self._commands_said, self._index_bytes, self._commands_bytes = sha256(), 0, 0
        self.ended_at = 0.0

    def check(self, number: int, start: int = 0) -> None:
        """Check the segment. start: the first of the tape that is here. Raises Bad at the first fault, OSError."""
        self._start = start
        try:
            self._check_file(number)
        except Bad as bad:
            if bad.status == INCOMPLETE:
                self._check_end(bad.offset)
            raise
        self._check_end(self.size_bytes)

    def _check_file(self, number: int) -> None:
        with open_regular(self.path) as file:
            offset = self._check_header(file, number)
            while self._stage < 3:
                file.seek(offset)
                try:
                    offset = self._check_block(file, offset)
                except Truncated as error:
                    raise Bad(INCOMPLETE, offset, self.seq, f"{error.reason}; not sealed") from error
                except FormatError as error:
                    # Damage with nothing of ours behind it is what a power cut leaves of a tape.
                    torn = self._stage == 0 and not _anything_after(file, offset + 1)
                    text = "the end is torn; not sealed: " if torn else ""
                    raise Bad(INCOMPLETE if torn else ALTERED, offset, self.seq, text + error.reason) from error
            self._check_trailer(file, offset)
        if not self.key_id:
            raise Bad(UNKNOWN, offset, None, "sealed by a key that was not given")

    def _check_header(self, file: BinaryIO, number: int) -> int:
        try:
            self.header = decode_header(file.read(HEADER_LIMIT + 32))
        except (NotATape, UnknownVersion, Truncated) as error:
            raise Bad(UNKNOWN, 0, None, error.reason) from error
        except FormatError as error:
            raise Bad(ALTERED, 0, None, error.reason) from error
        said = self.header.map_
        name = name_of(self.path)
        if name is not None and name != (stem_of(self.header), self.header.segment):
            raise Bad(ALTERED, 0, None, "the file's name is not that of its header")
        if self.header.segment > number:
            raise Missing(number, self.header.segment)
        if self.header.segment != number:
            raise Bad(ALTERED, 0, None, f"segment {number} is missing")
        if self._start and self._previous is None:  # nothing to compare it with but the log
            self.first_record = self.next_record = self.header.first_record
        elif said.get("prev") != (self._previous.data_head if self._previous else None):
            raise Bad(ALTERED, 0, None, "it does not continue the segment before (prev)")
        if self.header.first_record != self.first_record:
            raise Bad(ALTERED, 0, None, "first_record does not continue the segment before")
        if self._previous is not None and _constant(said) != _constant(self._previous.header.map_):
            raise Bad(ALTERED, 0, None, "its header speaks of another session")
        self._chain = self.data_head = header_hash(self.header.raw)
        if self._previous is None:
            self.said = self._ask(self.header)
            if self.said is not None and not number and self.said.h0 != self._chain:
                entry = self.said.opened
                raise Bad(ALTERED, 0, None, f"not the tape that the node's log saw begin (entry {entry})")
        if self.said is not None:
            self._heads = self.said.heads(number)
            self._head = next(self._heads, None)
        self._unlock()
        return len(self.header.raw)

    def _check_end(self, offset: int) -> None:
        """Compare the end that was reached with what the node's log says of the segment. Raises Bad."""
        said, number = self.said, self.header.segment
        if said is None:
            return
        seal, sealed = said.seal(number), self._stage == 3
        if self._head is not None:
            seq, _, entry = self._head
            reason = f"block {seq}, which the node's log saw (entry {entry}), is not here"
            # Of a tape that died, and that nobody recovered yet, what is missing may be in the write-ahead log.
            died = not sealed and seal is None and not is_live(self.path)
            raise Bad(INCOMPLETE if died else ALTERED, offset, self.seq, f"not sealed; {reason}" if died else reason)
        if seal is None:
            return
        if not sealed:
            raise Bad(ALTERED, offset, self.seq, f"the node's log saw it sealed (entry {seal.at}); its seal is gone")
        if (seal.root, seal.status) != (self.root, self.status):
            raise Bad(ALTERED, offset, None, f"not what the node's log saw sealed (entry {seal.at})")
        if said.retired(self.key_id, seal.at):
            raise Bad(ALTERED, offset, None, f"sealed by key {self.key_id}, which was not valid then")

    def _unlock(self) -> None:
        """Find the key of an encrypted segment. That the .keys file is the sealed one is checked without any key."""
        if self.header.map_.get("enc") is None:
            return
        there: bytes | None = None
        try:
            there = read_keys_file(self.path, self.header)
            self._cipher = unlock(self.header, there, self._decrypt)
        except Unreadable:
            self.content = ERASED if there is None else ENCRYPTED_CONTENT
        except FormatError as error:
            raise Bad(ALTERED, 0, None, error.reason) from error
        except OSError as error:
            raise Bad(UNKNOWN, 0, None, f"its .keys file cannot be read: {error.strerror}") from error

    def _check_block(self, file: BinaryIO, offset: int) -> int:
        """Check the block at the offset, return where the next one begins. Raises FormatError, Truncated."""
        head = file.read(BLOCK_HEADER_BYTES)
        if not head:
            raise Truncated("the file ends after a whole block")
        block = decode_block_header(head, offset)
        stored, chain = file.read(block.stored_len), file.read(CHAIN_BYTES)
        if len(chain) < CHAIN_BYTES:
            raise Truncated("the file ends in a block")
        leaf = stored[-CHAIN_BYTES:] if block.type is BlockType.GAP else leaf_hash(head, stored)
        if chain_hash(self._chain, leaf) != chain:
            raise FormatError("the chain does not hold: the block was changed")
        self._check_place(block)
        if block.type in (BlockType.SEAL, BlockType.CRASHSEAL):
            self._check_seal(block, decode_seal(restore(block, stored)))
        else:
            self._check_content(block, head, stored)
            self._tree.add(leaf)
            if block.type is not BlockType.INDEX:
                entry = (offset, int(block.type), block.seq, block.first_record, block.t0_ns, block.n_records, leaf)
                self._index_found.update(msgpack.packb(entry))
        while self._head is not None and self._head[0] == self.seq:
            if self._head[1] != chain:
                raise Bad(ALTERED, offset, self.seq, f"not the block that the node's log saw (entry {self._head[2]})")
            self._head = next(self._heads, None)
        self._chain = chain
        if block.n_records:
            self.data_head, self._data_t0_ns = chain, block.t0_ns
        self._t0_ns = block.t0_ns
        self.seq += 1
        self.next_record = block.next_record
        return block.end

    def _check_place(self, block: Block) -> None:
        stage = _STAGES.get((self._stage, block.type))
        if stage is None:
            raise FormatError(f"a {block.type.name} block in this place")
        if block.type is BlockType.INDEX and not self._index_offset:
            self._index_offset = block.offset
        self._stage = stage
        if block.seq != self.seq:
            raise FormatError(f"block number {block.seq} in the place of {self.seq}")
        if block.first_record != self.next_record:
            raise FormatError(f"record {self.next_record} is missing")
        if block.t0_ns < self._t0_ns or (block.n_records and block.t0_ns < self._floor_ns):
            raise FormatError("time goes back")
        if (block.type in (BlockType.DATA, BlockType.GAP)) != (block.n_records > 0):
            raise FormatError("the number of records does not fit the block's type")
        if block.flags & ENCRYPTED and block.type not in (BlockType.DATA, BlockType.COMMANDS):
            raise FormatError("a block that must be readable is encrypted")
        secret = self.header.map_.get("enc") is not None and block.type in (BlockType.DATA, BlockType.COMMANDS)
        if secret != bool(block.flags & ENCRYPTED):
            raise FormatError("a block in the clear, or encrypted, unlike what the header says")

    def _check_content(self, block: Block, head: bytes, stored: bytes) -> None:
        self._index_bytes += block.raw_len if block.type is BlockType.INDEX else 0
        self._commands_bytes += block.raw_len if block.type is BlockType.COMMANDS else 0
        if max(self._index_bytes, self._commands_bytes, self.commands.size_bytes) > TABLE_LIMIT:
            raise FormatError("more commands or blocks than a segment can have")
        try:
            match block.type:
                case BlockType.DATA:
                    for record in decode_records(block, restore(block, stored, head, self._cipher)):
                        self._take(record)
                case BlockType.GAP:
                    self._check_gap(block, stored)
                case BlockType.COMMANDS:
                    for command in decode_commands(restore(block, stored, head, self._cipher)):
                        self._commands_said.update(_packed(command))
                case BlockType.INDEX:
                    for entry in decode_index(restore(block, stored)):
                        self._index_said.update(msgpack.packb(entry))
        except Unreadable:
            self._readable = False  # sealed bytes all the same; a look inside needs the key

    def _take(self, record: Record) -> None:
        if self._last is None and self.next_record == self.first_record:
            self._first_ns = record.t_ns
        if self._last is not None and self._last.kind == Kind.CLOSE:
            raise FormatError(f"record {record.n} after CLOSE")
        self._last = record
        self._last_ns = record.t_ns
        whole = self._joiner.feed(record)
        if whole is None:
            return
        if whole.kind == Kind.VERDICT:
            number = fields(whole.payload).get("command")
            if isinstance(number, int) and number >= whole.n:
                raise FormatError(f"record {whole.n}: a verdict before its command")
        self.commands.note(whole.n, whole.t_ns, whole.kind, whole.payload)

    def _check_gap(self, block: Block, stored: bytes) -> None:
        if block.flags or len(stored) != BLOCK_HEADER_BYTES + CHAIN_BYTES:
            raise FormatError("a GAP of another form")
        lost = decode_block_header(stored[:BLOCK_HEADER_BYTES], block.offset)
        same = (lost.seq, lost.first_record, lost.t0_ns, lost.n_records)
        if lost.type is not BlockType.DATA or same != (block.seq, block.first_record, block.t0_ns, block.n_records):
            raise FormatError("a GAP unlike the block that it stands for")
        self._gaps.append([block.seq, sha256(stored).digest()])
        self._joiner = Joiner()  # parts of a long record may be among what was lost
        self._readable = False  # commands may be among what was lost

    def _check_seal(self, block: Block, seal: Seal) -> None:
        """Check the signature first, then that what it signs is what is here. Raises FormatError."""
        self.key_id = seal.check(self._keys) or ""
        self.root = self._tree.root()
        said = seal.body
        found: dict[str, Any] = {
            "sid": self.header.sid,
            "segment": self.header.segment,
            "track": self.header.map_.get("track"),
            "h0": header_hash(self.header.raw),
            "root": self.root,
            "head": self._chain,
            "blocks": self.seq,
            "first_record": self.first_record,
            "records": self.next_record - self.first_record,
            "gaps": self._gaps,
        }
        crash = self.crashed = block.type is BlockType.CRASHSEAL
        if crash:
            found |= {"commands": None, "t_last": self._data_t0_ns}
        elif self._readable:
            found |= {"commands": self.commands.count, "t_first": self._first_ns, "t_last": self._last_ns}
        if not self._readable and isinstance(count := said.get("commands"), int):
            self.commands_sealed = count
        for name, value in found.items():
            if said.get(name) != value:
                raise FormatError(f"seal: {name} is not what the file holds")
        self.status = str(said.get("status"))
        if self.status not in (("crashed", "continued") if crash else ("closed", "failed", "continued")):
            raise FormatError("seal: a status that does not fit")
        t_last = said.get("t_last")
        self.ended_at = (self.header.wall0_ns + (t_last if isinstance(t_last, int) else 0)) / 1e9
        if self._gaps and not crash:
            raise FormatError("seal: gaps without a crash")
        if self._index_found.digest() != self._index_said.digest():
            raise FormatError("INDEX is not what the file holds")
        if self._readable and not crash:
            there = sha256()
            for piece in self.commands.finish():
                for command in decode_commands(piece):
                    there.update(_packed(command))
            if there.digest() != self._commands_said.digest():
                raise FormatError("COMMANDS is not what the records say")
            if self.status in ("closed", "failed") and (self._last is None or self._last.kind != Kind.CLOSE):
                raise FormatError("the last record is not CLOSE")

    def _check_trailer(self, file: BinaryIO, offset: int) -> None:
        file.seek(offset)
        trailer = file.read(TRAILER_BYTES + 1)
        if len(trailer) < TRAILER_BYTES:
            raise Bad(INCOMPLETE, offset, None, "the file ends in its trailer")
        try:
            if decode_trailer(trailer[:TRAILER_BYTES]) != self._index_offset:
                raise FormatError("trailer: points elsewhere")
        except FormatError as error:
            raise Bad(ALTERED, offset, None, error.reason) from error
        if len(trailer) > TRAILER_BYTES:
            raise Bad(ALTERED, offset + TRAILER_BYTES, None, "bytes after the end")


def _packed(command: CommandEntry) -> bytes:
    packed: bytes = msgpack.packb((command.n, command.t_ns, command.verb, command.kind, command.verdict, command.text))
    return packed


def _constant(said: Any) -> dict[str, Any]:
    """The part of a header that is the same in all segments of a tape."""
    same = {key: value for key, value in said.items() if key not in ("segment", "prev", "first_record", "enc")}
    enc = said.get("enc")
    return same | {"enc": {**enc, "salt": None, "commit": None} if isinstance(enc, dict) else enc}


def _anything_after(file: BinaryIO, offset: int) -> bool:
    """Tell whether a valid block header or trailer stands anywhere behind the offset."""
    file.seek(offset)
    window = b""
    while chunk := file.read(_SCAN_BYTES):
        window += chunk
        for match in re.finditer(rb"GCT[BT]", window):
            size = BLOCK_HEADER_BYTES if match[0] == b"GCTB" else TRAILER_BYTES
            item = window[match.start() : match.start() + size]
            if len(item) == size and zlib.crc32(item[:-4]) == int.from_bytes(item[-4:], "little"):
                return True
        window = window[-(BLOCK_HEADER_BYTES - 1) :]
    return False
