"""Refuses writes to Kubernetes objects that their user sees only masked: a mask must not be written back.

Whoever reads an object, changes something and writes the object back would store what masks put in the place of values.
So, while masks of fields speak of the resource:

- the whole object is not written (update; a patch of which it is not known what it writes);
- a patch may not write, move or test a masked field, nor what it lies in, nor the annotation
  last-applied-configuration, which holds the object once more. ``kubectl patch``, ``label``, ``annotate``, ``scale``,
  ``set image`` pass;
- nothing is written, made or patched that holds the very text that masks put in the place of values, in any of these
  forms: as it is, in JSON, in base64. This holds for masks with detectors, too.

Deleting passes. Left out: the marks of the actions partial, hash and null, and constants of less than PLACEHOLDER_LEAST
characters, which ordinary texts may hold: there only the first two points stand in the way.

Facts of the command that are read: resource, api_group, subresource, fields_written (protocols/kubernetes/patches.py).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from proxy.core.events import Command
from proxy.core.verdict import Deny, Mask
from proxy.masking.actions import fixed_text
from proxy.masking.fields import FieldPattern, also_known

PLACEHOLDER_LEAST: Final = 6
LAST_APPLIED: Final = "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration"

_WRITES: Final = frozenset({"create", "update", "patch", "debug"})
# Subresources whose object is another one: what it may write at most. Source: autoscaling/v1 Scale.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {"scale": ("spec.replicas",)}
_ALL: Final = ".*"


def written_back(mask: Mask, patterns: tuple[FieldPattern, ...], command: Command) -> Deny | None:
    """Refuse a write that could store what the mask shows in the place of values. patterns: the mask's fields."""
    resource = _resource(command.facts)
    if command.verb not in _WRITES or not resource:
        return None
    speaking = [each for each in patterns if each.is_of(resource)]
    if speaking and command.verb != "create":
        reason = _touched(speaking, command, resource)
        if reason is not None:
            return Deny(mask.rule, f'rule "{mask.rule}" masks fields of {resource} for you, and {reason}')
    if (speaking or mask.detectors) and _holds(command.data or b"", mask):
        shown = fixed_text(mask).decode()
        return Deny(mask.rule, f"it would store {shown!r}, which stands for a value that rule {mask.rule!r} masks")
    return None


def _resource(facts: Mapping[str, Any]) -> str:
    resource, group = str(facts.get("resource") or ""), str(facts.get("api_group") or "")
    full = f"{resource}.{group}" if group and not resource.endswith(f".{group}") else resource
    subresource = facts.get("subresource")
    return f"{full}/{subresource}" if subresource and full else full


def _touched(patterns: list[FieldPattern], command: Command, resource: str) -> str | None:
    """Say why the write may not pass, None if it may."""
    written: tuple[str, ...] | None = command.facts.get("fields_written")
    if written is None or command.verb == "update":
        written = _PARTS.get(str(command.facts.get("subresource") or ""))
    if written is None:
        return (
            "this would write the whole object back, with what stands in their place; change single fields instead"
            " (kubectl patch, label, annotate, scale, set image)"
        )
    for name in written:
        path = name.partition(":")[2] or name
        if path.removesuffix(_ALL) == LAST_APPLIED:
            return (
                "this writes the annotation last-applied-configuration, in which they lie; change single fields instead"
                " (kubectl patch, or apply --server-side)"
            )
        bare = resource.partition("/")[0]
        if any(_reached(each, one) for each in patterns for one in also_known(bare, path)):
            return f"{path.removesuffix(_ALL)} is one of them, or holds one"
    return None


def _reached(pattern: FieldPattern, path: str) -> bool:
    if path.endswith(_ALL):
        path = path.removesuffix(_ALL)
        return pattern.covers(path) or pattern.reaches(path)
    # Nothing that a pattern's plain beginning goes through is a single value.
    return pattern.covers(path) or pattern.head.startswith(f"{path}.")


def _holds(data: bytes, mask: Mask) -> bool:
    """Tell whether a body holds what the mask writes."""
    if mask.action not in ("redact", "constant"):
        return False
    text = fixed_text(mask)
    if len(text) < PLACEHOLDER_LEAST:
        return False
    in_json = json.dumps(text.decode())[1:-1].encode()
    return any(form in data for form in (text, in_json, base64.b64encode(text)))
