"""What a command line says, as far as it can be told without running it: text -> Script. The ShellReader of the gate.

How: shell_words.py reads words, shell_grammar.py the commands that they make, shell_programs.py what these commands
start. The readings of sh, bash, dash, ksh, zsh and busybox are taken together: what they do not all read alike makes
the line opaque, and so does whatever is decided only when it runs. A Script that is not opaque names every program
that the shell starts by itself; what those programs start by their own means is theirs (see shell_programs.py).

What it rests on: the login shell at the target is a POSIX one (never csh, Windows' or a network device's; fish is
mostly, not wholly, understood); names mean what PATH, aliases and startup files of the target make them mean.

Never raises. Bounded: READ_LIMIT characters, COMMANDS_LIMIT commands, DEPTH_LIMIT levels; time grows with the length.
tree-sitter with its grammar of bash was tried for this and left: it misses commands in plain sight without an error
(backquotes within "${x:-..}"), and a line of 120 KB of pipes killed the process. bashlex is GPL.
Specification: POSIX.1-2024 XCU chapter 2.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

from proxy.core.script import Script
from proxy.policy.shell_programs import Programs
from proxy.policy.shell_words import Unreadable

# MAX_ARG_STRLEN of Linux (include/uapi/linux/binfmts.h): a longer argument cannot even reach a shell.
READ_LIMIT: Final = 128 * 1024
# Lines that are read once and asked for again (ansible, a typed line that is decided twice); long ones are not kept.
KEPT_LIMIT: Final = 1_024
KEPT_TEXT_LIMIT: Final = 4_096

# Control characters but tab and line feed, blanks beyond ASCII, and bytes that are no UTF-8 (surrogates).
_STRANGE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u2066-\u2069\u3000\ufeff"
    "\ud800-\udfff]"
)

_kept: OrderedDict[str, Script] = OrderedDict()


def read_shell(text: str) -> Script:
    """Read a command line; what cannot be read is opaque, with the reason. Never raises."""
    found = _kept.get(text)
    if found is not None:
        _kept.move_to_end(text)
        return found
    script = _read(text)
    if len(text) <= KEPT_TEXT_LIMIT:
        _kept[text] = script
        if len(_kept) > KEPT_LIMIT:
            _kept.popitem(last=False)
    return script


def _read(text: str) -> Script:
    if len(text) > READ_LIMIT:
        return Script(opaque=True, why=f"it is longer than {READ_LIMIT} characters")
    programs = Programs()
    found = programs.found
    try:
        if "\0" in text:
            raise Unreadable("it holds a NUL")
        programs.text(text)
    except Unreadable as error:
        found.why = error.why
    except RecursionError:  # fails closed: DEPTH_LIMIT should have come first
        found.why = "commands are nested too deeply"
    strange = _STRANGE.search(text)
    if strange is not None:
        found.doubt(f"the character U+{ord(strange[0]):04X}, which shells treat differently")
    return Script(tuple(programs.invocations), bool(found.why), found.why, tuple(found.reads), tuple(found.writes))
