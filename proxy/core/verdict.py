"""What a policy can say of a command, and how several answers become one. Pure values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NO_RULE = "default-deny"

Action = Literal["redact", "partial", "hash", "null", "constant"]


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask of one rule: what to look for, and what to put in its place.

    columns are patterns ``schema.table.column`` with ``*`` wildcards (fnmatch, case-sensitive); detectors
    are names of value detectors. fields are patterns of the fields of documents (Kubernetes: ``secrets:data.*``). All
    empty is an error at load. keep is for ``partial``: how many
    characters stay readable at the end. text is the replacement of ``redact`` and ``constant``.
    """

    rule: str
    columns: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()
    action: Action = "redact"
    keep: int = 4
    text: str | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Allow:
    """The command may pass; what comes back goes through the masks. Masking is a property of allowing."""

    rule: str
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """The command waits for a human: any one of the approvers (subjects, or groups as ``group:NAME``)."""

    rule: str
    approvers: tuple[str, ...]
    timeout_seconds: float
    reason: str = ""
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True, slots=True)
class Deny:
    """The command does not pass. reason is shown to the user."""

    rule: str
    reason: str


Verdict = Allow | Hold | Deny


@dataclass(frozen=True, slots=True)
class Given:
    """An approval that was given to a process which is gone: its id, the rule that asked for it, and who gave it.

    Whoever passes one has checked that the command is the one that was approved.
    """

    approval: str
    rule: str
    by: str = ""


def no_rule() -> Deny:
    """The verdict where nothing matched: promise 1."""
    return Deny(NO_RULE, "no rule allows this command")


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Make one verdict of several: Deny over Hold over Allow; masks add up; nothing at all is Deny.

    The first Deny, else the first Hold, gives the rule and the reason. Two Holds need the approvers of the
    first (the order of the rules decides) and the shorter timeout.
    """
    allow: Allow | None = None
    hold: Hold | None = None
    masks: dict[Mask, None] = {}
    for verdict in verdicts:
        match verdict:
            case Deny():
                return verdict
            case Hold():
                timeout = min(verdict.timeout_seconds, hold.timeout_seconds) if hold else verdict.timeout_seconds
                first = hold or verdict
                hold = Hold(first.rule, first.approvers, timeout, first.reason)
                masks.update(dict.fromkeys(verdict.masks))
            case Allow():
                allow = allow or verdict
                masks.update(dict.fromkeys(verdict.masks))
    if hold is not None:
        return Hold(hold.rule, hold.approvers, hold.timeout_seconds, hold.reason, tuple(masks))
    if allow is not None:
        return Allow(allow.rule, tuple(masks))
    return no_rule()
