"""The arguments of ``gatecast verify``, and the files that they name, read.

What reading takes is imported late, so that --help is quick.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from recorder.errors import FormatError, KeyFileError
from recorder.ulid import is_ulid

if TYPE_CHECKING:
    from recorder.checkpoint import NoteKey

_SIDS_LIMIT: Final = 64 * 1024 * 1024  # two million session ids
_SQLITE: Final = b"SQLite format 3\0"


class Outside(TypedDict, total=False):
    """What verify is given beside the files and the keys."""

    anchor: Path | None
    witnesses: list[NoteKey]
    threshold: int
    elsewhere: Callable[[str], bool]
    strict: bool
    no_log: bool


def add_arguments(parser: ArgumentParser) -> None:
    """Add what verify is given from outside, so that nobody with the node's disk and key can rewrite the past."""
    parser.add_argument(
        "--anchor", metavar="DIR", help="checkpoints kept in a second place: the log must contain each of them"
    )
    parser.add_argument("--witness", metavar="FILE", help="witnesses' keys, a vkey a line; one must have cosigned")
    parser.add_argument("--threshold", metavar="N", type=int, default=1, help="how many of them must have (default: 1)")
    parser.add_argument(
        "--elsewhere", metavar="FILE", help="sessions that are known to be in another place: ids, or a vault.db"
    )
    parser.add_argument(
        "--strict", action="store_true", help="gaps between heartbeats, old cosignatures, no log: incomplete"
    )
    parser.add_argument(
        "--no-log", action="store_true", help="judge tapes without the logs that their headers name, if those are away"
    )


def from_arguments(options: Namespace) -> Outside:
    """Read what the arguments name. Raises KeyFileError, OSError."""
    anchor = None if options.anchor is None else Path(options.anchor)
    if anchor is not None and not anchor.exists():
        raise KeyFileError(f"{anchor}: there is no such directory of anchors")
    found = Outside(anchor=anchor, strict=options.strict, threshold=options.threshold, no_log=options.no_log)
    if options.witness is not None:
        from recorder.witness import load_witnesses

        try:
            found["witnesses"] = load_witnesses(Path(options.witness))
        except FormatError as error:
            raise KeyFileError(error.reason) from error
        if not 1 <= options.threshold <= len(found["witnesses"]):
            raise KeyFileError(f"{options.witness}: holds {len(found['witnesses'])} keys, not {options.threshold}")
    if options.elsewhere is not None:
        found["elsewhere"] = load_elsewhere(Path(options.elsewhere))
    return found


def load_elsewhere(path: Path) -> Callable[[str], bool]:
    """Sessions by a file: a vault.db, or session ids, one a line (more on the line is ignored). Raises KeyFileError."""
    with path.open("rb") as file:
        data = file.read(_SIDS_LIMIT + 1)
    if data.startswith(_SQLITE):
        from recorder.vault_state import STATE_NAME, VaultError, elsewhere

        if path.name != STATE_NAME:
            raise KeyFileError(f"{path}: a vault's database is called {STATE_NAME}")
        try:
            return elsewhere(path.parent)
        except VaultError as error:
            raise KeyFileError(f"{path}: {error}") from error
    if len(data) > _SIDS_LIMIT:
        raise KeyFileError(f"{path}: longer than {_SIDS_LIMIT} bytes")
    sids = {sys.intern(words[0]) for line in data.decode("utf-8", "replace").splitlines() if (words := line.split())}
    wrong = next((sid for sid in sids if not is_ulid(sid)), None)
    if wrong is not None:
        raise KeyFileError(f"{path}: {re.sub(r'[^ -~]', '?', wrong)[:40]} is no session's id")
    return sids.__contains__
