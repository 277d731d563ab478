"""Lines typed on a terminal: each is read, decided, and only then submitted.

How it works. Keys go to the target as they come, and are echoed by it. A key that submits (keys.py) is withheld, the
screen is left to settle (at once where plain typing and echo agree, else about 30 ms of quiet), the line is read
(lines.py) and asked for as a Command of the verb "line", exact=False. If it is allowed the key goes; if it is refused
the line is thrown away: by Ctrl-C at what may be a shell's prompt, which leaves a clean prompt in bash, zsh, fish, dash
and busybox in every editing mode; by Ctrl-E Ctrl-U in a program, which Ctrl-C would kill. Keys behind a withheld one
wait in order, QUEUE_LIMIT bytes at most (more, and the line is asked for as it is, which stops the user), and after a
line of a paste the shell gets a moment to come back. Behind a refused line they are dropped. Enter alone is no command
and passes.

Facts of a line: shell (Script), opaque, login, how (both, screen, search, guess, app: see lines.py), unsure (guess or
app), hidden, alternate; typed and shown where plain typing and the screen disagree: then the text is what was typed,
and the objects and the script are those of both. A line that nobody can read is "(unreadable)", and opaque.

What is not echoed (password prompts, read -s, stty -echo) is asked for as "(hidden input)": neither text, objects nor
typed hold it; what it would run is in the facts beneath and shell, which rules see and no tape holds. The keys
themselves are sent before their echo could be known, so the user's channel of the tape holds them, except at a prompt
that asks for a password (a row like "Password:", no line editor active, nothing echoed): there they are not taped from
the first key on, nor is what is dropped behind them (the same secret once more, often). A secret that something asks
for in other words, or one typed ahead, is on the tape as bytes of the user's channel.

What this cannot promise. The text is a reconstruction. A shell whose user or owner works against it shows one line and
runs another: after plain typing that does not help, as what was typed counts, but keys that were bound to something,
aliases, a history that was edited elsewhere, an editor (vim's :!sh, Ctrl-X Ctrl-E), a script that was copied here or
pasted into an interpreter are beyond what any terminal shows. In the alternate screen (vim, less, tmux) keys pass;
a line there is asked for (how "app") only if its row begins with a prompt that this shell has shown before. With
hold_when_unsure every submit key there is asked for, with the cursor's row as text, and line breaks inside a paste are
submit keys, whatever the target claims. So nothing that a target prints (alternate screen, prompt marks, escape
sequences) switches the question off there, and nothing at all changes what is recorded. Where certainty is needed, a
target takes exec only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from proxy.core.errors import Refused
from proxy.core.events import Command, Result
from proxy.core.gate import ShellReader
from proxy.core.script import Script
from proxy.core.session import Permit
from proxy.terminal.content import Ask, Content, Done, Dropped, Settings, Step, ToTarget, ToUser, Wake
from proxy.terminal.cues import Cue, Cues
from proxy.terminal.keys import KeyKind, Keys
from proxy.terminal.lines import Line
from proxy.terminal.pane import Pane
from proxy.terminal.reading import UNREADABLE, Reading
from proxy.terminal.screen import COLUMNS_LIMIT, ROWS_LIMIT
from proxy.terminal.typed import Typed
from proxy.terminal.wording import refusal_text

QUEUE_LIMIT: Final = 64 * 1024

# Of the note on SSH, section 7: 30 ms of quiet read 37 of 37 cases in bash.
QUIET_SECONDS: Final = 0.03
SILENCE_SECONDS: Final = 0.25  # nothing echoed for so long: nothing will be
SILENCE_FIRST_SECONDS: Final = 1.0  # the same before any echo was measured
SETTLE_LIMIT_SECONDS: Final = 1.5
RETURN_SECONDS: Final = 0.6  # how long the next line of a paste waits for the shell to come back
RETURN_APP_SECONDS: Final = 0.15
RETURN_QUIET_SECONDS: Final = 0.025
ECHO_LIMIT_SECONDS: Final = 0.3

_CLEAR_SHELL: Final = b"\x03"
_CLEAR_APP: Final = b"\x05\x15"
_END_OF_FILE: Final = b"\x04"
_EXPANDING: Final = (b"\t", b"\x18")
_EXPANDING_ALT: Final = (b"\t", b"\x05")
_STAYING: Final = (_END_OF_FILE, *_EXPANDING, *_EXPANDING_ALT)
_SUBSTITUTIONS: Final = ("$(", "`", "<(", ">(", "=(")


def terminal_content(settings: Settings, shell: ShellReader) -> Content:
    """Return the Content of a channel with a terminal: a shell, or a command that was given a pty."""
    return Terminal(settings, shell)


@dataclass(slots=True)
class _Run:
    """A line that was allowed, until the next prompt."""

    permit: Permit
    how: str
    since_bytes: int


class Terminal:
    """See the module's text; the methods are those of Content."""

    def __init__(self, settings: Settings, shell: ShellReader) -> None:
        self._settings = settings
        self._shell = shell
        self._keys = Keys()
        self._cues = Cues()
        columns, rows = _size(settings.columns, settings.rows)
        self._line = Line(columns, settings.hold_when_unsure)
        self._pane: Pane | None = None  # the alternate screen, while it is there
        self._leaving = False  # the alternate screen is gone, but a line of it is being decided
        self._size = (columns, rows)
        self._key = b""  # withheld
        self._key_at = 0.0
        self._ask: Ask | None = None
        self._queue = b""
        self._veiled = False  # the line that the queue stands behind is a secret
        self._return_at: float | None = None  # when the line before the queue was submitted
        self._return_limit = RETURN_SECONDS
        self._eof = False
        self._last_in = self._last_out = 0.0
        self._echo_seconds = 0.01
        self._echo_known = False
        self._out_bytes = 0
        self._outer: _Run | None = None  # run by the shell
        self._inner: _Run | None = None  # typed into what it runs
        self._tells_status = False  # this shell marks how its commands end

    # -- the user -------------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """How many bytes of the user wait here; time or an answer sets them free, never the user's next key alone."""
        return len(self._key) + len(self._queue)

    def from_user(self, data: bytes, now: float) -> list[Step]:
        if self._ask is None and not self._key and not self._queue:
            return self._take(data, now)
        self._queue += data
        if len(self._queue) > QUEUE_LIMIT and self._ask is None:
            return self._hurry(now)
        return []

    def _hurry(self, now: float) -> list[Step]:
        """Wait no more: ask for the line as it is, which holds the user back, or go on with the next one."""
        if self._key:
            return self._read(now)
        return self._go_on(now) if self._queue else []

    def _take(self, data: bytes, now: float) -> list[Step]:
        passed = _Passed()
        position = 0
        while position < len(data):
            kind, end = self._keys.next(data, position, not self._settings.hold_when_unsure)
            key = data[position:end]
            position = end
            taped = True
            if kind == "submit" or (key == _END_OF_FILE and self._ends_line()) or self._expands(kind, key):
                steps = self._submit(key, data[end:], now)
                if steps is not None:
                    return passed.steps() + steps
            else:
                taped = self._press(kind, key, now)
            passed.add(key, taped)
        return passed.steps()

    def _press(self, kind: KeyKind, key: bytes, now: float) -> bool:
        """Count a key in; return whether it is taped."""
        if kind != "report":
            self._last_in = now
        if self._pane is not None:
            self._pane.key(kind, key)
            return True
        self._line.key(kind, key)
        return not self._line.veiled

    def _ends_line(self) -> bool:
        """Whether Ctrl-D hands an unfinished line over: without a line editor it does (POSIX termios, VEOF)."""
        return self._pane is None and not self._line.editing and self._line.keys.printed

    def _expands(self, kind: KeyKind, key: bytes) -> bool:
        """Whether the key may run what stands in the line: shells expand it, substitutions of commands and all.

        zsh does at Tab and Ctrl-X *, bash at Alt-Ctrl-E. The line is still there afterwards.
        """
        if self._pane is not None or not (key in _EXPANDING or (kind == "edit" and key in _EXPANDING_ALT)):
            return False
        return any(mark in text for text in (self._line.keys.text, self._line.read().text) for mark in _SUBSTITUTIONS)

    def _submit(self, key: bytes, rest: bytes, now: float) -> list[Step] | None:
        """Withhold the key, or return None: it passes with the rest behind it."""
        if self._pane is not None:
            if not self._settings.hold_when_unsure and self._line.behind_prompt(self._pane.row()) is None:
                self._pane.submitted()
                return None
        elif self._line.untouched and not self._line.left_over and self._line.read().empty:
            return self._pass_empty(key, rest, now)
        self._key, self._key_at, self._queue = key, now, rest
        return self._settle(now)

    def _pass_empty(self, key: bytes, rest: bytes, now: float) -> list[Step] | None:
        self._last_in = now
        self._line.submitted(key, to_shell=self._line.editing)
        if not rest:
            return None
        self._queue, self._return_at, self._return_limit = rest, now, RETURN_SECONDS
        self._veiled = False
        return [ToTarget(key), Wake(RETURN_QUIET_SECONDS)]

    # -- waiting --------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Step]:
        """Ask if the screen shows all that was typed; else wait for it a little."""
        if self._eof or len(self._queue) > QUEUE_LIMIT:
            return self._read(now)
        keys = self._line.keys if self._pane is None else self._pane.keys
        plain = keys.plain and bool(keys.text)
        if self._pane is None and (plain or self._line.untouched) and not self._line.left_over:
            reading = self._line.read()
            if reading.empty or (not reading.hidden and reading.typed is None and not self._line.untouched):
                return self._read(now)
        quiet = max(QUIET_SECONDS, 3 * self._echo_seconds)
        if self._pane is None and self._line.secret:
            silence = quiet
        else:
            silence = max(quiet, SILENCE_SECONDS if self._echo_known else SILENCE_FIRST_SECONDS)
        needed = quiet if self._last_out > self._last_in and not plain else silence
        left = min(max(self._last_out, self._last_in) + needed, self._key_at + SETTLE_LIMIT_SECONDS) - now
        return [Wake(left)] if left > 0 else self._read(now)

    def _return(self, now: float) -> list[Step]:
        """Take the keys behind a submitted line once the shell is back, or has had its time."""
        start = self._return_at
        if start is None or self._ask is not None or self._key:
            return []
        back = self._last_out > start and (self._line.editing or not self._line.cues or self._inner is not None)
        end = start + self._return_limit
        if back:
            end = min(end, self._last_out + RETURN_QUIET_SECONDS)
        if end > now and not self._eof and len(self._queue) <= QUEUE_LIMIT:
            return [Wake(end - now)]
        return self._go_on(now)

    def _go_on(self, now: float) -> list[Step]:
        data, self._queue, self._return_at = self._queue, b"", None
        return self._take(data, now) if data else []

    # -- asking ---------------------------------------------------------------------------------------

    def _read(self, now: float) -> list[Step]:
        """Read the line and ask for it."""
        if self._pane is None:
            reading = self._line.read()
        else:
            row = self._pane.row()
            behind = self._line.behind_prompt(row)
            reading = self._pane.read(row if behind is None else behind)
        key, self._key = self._key, b""
        self._veiled = reading.secret or (self._pane is None and self._line.veiled)
        if reading.empty:
            if self._pane is not None:
                self._pane_submitted()
                return [ToTarget(key), *self._resume(now, RETURN_APP_SECONDS)]
            self._last_in = now
            self._line.submitted(key, to_shell=not self._line.running)
            return [ToTarget(key), *self._resume(now, RETURN_SECONDS)]
        steps: list[Step] = []
        if self._inner is not None:
            steps.append(self._done(self._inner))
            self._inner = None
        if self._outer is not None and self._pane is None and not self._line.running:
            steps.append(self._done(self._outer))
            self._outer = None
        self._ask = Ask(self._command(reading), key)
        return [*steps, self._ask]

    def _command(self, reading: Reading) -> Command:
        keys, plain = (
            (self._line.keys, self._line.is_plain) if self._pane is None else (self._pane.keys, self._pane.keys.plain)
        )
        scripts = [self._shell(text) for text in _texts(reading, keys)]
        script = scripts[0]
        for other in scripts[1:]:
            script = _join(script, other)
        opaque = script.opaque
        facts: dict[str, object] = {"how": reading.how, "login": self._settings.login}
        objects = script.names
        if reading.hidden:
            facts |= {"hidden": True, "beneath": objects}
            objects = ()
            # Of a password, its keys are all that is known.
            opaque = not plain or (not reading.secret and (opaque or keys.edited))
        if reading.typed is not None and not reading.hidden:
            facts |= {"typed": reading.typed, "shown": reading.shown or ""}
        if self._pane is not None:
            facts["alternate"] = True
        opaque = opaque or reading.opaque
        facts |= {"shell": script, "opaque": opaque, "unsure": reading.how in ("guess", "app")}
        return Command(
            self._settings.protocol,
            "line",
            "execute",
            reading.text,
            wire=b"",
            objects=objects,
            facts=facts,
            exact=False,
            flow=self._settings.flow,
        )

    def allowed(self, ask: Ask, permit: Permit, now: float) -> list[Step]:
        self._ask = None
        how = str(ask.command.facts["how"])
        run = _Run(permit, how, self._out_bytes)
        self._last_in = now
        inner = self._pane is not None or self._line.running
        if inner:
            self._inner = run
        else:
            self._outer = run
        if self._pane is not None:
            self._pane_submitted()
        elif ask.data not in _STAYING:  # or it may be a Ctrl-D that deletes a character, and the line is still there
            self._line.submitted(ask.data, not inner, hidden="hidden" in ask.command.facts)
        return self._resume(now, RETURN_APP_SECONDS if inner else RETURN_SECONDS)

    def _resume(self, now: float, limit: float) -> list[Step]:
        if not self._queue:
            return []
        self._return_at, self._return_limit = now, limit
        return self._return(now)

    def refused(self, ask: Ask, refused: Refused, now: float) -> list[Step]:
        self._ask = None
        self._last_in = now
        dropped = self._drop()  # what stood behind a refused line was typed in the belief that it ran
        return [*dropped, *self._clear(refusal_text(refused))]

    def _drop(self) -> list[Step]:
        """Give up what waits. The tape has it, unless it stands behind a secret, which it may repeat."""
        if self._key:
            self._veiled = self._pane is None and self._line.veiled
        data = self._key if self._veiled else self._key + self._queue
        self._key = self._queue = b""
        self._return_at = None
        return [Dropped(data)] if data else []

    def _clear(self, text: str) -> list[Step]:
        """Throw the line away, and say why."""
        if self._pane is not None:
            at_shell = self._line.behind_prompt(self._pane.row()) is not None
            self._pane_submitted()
            clear: list[Step] = [ToTarget(_CLEAR_SHELL, by_gate=True)] if at_shell else []
            return [ToUser(self._status_line(text), by_gate=True), *clear]
        line = self._line
        told = b"\r\n" + _one_line(text) + b"\r\n"
        if line.running:
            # The program takes its line back itself; what it then erases has to stand where it believes it to.
            again = "\r\n".join(line.drawn()).encode()
            line.taken_back()
            return [ToUser(told + again, by_gate=True), ToTarget(_CLEAR_APP, by_gate=True)]
        line.cancelled()
        return [ToUser(told, by_gate=True), ToTarget(_CLEAR_SHELL, by_gate=True)]

    def waiting(self, ask: Ask, text: str) -> list[Step]:
        if self._pane is not None:
            return [ToUser(self._status_line(text), by_gate=True)]
        return [ToUser(b"\r\n" + _one_line(text) + b"\r\n", by_gate=True)]

    def _status_line(self, text: str) -> bytes:
        """Text on the last row, in reverse: programs of the alternate screen draw over it soon."""
        columns, rows = self._size
        return b"\x1b7\x1b[%d;1H\x1b[0;7m%s\x1b[0m\x1b[K\x1b8" % (rows, _one_line(text[:columns]))

    # -- the target -----------------------------------------------------------------------------------

    def from_target(self, stream: Literal["out", "err"], data: bytes, now: float) -> list[Step]:
        steps: list[Step] = [ToUser(data, stream)]
        if self._last_in > self._last_out:
            self._echo_seconds += 0.2 * (min(now - self._last_in, ECHO_LIMIT_SECONDS) - self._echo_seconds)
            self._echo_known = True
        self._last_out = now
        self._out_bytes += len(data)
        for piece, cues in self._cues.split(data):
            if piece:
                (self._line if self._pane is None else self._pane).show(piece)
            for cue in cues:
                self._cue(cue, steps)
        if self._key:
            steps += self._settle(now)
        elif self._return_at is not None:
            steps += self._return(now)
        return steps

    def _cue(self, cue: Cue, steps: list[Step]) -> None:
        match cue.kind:
            case "alternate-on":
                # Not while a line is typed at a prompt: no program of the user's could draw there now.
                typing = not self._line.running and self._line.keys.printed and self._line.is_plain
                if self._pane is None and not self._key and self._ask is None and not typing:
                    self._pane = Pane(*self._size)
            case "alternate-off":
                if self._key or self._ask is not None:
                    self._leaving = True
                else:
                    self._leave_pane()
            case _ if self._pane is not None:
                return  # vim and its like use bracketed paste too, and tmux passes marks of its panes on
            case "exit":
                self._tells_status = True
                steps += self._finished(cue.status)
            case "editor-on" | "prompt":
                self._line.prompt_begins()
                if not self._tells_status:  # bash switches its editor on before it prints its marks
                    steps += self._finished()
            case "editor-off" | "run":
                self._line.run_begins()

    def _pane_submitted(self) -> None:
        if self._pane is not None:
            self._pane.submitted()
        if self._leaving:
            self._leave_pane()

    def _leave_pane(self) -> None:
        if self._pane is not None and self._pane.keys.keys:
            self._line.inherit(self._pane.keys)
        self._pane = None
        self._leaving = False

    def _finished(self, status: str = "") -> list[Step]:
        runs = [run for run in (self._inner, self._outer) if run is not None]
        self._inner = self._outer = None
        return [self._done(run, status if run is runs[-1] else "") for run in runs]

    def _done(self, run: _Run, status: str = "") -> Done:
        size = self._out_bytes - run.since_bytes
        details: dict[str, object] = {"flow": self._settings.flow, "how": run.how}
        if status:
            details["exit"] = int(status)
        return Done(run.permit, Result(f"exit {status}" if status else "", size_bytes=size, details=details))

    # -- the rest -------------------------------------------------------------------------------------

    def user_eof(self, now: float) -> list[Step]:
        self._eof = True
        return self._hurry(now) if self._ask is None else []

    def target_eof(self, now: float) -> list[Step]:
        return []

    def ended(self, now: float) -> list[Step]:
        return [*self._drop(), *self._finished()]

    def resized(self, columns: int, rows: int) -> None:
        self._size = _size(columns, rows)
        self._line.resize(self._size[0])
        if self._pane is not None:
            self._pane.resize(*self._size)

    def tick(self, now: float) -> list[Step]:
        if self._ask is not None:
            return []
        return self._settle(now) if self._key else self._return(now)


class _Passed:
    """Keys on their way to the target, in as few steps as they may be."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[tuple[bool, bytearray]] = []

    def add(self, key: bytes, taped: bool) -> None:
        if not self._runs or self._runs[-1][0] is not taped:
            self._runs.append((taped, bytearray()))
        self._runs[-1][1].extend(key)

    def steps(self) -> list[Step]:
        return [ToTarget(bytes(data), taped=taped) for taped, data in self._runs]


def _size(columns: int, rows: int) -> tuple[int, int]:
    """A size within limits; 0 says that the user's terminal has none (RFC 4254 6.2)."""
    return max(1, min(columns or 80, COLUMNS_LIMIT)), max(1, min(rows or 24, ROWS_LIMIT))


def _texts(reading: Reading, keys: Typed) -> tuple[str, ...]:
    """All that the line may be: rules have to allow each."""
    if reading.hidden:
        return (keys.text.strip(),)
    found = (text for text in (reading.text, reading.typed, reading.shown) if text and text != UNREADABLE)
    return tuple(dict.fromkeys(found)) or ("",)


def _join(one: Script, other: Script) -> Script:
    return replace(
        one,
        invocations=one.invocations + other.invocations,
        opaque=one.opaque or other.opaque,
        why=one.why or other.why,
        reads=one.reads + other.reads,
        writes=one.writes + other.writes,
    )


def _one_line(text: str) -> bytes:
    return "".join(char if char.isprintable() else " " for char in text).encode("utf-8", "replace")
