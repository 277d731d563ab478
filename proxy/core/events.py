"""What crosses the waist: frozen values, the same in every protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

Kind = Literal["read", "write", "define", "delete", "execute", "transfer", "admin", "session", "unknown"]
KINDS: tuple[Kind, ...] = ("read", "write", "define", "delete", "execute", "transfer", "admin", "session", "unknown")


class _NullCell:
    """The class of NULL_CELL, its only instance."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL_CELL"

    def __reduce__(self) -> str:
        return "NULL_CELL"  # a copy or a pickle is the same object, so that "is" works


# The constant mask that makes every cell of its column NULL.
NULL_CELL: Final = _NullCell()

# A cell mask is given one non-NULL cell (the bytes between its length and the next) and returns its new
# bytes, or None for NULL. A constant in place of a function saves the call: bytes, or NULL_CELL.
CellMask = Callable[[bytes], bytes | None] | bytes | _NullCell
RemarkFields = Mapping[str, str]

# Of Command.facts: why the user says he wants this, in a line. It is taped and shown to approvers; no rule reads it.
INTENT_FACT: Final = "intent"
# What the target says that it will process, in bytes, and what that costs: taped and shown to approvers as well.
ESTIMATE_FACT: Final = "estimate"


@dataclass(frozen=True, slots=True)
class Command:
    """Something that a person or an agent asked for; it leaves only inside a Permit.

    verb is one of the protocol's VERBS. text is what a human approves. objects name what is touched
    ("schema.table", "namespace/pod", "project.dataset.table"). facts are what a rule may ask, by the keys
    that the protocol documents. exact is False where the text is a reconstruction. parts are the single
    statements of a text that holds several: each is decided, the strictest verdict stands. prepares marks a
    command that runs nothing yet (PostgreSQL Parse): a Hold of it is put off to the command that runs it.
    rest_bytes is how much of this message's body follows wire later, in Parts of the permit. flow is the stream of
    the session (an SSH channel) that the command opens or belongs to, None where a session is one stream. data is what
    of it is the stream's own: taped under flow, in the place of wire, whether it goes with wire or later as frames.
    """

    protocol: str
    verb: str
    kind: Kind
    text: str
    wire: bytes = b""
    objects: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    parts: tuple[Command, ...] = ()
    prepares: bool = False
    rest_bytes: int = 0
    flow: int | None = None
    data: bytes | None = None

    @property
    def why(self) -> str:
        """Why the user says he wants this, as far as the command itself tells; "" for nothing."""
        found = self.facts.get(INTENT_FACT)
        return found if isinstance(found, str) else ""

    @property
    def taped_facts(self) -> dict[str, Any]:
        """Facts that the tape has with the command: values, estimate."""
        return {name: self.facts[name] for name in ("values", ESTIMATE_FACT) if name in self.facts}

    def explained(self, said: str) -> Command:
        """Return the command with what its user has said of all that he does before its own reason."""
        if said in ("", self.why):
            return self
        return replace(self, facts={**self.facts, INTENT_FACT: f"{said}; {self.why}" if self.why else said})


@dataclass(frozen=True, slots=True)
class Frame:
    """Plumbing that nobody decides on. Each protocol lists its frames; whatever is not listed is a Command.

    by_gate: the gate made it (the replacement of a refused message, say), so it is not taped as the user's.
    taped False: it says nothing (flow control), or its content is on the tape in another form (the SHA-256 of a
    decoded transfer); each protocol lists these too.
    """

    wire: bytes
    by_gate: bool = False
    taped: bool = True


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a result, described so that a mask can be chosen without knowing the protocol.

    origins: the ``schema.table.column`` that the values come from; () = certainly from no table column;
    None = cannot be told. kind: how a masked value can be written: "text" takes any UTF-8 text (after
    prefix), "json" takes any JSON document, "other" takes only constant. constant: an image of the column's
    type in the column's format that holds no data; None where only NULL will do. type_name is for display.
    """

    name: str
    origins: tuple[str, ...] | None
    kind: Literal["text", "json", "other"] = "text"
    constant: bytes | None = None
    prefix: bytes = b""
    type_name: str = "text"
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """Whole rows in wire form. rewrite gives the same rows with the cells of each masked column replaced.

    rewrite takes one entry a column: None = leave alone, bytes = this constant, a function otherwise.
    NULL stays NULL without a call. flow: of which exchange wire is the whole answer, which rewrap frames; None: wire is
    framed itself.
    """

    columns: tuple[Column, ...]
    wire: bytes
    rewrite: Callable[[Sequence[CellMask | None]], bytes]
    flow: int | None = None
    rewrap: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True, slots=True)
class Remark:
    """An error, notice or notification: text beside the rows that may quote data. rewrite re-encodes it.

    fields go by role: "message", "detail", "hint", "where", "payload", "value" hold free text; all others
    are names and codes and carry no data.
    """

    fields: RemarkFields
    wire: bytes
    rewrite: Callable[[RemarkFields], bytes]


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of the target for the user that hold no maskable unit, or whose masks leave them alone."""

    stream: Literal["out", "err"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one of a session's streams for the user: data of an SSH channel, output of an exec.

    flow is the stream's number on the tape, data the bytes themselves, wire the same in the protocol's framing.
    rewrap frames other bytes in their place, after a mask. flush: let go of what a mask holds back, as this stream has
    ended or been silent for long. taped False: see Frame; such a chunk meets no mask either. masked False: no mask
    looks at it, as one would break it (packets of a decoded transfer) or has nothing to look for (the gate's words).
    """

    flow: int
    stream: Literal["out", "err"]
    data: bytes
    wire: bytes
    rewrap: Callable[[bytes], bytes]
    flush: bool = False
    taped: bool = True
    masked: bool = True


class FieldMask(Protocol):
    """What masks do to the fields of a document: by the field's name, and by what detectors find in any value.

    A field is named as the protocol documents it ("secrets:data.password"; "*:data.password" where nobody knows of what
    the document is: then the masks of anything apply). Values are text, whatever their encoding in the document.
    """

    @property
    def resources(self) -> tuple[str, ...]:
        """The patterns before the colon in the masks: of what something may be masked by name."""

    @property
    def texts(self) -> Callable[[str, str], str] | None:
        """What detectors make of a value beside its key; the same object if they find nothing. None: no detectors."""

    def __call__(self, field: str) -> Callable[[str], str] | None:
        """Return what replaces the values of a field and of all below it, None where its name is not masked."""

    def touches(self, field: str) -> bool:
        """Tell whether a field or something below it may be masked by name. "secrets:" is all of them."""


@dataclass(frozen=True, slots=True)
class Document:
    """A whole structured answer for the user: an object in JSON, one line of a watch. flow, data, wire: as in Chunk.

    rewrite gives the same document with the values of masked fields replaced, in data's form; rewrap frames it. What
    rewrite cannot read it must not let through: it raises, which ends the session.
    """

    flow: int
    data: bytes
    wire: bytes
    rewrite: Callable[[FieldMask], bytes]
    rewrap: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended, decoded for the people who replay the tape; taped, never sent.

    rows are the first rows as the user saw them (after the masks), in display text; None is NULL. details are
    further keys of the RESULT record, as recorder/format.py lists them (flow, exit, signal, sent, sha256, ...).
    """

    tag: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | None, ...], ...] = ()
    row_count: int = 0
    size_bytes: int = 0
    error: Mapping[str, str] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resize:
    """The user's terminal has a new size, in character cells; flow: the stream that is shown on it."""

    columns: int
    rows: int
    flow: int | None = None


Event = Rows | Remark | Output | Chunk | Document | Frame | Resize
