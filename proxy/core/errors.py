"""The error tree: who is at fault, and what the user may be told.

Every error that crosses a border of the house is one of these. Foreign exceptions (ssl, OSError, library
errors) are mapped to one of them where they arise, with ``from``. The text of each is safe to show to a user:
it never holds a secret, a token or a stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Recording failed; the session ends (promise 4). It is the recorder's own, as the recorder imports nothing of ours;
# so it is the one error of this tree that is no GatecastError.
from recorder.errors import TapeError as TapeError

if TYPE_CHECKING:
    from proxy.core.verdict import Deny


class GatecastError(Exception):
    """The root of all errors that gatecast raises on purpose."""


class Refused(GatecastError):
    """A command has no permit; the protocol answers with its native error and the session lives on.

    approval is the id of the approval that was denied, expired or withdrawn, if there was one; withdrawn
    tells that the user took a held command back (Ctrl-C).
    """

    def __init__(self, deny: Deny, approval: str | None = None, withdrawn: bool = False) -> None:
        super().__init__(f"refused by {deny.rule}: {deny.reason}")
        self.deny = deny
        self.approval = approval
        self.withdrawn = withdrawn


class LoginRefused(GatecastError):
    """The user could not be identified, or may not connect. text is shown; hint says how to get in."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


class PeerError(GatecastError):
    """A peer broke its protocol, a limit, or the connection. code is the protocol's own error code, or ''."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class UserPeerError(PeerError):
    """The user's side sent what the protocol does not allow."""


class TargetPeerError(PeerError):
    """The target could not be reached, refused our login, or broke its protocol."""


class ConfigError(GatecastError):
    """The configuration is wrong; the text names the file and the line."""
