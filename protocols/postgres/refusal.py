"""The texts of a refusal: ErrorResponse fields that say which rule spoke, why, and what to do.

SQLSTATE 42501 for a policy's no; 57014 where a human said no, nobody said yes in time, or the user took it back.
Class 08 would mean a broken connection to drivers, and 40001 and its like start retry loops: never those.
Source: PostgreSQL 18 docs 54.8, appendix A; postgres note 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.core.errors import Refused

INSUFFICIENT_PRIVILEGE: Final = "42501"
QUERY_CANCELED: Final = "57014"

_NAMES: Final = {"statement": "26000", "portal": "34000"}


def refusal_fields(target: Mapping[str, str], refused: Refused) -> dict[str, str]:
    """Return the fields of our error in place of the target's own, whose severity and language words stay."""
    severity = {key: target[key] for key in ("S", "V") if key in target} or {"S": "ERROR", "V": "ERROR"}
    deny = refused.deny
    if refused.withdrawn:
        return {**severity, "C": QUERY_CANCELED, "M": "canceling statement due to user request", "D": _detail(refused)}
    if refused.approval is not None:
        return {
            **severity,
            "C": QUERY_CANCELED,
            "M": f'not approved: rule "{deny.rule}" holds this statement; {deny.reason}',
            "D": _detail(refused),
            "H": "Ask an approver, then run the statement again.",
        }
    return {
        **severity,
        "C": INSUFFICIENT_PRIVILEGE,
        "M": f'denied by gatecast rule "{deny.rule}": {deny.reason}',
        "D": _detail(refused),
        "H": "The statement did not reach the database. gatecast policy explain tells which rules apply.",
    }


def missing_fields(target: Mapping[str, str], what: str, name: str) -> dict[str, str]:
    """Return the target's own error for a name it does not know, with the name that the user used."""
    if what == "statement":
        text = f'prepared statement "{name}" does not exist' if name else "unnamed prepared statement does not exist"
    else:
        text = f'portal "{name}" does not exist'
    return {**target, "C": _NAMES[what], "M": text}


def _detail(refused: Refused) -> str:
    detail = f"rule={refused.deny.rule}"
    if refused.approval is not None:
        detail += f" approval={refused.approval}"
    return detail
