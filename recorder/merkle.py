"""Merkle trees of RFC 6962 in tiles of 256 hashes: roots, proofs, and where a tile lies. Pure.

A log's tree is kept as tiles: tile n of level l holds the tree hashes of the 256 subtrees of 256**l entries each that
begin at entry n * 256**(l + 1). Only the last tile of a level may be partial, and it is never hashed into the level
above. An Edge is what has to be in memory to append: the hashes of those last tiles. Proofs are computed from whatever
can read hashes of a level (a Reader); they are verified with no tree at all.

Left out: subtrees and their signatures (the newer draft), pruning: a node's log stays for ever.
Sources: RFC 6962 2.1 (tree hash, inclusion and consistency proofs), RFC 9162 2.1.3.2 and 2.1.4.2 (verifying them), C2SP
tlog-tiles (tiles, their paths).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Final

HASH_BYTES: Final = 32
TILE_WIDTH: Final = 256  # C2SP tlog-tiles: a full tile is exactly 256 hashes wide
TILE_HEIGHT: Final = 8
EMPTY_ROOT: Final = sha256(b"").digest()
PROOF_LIMIT: Final = 63  # C2SP tlog-witness: more lines than these must not be sent

# (level, number of the first hash, how many) -> those hashes
Reader = Callable[[int, int, int], Sequence[bytes]]


def entry_hash(entry: bytes) -> bytes:
    """The leaf of an entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees side by side."""
    return sha256(b"\x01" + left + right).digest()


def tree_hash(hashes: Sequence[bytes]) -> bytes:
    """The root over subtrees of one size, or over leaves."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        odd = row[-1:] if len(row) % 2 else []
        # An odd one out is carried up as it is: that is where RFC 6962 splits, at the largest power of two.
        row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)] + odd
    return row[0]


def tile_path(level: int | None, index: int, width: int = TILE_WIDTH) -> str:
    """Where a tile lies below the log's prefix; level None is a bundle of entries. Source: C2SP tlog-tiles."""
    digits = f"{index % 1000:03d}"
    while index := index // 1000:
        digits = f"x{index % 1000:03d}/{digits}"
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{'entries' if level is None else level}/{digits}{partial}"


def widths(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (level, index, width) of the partial tiles of a tree of this size, from level 0."""
    level = 0
    while size:
        index, width = divmod(size, TILE_WIDTH)
        if width:
            yield level, index, width
        size, level = index, level + 1


class Edge:
    """The right edge of a growing tree: of each level, the hashes of its last, partial tile."""

    __slots__ = ("levels", "size")

    def __init__(self, size: int = 0, levels: Sequence[Sequence[bytes]] = ()) -> None:
        self.size = size
        self.levels: list[list[bytes]] = [list(level) for level in levels]

    def add(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Append a leaf; return the tiles that it filled, as (level, index, 8,192 bytes)."""
        self.size += 1
        full: list[tuple[int, int, bytes]] = []
        level, number = 0, self.size
        while True:
            if level == len(self.levels):
                self.levels.append([])
            row = self.levels[level]
            row.append(leaf)
            if len(row) < TILE_WIDTH:
                return full
            number //= TILE_WIDTH
            full.append((level, number - 1, b"".join(row)))
            leaf = tree_hash(row)
            row.clear()
            level += 1

    def root(self) -> bytes:
        """The root over all leaves so far."""
        root: bytes | None = None
        for row in self.levels:  # from the right end of the tree to its left
            at = len(row)
            while at:
                size = at & -at  # the peaks of a row of n hashes are the bits of n; the lowest is the rightmost
                peak = tree_hash(row[at - size : at])
                root = peak if root is None else node_hash(peak, root)
                at -= size
        return EMPTY_ROOT if root is None else root

    def copy(self) -> Edge:
        return Edge(self.size, self.levels)


def root_at(size: int, read: Reader) -> bytes:
    """The root of the tree of the first size entries."""
    return _range_root(0, size, read) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: Reader) -> list[bytes]:
    """The hashes that show entry index to be in the tree of this size. Source: RFC 6962 2.1.1."""
    if not 0 <= index < size:
        raise ValueError("no such entry in a tree of this size")
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(start, middle, read))
            start = middle
    return proof[::-1]


def consistency_proof(old: int, size: int, read: Reader) -> list[bytes]:
    """The hashes that show the tree of old entries to be the beginning of this one. Source: RFC 6962 2.1.2."""
    if not 0 <= old <= size:
        raise ValueError("a tree does not grow backwards")
    if old in (0, size):
        return []
    proof: list[bytes] = []
    start, end, whole = 0, size, True
    while old != end - start:
        middle = start + _split(end - start)
        if old <= middle - start:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(start, middle, read))
            old -= middle - start
            start, whole = middle, False
    if not whole:
        proof.append(_range_root(start, end, read))
    return proof[::-1]


def inclusion_holds(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Tell whether the proof shows the leaf at index in the tree with this root. Source: RFC 9162 2.1.3.2."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if not last:
            return False
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return not last and found == root


def consistency_holds(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether the proof shows the tree of old entries to be the beginning of the other. RFC 9162 2.1.4.2."""
    if old == size:
        return not proof and old_root == root
    if not 0 <= old < size or not (proof or not old):
        return False
    if not old:
        return not proof and old_root == EMPTY_ROOT
    steps = list(proof) if old & (old - 1) else [old_root, *proof]
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = steps[0]
    for sibling in steps[1:]:
        if not last:
            return False
        if at & 1 or at == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        at, last = at >> 1, last >> 1
    return not last and before == old_root and after == root


def _split(count: int) -> int:
    """The largest power of two below count."""
    return 1 << (count - 1).bit_length() - 1


def _range_root(start: int, end: int, read: Reader) -> bytes:
    """The tree hash of D[start:end], a range that RFC 6962 splits off."""
    count = end - start
    if count & (count - 1) == 0:
        level, rest = divmod(count.bit_length() - 1, TILE_HEIGHT)
        return tree_hash(read(level, start >> TILE_HEIGHT * level, 1 << rest))
    middle = start + _split(count)
    return node_hash(_range_root(start, middle, read), _range_root(middle, end, read))
