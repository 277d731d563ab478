"""Masking: the Masker of the gate. It turns the masks of a permit into cell masks, masked remarks and refusals.

How: the masks of one permit are compiled once (patterns, one scanner for all detectors) and kept by value. A column of
a result is masked by the first mask, in the order of the rules, whose column patterns cover it:

- by its origins where the protocol knows them (PostgreSQL: the catalogue behind RowDescription's oid and attnum);
  no origin at all is no column mask;
- where they cannot be told, by the statement's lineage, and where there is none, by whether the statement touches a
  masked column at all (touch.py). What nothing is known of is masked: this fails closed.

Fields of documents are chosen by name in the same manner (fields.py).

A column that no column mask covers goes through all detectors of all masks; for a value that two find, and for a
detector that two masks name, the first mask counts. A column mask beats detectors.

Left out: what a cell looks like (cells.py), who may run what (the policy). Everything here is pure; the key of the
action ``hash`` is the only secret, and equal keys on several gateways give equal hashes.
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import ConfigError
from proxy.core.events import CellMask, Column, Command, FieldMask, RemarkFields
from proxy.core.verdict import Deny, Mask
from proxy.masking import actions, guard, remarks, warehouse_guard, writing
from proxy.masking.cells import column_mask, detector_mask
from proxy.masking.fields import Fields, compile_field
from proxy.masking.names import compile_pattern
from proxy.masking.patterns import BUILT_IN, Detector
from proxy.masking.scanner import Scanner, detectors
from proxy.masking.streams import StreamMask
from proxy.masking.texts import TextMask
from proxy.masking.touch import Columns, output_touches, resolved_of, statements_of
from proxy.masking.warehouse import FieldPatterns, is_path

# Compiled sets of masks that are kept; a rule file has a few, each a megabyte at most.
COMPILED_LIMIT: Final = 256
# Answers that are kept for one set of masks, as many as the protocol keeps of facts.
ANSWERS_LIMIT: Final = 2048
# NIST SP 800-107 5.3.4: an HMAC key of at least the security strength asked for, here 128 bits.
KEY_BYTES_LIMIT: Final = 16


@dataclass(frozen=True, slots=True)
class ResultPlan:
    """The masks of one result; see proxy/core/gate.Plan."""

    cells: Sequence[CellMask | None]
    rules: Mapping[int, str]
    scanned: frozenset[int] = frozenset()


class Compiled:
    """Some masks made ready: their column patterns, and the scanner for their detectors."""

    def __init__(self, masks: tuple[Mask, ...], key: bytes, known: Mapping[str, Detector]) -> None:
        self.by_column = tuple(
            (mask, Columns(tuple(compile_pattern(pattern) for pattern in mask.columns if not is_path(pattern))))
            for mask in masks
            if not all(map(is_path, mask.columns))
        )
        self.warehouse = FieldPatterns(masks)
        chosen = [mask for mask in masks if mask.detectors]
        wanted = {name: choice for choice, mask in reversed(list(enumerate(chosen))) for name in mask.detectors}
        named = [(known[name], choice) for name, choice in wanted.items()]
        self.custom = any(name not in BUILT_IN for name in wanted)
        self.detecting = chosen[0].rule if chosen else ""
        # Answers for commands whose facts are equal (facts["cache_key"]); a plan holds for one tuple of columns.
        self.guards: dict[Hashable, Deny | None] = {}
        self.plans: dict[Hashable, tuple[tuple[Column, ...], ResultPlan | None]] = {}
        self.texts: TextMask | None = None
        self.numbers: Scanner | None = None
        if named:
            self.texts = TextMask(Scanner(named), [actions.replacer(mask, key) for mask in chosen])
            in_numbers = [each for each in named if each[0].in_numbers]
            self.numbers = Scanner(in_numbers) if in_numbers else None
        self.fields = Fields(masks, key, self.texts, self.custom)
        self.by_field = tuple((mask, tuple(map(compile_field, mask.fields))) for mask in masks)


class Masking:
    """The Masker that app.py puts into the gate.

    key: of the action hash; None makes a random one, with which hashes are comparable until the gateway stops.
    custom: the configuration's detectors, name -> RE2 pattern. Raises ConfigError for a key that is too short or a
    pattern that RE2 does not take.
    """

    def __init__(self, key: bytes | None = None, custom: Mapping[str, str] | None = None) -> None:
        if key is not None and len(key) < KEY_BYTES_LIMIT:
            raise ConfigError(f"the masking key must have at least {KEY_BYTES_LIMIT} bytes")
        self._key = secrets.token_bytes(32) if key is None else key
        self._detectors = detectors(custom or {})
        self._compiled: dict[tuple[Mask, ...], Compiled] = {}

    @property
    def detectors(self) -> frozenset[str]:
        """The names that a mask may use: the built-in ones and the configuration's."""
        return frozenset(self._detectors)

    def check(self, mask: Mask) -> str | None:
        """Return what is wrong with a mask, None if nothing is."""
        return actions.check_mask(mask, self.detectors)

    def plan(self, masks: tuple[Mask, ...], command: Command, columns: tuple[Column, ...]) -> ResultPlan | None:
        """Choose a cell mask for each column; None if all columns stay as they are."""
        compiled = self._compile(masks)
        key = command.facts.get("cache_key")
        if key is None:
            return self._plan(compiled, command, columns)
        place = (key, id(columns))  # the entry holds the columns, so that their id stays theirs
        cached = compiled.plans.get(place)
        if cached is None:
            if len(compiled.plans) >= ANSWERS_LIMIT:
                compiled.plans.clear()
            cached = compiled.plans[place] = (columns, self._plan(compiled, command, columns))
        return cached[1]

    def _plan(self, compiled: Compiled, command: Command, columns: tuple[Column, ...]) -> ResultPlan | None:
        cells: list[CellMask | None] = []
        rules: dict[int, str] = {}
        scanned: set[int] = set()
        for index, column in enumerate(columns):
            mask = _covering(compiled, command, column, index, len(columns))
            if mask is not None:
                cells.append(column_mask(mask, column, self._key))
                rules[index] = mask.rule
                continue
            cell = None
            if compiled.texts is not None:
                cell = detector_mask(compiled.texts, compiled.numbers, compiled.custom, column)
            cells.append(cell)
            if cell is not None:
                rules[index] = compiled.detecting
                scanned.add(index)
        return ResultPlan(tuple(cells), rules, frozenset(scanned)) if rules else None

    def remark(self, masks: tuple[Mask, ...], fields: RemarkFields) -> RemarkFields:
        """Mask the free-text fields of an error, notice or notification."""
        compiled = self._compile(masks)
        masked = remarks.under_columns(fields) if compiled.warehouse.speaks else fields
        return masked if compiled.texts is None else remarks.under_detectors(masked, compiled.texts)

    def guard(self, masks: tuple[Mask, ...], command: Command) -> Deny | None:
        """Refuse what would carry masked values past the masks."""
        if not masks:
            return None
        compiled = self._compile(masks)
        key = command.facts.get("cache_key")
        if key is None or command.protocol == "bigquery":  # there the parts count, too
            return _guard(compiled, masks, command)
        if key not in compiled.guards:
            if len(compiled.guards) >= ANSWERS_LIMIT:
                compiled.guards.clear()
            compiled.guards[key] = _guard(compiled, masks, command)
        return compiled.guards[key]

    def fields(self, masks: tuple[Mask, ...], command: Command) -> FieldMask | None:
        """Return what masks the fields of a document, None if all documents stay as they are."""
        compiled = self._compile(masks)
        return compiled.fields if compiled.fields.resources or compiled.fields.texts is not None else None

    def stream(self, masks: tuple[Mask, ...]) -> StreamMask | None:
        """Return a mask for a stream of text (a terminal, a program's output), None if no detector asks for it."""
        texts = self._compile(masks).texts
        return None if texts is None else StreamMask(texts)

    def _compile(self, masks: tuple[Mask, ...]) -> Compiled:
        compiled = self._compiled.get(masks)
        if compiled is None:
            for mask in masks:
                problem = self.check(mask)
                if problem is not None:  # the loader checked; a mask that cannot work lets nothing pass
                    raise ConfigError(f"rule {mask.rule}: {problem}")
            compiled = Compiled(masks, self._key, self._detectors)
            if len(self._compiled) >= COMPILED_LIMIT:
                self._compiled.clear()
            self._compiled[masks] = compiled
        return compiled


def _guard(compiled: Compiled, masks: tuple[Mask, ...], command: Command) -> Deny | None:
    if command.protocol == "bigquery":
        denied = warehouse_guard.unmaskable(command, compiled.detecting) if compiled.detecting else None
        return denied or warehouse_guard.laundering(compiled.warehouse, command)
    denied = guard.replication(command, masks[0].rule)
    if compiled.detecting:
        denied = denied or guard.unmaskable(command, compiled.detecting)
    for mask, columns in compiled.by_column:
        denied = denied or guard.laundering(columns, command, mask.rule)
    for mask, patterns in compiled.by_field:
        denied = denied or writing.written_back(mask, patterns, command)
    return denied


def _covering(compiled: Compiled, command: Command, column: Column, index: int, width: int) -> Mask | None:
    """The first mask that covers a column of a result, None if none does."""
    if command.protocol == "bigquery":
        return compiled.warehouse.covering(column)
    if column.origins is not None:
        for mask, columns in compiled.by_column:
            if columns.cover_origin(column.origins):
                return mask
        return None
    for mask, columns in compiled.by_column:
        if _may_hold(columns, command, index, width):
            return mask
    return None


def _may_hold(columns: Columns, command: Command, index: int, width: int) -> bool:
    """Tell whether a result column of unknown origin may hold covered values."""
    statements = statements_of(command)
    if statements is None:
        return True
    resolved = resolved_of(command)
    answers = [output_touches(columns, each, index, width, resolved) for each in statements]
    told = [answer for answer in answers if answer is not None]
    return any(told) if told else True
