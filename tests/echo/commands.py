"""Echo's conversation: what the user asks, what is sent in place of a refused command, whose an answer is.

``do`` is a Command; ``nop`` and ``bye`` are frames; any other word is a violation. A refused command is replaced by
``do ?TOKEN``, whose text no target knows: it fails there as any unknown text does, so that the order of a pipeline
and the state of a transaction are what they are after every other error. Only the text of the failure is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from proxy.core.errors import Refused, TargetPeerError, UserPeerError
from proxy.core.events import CellMask, Column, Command, Event, Frame, Output, Remark, RemarkFields, Rows
from proxy.core.session import Permit
from tests.echo.wire import Lines, line, row, split

VERBS = frozenset({"CONNECT", "DO"})
QUEUE_LIMIT = 1000  # answers owed


@dataclass(frozen=True, slots=True)
class Bye:
    """The user leaves."""

    wire: bytes


class Conversation:
    """Both directions of one session."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token
        self._user = Lines(UserPeerError)
        self._target = Lines(TargetPeerError)
        self._owed: deque[Permit | Refused] = deque()
        self._columns: tuple[Column, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether the target owes an answer."""
        return bool(self._owed)

    def from_user(self, data: bytes) -> Iterator[Command | Frame | Bye]:
        """Cut what the user sent. Raises UserPeerError."""
        for each in self._user.feed(data):
            word, text = split(each, UserPeerError)
            match word:
                case "do":
                    if len(self._owed) >= QUEUE_LIMIT:
                        raise UserPeerError("too many commands at once", "too-many")
                    kind = "read" if text.startswith("read") else "write"
                    yield Command("echo", "DO", kind, text, each)  # type: ignore[arg-type]  # one of KINDS
                case "nop":
                    yield Frame(each)
                case "bye":
                    yield Bye(each)
                    return
                case _:
                    raise UserPeerError("unknown word", "unknown")

    def permitted(self, permit: Permit) -> Permit:
        """Note that the command goes up."""
        self._owed.append(permit)
        return permit

    def refuse(self, refused: Refused) -> Frame:
        """Return what goes up in place of a refused command."""
        self._owed.append(refused)
        return Frame(line("do", f"?{self._token()}"), by_gate=True)

    def from_target(self, data: bytes) -> Iterator[tuple[Permit | None, Event]]:
        """Yield what the user is to get, with whose answer it is. Raises TargetPeerError."""
        for each in self._target.feed(data):
            word, text = split(each, TargetPeerError)
            owed = self._owed[0] if self._owed else None
            permit = owed if isinstance(owed, Permit) else None
            if word == "note":
                yield permit, _remark("note", "message", text, each)
                continue
            if owed is None:
                raise TargetPeerError("the target answered what nobody asked")
            match word:
                case "ok":
                    self._owed.popleft()
                    yield permit, Output("out", each)
                case "bad":
                    self._owed.popleft()
                    state, _, why = text.partition(" ")
                    if isinstance(owed, Refused):
                        yield None, Frame(line("bad", f"{state} {refusal(owed)}"))
                    else:
                        yield permit, _remark(f"bad {state}", "message", why, each)
                case "cols" if permit is not None:
                    self._columns = tuple(
                        Column(name, (f"public.people.{name}",), constant=b"*") for name in text.split("\t")
                    )
                    yield permit, Output("out", each)
                case "row" if permit is not None and len(text.split("\t")) == len(self._columns):
                    yield permit, _rows(self._columns, text.split("\t"), each)
                case _:
                    raise TargetPeerError("the target broke the protocol")


def refusal(refused: Refused) -> str:
    """What the user reads of a refusal."""
    approval = f" (approval {refused.approval})" if refused.approval else ""
    return f"denied by rule {refused.deny.rule}: {refused.deny.reason}{approval}"


def _remark(head: str, role: str, text: str, wire: bytes) -> Remark:
    def rewrite(fields: RemarkFields) -> bytes:
        return line(head, fields[role])

    return Remark({role: text}, wire, rewrite)


def _rows(columns: tuple[Column, ...], cells: list[str], wire: bytes) -> Rows:
    def rewrite(masks: Sequence[CellMask | None]) -> bytes:
        return row([_masked(cell, mask) for cell, mask in zip(cells, masks, strict=True)])

    return Rows(columns, wire, rewrite)


def _masked(cell: str, mask: CellMask | None) -> str:
    if mask is None:
        return cell
    if isinstance(mask, bytes):
        return mask.decode()
    new = mask(cell.encode()) if callable(mask) else None
    return new.decode() if new is not None else ""
