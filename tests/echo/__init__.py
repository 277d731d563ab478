"""Echo: the smallest protocol that keeps all nine promises; how a protocol is added, in four files.

Lines of UTF-8. A user says ``hello TOKEN TARGET``, then ``do TEXT`` (a command), ``nop`` (plumbing) and ``bye``. A
target says ``cols NAME`` and ``row CELL`` (tabs between several) for a result, ``note TEXT`` at any time, and ends
each command with ``ok STATE`` or ``bad STATE TEXT``, where STATE is idle, open or broken (a transaction, as
PostgreSQL has them).

wire.py cuts and makes lines. commands.py knows what they mean and what a refused one is replaced by. serve.py is
the user's side, dial.py the target's. tests/test_conformance.py holds it to the promises, beside the real ones.
"""

from __future__ import annotations

from protocols import Protocol
from tests.echo.commands import VERBS
from tests.echo.serve import serve

PROTOCOL = Protocol("echo", VERBS, 7, serve)
