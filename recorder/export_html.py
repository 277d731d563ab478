"""A session as ONE html file for any browser, from a disk or a server: asciinema's player, the cast, and beside it who
did what, each command with its verdict, approvals, and how to check the tape.

The page asks for nothing outside itself and could not: its Content-Security-Policy allows the two scripts and two style
sheets that it brings, by their hashes, and no connection at all. What comes from the tape stands in it as escaped
text, with control and bidirectional characters spelled out (escape.py); the cast is JSON in which no "<" occurs. The
list is there without scripts, too, for mail readers and printers.

Pauses are cut in the cast itself (IDLE_SECONDS unless told otherwise), so that the page's times are the player's; the
list shows when things really happened. The page cannot prove itself: it says how to verify the tape that it shows.

Left out: casts beyond CAST_LIMIT, which a browser would take long for (then --from and --to cut the tape in pieces).
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter, OrderedDict
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Final

from recorder.cast import CastV2
from recorder.escape import clip, visible
from recorder.export_cast import Narrator
from recorder.export_options import ExportError
from recorder.export_source import IDLE_SECONDS, IdleClock, Source, wall_time
from recorder.export_steps import Step, Steps
from recorder.format import Kind, Record, fields
from recorder.transcript import OPEN_COMMANDS_LIMIT, value_text
from recorder.warehouse_view import POLL

# asciinema-player from npm, Apache-2.0 (player/LICENSE); the files are checked by these when they are used.
PLAYER_VERSION: Final = "3.17.0"
PLAYER_SHA256: Final = {
    "asciinema-player.min.js": "a13c37632e1b5c49fe9128417b9319a9b5bc64cb457dd5ae52cbba8a3aceb880",
    "asciinema-player.css": "f619fe17597043564f03b2c6918b3daf890ee8b912fb408542fba11afade4fdb",
}
CAST_LIMIT: Final = 50 * 1000 * 1000  # bytes; recorder note, section 9: above it the player gets slow
LAST_NS: Final = 1_000_000_000  # the last screen stands so long
COMMANDS_LIMIT: Final = 20_000  # in the list: more is no list for a person
NOTABLE_LIMIT: Final = 20_000  # of the commands behind those that were held, denied or failed
TEXT_LIMIT: Final = 600  # characters of a command in the list; the player shows all
INTENTS_LIMIT: Final = 20
SEGMENTS_LIMIT: Final = 50  # in the list of seals
VALUES_LIMIT: Final = 300  # cells of a command's bind values in the list
_STEPS: Final = {"prepare": "prepared", "bind": "bound"}  # of a command that is taken in steps; the third runs it
_NOTABLE: Final = ("held", "deny", "error")
_OUTCOMES: Final = ("allow", "held", "deny", "error")


class _Panel:
    """What stands beside the player, gathered while the cast is made."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Step]] = []
        self.total = 0
        self.intents: list[str] = []
        self.end_ns = 0
        self._passed: OrderedDict[int, tuple[int, Step]] = OrderedDict()  # over the limit, and perhaps notable yet

    def note(self, record: Record, at_ns: int, step: Step | None) -> None:
        """Take note of a command, or of what became of one; at_ns is the time of the record in the cast."""
        if step is None:
            return
        if record.kind == Kind.COMMAND and step.verb == POLL:
            self._pass_over(at_ns, step)
        elif record.kind == Kind.COMMAND:
            self.total += 1
            if len(self.steps) < COMMANDS_LIMIT:
                self.steps.append((at_ns, step))
            else:
                self._pass_over(at_ns, step)
        elif step.n in self._passed and step.outcome in _NOTABLE and len(self.steps) < COMMANDS_LIMIT + NOTABLE_LIMIT:
            self.steps.append(self._passed.pop(step.n))
            self.total += step.verb == POLL

    def _pass_over(self, at_ns: int, step: Step) -> None:
        """Leave a command out of the list, unless it turns out to be notable: what only asks for a job again is."""
        self._passed[step.n] = at_ns, step
        if len(self._passed) > OPEN_COMMANDS_LIMIT:
            self._passed.popitem(last=False)


def page(source: Source) -> Iterator[str]:
    """Yield the page. Raises ExportError where the cast is too long."""
    player, style = _asset("asciinema-player.min.js"), _asset("asciinema-player.css")
    ours, look = _asset("page.js"), _asset("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(player)} {_hash(ours)} 'wasm-unsafe-eval'; "
        f"style-src {_hash(style)} {_hash(look)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    panel = _Panel()
    # The cast comes first in the making and last in the file, for the list is known only then.
    cast = list(_cast(source, panel))
    rows = "" if source.tty else f' data-rows="{source.size[1]}"'
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(source.title)}</title>\n'
        f"<style>{style}</style>\n<style>{look}</style>\n</head>\n<body>\n"
    )
    yield _header(source, panel)
    yield '<main>\n<section id="stage" aria-label="Recording">'
    yield f'<div id="player" data-wait="Loading"{rows}></div></section>\n'
    yield "<aside>\n"
    yield _tools(panel)
    yield '<div class="scroll" id="list">\n<ol id="commands">\n'
    panel.steps.sort(key=lambda item: item[1].n)
    for at_ns, step in panel.steps:
        yield _item(source, at_ns, step)
    yield "</ol>\n"
    if panel.total > len(panel.steps):
        left = panel.total - len(panel.steps)
        yield (
            f'<p class="empty">{left} more commands are in the recording: this list has the first '
            f"{COMMANDS_LIMIT:,}, and of the others those that were held, denied or failed.</p>\n"
        )
    yield f'<p class="empty" id="nothing"{" hidden" if panel.steps else ""}>No command.</p>\n</div>\n'
    yield f'<div class="more">{_approvals(source, panel)}{_integrity(source)}</div>\n'
    yield '</aside>\n</main>\n<script type="text/plain" id="cast">\n'
    yield from cast
    # The licence of the player asks for its text; its comment is in the file and names it.
    yield f"</script>\n<script>{player}</script>\n<script>{ours}</script>\n</body>\n</html>\n"


# -- the cast ---------------------------------------------------------------------------------------------


def _cast(source: Source, panel: _Panel) -> Iterator[str]:
    """Yield the cast's lines as they may stand in a page, and fill the panel."""
    idle = source.options.idle_limit_seconds
    clock = IdleClock(source.options.start_ns, IDLE_SECONDS if idle is None else idle)
    narrator = Narrator(source, clock)
    encoder = CastV2()
    steps = Steps(source.protocol, before=source.commands_before, text_limit=TEXT_LIMIT)
    columns, rows = source.size
    size = 0

    def line(text: str) -> str:
        nonlocal size
        text = text.replace("<", "\\u003c")  # only strings of the JSON hold one
        size += len(text)
        if size > CAST_LIMIT:
            raise ExportError(
                f"the cast is over {CAST_LIMIT // 1_000_000} MB, too much for a browser: export a part with --from "
                "and --to, or --format asciicast-v3 for a player"
            )
        return text

    yield line(encoder.header(columns, rows, source.wall_ns // 1_000_000_000, source.title))
    for piece in narrator.opening():
        yield line(encoder.event(piece))
    for record in source.records():
        at_ns = panel.end_ns = clock(record.t_ns)
        if record.kind == Kind.INTENT and len(panel.intents) < INTENTS_LIMIT:
            said = str(fields(record.payload).get("text", ""))[:TEXT_LIMIT]
            panel.intents += [said] if said not in panel.intents else []
        panel.note(record, at_ns, steps.feed(record, source.commands_before_record(record)))
        for piece in narrator.feed(record):
            text = encoder.event(piece)
            if text:
                yield line(text)
    yield line(encoder.event(narrator.pause(panel.end_ns + LAST_NS)))


# -- the parts of the page --------------------------------------------------------------------------------


def _header(source: Source, panel: _Panel) -> str:
    who = (
        [("by agent", "/".join(source.agents)), ("for", source.subject)] if source.agents else [("who", source.subject)]
    )
    more = source.said.get("more")
    database = str(more.get("database", "")) if isinstance(more, dict) else ""
    facts = [
        *who,
        ("target", f"{source.target}/{database}" if database else source.target),
        ("when", f"{_moment(source.wall_ns)} UTC"),
        ("length", _length(source.duration_ns)),
        ("session", source.tape.header.sid),
        ("run", str(source.said.get("run", ""))),
        ("intent", "; ".join(panel.intents)),
    ]
    shown = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts if value)
    notice = f'<p class="notice" role="status">{_text(source.remark)}</p>' if source.remark else ""
    return (
        f'<header><div class="top"><h1>{_text(source.target)}</h1>'
        f'<span class="protocol">{_text(source.protocol)}</span><span class="product">recorded by gatecast</span>'
        '<button id="look" type="button">light / dark</button></div>'
        f'<dl class="facts">{shown}</dl>{notice}</header>\n'
    )


def _tools(panel: _Panel) -> str:
    counts = Counter(step.outcome for _, step in panel.steps)
    listed = f"{len(panel.steps)} of {panel.total}" if panel.total > len(panel.steps) else f"all {panel.total}"
    chips = [("", listed, True)]
    chips += [(name, f"{_word(name)} {counts[name]}", False) for name in _OUTCOMES if counts[name]]
    shown = "".join(
        f'<button type="button" data-outcome="{name}" aria-pressed="{str(pressed).lower()}">{text}</button>'
        for name, text, pressed in chips
    )
    return (
        '<div class="tools"><input type="search" id="search" placeholder="Search the commands" '
        'aria-label="Search the commands" autocomplete="off"><div class="chips" role="group" aria-label="Verdicts">'
        f"{shown}</div></div>\n"
    )


def _item(source: Source, at_ns: int, step: Step) -> str:
    outcome = step.outcome or "none"
    word = step.state or outcome if outcome == "held" else outcome
    when = wall_time(source.tape.header.wall0_ns + step.t_ns)
    notes = [f"rule {step.rule}"] if step.rule else []
    if step.phase in _STEPS:
        notes.append(_STEPS[step.phase])
    if step.values and step.phase != "prepare":
        notes.append(clip(visible(f"values {', '.join(map(value_text, step.values))}"), VALUES_LIMIT))
    if step.reason:
        notes.append(step.reason)
    if step.masks:
        notes.append(f"masks {', '.join(step.masks)}")
    if step.passed:
        notes.append(step.passed)
    if step.error:
        notes.append(f"{step.code} {step.error.get('message', '')}".strip())
    elif step.done_ns >= 0 and step.tag.endswith("SKIPPED"):
        notes.append("skipped")
    elif step.done_ns >= 0:
        notes.append(f"{step.tag} in {_length(step.done_ns - max(step.verdict_ns, step.t_ns))}".strip())
    return (
        f'<li data-outcome="{outcome}" data-at="{at_ns / 1e9:.6f}"><button type="button">'
        f'<span class="badge {outcome}">{_text(_word(word))}</span><span class="label">{_text(step.label)} '
        f'{_text(step.verb)}</span><time datetime="{when}">{when[11:19]}</time>'
        f"<code>{_text(step.text)}</code><small>{_text(' · '.join(notes))}</small></button></li>\n"
    )


def _approvals(source: Source, panel: _Panel) -> str:
    shown = []
    for _, step in panel.steps:
        if not step.state:
            continue
        waited = f" after {_length(step.decided_ns - step.held_ns)}" if step.decided_ns >= 0 <= step.held_ns else ""
        by = f" by {step.by}" if step.by else ""
        word = f' "{step.word}"' if step.word else ""
        asked = f" · asked: {', '.join(step.approvers)}" if step.approvers else ""
        shown.append(
            f'<div class="approval"><strong>{_text(step.label)} {_text(step.state)}</strong>'
            f"{_text(by)}{waited}{_text(word)}<br>"
            f"<small>{_text(step.approval)} · rule {_text(step.rule)}{_text(asked)}</small></div>"
        )
    if not shown:
        return ""
    return f"<details open><summary>Approvals ({len(shown)})</summary><div>{''.join(shown)}</div></details>\n"


def _integrity(source: Source) -> str:
    first = source.tape.segments[0].name
    count = len(source.tape.segments)
    rows = []
    for i, end in enumerate(source.ends()):
        if i == SEGMENTS_LIMIT:
            rows.append(f"<p>and {count - SEGMENTS_LIMIT} more files</p>")
            break
        keys = f" · key {', '.join(end.keys)}" if end.keys else ""
        root = f'<br><span class="mono">root {end.root}</span>' if end.root else ""
        rows.append(f"<p><strong>{_text(end.file)}</strong> {_text(end.status)}{_text(keys)}{root}</p>")
    said = "sealed" if not source.remark else source.remark
    return (
        f"<details><summary>Seal: {_text(said)}</summary><div><p>This page proves nothing by itself. Whoever has the"
        " tape and the gateway's public key can check that nothing was changed, cut off or left out, offline:</p>"
        f'<p><code class="line">gatecast verify {_text(first)} --key seal.key.pub</code></p>{"".join(rows)}'
        f"<p>Player: asciinema-player {PLAYER_VERSION}, Apache-2.0.</p>"
        '<p><span class="key">/</span> search · <span class="key">space</span> play · <span class="key">[</span> '
        '<span class="key">]</span> markers · arrows seek, or move in the list</p></div></details>\n'
    )


# -- text -------------------------------------------------------------------------------------------------


def _text(value: str) -> str:
    """What came from the tape, as text of a page and of an attribute in quotes."""
    return escape(visible(value), quote=True)


def _word(outcome: str) -> str:
    return {"allow": "allowed", "deny": "denied", "pending": "held", "none": "undecided"}.get(outcome, outcome)


def _moment(wall_ns: int) -> str:
    return wall_time(wall_ns)[:19].replace("T", " ")


def _length(ns: int) -> str:
    seconds = max(0, ns) / 1e9
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _asset(name: str) -> str:
    data = files("recorder").joinpath("player", name).read_bytes()
    expected = PLAYER_SHA256.get(name)
    if expected is not None and sha256(data).hexdigest() != expected:
        raise ExportError(
            f"recorder/player/{name} is not that of asciinema-player {PLAYER_VERSION}; install gatecast anew"
        )
    return data.decode("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
