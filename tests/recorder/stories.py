"""Small sessions for the tests of casts and exports: one of everything, a terminal's, a hostile one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from recorder.tape import ERR, GATE, OUT, USER, Kind
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder

SHOP: dict[str, Any] = {"identity": {"subject": "ana@acme", "agents": ["claude-code", "ci-bot"]}, "target": "shop-prod"}
WALL_NS = 1_790_000_000_000_000_000

# Text that would act on whatever shows it: a browser, a terminal, psql.
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- ]]> javascript:alert(3) "
    '" onmouseover="alert(4) '
    "' style='x \u2028 \u2029 \u202e \x1b]52;c;ZXZpbA==\x07 \x1b[2J \x9b31m \u200b &lt; \\! touch /tmp/evil"
)


def _at_work(directory: Path) -> tuple[Clock, Any]:
    clock, wall = Clock(), Clock()
    wall.ns = WALL_NS
    return clock, recorder(directory, monotonic_ns=clock, wall_ns=wall)


def one_of_everything(directory: Path) -> Path:
    """Allowed with a mask, held and approved, failed, denied; 42.0158 s long."""
    clock, on = _at_work(directory)

    async def scenario() -> Path:
        tape = open_tape(on, **SHOP)
        tape.append(USER, Kind.INTENT, pack({"text": "refund order 812"}))
        text = "SELECT id, name, email\nFROM orders LIMIT 200;"
        n = command(tape, text, verdict=None)
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": "ro", "masks": ["pii.email"]}))
        clock.pass_ms(12.7)
        tape.append(OUT, Kind.WIRE, b"D\x00secret wire bytes")
        tape.append(GATE, Kind.MASKMAP, pack({"command": n, "fields": [["email", 2, "pii.email"]]}))
        rows = [["101", "Ana", "###@###"], ["102", "李雷", None], ["7", "evil\x1b]52;c;x\x07", "##"]]
        result = {"columns": ["id", "name", "email"], "rows": rows, "count": 200, "bytes": 18842}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 200", **result}))
        clock.pass_ms(1000)
        n = command(tape, "UPDATE orders SET status = 'refunded'", "UPDATE", None, values=["101", None])
        held = {"state": "pending", "rule": "writes", "approvers": ["group:oncall"]}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", **held}))
        clock.pass_ms(41_000)
        decided = {"state": "approved", "by": "mia@acme", "reason": "ok #812"}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", **decided}))
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": "writes", "approval": "A7"}))
        clock.pass_ms(3.1)
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "UPDATE 1", "count": 1, "bytes": 0}))
        n = command(tape, "SELECT 1/0")
        error = {"severity": "ERROR", "code": "22012", "message": "division by zero", "hint": "do not"}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "count": 0, "bytes": 0, "error": error}))
        command(tape, "DROP TABLE orders;", "DROP", "deny")
        await tape.close("closed", "user left")
        return tape.path

    return asyncio.run(scenario())


def terminal_session(directory: Path) -> Path:
    """A shell's: colours, a clipboard attack, a password that no screen showed, a new size."""
    clock, on = _at_work(directory)

    async def scenario() -> Path:
        tape = open_tape(on, protocol="ssh", more={"tty": [80, 24]})
        euro = "€".encode()
        tape.append(OUT, Kind.WIRE, b"\x1b[1mroot#\x1b[0m ls\r\n" + euro[:1])
        clock.pass_ms(500)
        tape.append(OUT, Kind.WIRE, euro[1:] + b" \x1b]52;c;evil\x07done\xff\r\n")
        tape.append(ERR, Kind.WIRE, b"oops\r\n")
        tape.append(USER, Kind.WIRE, b"typed password")
        clock.pass_ms(60_000)
        tape.append(GATE, Kind.RESIZE, pack([132, 43]))
        tape.append(GATE, Kind.RESIZE, pack([-1, 0]))
        await tape.close("closed")
        return tape.path

    return asyncio.run(scenario())


def bad_intentions(directory: Path) -> Path:
    """HOSTILE wherever a stranger's text can stand."""
    clock, on = _at_work(directory)
    identity = {"subject": f"eve {HOSTILE}", "agents": [HOSTILE]}

    async def scenario() -> Path:
        tape = open_tape(on, identity=identity, target=HOSTILE, run=HOSTILE, more={"database": HOSTILE})
        tape.append(USER, Kind.INTENT, pack({"text": HOSTILE}))
        n = command(tape, HOSTILE, verb=HOSTILE, verdict=None, values=[HOSTILE, None])
        held = {"state": "pending", "rule": HOSTILE, "approvers": [HOSTILE]}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": HOSTILE, **held}))
        clock.pass_ms(3000)
        tape.append(
            GATE, Kind.APPROVAL, pack({"command": n, "id": HOSTILE, "state": HOSTILE, "by": HOSTILE, "reason": HOSTILE})
        )
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": HOSTILE, "masks": [HOSTILE]}))
        tape.append(GATE, Kind.MASKMAP, pack({"command": n, "fields": [[HOSTILE, 0, HOSTILE]]}))
        rows = {"columns": [HOSTILE, "b"], "rows": [[HOSTILE, HOSTILE]], "count": 1, "bytes": 9}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": HOSTILE, **rows}))
        n = command(tape, f"SELECT '{HOSTILE}'")
        error = {"severity": HOSTILE, "code": HOSTILE, "message": HOSTILE}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "count": 0, "bytes": 0, "error": error}))
        n = command(tape, HOSTILE, verdict=None)
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "deny", "rule": HOSTILE, "reason": HOSTILE}))
        tape.append(GATE, Kind.MARK, pack({"label": HOSTILE, "text": HOSTILE}))
        await tape.close("closed", HOSTILE)
        return tape.path

    return asyncio.run(scenario())


def unsealed(directory: Path) -> Path:
    """A tape that its gateway left behind."""
    _, on = _at_work(directory)

    async def scenario() -> Path:
        tape = open_tape(on, **SHOP)
        command(tape, "SELECT 1")
        await tape.written()
        copy = directory / tape.path.name
        copy.write_bytes(tape.path.read_bytes())
        await tape.close("closed")
        return copy

    return asyncio.run(scenario())
