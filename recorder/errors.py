"""What can go wrong with a tape: in writing it (TapeError), and in reading one (FormatError and its kinds)."""

from __future__ import annotations


class TapeError(Exception):
    """Recording failed; the session ends (promise 4). The text is safe to show: it names no path and no content."""


class FormatError(Exception):
    """The bytes are not a tape of this format, or not any more. reason is one line for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Truncated(FormatError):
    """The bytes end before the structure does: a torn end, or a tape that is still being written."""


class NotATape(FormatError):
    """The file does not begin as a tape does."""


class UnknownVersion(FormatError):
    """A tape of a later format; this reader cannot say anything about it."""


class Unreadable(FormatError):
    """The block is encrypted or needs a dictionary, and this reader has no key for it."""


def tape_error(error: BaseException) -> TapeError:
    """Our error for theirs: the system's word for what happened, but no path and no content."""
    if isinstance(error, TapeError):
        return TapeError(str(error))
    text = error.strerror if isinstance(error, OSError) else str(error) if isinstance(error, ValueError) else None
    text = text or type(error).__name__
    return TapeError(f"the session cannot be recorded: {text}")


class KeyFileError(Exception):
    """A key file is missing, malformed, or open to others."""
