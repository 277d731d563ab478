"""One combined scan of a text for all detectors that a set of masks asks for.

How: the gates of all detectors are one re2.Set, so that a text without a chance costs one pass, whatever the number of
detectors (about half a microsecond for 30 bytes). Where gates open, their finders tell the spans. Spans that overlap
become one, which the earliest mask (in the order of the rules) covers: the first rule wins, and no byte of any match
is left.

Custom detectors are RE2 patterns on UTF-8 text (no look-around, no back-references: linear time); one with exactly
one group masks that group only, otherwise the whole match.

A Set whose automaton outgrows its memory finds nothing at all, silently; so each holds a sentinel that is looked for
once when it is compiled, and a set that fails it is refused. Within a search RE2 starts the automaton anew instead of
giving up (re2/dfa.cc, kManyMatch).

Left out: texts over DETECT_LIMIT, which the callers mask whole (cells) or cut (streams).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import re2

from proxy.core.errors import ConfigError
from proxy.masking.patterns import BUILT_IN, Detector, Span

# A longer cell is masked whole under detectors: a mebibyte takes 1.5 ms without a match and up to 0.2 s full of them,
# in which nothing else runs on the loop.
DETECT_LIMIT: Final = 1024 * 1024
# Longer than any pattern in the rule sets of the common secret scanners (gitleaks' longest: 1.1 KB).
PATTERN_LIMIT: Final = 2048
# Memory for the automaton of one set of masks; RE2's default is 8 MiB for one pattern.
AUTOMATON_LIMIT: Final = 32 * 1024 * 1024

# Looking for one byte in a short cell costs 20 ns, asking the automaton 500 ns.
NEEDS_LIMIT: Final = 3

_SENTINEL: Final = b"\x00gatecast\x00sentinel\x00"


def custom_detector(name: str, pattern: str) -> Detector:
    """Make a detector of a user's pattern. Raises ConfigError saying what RE2 does not like about it."""
    if len(pattern.encode("utf-8", "replace")) > PATTERN_LIMIT:
        raise ConfigError(f"detector {name!r}: the pattern is longer than {PATTERN_LIMIT} bytes")
    if any("\ud800" <= each <= "\udfff" for each in pattern):
        raise ConfigError(f"detector {name!r}: the pattern is not valid text")
    if not name or name in BUILT_IN:
        raise ConfigError(f"detector {name!r}: the name is {'taken by a built-in detector' if name else 'empty'}")
    settings = re2.Options()
    settings.log_errors = False
    try:
        compiled = re2.compile(pattern, settings)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ConfigError(f"detector {name!r}: not a pattern of RE2: {text}") from error
    if compiled.search("") is not None:
        raise ConfigError(f"detector {name!r}: the pattern matches the empty text")
    group = 1 if compiled.groups == 1 else 0
    raw = re2.compile(pattern.encode(), settings)  # on bytes, so that spans are offsets on the wire

    def find(text: bytes) -> list[Span]:
        return [span for match in raw.finditer(text) if (span := match.span(group))[1] > span[0]]

    return Detector(name, ((pattern.encode(), find),), 1, in_numbers=True, unicode=True)


class Found(NamedTuple):
    """A span that some mask covers; choice is that mask's index in the scanner's order."""

    start: int
    end: int
    choice: int


Gates = Callable[[bytes], list[int] | None]


class Scanner:
    """All detectors of some masks. wanted: pairs of a detector and the index of the mask that asks for it first."""

    def __init__(self, wanted: Sequence[tuple[Detector, int]]) -> None:
        self.shortest = min((detector.shortest for detector, _ in wanted), default=1)
        needs = bytes(sorted({each for detector, _ in wanted for each in detector.needs}))
        # Bytes of which every match holds one, if that is true of all detectors and they are few.
        self.needs = needs if all(each.needs for each, _ in wanted) and len(needs) <= NEEDS_LIMIT else b""
        narrow = [pair for pair in wanted if not pair[0].unicode]
        wide = [pair for pair in wanted if pair[0].unicode]
        self._probes = [(find, choice) for pairs in (narrow, wide) for each, choice in pairs for _, find in each.probes]
        first = _automaton([gate for each, _ in narrow for gate, _ in each.probes], unicode=False) if narrow else None
        second = _automaton([gate for each, _ in wide for gate, _ in each.probes], unicode=True) if wide else None
        # Says which probes are worth running on a text: a list of their numbers, or None. The hot path calls it.
        self.gates: Gates = _both(first, second, sum(len(each.probes) for each, _ in narrow))

    def locate(self, text: bytes, opened: Sequence[int] | None = None) -> list[Found]:
        """Return what is to be masked, in order, without overlaps. opened: what gates(text) said, if known."""
        hits = self.gates(text) if opened is None else opened
        found: list[tuple[int, int, int]] = []
        for hit in hits or ():
            if hit < len(self._probes):  # the last of an automaton is its sentinel
                find, choice = self._probes[hit]
                found += [(start, end, choice) for start, end in find(text)]
        if len(found) < 2:
            return [Found(*each) for each in found]
        found.sort()
        merged: list[Found] = []
        low, high, best = found[0]
        for start, end, choice in found[1:]:
            if start < high:
                high, best = max(high, end), min(best, choice)
            else:
                merged.append(Found(low, high, best))
                low, high, best = start, end, choice
        merged.append(Found(low, high, best))
        return merged


def _automaton(gates: Sequence[bytes], unicode: bool) -> Gates:
    """Compile gates of one encoding into one automaton. Raises ConfigError."""
    settings = re2.Options()
    settings.encoding = re2.Options.Encoding.UTF8 if unicode else re2.Options.Encoding.LATIN1
    settings.log_errors = False
    settings.max_mem = AUTOMATON_LIMIT
    automaton = re2.Set.SearchSet(settings)
    try:
        for gate in (*gates, _SENTINEL):
            automaton.Add(gate)
        automaton.Compile()
    except re2.error as error:
        raise ConfigError("the masks' detectors do not compile together") from error
    match: Gates = automaton.Match
    if len(gates) not in (match(_SENTINEL) or ()):
        raise ConfigError("the masks' detectors are too large together; use fewer or simpler patterns")
    return match


def _both(narrow: Gates | None, wide: Gates | None, shift: int) -> Gates:
    """Ask both automata; the second one's numbers follow the first one's."""
    if narrow is None or wide is None:
        only = narrow or wide
        assert only is not None, "a scanner has a detector"
        return only
    first, second = narrow, wide

    def gates(text: bytes) -> list[int] | None:
        hits = [hit for hit in first(text) or () if hit < shift]
        return hits + [hit + shift for hit in second(text) or ()]

    return gates


def detectors(custom: Mapping[str, str]) -> dict[str, Detector]:
    """Return the built-in detectors and those of the configuration (name -> pattern). Raises ConfigError."""
    return {**BUILT_IN, **{name: custom_detector(name, pattern) for name, pattern in custom.items()}}
