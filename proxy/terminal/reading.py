"""What a line on a terminal is taken to be, once what was typed and what is shown are weighed against each other.

Plain typing wins over the screen, as that is what the user's keys say. What was typed and not shown is hidden input:
its text is nobody's business. An empty line is one that both call empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from proxy.terminal.typed import Typed

How = Literal["both", "screen", "search", "guess", "app"]

HIDDEN: Final = "(hidden input)"
UNREADABLE: Final = "(unreadable)"
TEXT_LIMIT: Final = 256 * 1024  # as proxy.core.session's

_DOTS: Final = frozenset("*•●·■▪○")  # what programs show in place of a secret


@dataclass(frozen=True, slots=True)
class Reading:
    """A line as it was read. empty: nothing is there to run. hidden: typed without echo; then text says only that.

    typed and shown: what plain typing and the screen say, where they disagree. secret: at a prompt for a password.
    opaque: there is more to the line than anybody can read.
    """

    text: str
    how: How
    empty: bool = False
    hidden: bool = False
    typed: str | None = None
    shown: str | None = None
    secret: bool = False
    opaque: bool = False


def judge(
    keys: Typed, shown: str, how: How, sure: bool, *, plain: bool, ahead: bool, secret: bool, more: bool = False
) -> Reading:
    """Weigh a line that somebody typed on. sure: the screen is one to go by; plain: so are the keys, alone.

    ahead: typed before the prompt was there, so that a program may have taken some of it; more: the line may begin
    with other keys than these.
    """
    app = how == "app"
    typed = keys.text.strip()
    if plain and typed == shown:
        return Reading(typed, "app" if app else "both", empty=not typed)
    if keys.printed and (not keys.echoed or _is_veiled(shown, typed, plain, secret)):
        return Reading(HIDDEN, "app", hidden=True, secret=secret)
    if plain and typed:
        if typed in shown:  # with more around it: a prompt that nobody knows, or keys from before
            text = shown if more else typed
        else:
            # A part of what was typed is no better for being shown: for all one knows, the rest is the line's too.
            text = shown if ahead and sure and shown not in typed else typed
        text = text[:TEXT_LIMIT]
        return Reading(text, "app" if app else "guess", typed=typed, shown=shown[:TEXT_LIMIT])
    if not shown:
        if sure and keys.echoed:
            return Reading("", how, empty=True)
        return Reading(typed or UNREADABLE, "app" if app else "guess", opaque=True)
    return Reading(shown[:TEXT_LIMIT], how if sure or app else "guess")


def perhaps(typed: str, shown: str) -> Reading:
    """A line that may still hold what was submitted before it."""
    return Reading(shown[:TEXT_LIMIT] or typed or UNREADABLE, "guess", typed=typed, shown=shown[:TEXT_LIMIT])


def _is_veiled(shown: str, typed: str, plain: bool, secret: bool) -> bool:
    """Whether dots stand for what was typed; at a prompt for a password, also whether nothing does."""
    if not shown:
        return secret
    dots = len(set(shown)) == 1 and shown[0] in _DOTS
    return dots and (secret or (plain and len(shown) in (len(typed), len(typed) + 1)))
