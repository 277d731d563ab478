"""gatecast keys: the auditors' keys that tapes are encrypted to, and --identity, by which the other commands take them.

An auditor makes a pair where the tapes are to be read, and gives the public half to whoever runs the gateway. The
gateway has no command that takes a private half, and refuses a file that holds one.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from proxy.core.text import fields, harmless
from recorder.cipher import KEYS_FILE_LIMIT, AuditorKey, decode_keys_file
from recorder.errors import FormatError, NotATape
from recorder.format import SUFFIX
from recorder.reader import TapeReader, read_keys_file
from recorder.seal import public_path

_SHORT: Final = 200  # characters of a track or a suite that a file may name


def identities(options: Namespace) -> list[AuditorKey]:
    """The keys of --identity, in their order. Raises KeyFileError."""
    return [AuditorKey.load(Path(file)) for file in options.identity or ()]


def keys_generate(options: Namespace) -> int:
    """gatecast keys generate."""
    file = Path(options.file)
    key = AuditorKey.generate(file)
    made = {"id": key.id, "private": str(file), "public": str(public_path(file))}
    text = (
        f"Key {key.id} is made.\n\n"
        f"  {made['public']}\n"
        "      is public. Copy it to the gateway and name it in gatecast.yaml, in a target:\n"
        f"          encrypt_to: [{public_path(file).name}]     tapes are encrypted to it\n"
        f"          original_to: [{public_path(file).name}]    what masks change is kept, readable with it alone\n"
        f"  {made['private']}\n"
        "      reads those tapes. Keep it away from the gateway, and keep a copy in a safe place: without it\n"
        "      nobody can read them, ever. Use it with\n"
        f"          gatecast replay SESSION --identity {file}\n"
    )
    return _print(options, made, harmless(text, lines=True))


def keys_show(options: Namespace) -> int:
    """gatecast keys show."""
    found = describe(Path(options.file))
    pairs = [("session", found["sid"]), ("track", found["track"])]
    lines = [fields(pairs + [("key", f"{one['id']}  {one['suite']}") for one in found["recipients"]])]
    if found["erased"]:
        lines.append("Its .keys file is not beside it: the content was erased, or the file was not copied.\n")
    elif not found["encrypted"]:
        lines.append("It is not encrypted: everybody who has the file can read it.\n")
    return _print(options, found, "".join(lines))


def describe(path: Path) -> dict[str, Any]:
    """Say to whom a tape (one of its files, or its .keys file) is encrypted. Raises OSError, FormatError."""
    found: dict[str, Any] = {"sid": "", "track": "", "encrypted": True, "erased": False, "recipients": []}
    if path.suffix == SUFFIX:
        tape = TapeReader(path)
        found |= {"sid": tape.header.sid, "track": str(tape.header.map_.get("track"))[:_SHORT]}
        data = read_keys_file(tape.segments[0], tape.header) if tape.encrypted else None
        found |= {"encrypted": tape.encrypted, "erased": tape.encrypted and data is None}
    else:
        with path.open("rb") as file:
            data = file.read(KEYS_FILE_LIMIT + 1)
    if data is not None:
        try:
            said = decode_keys_file(data)
        except FormatError as error:
            if path.suffix == SUFFIX:
                raise
            raise NotATape(f"{path}: neither a tape nor its .keys file ({error.reason})") from error
        recipients = [{"id": wrap.key_id, "suite": wrap.suite[:_SHORT]} for wrap in said.wraps]
        found |= {"sid": said.sid[:_SHORT], "track": said.track[:_SHORT], "recipients": recipients}
    return found


def _print(options: Namespace, data: object, text: str) -> int:
    sys.stdout.write(json.dumps(data, indent=2) + "\n" if options.json else text)
    return 0
