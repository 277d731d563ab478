"""What a user's terminal sends, key by key: text, controls, escape sequences, pastes, and the keys that submit a line.

Keys go on to the target as they come, a first half of an escape sequence too; so this only names them. It reads the
same keys however the bytes are cut. Submit keys are CR, LF and Ctrl-O, the keypad's Enter (ESC O M) and what the
keyboard protocols CSI u and modifyOtherKeys send for them; of a sequence the last byte counts. They submit in the
middle of a sequence as well: no string that a user opens hides them. In a bracketed paste they are text, if the
caller lets a paste be one. Where it does not, zsh's Alt-a (accept-and-hold) submits as well.

Left out: keys that somebody has bound at the target; Alt-a elsewhere, as it is "append" in vi's mode.

Specification: ECMA-48 5.4; XTerm Control Sequences ("Bracketed Paste Mode", "modifyOtherKeys"); kitty's CSI u.
"""

from __future__ import annotations

import re
from typing import Final, Literal

KeyKind = Literal["text", "control", "edit", "report", "part", "submit", "paste", "paste-start", "paste-end"]

SEQUENCE_LIMIT: Final = 32  # the longest key of the kitty protocol in use; longer is no key

_TEXT: Final = re.compile(rb"[^\x00-\x1f\x7f]+")
_SUBMIT: Final = frozenset(b"\r\n\x0f")
_ESCAPE: Final = 0x1B
# Answers of the terminal, not keys: cursor position, device attributes and modes, focus, mouse.
_REPORT: Final = re.compile(rb"\x1b\[(?:[0-9;]+R|\?[0-9;$]*[cunyR]|>[0-9;]*c|[0-9;]+[nt]|[IO]|<[0-9;]+[Mm])\Z")
# Enter, the keypad's Enter; with Ctrl: j, m, o. An event type (":3" is a release) may follow the modifiers.
_ENTER: Final = re.compile(
    rb"\x1b(?:OM|\[(?:13|57414)(?::[0-9:]*)?(?:;[0-9:]*)*u|\[(?:106|109|111)(?::[0-9:]*)?;[0-9][0-9:]*(?:;[0-9:]*)?u"
    rb"|\[27;[0-9]+;(?:13|106|109|111)~)\Z"
)
_ACCEPT_AND_HOLD: Final = frozenset({b"\x1ba", b"\x1bA"})


class Keys:
    """Reads keys; its state is that of the sequence and the paste that have begun."""

    __slots__ = ("_sequence", "pasting")

    def __init__(self) -> None:
        self._sequence = b""
        self.pasting = False

    def next(self, data: bytes, position: int, pastes: bool) -> tuple[KeyKind, int]:
        """Name what begins at position and tell where it ends. pastes: a paste may hold submit keys as text."""
        if self._sequence:
            return self._go_on(data, position, pastes), position + 1
        first = data[position]
        if first == _ESCAPE:
            self._sequence = b"\x1b"
            return "part", position + 1
        if self.pasting and pastes:
            end = data.find(b"\x1b", position)
            return "paste", len(data) if end < 0 else end
        if first in _SUBMIT:
            return "submit", position + 1
        text = _TEXT.match(data, position)
        if text is None:
            return "control", position + 1
        return "text", text.end()

    def _go_on(self, data: bytes, position: int, pastes: bool) -> KeyKind:
        byte = data[position]
        before = self._sequence
        if byte in _SUBMIT and not (self.pasting and pastes):
            self._sequence = b""
            return "submit"
        if byte == _ESCAPE:
            self._sequence = b"\x1b"
            return "part"
        sequence = before + data[position : position + 1]
        more = len(sequence) <= SEQUENCE_LIMIT and (
            sequence in (b"\x1b[", b"\x1bO") or (before[:2] == b"\x1b[" and 0x20 <= byte <= 0x3F)
        )
        self._sequence = sequence if more else b""
        return "part" if more else self._whole(sequence, pastes)

    def _whole(self, sequence: bytes, pastes: bool) -> KeyKind:
        if sequence == b"\x1b[201~":
            self.pasting = False
            return "paste-end"
        if self.pasting and pastes:
            return "paste"
        if sequence == b"\x1b[200~":
            self.pasting = True
            return "paste-start"
        if _ENTER.match(sequence) or (not pastes and sequence in _ACCEPT_AND_HOLD):
            return "submit"
        return "report" if _REPORT.match(sequence) else "edit"
