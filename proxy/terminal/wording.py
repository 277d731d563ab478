"""What the gate says to a user of SSH, each in one line without a line break.

Rules, reasons and names come from configuration and from approvers; what is not printable in them is shown escaped,
as they reach a terminal.
"""

from __future__ import annotations

from proxy.core.errors import Refused
from proxy.core.text import harmless


def refusal_text(refused: Refused) -> str:
    """Say which rule refused a command, why, and the approval's id if there was one."""
    deny = refused.deny
    if refused.withdrawn:
        text = f'gatecast: taken back while held by rule "{deny.rule}"'
    else:
        text = f'gatecast: denied by rule "{deny.rule}": {deny.reason}'
    if refused.approval is not None:
        text += f" (approval {refused.approval})"
    return harmless(text)


def gate_text(text: str) -> str:
    """Say something of the gate's own."""
    return harmless(text if text.startswith("gatecast: ") else f"gatecast: {text}")
