"""The alternate screen (vim, less, tmux): the whole of it, modelled only when somebody has to know a line of it.

Its rows belong to a program, so nothing tells where a line begins: the cursor's row is all there is.
"""

from __future__ import annotations

from proxy.terminal.keys import KeyKind
from proxy.terminal.lines import Backlog
from proxy.terminal.reading import Reading, judge
from proxy.terminal.typed import Typed


class Pane:
    """What the program draws, and what was typed since the last submit key."""

    def __init__(self, columns: int, rows: int) -> None:
        self._backlog = Backlog(columns, rows)
        self._keys = Typed()

    def show(self, data: bytes) -> None:
        """Take output."""
        if self._keys.keys:
            self._keys.answer(data)
        self._backlog.add(data)

    def key(self, kind: KeyKind, data: bytes) -> None:
        """Take a key that goes out."""
        self._keys.take(kind, data)

    def submitted(self) -> None:
        """A submit key went out, or the line was dropped."""
        self._keys = Typed()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size."""
        self._backlog.resize(columns, rows)

    def row(self) -> str:
        """The cursor's row."""
        try:
            screen = self._backlog.look()
            return screen.text(screen.y)
        except Exception:  # fails closed: no row is no known prompt, and read() has the keys
            return ""

    @property
    def keys(self) -> Typed:
        """What was typed."""
        return self._keys

    def read(self, row: str) -> Reading:
        """Tell what the line is; row: the cursor's, without a prompt that is known. Plain typing stands beside it."""
        shown = row.strip()
        if not self._keys.keys:
            return Reading(shown, "app", empty=not shown)
        return judge(self._keys, shown, "app", False, plain=self._keys.plain, ahead=False, secret=False)
