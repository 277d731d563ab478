"""The rules: YAML and CEL in, one verdict a command out. The Policy of proxy/core/gate.py.

How rules are written
---------------------
::

    timezone: Europe/Vienna            # optional, for time.*; UTC without it
    rules:
      - name: agents-read-shop         # required, unique; stands in every verdict, error and tape
        who: {groups: [agents], subjects: ["*@acme.com"], agents: ["claude*"], issuers: [...]}
        on: {targets: [shop-*], protocols: [postgres], databases: [shop], labels: {env: prod}}   # logins: of SSH
        commands: {kinds: [read], verbs: [SELECT], objects: ["public.*"], opaque: true}   # programs: of command lines;
                                       # resources, namespaces, names: of Kubernetes (places.py)
        when: 'sql.has_limit && time.hour >= 8'      # CEL; the variables are listed in conditions.py
        allow: true                    # or deny: {reason: ...}, or hold: {approvers: [group:oncall], timeout: 10m,
                                       # reason: ...}; and/or mask: [{columns: [...], detectors: [...], action: ...,
                                       # keep: ..., text: ...}]

Within a key any entry suffices, all keys must match; a part that is left out matches everything (but see 4). Entries
of who, on.targets, databases, labels and objects are globs (rule.py); protocols, kinds and verbs are exact words.

What rules mean
---------------
1. All rules that match count: Deny over Hold over Allow (verdict.combine); nothing matches: Deny (default-deny). Of
   several of one kind the first of the file gives name, reason and approvers.
2. A ``mask`` rule allows nothing; its masks are added to whatever is allowed or held. An allow or a hold may carry
   masks of its own; they are added as well.
3. objects: an *allow* needs ALL objects of the command to match. A *deny*, *hold* or *mask* is satisfied with ANY of
   them (a join with a masked table is masked). A command whose objects are not known matches no allow with
   objects; a read of which SQL tells that it touches no table (SELECT 1) does. In SQL a deny, hold or mask also
   takes an unqualified name for the qualified one that it names, and a view for the tables behind it; an allow of
   the view is enough to read it. Of SSH: the programs of a command line (Script.names), the real paths of files,
   host:port or the socket of forwards; ``*`` matches slashes too.
4. Commands that nobody can read ("dark": of kind unknown, or with facts["opaque"]): an allow speaks of them only
   if it says so: ``kinds`` names unknown, or ``opaque: true`` (them too) or ``only``. Deny, hold and mask rules
   speak of them unless they say ``opaque: false``, and their ``objects`` match whatever a dark command hides.
   ``kinds`` and ``verbs`` are taken at their word by all.
5. Session business: a command of kind session (CONNECT, BEGIN, COMMIT, SET, SHOW, ...) is allowed to whoever some
   allow or hold rule speaks of by who and on, whatever else that rule asks. A rule that names the kind session or
   the verb is decided as a whole instead: a deny denies, a hold holds, an allow allows; it lets nobody in by who
   and on alone. A deny without kinds, verbs and objects, whose condition (if any) reads nothing of the command
   (rule.OF_COMMANDS), denies session business too. It carries the masks of every rule of the session (a COMMIT can
   quote data in its error). Not session business, but decided like any other command: dark ones, those that touch an
   object (SELECT set_config(...) FROM t is of kind session), and those that change a setting of SETTINGS_UNDER_RULES.
6. A command with parts (several statements) is decided part by part, the strictest verdict stands, masks add up.
   sql.multi is true for each of them if they are several.
7. A condition that fails (a label that is not there, an index beyond the list) makes the decision a Deny by
   "policy-error", whatever its rule would have said. Conditions are tried at load on a command without facts.

8. Of Kubernetes: resources, namespaces and names are places.py's; objects are ``namespace/resource.group/name``.
   Discovery (verb ``discover``: what an API server serves, its version and health) is allowed to whoever some allow or
   hold speaks of by who and on, as clients do nothing without it; a rule that names the verb, and a deny of who, where
   and when alone, is decided as a whole. There is no other session business. What nobody can look into (``proxy``,
   ``impersonate``, ``path``) is allowed only by a rule that names the verb, and says opaque: true.
9. programs: of command lines (of SSH, of exec). An allow needs ALL programs of the line to match, and the line to be
   read unless it says opaque: true; the others ANY, or a line that nobody can read.

10. Of BigQuery: objects are "project.dataset.table"; a name may stand for many, and warehouse_objects.py says when. A
   request is decided effect by effect: they are the parts of its command, of its SQL and of the doors beside it. Of
   something special (bigquery.special: a reservation, another identity, ..) an allow speaks only if its condition reads
   that. What goes on with what was decided before (``poll``, ``cancel``, ``upload``: states, pages, chunks) is session
   business, of whatever kind, and comes with the masks of then; to these it adds those of mask rules of who,
   where and when alone. Only a deny that names the verb, or is of who, where and when alone, stops it.
   So does BEGIN in a script, whose other parts have masks of their own.

Speed: the rules of a session (who, on) are chosen once for an identity and target; decisions are kept in an LRU,
keyed by everything that those rules can see. facts["cache_key"], if the protocol puts one there, must be hashable and
stand for all facts.

Left out: priorities, rules that undo a deny, variables or macros shared between rules (YAML anchors work).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import Final, TypeVar

import structlog

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict, combine
from proxy.policy.conditions import FACT_KEYS, ConditionError, Scene, setting_of
from proxy.policy.nodes import Problems
from proxy.policy.places import DISCOVER, PROTOCOL
from proxy.policy.reach import find_unreachable
from proxy.policy.rule import Rule, is_dark
from proxy.policy.rule_file import Vocabulary, read_rules
from proxy.policy.warehouse_objects import GOES_ON
from proxy.policy.warehouse_objects import PROTOCOL as WAREHOUSE

logger = structlog.get_logger(__name__)

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_Told = TypeVar("_Told", Allow, Hold, Deny, Allow | Hold | Deny)

POLICY_ERROR: Final = "policy-error"
_DARK: Final = "nobody can read for certain what this command does, and the rule speaks of such, too"

# Settings that change who one is, how text is read, or what the target checks and logs: PostgreSQL 18 docs 19, SET
# ROLE, SET SESSION AUTHORIZATION. A dotted name (pgaudit.log) is matched by its class as well. Not here: search_path
# and client_encoding, which the protocol follows; row_security, whose 'off' only turns hidden rows into an error,
# and which pg_dump sends always; default_transaction_read_only, since kinds decide who may write.
SETTINGS_UNDER_RULES: Final = frozenset({
    "role", "session_authorization",
    "standard_conforming_strings", "backslash_quote",
    "session_replication_role",
    "allow_system_table_mods", "ignore_system_indexes", "zero_damaged_pages", "ignore_checksum_failure",
    "dynamic_library_path", "session_preload_libraries", "local_preload_libraries", "extension_control_path",
    "lo_compat_privileges",
    "log_statement", "log_min_messages", "log_min_error_statement", "log_min_duration_statement", "log_duration",
    "log_parameter_max_length", "log_parameter_max_length_on_error", "track_activities",
    "pgaudit",
})  # fmt: skip

# Decisions kept: about 1 KiB each with their keys, so 16 MiB.
DECISIONS_LIMIT: Final = 16_384
# Sessions' rule choices kept: one an identity and target that is connected.
SCOPES_LIMIT: Final = 4_096
# Longer texts and lists of objects are decided afresh rather than kept as keys.
KEY_TEXT_LIMIT: Final = 1_024
KEY_OBJECTS_LIMIT: Final = 64
# Parts decided before the loop is given to others; a part costs up to 0.1 ms.
PARTS_AT_ONCE_LIMIT: Final = 200


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What one rule had to say of one command. part: of a command with parts, from 0."""

    rule: str
    line: int
    effect: str
    matched: bool
    reason: str
    part: int = 0


class _Scope:
    """The rules of one identity on one target, and what their conditions read."""

    __slots__ = ("identity", "masks", "number", "reads", "reads_clock", "reads_text", "reads_time", "rules", "target")

    def __init__(self, number: int, identity: Identity, target: Target, rules: tuple[Rule, ...]) -> None:
        self.number = number
        self.identity = identity
        self.target = target
        self.rules = tuple(rule for rule in rules if rule.static_mismatch(identity, target) is None)
        self.masks = tuple(dict.fromkeys(mask for rule in self.rules for mask in rule.masks))
        self.reads = frozenset(name for rule in self.rules if rule.when for name in rule.when.reads)
        self.reads_text = "command.text" in self.reads
        self.reads_time = any(name.startswith("time.") for name in self.reads)
        self.reads_clock = not self.reads.isdisjoint(("time.unix", "time.now"))


def is_session_business(command: Command) -> bool:
    """Tell whether the command is of kind session and free to whoever may connect, unless a rule names it."""
    facts = command.facts
    if command.protocol == PROTOCOL:
        return False  # port-forward is of that kind, and no business of everybody's
    if command.protocol == WAREHOUSE:
        # A part is looked at by itself: its facts are those of the whole text.
        plain = command.kind == "session" and not (is_dark(command) or command.objects)
        return plain or command.verb in GOES_ON
    if command.kind != "session" or is_dark(command) or command.objects or facts.get("moves_data"):
        return False
    if facts.get("tables_read") or facts.get("tables_written") or facts.get("tables"):
        return False
    name = setting_of(command)[0]
    return name not in SETTINGS_UNDER_RULES and name.partition(".")[0] not in SETTINGS_UNDER_RULES


def is_discovery(command: Command) -> bool:
    """Tell whether the command is the plumbing of clients over HTTP, free to whoever may do anything there."""
    plumbing = command.protocol in (PROTOCOL, WAREHOUSE) and command.verb == DISCOVER
    return plumbing and command.kind == "read" and not is_dark(command)


def mismatch(rule: Rule, command: Command, scene: Scene) -> str | None:
    """Why a rule of the session does not match the command, None if it does. Raises ConditionError."""
    reason = rule.command_mismatch(command)
    if reason is not None:
        return reason
    if rule.when is not None and not rule.when.holds(scene):
        return "when: the condition is false"
    return None


class RuleSet:
    """The rules of one file. revision names them: equal rules, however they are written down, have equal revisions."""

    def __init__(
        self, rules: Iterable[Rule], revision: str, zone: tzinfo = UTC, clock: Callable[[], float] = time.time
    ) -> None:
        self.rules = tuple(rules)
        self.revision = revision
        self.zone = zone
        self._clock = clock
        self._numbers = itertools.count()
        # By object identity, which spares hashing; the values hold the objects, so that no id is used again.
        self._near: OrderedDict[tuple[int, int], tuple[Identity, Target, _Scope]] = OrderedDict()
        self._scopes: OrderedDict[Hashable, _Scope] = OrderedDict()
        self._decisions: OrderedDict[Hashable, Verdict] = OrderedDict()

    async def decide(self, identity: Identity, target: Target, command: Command) -> Verdict:
        """Decide a command: the Policy hook of the gate."""
        scope = self._scope(identity, target)
        if not command.parts:
            return self._decide(scope, command, False)
        verdicts: list[Verdict] = []
        parts = _flat(command)
        for place, part in enumerate(parts):
            if place % PARTS_AT_ONCE_LIMIT == PARTS_AT_ONCE_LIMIT - 1:
                await asyncio.sleep(0)
            verdict = self._decide(scope, part, len(parts) > 1)
            if isinstance(verdict, Deny):
                return verdict
            verdicts.append(verdict)
        return combine(verdicts)

    def judge(self, identity: Identity, target: Target, command: Command, at: float | None = None) -> Verdict:
        """Decide without the cache, at a time of choice (seconds since the epoch): for explanations and tests."""
        now = self._clock() if at is None else at
        scope = self._scope(identity, target)
        parts = _flat(command)
        return combine(self._evaluate(scope, part, len(parts) > 1, now)[0] for part in parts)

    def explain(
        self, identity: Identity, target: Target, command: Command, at: float | None = None
    ) -> list[RuleOutcome]:
        """Tell of every rule whether it matches, and why or why not; one outcome a rule and part."""
        now = self._clock() if at is None else at
        outcomes: list[RuleOutcome] = []
        parts = _flat(command)
        for place, part in enumerate(parts):
            scene = Scene(identity, target, part, now, self.zone, len(parts) > 1)
            for rule in self.rules:
                matched, reason = _explain(rule, identity, target, part, scene)
                outcomes.append(RuleOutcome(rule.name, rule.line, rule.effect, matched, reason, place))
        return outcomes

    @staticmethod
    def statements(command: Command) -> list[Command]:
        """The single commands that are decided, in order: the parts of one that has them, else itself."""
        return _flat(command)

    # -- the cache --------------------------------------------------------------------------------------

    def _scope(self, identity: Identity, target: Target) -> _Scope:
        near = (id(identity), id(target))
        found = self._near.get(near)
        if found is not None:
            self._near.move_to_end(near)
            return found[2]
        # Whatever a rule or its condition can see of the two; a reloaded target may keep its name and lose a label.
        key = (
            *(identity.subject, identity.groups, identity.agents, identity.issuer),
            *(target.name, target.protocol, target.database, tuple(sorted(target.labels.items()))),
        )
        scope = self._scopes.get(key)
        if scope is None:
            scope = _Scope(next(self._numbers), identity, target, self.rules)
            _put(self._scopes, key, scope, SCOPES_LIMIT)
        else:
            self._scopes.move_to_end(key)
        _put(self._near, near, (identity, target, scope), SCOPES_LIMIT)
        return scope

    def _decide(self, scope: _Scope, command: Command, multi: bool) -> Verdict:
        now = self._clock() if scope.reads_time else 0.0
        key = _key(scope, command, multi, now)
        if key is not None:
            try:
                found = self._decisions.get(key)
            except TypeError:  # facts that cannot be hashed are decided afresh
                key = None
            else:
                if found is not None:
                    self._decisions.move_to_end(key)
                    return found
        verdict, sound = self._evaluate(scope, command, multi, now)
        if key is not None and sound:
            _put(self._decisions, key, verdict, DECISIONS_LIMIT)
        return verdict

    # -- the decision -----------------------------------------------------------------------------------

    def _evaluate(self, scope: _Scope, command: Command, multi: bool, now: float) -> tuple[Verdict, bool]:
        """Return the verdict, and whether every condition could be evaluated."""
        scene = Scene(scope.identity, scope.target, command, now, self.zone, multi, scope.reads)
        business = is_session_business(command)
        free = business or is_discovery(command)
        verdicts: list[Verdict] = []
        masks: dict[Mask, None] = {}
        admitted: Verdict | None = None
        for rule in scope.rules:
            if free and not _decides_free(rule, command):
                if rule.permits:
                    admitted = admitted or Allow(rule.name)
                continue
            try:
                if mismatch(rule, command, scene) is not None:
                    continue
            except ConditionError as error:
                # Fails closed. The text of the error may quote the command, which is for the tape alone.
                logger.warning("condition failed", rule=rule.name, code=error.code)
                return Deny(POLICY_ERROR, f"the condition of the rule {rule.name} could not be evaluated"), False
            if isinstance(rule.verdict, Deny):
                return _with_why(rule.verdict, rule, command), True
            masks.update(dict.fromkeys(rule.masks))
            if rule.verdict is not None:
                verdicts.append(_with_why(rule.verdict, rule, command))
        if admitted is not None:
            verdicts.append(admitted)
        verdict = combine(verdicts)
        if isinstance(verdict, Deny) and is_dark(command):
            verdict = replace(verdict, reason=f"{verdict.reason}, and nobody can read for certain what it does")
        if business and command.protocol != WAREHOUSE:
            masks = dict.fromkeys(scope.masks)
        if masks and not isinstance(verdict, Deny):
            verdict = replace(verdict, masks=tuple(masks))
        return verdict, True


def _with_why(verdict: _Told, rule: Rule, command: Command) -> _Told:
    """Say that a rule which names objects speaks of a dark command that shows none of them: its reason sounds odd."""
    globs = rule.commands.objects
    if globs is None or isinstance(verdict, Allow) or not is_dark(command) or any(map(globs.match, command.objects)):
        return verdict
    reason = f"{verdict.reason} ({_DARK})" if verdict.reason else _DARK
    return replace(verdict, reason=reason)


def _decides_free(rule: Rule, command: Command) -> bool:
    """Whether a rule is decided as a whole on session business or discovery, rather than by its who and on."""
    if command.protocol == WAREHOUSE and (rule.effect == "mask" or command.verb in GOES_ON):
        # Whoever may begin something may go on with it: no kind of it is asked for again.
        said = rule.commands.verbs is not None and command.verb in rule.commands.verbs
        return not rule.permits and (rule.general or said)
    if command.verb == DISCOVER:
        return rule.sweeping or (rule.commands.verbs is not None and DISCOVER in rule.commands.verbs)
    return rule.sweeping or (rule.effect != "mask" and rule.commands.names(command))


def _explain(rule: Rule, identity: Identity, target: Target, command: Command, scene: Scene) -> tuple[bool, str]:
    static = rule.static_mismatch(identity, target)
    if static is not None:
        return False, static
    if is_discovery(command) and not _decides_free(rule, command):
        if rule.permits:
            return True, "discovery: free to whoever this rule speaks of by who and on"
        return False, f"discovery: the rule does not name the verb {DISCOVER!r}"
    if is_session_business(command) and not _decides_free(rule, command):
        if rule.permits:
            return True, "session business: free to whoever this rule speaks of by who and on"
        if rule.effect == "mask" and command.protocol != WAREHOUSE:
            return True, "session business: masked by every mask of the session"
        return False, "session business: the rule does not name the kind session or the verb"
    try:
        reason = mismatch(rule, command, scene)
    except ConditionError as error:
        return False, f"when: the condition failed, so that the whole decision is a deny: {error.text}"
    if reason is None:
        return True, "all parts match" + (_values(rule, scene) if rule.when else "")
    return False, reason + (_values(rule, scene) if reason.startswith("when:") else "")


def _values(rule: Rule, scene: Scene) -> str:
    if rule.when is None:
        return ""
    shown = (f"{name} = {str(scene.value(name))[:80]!r}" for name in sorted(rule.when.reads))
    return f" ({rule.when.source}; {', '.join(shown)})"


def _flat(command: Command) -> list[Command]:
    """The single statements of a command, in order; the command itself if it has no parts."""
    if not command.parts:
        return [command]
    stack = list(reversed(command.parts))
    found: list[Command] = []
    while stack:
        part = stack.pop()
        if part.parts:
            stack.extend(reversed(part.parts))
        else:
            found.append(part)
    return found


def _key(scope: _Scope, command: Command, multi: bool, now: float) -> Hashable | None:
    """Everything that the rules of the scope can see of a command, None where that is too much to keep."""
    facts = command.facts
    seen = facts.get("cache_key")
    if seen is None:
        seen = _frozen(facts)
    if len(command.objects) > KEY_OBJECTS_LIMIT:
        return None
    extra: Hashable = None
    if scope.reads_text:
        if len(command.text) > KEY_TEXT_LIMIT:
            return None
        extra = command.text
    if scope.reads_time:
        extra = (extra, int(now) if scope.reads_clock else int(now) // 60)
    opaque = facts.get("opaque")  # besides the facts' own key: what it decides is too much to rest on another's care
    return (scope.number, command.verb, command.kind, command.objects, seen, opaque, command.exact, multi, extra)


def _frozen(facts: Mapping[str, object]) -> Hashable:
    get = facts.get
    return tuple([_hashable(value) for value in [get(key) for key in FACT_KEYS]])


def _hashable(value: object) -> object:
    if type(value) is list:
        return tuple(value)
    return tuple(sorted(value.items())) if isinstance(value, dict) else value


def _put(store: OrderedDict[_K, _V], key: _K, value: _V, limit: int) -> None:
    store[key] = value
    if len(store) > limit:
        store.popitem(last=False)


def load_rules(
    text: str,
    source_name: str,
    targets: Collection[Target] | None,
    *,
    verbs: Mapping[str, Collection[str]],
    detectors: Collection[str],
    check_mask: Callable[[Mask], str | None] | None = None,
    clock: Callable[[], float] = time.time,
) -> RuleSet:
    """Read and check a rule file.

    targets are the configured ones (None: not known, and what depends on them is not checked); verbs maps each
    protocol to its VERBS; detectors are the names of the value detectors; check_mask is the masker's. A file of
    1,000 rules takes about two
    seconds: call it in a thread. Raises ConfigError with ``source_name:line: message``, one line a mistake.
    """
    problems = Problems(source_name)
    found = read_rules(text, source_name, Vocabulary(verbs, detectors, check_mask), targets, problems)
    problems.raise_if_any()
    find_unreachable(found.rules, targets, problems)
    problems.raise_if_any()
    return RuleSet(found.rules, found.revision, found.zone, clock)
