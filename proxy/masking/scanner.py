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
from dataclasses import dataclass
from typing import Final

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

    return Detector(name, pattern.encode(), find, 1, in_numbers=True, unicode=True)


@dataclass(frozen=True, slots=True)
class Found:
    """A span that some mask covers; choice is that mask's index in the scanner's order."""

    start: int
    end: int
    choice: int


Gates = Callable[[bytes], list[int]]


class Scanner:
    """All detectors of some masks. wanted: pairs of a detector and the index of the mask that asks for it first."""

    def __init__(self, wanted: Sequence[tuple[Detector, int]]) -> None:
        self._wanted = tuple(wanted)
        self.shortest = min((detector.shortest for detector, _ in wanted), default=1)
        narrow = [place for place, (detector, _) in enumerate(wanted) if not detector.unicode]
        wide = [place for place, (detector, _) in enumerate(wanted) if detector.unicode]
        self.gates = _union([self._gates(places) for places in (narrow, wide) if places])

    def _gates(self, places: Sequence[int]) -> Gates:
        """Compile the gates at these places of wanted, which share an encoding, into one automaton."""
        settings = re2.Options()
        if not self._wanted[places[0]][0].unicode:
            settings.encoding = re2.Options.Encoding.LATIN1
        settings.log_errors = False
        settings.max_mem = AUTOMATON_LIMIT
        gates = re2.Set.SearchSet(settings)
        try:
            for place in places:
                gates.Add(self._wanted[place][0].gate)
            gates.Add(_SENTINEL)
            gates.Compile()
        except re2.error as error:
            raise ConfigError("the masks' detectors do not compile together") from error
        match: Gates = gates.Match
        if len(places) not in match(_SENTINEL):
            raise ConfigError("the masks' detectors are too large together; use fewer or simpler patterns")
        if list(places) == list(range(len(places))):
            return match
        return lambda text: [places[hit] for hit in match(text) if hit < len(places)]

    def locate(self, text: bytes, opened: Sequence[int] | None = None) -> list[Found]:
        """Return what is to be masked, in order, without overlaps. opened: what gates(text) said, if known."""
        hits = self.gates(text) if opened is None else opened
        found: list[tuple[int, int, int]] = []
        for hit in hits:
            if hit < len(self._wanted):
                detector, choice = self._wanted[hit]
                found += [(start, end, choice) for start, end in detector.find(text)]
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


def _union(gates: Sequence[Gates]) -> Gates:
    if len(gates) == 1:
        return gates[0]
    first, second = gates
    return lambda text: first(text) + second(text)


def detectors(custom: Mapping[str, str]) -> dict[str, Detector]:
    """Return the built-in detectors and those of the configuration (name -> pattern). Raises ConfigError."""
    return {**BUILT_IN, **{name: custom_detector(name, pattern) for name, pattern in custom.items()}}
