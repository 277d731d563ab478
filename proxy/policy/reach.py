"""Rules that can never have an effect: each is a mistake of its author, and an error at load.

What is found: a rule whose ``on`` matches no configured target; a rule that only repeats an earlier one; a rule
whose every command an unconditional deny takes away; a mask with nothing to let through where it speaks. What is
found is certain (globs are compared conservatively); what is not found may still be dead.
"""

from __future__ import annotations

from collections.abc import Collection

from proxy.core.parties import Target
from proxy.policy.nodes import Problems
from proxy.policy.rule import Rule


def find_unreachable(rules: tuple[Rule, ...], targets: Collection[Target] | None, problems: Problems) -> None:
    """Note a problem for each rule that can have no effect. targets None: not known."""
    denies = [(place, rule) for place, rule in enumerate(rules) if rule.effect == "deny" and rule.when is None]
    earlier: dict[tuple[object, ...], Rule] = {}
    for place, rule in enumerate(rules):
        if targets is not None and not _places(rule, targets):
            problems.add(rule.line, f"the rule {rule.name!r} has no effect: its 'on' matches no configured target")
            continue
        twin = _twin(rule, earlier)
        if twin is not None:
            problems.add(
                rule.line, f"the rule {rule.name!r} has no effect: it repeats {twin.name!r} of line {twin.line}"
            )
            continue
        for deny_place, deny in denies:
            # A deny takes from what stands before it too; of two denies the first gives the reason.
            if deny is not rule and (rule.effect != "deny" or deny_place < place) and _takes_all(deny, rule, targets):
                problems.add(
                    rule.line,
                    f"the rule {rule.name!r} has no effect: {deny.name!r} of line {deny.line} denies all it speaks of",
                )
                break
        else:
            if rule.effect == "mask" and not _has_permit(rule, rules, targets):
                problems.add(
                    rule.line, f"the rule {rule.name!r} has no effect: no rule allows or holds anything where it masks"
                )


def _places(rule: Rule, targets: Collection[Target]) -> set[str]:
    return {target.name for target in targets if rule.on.mismatch_configured(target) is None}


def _twin(rule: Rule, earlier: dict[tuple[object, ...], Rule]) -> Rule | None:
    """An earlier rule that says the same of the same, always or on the same condition."""
    says = rule.canonical.get("hold") if rule.effect == "hold" else None
    masks = tuple((mask.columns, mask.detectors, mask.fields, mask.action, mask.keep, mask.text) for mask in rule.masks)
    static = (rule.effect, rule.who, rule.on, rule.commands, repr(says), masks)
    unconditional = earlier.get((*static, ""))
    twin = unconditional or earlier.get((*static, rule.when.source if rule.when else ""))
    earlier.setdefault((*static, rule.when.source if rule.when else ""), rule)
    return twin


def _takes_all(deny: Rule, rule: Rule, targets: Collection[Target] | None) -> bool:
    return (
        deny.who.covers(rule.who)
        and deny.on.covers(rule.on, targets)
        and deny.commands.covers(rule.commands)
        # A rule about objects also speaks of commands that touch none; only a deny without objects takes these.
        and deny.commands.names_no_thing
    )


def _has_permit(mask: Rule, rules: tuple[Rule, ...], targets: Collection[Target] | None) -> bool:
    permits = [rule for rule in rules if rule.permits]
    if targets is None:
        return bool(permits)
    places = _places(mask, targets)
    return any(places & _places(rule, targets) for rule in permits)
