"""``gatecast policy explain``: why a command is, or would be, allowed, held or denied.

Every rule is shown, matched or not and why, then the verdict and the rule that decided. The outcomes come from
RuleSet.explain, which runs the code of the decision; here they are only laid out, as text for people and as JSON
values for programs. Left out: reading the rule file, the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from proxy.policy.rules import RuleSet

# Characters of a command that are shown in a heading.
HEADING_LIMIT: Final = 200

_WORDS: Final = {Allow: "allow", Hold: "hold", Deny: "deny"}


def verdict_word(verdict: Verdict) -> str:
    """Return allow, hold or deny."""
    return _WORDS[type(verdict)]


def verdict_masks(verdict: Verdict) -> tuple[Mask, ...]:
    """The masks of a verdict, () of a Deny."""
    return () if isinstance(verdict, Deny) else verdict.masks


def connect_command(target: Target) -> Command:
    """The command that opens a session, as the rules see it."""
    return Command(target.protocol, "CONNECT", "session", "CONNECT")


def explain_json(
    rules: RuleSet, identity: Identity, target: Target, command: Command, at: float | None = None
) -> dict[str, Any]:  # JSON values
    """Explain a decision as JSON values: verdict, rule, reason, masks, and one outcome a rule and statement."""
    verdict = rules.judge(identity, target, command, at)
    explained: dict[str, Any] = {"verdict": verdict_word(verdict), "rule": verdict.rule}
    match verdict:
        case Deny():
            explained["reason"] = verdict.reason
        case Hold():
            explained |= {
                "reason": verdict.reason,
                "approvers": list(verdict.approvers),
                "timeout_seconds": verdict.timeout_seconds,
            }
        case Allow():
            pass
    return explained | {
        "masks": [asdict(mask) for mask in verdict_masks(verdict)],
        "revision": rules.revision,
        "identity": {
            "subject": identity.subject,
            "groups": sorted(identity.groups),
            "agents": list(identity.agents),
            "issuer": identity.issuer,
        },
        "target": {"name": target.name, "protocol": target.protocol, "database": target.database},
        "statements": [
            {"verb": part.verb, "kind": part.kind, "text": part.text, "objects": list(part.objects)}
            for part in rules.statements(command)
        ],
        "outcomes": [asdict(outcome) for outcome in rules.explain(identity, target, command, at)],
    }


def explain_text(rules: RuleSet, identity: Identity, target: Target, command: Command, at: float | None = None) -> str:
    """Explain a decision to a person, as lines of plain text."""
    verdict = rules.judge(identity, target, command, at)
    outcomes = rules.explain(identity, target, command, at)
    statements = rules.statements(command)
    place = f"{target.name}/{target.database}" if target.database else target.name
    lines = [f"{identity.display} on {place} ({target.protocol}), rules {rules.revision}"]
    width = max((len(outcome.rule) for outcome in outcomes), default=0)
    for number, statement in enumerate(statements):
        objects = f" of {', '.join(statement.objects)}" if statement.objects else ""
        counted = f"[{number + 1}/{len(statements)}] " if len(statements) > 1 else ""
        lines += ["", f"{counted}{statement.verb} ({statement.kind}){objects}: {_heading(statement.text)}"]
        for outcome in outcomes:
            if outcome.part == number:
                mark = "+" if outcome.matched else "-"
                lines.append(f"  {mark} {outcome.rule:<{width}}  {outcome.effect:<5}  {outcome.reason}")
    if not outcomes:
        lines += ["", "  (there are no rules)"]
    return "\n".join([*lines, "", *_verdict_lines(verdict)]) + "\n"


def explain_sql(
    rules: RuleSet, identity: Identity, target: Target, text: str, to_command: Callable[[str], Command]
) -> str:
    """Explain the decision on a text; to_command reads it as the target's protocol would."""
    return explain_text(rules, identity, target, to_command(text))


def _heading(text: str) -> str:
    flat = " ".join("".join(c if c.isprintable() else " " for c in text[: HEADING_LIMIT + 1]).split())
    return flat if len(text) <= HEADING_LIMIT else flat[:HEADING_LIMIT] + " ..."


def _verdict_lines(verdict: Verdict) -> list[str]:
    lines = [f"verdict: {verdict_word(verdict)} by {verdict.rule}"]
    match verdict:
        case Deny():
            lines[0] += f": {verdict.reason}"
        case Hold():
            lines[0] += f": {verdict.reason}" if verdict.reason else ""
            lines.append(f"  any of {', '.join(verdict.approvers)} within {verdict.timeout_seconds:g} s")
        case Allow():
            pass
    for mask in verdict_masks(verdict):
        lines.append(
            f"  masked by {mask.rule}: {', '.join(mask.columns + mask.fields + mask.detectors)} ({mask.action})"
        )
    return lines
