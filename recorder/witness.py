"""Witnesses: others who cosign a node's checkpoints, having checked that the log only grew. C2SP tlog-witness.

A witness remembers the last checkpoint of a log that it cosigned and refuses one that does not extend it, so a log that
it cosigned cannot be rewritten unseen, not even by whoever holds the node's key. It has to be run by somebody else.

    POST <url>/add-checkpoint    "old <size>", the consistency proof from there in base64 lines, an empty line, the note
    200   cosignature lines      409   the size it has (then once more, from there), or another root of the same size
    404, 403, 422, 400           it does not know the log or its key, or the proof does not hold: told, nothing changes

What came back and was verified goes to ``checkpoint.cosigned`` beside the checkpoint (the latest) and to ``cosigned/``
(all, as an anchor's directory). Blocking, for a maintenance thread; a witness that is down stops nothing, raises the
alarm after ten minutes, and what it missed needs no making up: the next proof covers it.
A witness that has seen a longer log, or another one of the same size, is told of at once: this log was rolled back.

Left out: ML-DSA-44 cosignatures; monitoring what witnesses publish. Source: C2SP tlog-witness, tlog-cosignature.
"""

from __future__ import annotations

import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from recorder.anchor import ALARM_SECONDS, DirectoryStore, Overdue
from recorder.checkpoint import COSIGNATURE, Checkpoint, NoteKey, NoteSignature, decode_signatures, decode_vkey
from recorder.disk import Disk
from recorder.errors import FormatError
from recorder.merkle import PROOF_LIMIT
from recorder.nodelog import COSIGNED, NodeLog, NodeLogError, write_file

INTERVAL_SECONDS: Final = 10.0  # recorder note, section 7: a checkpoint every 10 s at most
TIMEOUT_SECONDS: Final = 10.0
RESPONSE_LIMIT: Final = 64 * 1024  # ours: a dozen post-quantum signature lines
_VKEYS_LIMIT: Final = 64 * 1024
_SIZE_LIMIT: Final = 20  # characters of a tree size and its newline

WitnessEvent = Literal["failed", "alarm", "recovered", "fork"]
OnWitnessEvent = Callable[[WitnessEvent, str], None]


class WitnessError(Exception):
    """The witness could not be asked, or did not cosign. fork: because it has seen another log than this one."""

    def __init__(self, reason: str, *, fork: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.fork = reason, fork


@dataclass(frozen=True, slots=True)
class Witness:
    """Where a witness is, and its key. url is its submission prefix, http or https."""

    key: NoteKey
    url: str

    @classmethod
    def of(cls, vkey: str, url: str) -> Witness:
        """Raises FormatError, ValueError."""
        key, parts = decode_vkey(vkey), urlsplit(url)
        if key.algorithm != COSIGNATURE:
            raise ValueError("a witness's key is of type 04")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("a witness's address is http(s)://host[:port][/path]")
        return cls(key, url.rstrip("/"))


def load_witnesses(path: Path) -> list[NoteKey]:
    """Read witnesses' keys: a vkey a line; empty lines and # comments are skipped. Raises FormatError, OSError."""
    with path.open("rb") as file:
        text = file.read(_VKEYS_LIMIT).decode(errors="replace")
    lines = (line.strip() for line in text.splitlines())
    keys = [decode_vkey(line) for line in lines if line and not line.startswith("#")]
    if not keys or any(key.algorithm != COSIGNATURE for key in keys):
        raise FormatError(f"{path}: holds no key of a witness, or one of another kind")
    return keys


class WitnessClient:
    """Asks one witness. Not for several threads."""

    def __init__(
        self,
        witness: Witness,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        context: ssl.SSLContext | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """context: for https; the default trusts what the system trusts."""
        self.witness = witness
        self._timeout_seconds, self._context, self._wall = timeout_seconds, context, wall
        self.size = 0  # what the witness cosigned last, as far as we know

    def cosign(self, log: NodeLog, head: Checkpoint) -> tuple[NoteSignature, ...]:
        """Have the head cosigned; return the verified signatures. Raises WitnessError, FormatError, OSError."""
        for attempt in (1, 2):
            old = min(self.size, head.size)
            status, body = self._post(request_body(old, log.consistency(old, head), head))
            if status == 200:
                self.size = head.size
                return self._verified(head, body)
            if status != 409:
                raise WitnessError(f"{self.witness.key.name} answers {status}: {_line(body)}", fork=status == 422)
            had = _size(body)
            if had > head.size:
                raise WitnessError(
                    f"{self.witness.key.name} has seen {had} entries, the log has {head.size}", fork=True
                )
            if had == old or attempt == 2:
                fork = had == head.size  # the same size, so another root
                raise WitnessError(f"{self.witness.key.name} has seen another log of {had} entries", fork=fork)
            self.size = had
        raise AssertionError("the loop returns or raises")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(self.witness.url)
        host, port = parts.hostname or "", parts.port
        connection = (
            HTTPSConnection(host, port, timeout=self._timeout_seconds, context=self._context)
            if parts.scheme == "https"
            else HTTPConnection(host, port, timeout=self._timeout_seconds)
        )
        try:
            connection.request("POST", f"{parts.path}/add-checkpoint", body, {"Content-Type": "text/plain"})
            response = connection.getresponse()
            data = response.read(RESPONSE_LIMIT + 1)
        except (HTTPException, OSError) as error:
            raise WitnessError(f"{self.witness.key.name} cannot be reached: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if len(data) > RESPONSE_LIMIT:
            raise WitnessError(f"{self.witness.key.name} answers with more than {RESPONSE_LIMIT} bytes")
        return response.status, data

    def _verified(self, head: Checkpoint, body: bytes) -> tuple[NoteSignature, ...]:
        key = self.witness.key
        try:
            lines = decode_signatures(body.decode())
        except UnicodeDecodeError as error:
            raise FormatError("a cosignature that is not UTF-8") from error
        ours = tuple(line for line in lines if (line.name, line.key_id) == (key.name, key.id))  # others are ignored
        seconds = head.with_signatures(ours).cosigned(key)
        if seconds is None:
            raise WitnessError(f"{key.name} answers with cosignatures of others")
        if not seconds or abs(seconds - self._wall()) > ALARM_SECONDS:  # verify shows this time as the proof's
            raise WitnessError(f"the clock of {key.name} is off by more than {ALARM_SECONDS:.0f} s")
        return ours


class Cosigner:
    """Has the log's head cosigned by each witness, every interval, and keeps what came back."""

    def __init__(
        self,
        log: NodeLog,
        clients: Sequence[WitnessClient],
        on_event: OnWitnessEvent,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        alarm_seconds: float = ALARM_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        disk: Disk | None = None,
    ) -> None:
        self._log, self._clients, self._on_event = log, clients, on_event
        self._interval_seconds, self._monotonic, self._wall_ns = interval_seconds, monotonic, wall_ns
        self._disk = disk or Disk()
        self._history = DirectoryStore(log.directory / "cosigned", disk=self._disk, nested=False)
        self._overdue = [Overdue(client.witness.key.name, on_event, monotonic, alarm_seconds) for client in clients]
        self._next: float | None = None
        self._size = 0

    def tick(self) -> Checkpoint | None:
        """Ask the witnesses if it is time to. Blocks while they answer; returns the cosigned checkpoint, if any."""
        now = self._monotonic()
        if self._next is not None and now < self._next:
            return None
        self._next = now + self._interval_seconds
        try:
            head = self._log.checkpoint()
        except (NodeLogError, OSError) as error:
            self._on_event("failed", str(error))
            return None
        if head.size <= self._size or not self._clients:
            return None
        cosigned = head
        for client, overdue in zip(self._clients, self._overdue, strict=True):
            try:
                cosigned = cosigned.with_signatures(client.cosign(self._log, head))
            except (WitnessError, FormatError, OSError, ValueError) as error:
                if isinstance(error, WitnessError) and error.fork:
                    self._on_event("fork", error.reason)
                overdue.failed(str(error) or type(error).__name__)
            else:
                overdue.worked()
        if cosigned is head:
            return None
        try:
            write_file(self._disk, self._log.directory / COSIGNED, cosigned.encode())
            self._history.put(cosigned, self._wall_ns())
        except OSError as error:
            self._on_event("failed", f"the cosignature cannot be kept: {error.strerror or type(error).__name__}")
            return None
        if len(cosigned.signatures) == len(head.signatures) + len(self._clients):
            self._size = head.size  # else the others are asked again, even if the log did not grow
        return cosigned


def request_body(old: int, proof: Sequence[bytes], head: Checkpoint) -> bytes:
    """The body of an add-checkpoint request. Source: C2SP tlog-witness."""
    assert len(proof) <= PROOF_LIMIT
    lines = "".join(f"{b64encode(piece).decode()}\n" for piece in proof)
    return f"old {old}\n{lines}\n".encode() + head.encode()


def _size(body: bytes) -> int:
    """The tree size in the body of a 409; a 409 without one tells of another root of the same size."""
    text = body[: _SIZE_LIMIT + 1].decode("ascii", "replace").removesuffix("\n")
    if not text.isascii() or not text.isdigit() or len(text) >= _SIZE_LIMIT:
        raise WitnessError("the witness has seen another log of this size", fork=True)
    return int(text)


def _line(body: bytes) -> str:
    """The beginning of an answer, for a person: one line that is harmless in a log."""
    text = body[:200].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in text).strip()
