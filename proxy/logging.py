"""Logs of the gateway on stderr: one event a line, key=value where a person looks on, JSON everywhere else.

Every module has its own logger, ``structlog.get_logger(__name__)``; inside a session the keys session=, identity=
and target= are bound. The content of frames is never logged (the tape is the evidence): bytes become their length
here, and what looks like a token is cut out, should one get into an error's text. The standard library's loggers
(asyncio) come out the same way.

Deliberately left out: log files and rotation, which are systemd's or the container engine's.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
VALUE_LIMIT: Final = 2000  # characters of one value: an error's text is a line, not a page

# A gateway token, a JWT: neither belongs in a log, however it got there.
_TOKEN: Final = re.compile(r"gct_[A-Za-z0-9]+_[A-Za-z0-9_-]+|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]*")

EventDict = MutableMapping[str, Any]


_settings = ("info", True)


def debugging() -> bool:
    """Whether GATECAST_DEBUG asks for stacks."""
    return os.environ.get("GATECAST_DEBUG", "") not in ("", "0")


def configure(level: str = "info", stream: TextIO | None = None, as_json: bool | None = None) -> None:
    """Set up all logging of the process. as_json None: JSON unless the stream is a terminal."""
    global _settings
    out = stream if stream is not None else sys.stderr
    if as_json is None:
        as_json = not out.isatty()
    number = getattr(logging, level.upper())
    _settings = (level, as_json)
    shared: list[Callable[[Any, str, Any], Any]] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _clean,
    ]
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=out.isatty() and "NO_COLOR" not in os.environ, pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # One write a line, its end included: worker processes share stderr, and must not cut into each other's lines.
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def settings() -> tuple[str, bool]:
    """The level and whether it is JSON, as configure() was told: for a process that is to log the same way."""
    return _settings


def describe(error: BaseException) -> dict[str, str]:
    """Keys for an unexpected error: its type and place. Its text may quote data: only with GATECAST_DEBUG."""
    place = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    keys = {"error": type(error).__name__, "at": place}
    if debugging():
        import traceback

        keys["stack"] = "".join(traceback.format_exception(error))
    return keys


def _clean(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace bytes by their length, cut tokens and long texts."""
    for key, value in event.items():
        if isinstance(value, (bytes, bytearray, memoryview)):
            event[key] = f"<{len(value)} bytes>"
        elif isinstance(value, str) and key != "stack":
            text = _TOKEN.sub("[token]", value)
            event[key] = text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "..."
    return event
