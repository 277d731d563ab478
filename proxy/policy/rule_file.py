"""A rule file, read: text -> Rule values, or every mistake of it with its line.

What each key means is written in rules.py, for the people who write the files. Here is only the shape: the closed
lists of keys, the words that must be known (protocols, kinds, verbs, detectors, actions), durations, globs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proxy.core.events import KINDS
from proxy.core.parties import Target
from proxy.core.verdict import NO_RULE, Action, Allow, Deny, Hold, Mask
from proxy.policy.conditions import Condition, ConditionSyntaxError, compile_condition, dry_run
from proxy.policy.nodes import Fields, Problems, compose, entries, line_of
from proxy.policy.places import PROTOCOL, Places, resource_problem
from proxy.policy.rule import Commands, Effect, Globs, On, Opaque, Rule, Who
from proxy.policy.warehouse_objects import PROTOCOL as WAREHOUSE

# A thousand rules with a condition each are decided in 4 ms without the cache; more belong to several gateways.
RULES_LIMIT: Final = 1_000
# A held client keeps its connection open; none was seen to do so for longer than a day.
HOLD_SECONDS_LIMIT: Final = 24 * 3600.0
HOLD_SECONDS_DEFAULT: Final = 600.0
# Characters that 'partial' may leave readable: more than any card or IBAN has.
KEEP_LIMIT: Final = 64
KEEP_DEFAULT: Final = 4

# Names that verdicts of the gate itself carry: a rule of the same name would be taken for them.
RESERVED: Final = frozenset({NO_RULE, "policy-error", "identity", "masking", "gate"})

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DURATION: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_RULE_KEYS: Final = ("name", "who", "on", "commands", "when", "allow", "deny", "hold", "mask")
_PLACE_KEYS: Final = ("resources", "namespaces", "names")
_COMMANDS_KEYS: Final = ("kinds", "verbs", "objects", "programs", *_PLACE_KEYS, "opaque")
_EFFECTS: Final = ("allow", "hold", "deny")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that a rule file may use. verbs: per protocol (its VERBS); detectors: names of value detectors.

    check_mask: what the masker has to say against a mask, None if nothing.
    """

    verbs: Mapping[str, Collection[str]]
    detectors: Collection[str]
    check_mask: Callable[[Mask], str | None] | None = None


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A rule file that was read without a mistake of its own; whether its rules make sense together is not known."""

    rules: tuple[Rule, ...]
    zone: tzinfo
    revision: str


def read_rules(
    text: str, source_name: str, vocabulary: Vocabulary, targets: Collection[Target] | None, problems: Problems
) -> RuleFile:
    """Read a rule file; mistakes are noted in problems. Raises ConfigError where the text is not even YAML."""
    root = compose(text, source_name)
    if root is None:
        problems.add(1, "the file is empty; a file without rules says so: rules: []")
        return RuleFile((), UTC, "")
    top = Fields(root, problems, "the rule file", ("rules", "timezone"))
    rules: list[Rule] = []
    names: dict[str, int] = {}
    for node in _rule_nodes(top, problems):
        rule = _RuleReader(node, problems, vocabulary, targets).read()
        if rule is None:
            continue
        if rule.name in names:
            problems.add(rule.line, f"the name {rule.name!r} is taken by the rule in line {names[rule.name]}")
        names.setdefault(rule.name, rule.line)
        rules.append(rule)
    zone_name = top.text("timezone", "UTC")
    return RuleFile(tuple(rules), _zone(zone_name, top, problems), _revision(zone_name, rules))


def _rule_nodes(top: Fields, problems: Problems) -> list[Node]:
    node = top.nodes.get("rules")
    if node is None:
        problems.add(top.line, "the key 'rules' is missing")
        return []
    if isinstance(node, SequenceNode) and not node.value:
        return []  # rules: [] is a policy too: nobody may do anything
    found = entries(node, problems, "rules")
    if len(found) > RULES_LIMIT:
        problems.add(node, f"more than {RULES_LIMIT} rules")
        return []
    return found


def _zone(name: str, top: Fields, problems: Problems) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.add(top.line_of("timezone"), f"unknown time zone {name!r} (write it like Europe/Vienna)")
        return UTC


def _revision(zone_name: str, rules: list[Rule]) -> str:
    canonical = {"timezone": zone_name, "rules": [rule.canonical for rule in rules]}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plain(node: Node) -> Any:  # JSON values of any shape
    """Return a node as JSON values, without its comments, styles and order of keys."""
    if isinstance(node, ScalarNode):
        return str(node.value) if str(node.tag).endswith(":str") else [str(node.tag), str(node.value)]
    if isinstance(node, MappingNode):
        return {str(key.value): plain(value) for key, value in node.value}
    return [plain(entry) for entry in node.value]


def duration_seconds(text: str) -> float | None:
    """Read a duration such as 90s, 10m, 1h30m or 1d; None if it is none."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class _RuleReader:
    """Reads one rule."""

    def __init__(
        self, node: Node, problems: Problems, vocabulary: Vocabulary, targets: Collection[Target] | None
    ) -> None:
        self.problems = problems
        self.vocabulary = vocabulary
        self.targets = targets
        self.node = node
        self.fields = Fields(node, problems, "the rule", _RULE_KEYS)
        self.name = self.fields.text("name")

    def read(self) -> Rule | None:
        """Return the rule, None if it is beyond reading; mistakes are noted."""
        if not isinstance(self.node, MappingNode):
            return None
        if "name" not in self.fields:
            self.problems.add(self.fields.line, "the rule has no name")
        elif self.name.strip() and not _NAME.fullmatch(self.name):
            self.problems.add(
                self.fields.line_of("name"), f"the name {self.name!r} must be letters, digits, '.', '_' and '-'"
            )
        elif self.name in RESERVED:
            self.problems.add(self.fields.line_of("name"), f"the name {self.name!r} is the gate's own")
        effect = self._effect()
        if effect is None:
            return None
        on = self._on()
        masks = self._masks(on) if "mask" in self.fields else ()
        return Rule(
            name=self.name,
            line=self.fields.line,
            effect=effect,
            who=self._who(),
            on=on,
            commands=self._commands(effect, on),
            when=self._when(on),
            verdict=self._verdict(effect),
            masks=masks,
            canonical=plain(self.node),
        )

    def _effect(self) -> Effect | None:
        found = [key for key in _EFFECTS if key in self.fields]
        if len(found) > 1:
            self.problems.add(self.fields.line, f"the rule says {' and '.join(found)}; it may say one of them")
            return None
        if not found:
            if "mask" in self.fields:
                return "mask"
            if not self.fields.misspelt:
                self.problems.add(self.fields.line, "the rule says none of allow, hold, deny, mask")
            return None
        effect: Effect = "allow" if found == ["allow"] else "hold" if found == ["hold"] else "deny"
        if effect == "deny" and "mask" in self.fields:
            self.problems.add(self.fields.line_of("mask"), "a deny has nothing to mask")
        return effect

    def _part(self, key: str, allowed: tuple[str, ...]) -> Fields | None:
        node = self.fields.nodes.get(key)
        if node is None:
            return None
        part = Fields(node, self.problems, key, allowed)
        if isinstance(node, MappingNode) and not node.value:
            self.problems.add(node, f"{key} is empty; leave it out")
        return part

    def _globs(self, part: Fields, key: str) -> Globs | None:
        texts = part.texts(key)
        return Globs(texts) if texts else None

    def _who(self) -> Who:
        part = self._part("who", ("groups", "subjects", "agents", "issuers"))
        if part is None:
            return Who()
        keys = ("groups", "subjects", "agents", "issuers")
        return Who(*(self._globs(part, key) for key in keys))

    def _on(self) -> On:
        part = self._part("on", ("targets", "protocols", "databases", "logins", "labels"))
        if part is None:
            return On()
        protocols = part.words("protocols", self.vocabulary.verbs.keys(), "protocol")
        targets = self._globs(part, "targets")
        if targets is not None and self.targets is not None:
            for entry in part.nodes["targets"].value:
                if not any(Globs((str(entry.value),)).match(target.name) for target in self.targets):
                    self.problems.add(entry, f"no configured target is called {entry.value!r}")
        labels: list[tuple[str, Globs]] = []
        if "labels" in part:
            labels_part = Fields(part.nodes["labels"], self.problems, "on.labels", None)
            for label, node in labels_part.nodes.items():
                texts = (labels_part.text(label),) if isinstance(node, ScalarNode) else labels_part.texts(label)
                if texts:
                    labels.append((label, Globs(texts)))
        if "databases" in part and "logins" in part:
            self.problems.add(part.line_of("logins"), "on.logins is another word for on.databases; say one of them")
        databases = self._globs(part, "logins" if "logins" in part else "databases")
        return On(targets, Globs(protocols) if protocols else None, databases, tuple(labels))

    def reachable(self, on: On) -> list[Target] | None:
        """The configured targets that the rule speaks of, None if they are not known."""
        if self.targets is None:
            return None
        return [target for target in self.targets if on.mismatch_configured(target) is None]

    def _commands(self, effect: Effect, on: On) -> Commands:
        part = self._part("commands", _COMMANDS_KEYS)
        default: Opaque = "never" if effect == "allow" else "also"
        if part is None:
            return Commands(opaque=default)
        kinds = part.words("kinds", KINDS, "kind")
        verbs = part.words("verbs", self._known_verbs(on), "verb")
        return Commands(
            frozenset(kinds) if kinds else None,
            frozenset(verbs) if verbs else None,
            self._globs(part, "objects"),
            self._opaque(part, effect, default),
            self._globs(part, "programs"),
            self._places(part, effect, on),
        )

    def _places(self, part: Fields, effect: Effect, on: On) -> Places | None:
        """What the rule says of places in a cluster, None where it says nothing."""
        keys = [key for key in _PLACE_KEYS if key in part]
        if not keys:
            return None
        if not self._speaks_of(PROTOCOL, on):
            self.problems.add(
                part.line_of(keys[0]), f"commands.{keys[0]} is of Kubernetes, and the rule speaks of no such target"
            )
        for entry in part.nodes["resources"].value if "resources" in part else ():
            wrong = resource_problem(str(entry.value), effect == "allow") if isinstance(entry, ScalarNode) else None
            if wrong is not None and entry.value:
                self.problems.add(entry, wrong)
        return Places(*(self._globs(part, key) for key in _PLACE_KEYS))

    def _speaks_of(self, protocol: str, on: On) -> bool:
        reachable = self.reachable(on)
        known = {target.protocol for target in reachable} if reachable else set(self.vocabulary.verbs)
        return protocol in known and (on.protocols is None or on.protocols.match(protocol))

    def _known_verbs(self, on: On) -> frozenset[str]:
        reachable = self.reachable(on)
        protocols = {target.protocol for target in reachable} if reachable else set(self.vocabulary.verbs)
        if on.protocols is not None:
            protocols = {name for name in protocols if on.protocols.match(name)} or protocols
        return frozenset(verb for name in protocols for verb in self.vocabulary.verbs.get(name, ()))

    def _opaque(self, part: Fields, effect: Effect, default: Opaque) -> Opaque:
        node = part.nodes.get("opaque")
        if node is None:
            return default
        words: dict[str, Opaque] = {"true": "also", "false": "never", "also": "also", "only": "only", "never": "never"}
        word = words.get(str(node.value)) if isinstance(node, ScalarNode) else None
        if word is None:
            self.problems.add(node, "commands.opaque must be true (or also), false (or never), or only")
            return default
        if word == "also" and effect != "allow":
            # Read as a filter it would say something else; so it says nothing.
            self.problems.add(node, f"a {effect} speaks of opaque commands anyway; of these alone: opaque: only")
        return word

    def _when(self, on: On) -> Condition | None:
        node = self.fields.nodes.get("when")
        if node is None:
            return None
        if not isinstance(node, ScalarNode) or not str(node.value).strip():
            self.problems.add(node, "when must be a condition (text)")
            return None
        # The text of a block scalar starts in the line after its mark.
        first = line_of(node) + (1 if node.style in ("|", ">") else 0)
        try:
            condition = compile_condition(str(node.value).strip())
        except ConditionSyntaxError as error:
            self.problems.add(first + (error.line - 1 if node.style == "|" else 0), error.message)
            return None
        self._dry_run(condition, on, first)
        return condition

    def _dry_run(self, condition: Condition, on: On, line: int) -> None:
        targets = self.reachable(on)
        if targets is None:
            # A target without labels would fail for every condition on a label; without targets nothing is known.
            targets = [] if "target.labels" in condition.reads else [Target("", "")]
        elif "target.labels" not in condition.reads:
            targets = targets[:1]
        seen: set[tuple[tuple[str, str], ...]] = set()
        for target in targets:
            labels = tuple(sorted(target.labels.items()))
            if labels in seen:
                continue
            seen.add(labels)
            failure = dry_run(condition, target)
            if failure is not None:
                place = f" on target {target.name!r}" if target.name else ""
                self.problems.add(line, f"condition: fails{place} for a command without facts: {failure[:200]}")
                return

    def _verdict(self, effect: Effect) -> Allow | Hold | Deny | None:
        match effect:
            case "allow":
                if self.fields.flag("allow") is False:
                    self.problems.add(self.fields.line_of("allow"), "allow: false is no rule; say deny")
                return Allow(self.name)
            case "hold":
                return self._hold()
            case "deny":
                return self._deny()
            case "mask":
                return None

    def _deny(self) -> Deny:
        reason = f"the rule {self.name} denies it"
        node = self.fields.nodes["deny"]
        if isinstance(node, MappingNode):
            part = Fields(node, self.problems, "deny", ("reason",))
            return Deny(self.name, part.text("reason", reason))
        if self.fields.flag("deny") is False:
            self.problems.add(node, "deny: false is no rule; leave it out")
        return Deny(self.name, reason)

    def _hold(self) -> Hold:
        part = Fields(self.fields.nodes["hold"], self.problems, "hold", ("approvers", "timeout", "reason"))
        approvers = part.texts("approvers") or ()
        if "approvers" not in part:
            self.problems.add(part.line, "hold.approvers is missing: who may approve?")
        for approver in approvers:
            if approver == "group:" or re.search(r"[*?\s]", approver):
                self.problems.add(
                    part.line_of("approvers"), f"the approver {approver!r} must be a subject or group:NAME, no pattern"
                )
        seconds = HOLD_SECONDS_DEFAULT
        if "timeout" in part:
            written = part.text("timeout")
            read = duration_seconds(written)
            if not written:
                pass  # no text at all, which is told already
            elif read is None or not 1 <= read <= HOLD_SECONDS_LIMIT:
                self.problems.add(part.line_of("timeout"), "hold.timeout must be like 90s, 10m or 1h30m, up to 24h")
            else:
                seconds = read
        return Hold(self.name, approvers, seconds, part.text("reason"))

    def _masks(self, on: On) -> tuple[Mask, ...]:
        found = entries(self.fields.nodes["mask"], self.problems, "mask")
        return tuple(self._mask(node, on) for node in found)

    def _mask(self, node: Node, on: On) -> Mask:
        part = Fields(node, self.problems, "a mask", ("columns", "detectors", "fields", "action", "keep", "text"))
        columns = part.texts("columns") or ()
        detectors = part.words("detectors", self.vocabulary.detectors, "detector") or ()
        fields = self._mask_fields(part, on)
        if isinstance(node, MappingNode) and not {"columns", "detectors", "fields"} & part.nodes.keys():
            self.problems.add(node, "the mask names neither columns nor detectors (nor fields, of Kubernetes)")
        for column in columns:
            if column.count(".") < 2 and "*" not in column:
                self.problems.add(
                    part.line_of("columns"), f"the column {column!r} must be schema.table.column (or a pattern of it)"
                )
            elif column.count(".") > 2 and not self._speaks_of(WAREHOUSE, on):
                # On a database such a pattern would cover nothing, silently.
                self.problems.add(
                    part.line_of("columns"),
                    f"the column {column!r} has the parts of one of BigQuery, and the rule speaks of no such target",
                )
        actions: tuple[Action, ...] = get_args(Action)
        word = self._action_word(part)
        action = next((known for known in actions if known == word), None)
        if action is None:
            self.problems.add(part.line_of("action"), f"unknown action {word!r} (known: {', '.join(actions)})")
            action = "redact"
        if "keep" in part and action != "partial":
            self.problems.add(part.line_of("keep"), f"keep is for the action partial, not for {action}")
        if "text" in part and action not in ("redact", "constant"):
            self.problems.add(part.line_of("text"), f"text is for the actions redact and constant, not for {action}")
        keep = part.number("keep", 1, KEEP_LIMIT)
        text = part.text("text") if "text" in part else None
        mask = Mask(self.name, columns, detectors, action, KEEP_DEFAULT if keep is None else keep, text, fields)
        if self.vocabulary.check_mask is not None and (columns or detectors or fields):
            wrong = self.vocabulary.check_mask(mask)
            if wrong is not None:
                self.problems.add(node, wrong)
        return mask

    def _mask_fields(self, part: Fields, on: On) -> tuple[str, ...]:
        fields = part.texts("fields") or ()
        if fields and not self._speaks_of(PROTOCOL, on):
            self.problems.add(part.line_of("fields"), "fields are of Kubernetes, and the rule speaks of no such target")
        for field in fields:
            resource, colon, _ = field.partition(":")
            wrong = resource_problem(resource, allows=False) if colon and not re.search(r"[*?\[]", resource) else None
            if wrong is not None:
                self.problems.add(part.line_of("fields"), wrong)
        return fields

    @staticmethod
    def _action_word(part: Fields) -> str:
        node = part.nodes.get("action")
        if isinstance(node, ScalarNode) and str(node.tag).endswith(":null"):
            return "null"  # action: null is YAML's null, and means the action of that name
        return part.text("action", "redact")
