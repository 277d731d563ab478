"""gatecast keys rotate-seal: a new key for seals and for the node's log, while the gateway does not run.

In this order, so that a crash at any point loses nothing and the same command, typed again, goes on:

1. What an earlier gateway left is recovered and told to the log: after the rotation the old key may not seal any more.
2. The new key is made as ``<key file>.next``, and its public half added to ``<key file>.pub``, which keeps all.
3. KEYROTATE is appended to the node's log; the checkpoint that covers it is signed by both keys.
4. The new key takes the old one's place. The old private key is gone with that.

While ``<key file>.next`` exists no gateway starts (services.py): between 3 and 4 it would sign with a retired key.

Left out: keeping the old private key (nothing needs it); telling witnesses, whose owners must be given the new public
key by hand; stopping a ``replay --against`` that runs at the same time, whose tape would count as sealed too late.
Source: recorder/logentry.py, KEYROTATE; recorder note, section 8 ("by log position").
"""

from __future__ import annotations

import contextlib
import secrets
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import protocols
from proxy import __version__
from proxy.commands import _print, config_path
from proxy.config import Loaded, load_config
from proxy.core.errors import ConfigError, TapeError
from proxy.core.text import harmless
from proxy.services import lock_state, next_key_path, node_log_of, prepare_state
from recorder.checkpoint import decode_checkpoint
from recorder.disk import Disk
from recorder.errors import FormatError, KeyFileError
from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog, NodeLogError, write_file
from recorder.seal import KEY_FILE_LIMIT, SealKey, load_public_keys, public_path
from recorder.tape import Recorder

BOOT_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Rotated:
    """What was done: the ids of both keys, where the public halves are, and how many sessions were recovered first."""

    old: str
    new: str
    public: Path
    recovered: int


def keys_rotate_seal(options: Namespace) -> int:
    """gatecast keys rotate-seal."""
    done = rotate_seal(config_path(options))
    made = {"old": done.old, "new": done.new, "public": str(done.public), "recovered": done.recovered}
    sessions = "1 session was" if done.recovered == 1 else f"{done.recovered} sessions were"
    text = (
        f"Key {done.old} is retired, key {done.new} seals from now on; the node's log says so.\n"
        + (f"{sessions} recovered and sealed first.\n" if done.recovered else "")
        + f"\n  {done.public}\n"
        "      holds the public halves of both. Give it to whoever verifies, in place of the one that they have,\n"
        "      and to the owners of your witnesses. The old private key is gone.\n"
    )
    return _print(options, made, harmless(text, lines=True))


def rotate_seal(path: Path, disk: Disk | None = None) -> Rotated:
    """Rotate the key of the gateway that this configuration is for. Raises ConfigError."""
    disk = disk or Disk()
    loaded = load_config(path, frozenset(protocols.load()))
    key_file = loaded.state / loaded.config.recorder.key_file
    if not key_file.exists():
        raise ConfigError(f"{key_file}: there is no key yet; the gateway makes one at its first start")
    with lock_state(prepare_state(loaded.state)):
        try:
            return _rotate(loaded, key_file, disk)
        except (KeyFileError, NodeLogError) as error:
            raise ConfigError(str(error)) from error
        except TapeError as error:
            raise ConfigError(f"what an earlier gateway left cannot be recovered first: {error}") from error
        except FormatError as error:
            raise ConfigError(f"the node's log is damaged: {error.reason}") from error
        except OSError as error:
            where = error.filename or key_file
            raise ConfigError(f"{where}: {error.strerror}; nothing is lost, type the command again") from error


def _rotate(loaded: Loaded, key_file: Path, disk: Disk) -> Rotated:
    old = SealKey.load(key_file, create=False)
    log = node_log_of(loaded, rotating=True)
    path = next_key_path(key_file)
    recovered = 0
    if not path.exists() or not _signs(log, SealKey.load(path, create=False)):
        recovered = _settle(loaded, old, log)
        new = _prepare(key_file, old, disk)
        log.rotate(new)
    else:  # a crash came between the log and the file
        new = SealKey.load(path, create=False)
    disk.rename(path, key_file)
    disk.sync_directory(key_file.parent)
    return Rotated(old.id, new.id, public_path(key_file), recovered)


def _signs(log: NodeLog, key: SealKey) -> bool:
    """Whether the log's head is signed by this key."""
    try:
        return key.id in decode_checkpoint(log.files.checkpoint()).signers(key.public_keys())
    except FileNotFoundError:
        return False


def _settle(loaded: Loaded, old: SealKey, log: NodeLog) -> int:
    """Recover what a dead gateway left and tell the log, as its next start would have; returns how many sessions."""
    boot = secrets.token_hex(BOOT_BYTES)
    ledger = NodeLedger(log, boot, __version__, start=False)
    directory = loaded.state / loaded.config.recorder.directory
    recorder = Recorder(directory, old, node=log.directory.name, boot=boot, ledger=ledger)
    found = recorder.recover()
    ledger.publish()
    return len(found)


def _prepare(key_file: Path, old: SealKey, disk: Disk) -> SealKey:
    """Make the new key beside the old one, or take the one that an interrupted rotation made; publish both."""
    path = next_key_path(key_file)
    new = SealKey.load(path)
    with contextlib.suppress(FileNotFoundError):
        public_path(path).unlink()  # its place is in the file of all public keys
    public = public_path(key_file)
    data = public.read_bytes() if public.exists() else old.public_pem()
    known = load_public_keys(public) if public.exists() else old.public_keys()
    for key in (old, new):
        if key.id not in known and key.public_pem() not in data:
            data = data.rstrip(b"\n") + b"\n" + key.public_pem()
    if len(data) > KEY_FILE_LIMIT:
        raise ConfigError(f"{public}: longer than {KEY_FILE_LIMIT} bytes; move keys whose tapes have expired elsewhere")
    write_file(disk, public, data)
    disk.sync_directory(path.parent)
    return new
