"""One rule as a value: whom it speaks of, where, of which commands, when, and what it says.

A rule has a static part (``who`` and ``on``), which is the same for a whole session, a part about the command
(``commands``) and a condition (``when``). Each part answers with None where it matches and with the reason where it
does not: the decision and its explanation run the same code. What several rules say together is in rules.py.

Globs are globs.py's; what is asked of Kubernetes by resource, namespace and name is places.py's, and what objects are
to BigQuery, whose names hold wildcards themselves, is warehouse_objects.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Mask
from proxy.policy.conditions import Condition, script_of
from proxy.policy.globs import Globs as Globs
from proxy.policy.globs import covers
from proxy.policy.places import NAMED_ONLY, PROTOCOL, Places
from proxy.policy.warehouse_objects import PROTOCOL as WAREHOUSE
from proxy.policy.warehouse_objects import covered, touches, unasked
from proxy.policy.warehouse_objects import touches_nothing as reads_nothing

Effect = Literal["allow", "hold", "deny", "mask"]
Opaque = Literal["also", "only", "never"]

# What a condition reads of commands. Not ssh.login: it is the same for a whole session.
OF_COMMANDS: Final = (
    *("command.", "sql.", "shell.", "file.", "kube.", "bigquery."),
    *("ssh.host", "ssh.port", "ssh.path", "ssh.subsystem", "ssh.how", "ssh.pty", "ssh.env"),
    *("ssh.unsure", "ssh.hidden", "ssh.decoded"),
)


@dataclass(frozen=True, slots=True)
class Who:
    """The callers that a rule speaks of: any entry within a key, all keys. None = whoever."""

    groups: Globs | None = None
    subjects: Globs | None = None
    agents: Globs | None = None
    issuers: Globs | None = None

    def mismatch(self, identity: Identity) -> str | None:
        """Why the rule does not speak of this identity, None if it does."""
        if self.groups is not None and not self.groups.any(identity.groups):
            return f"who.groups: none of the caller's groups is {self.groups}"
        if self.subjects is not None and not self.subjects.match(identity.subject):
            return f"who.subjects: {identity.subject!r} is not {self.subjects}"
        if self.agents is not None and not self.agents.any(identity.agents):
            return f"who.agents: {', '.join(identity.agents) or 'no agent'} is not {self.agents}"
        if self.issuers is not None and not self.issuers.match(identity.issuer):
            return f"who.issuers: {identity.issuer!r} is not {self.issuers}"
        return None

    def covers(self, other: Who) -> bool:
        """Tell whether every caller of other is one of these."""
        return (
            covers(self.groups, other.groups)
            and covers(self.subjects, other.subjects)
            and covers(self.agents, other.agents)
            and covers(self.issuers, other.issuers)
        )


@dataclass(frozen=True, slots=True)
class On:
    """The targets that a rule speaks of: any entry within a key, all keys; every label must match."""

    targets: Globs | None = None
    protocols: Globs | None = None
    databases: Globs | None = None
    labels: tuple[tuple[str, Globs], ...] = ()

    def mismatch(self, target: Target) -> str | None:
        """Why the rule does not speak of this target, None if it does."""
        elsewhere = self.mismatch_configured(target)
        if elsewhere is not None:
            return elsewhere
        if self.databases is not None and not self.databases.match(target.database):
            key = "logins" if target.protocol == "ssh" else "databases"
            return f"on.{key}: {target.database!r} is not {self.databases}"
        return None

    def mismatch_configured(self, target: Target) -> str | None:
        """The same without the database, which only a connection knows."""
        if self.targets is not None and not self.targets.match(target.name):
            return f"on.targets: {target.name!r} is not {self.targets}"
        if self.protocols is not None and not self.protocols.match(target.protocol):
            return f"on.protocols: {target.protocol!r} is not {self.protocols}"
        for label, globs in self.labels:
            value = target.labels.get(label)
            if value is None or not globs.match(value):
                shown = "missing" if value is None else repr(value)
                return f"on.labels.{label}: {shown} is not {globs}"
        return None

    def covers(self, other: On, targets: Iterable[Target] | None) -> bool:
        """Tell whether every place of other is one of these, by the configured targets where they are known."""
        if not covers(self.databases, other.databases):
            return False
        if targets is not None:
            return all(
                self.mismatch_configured(target) is None
                for target in targets
                if other.mismatch_configured(target) is None
            )
        theirs = dict(other.labels)
        return (
            covers(self.targets, other.targets)
            and covers(self.protocols, other.protocols)
            and all(label in theirs and globs.covers(theirs[label]) for label, globs in self.labels)
        )


def is_dark(command: Command) -> bool:
    """Tell whether nobody knows what the command does: it did not parse, or it runs code that cannot be read."""
    return command.kind == "unknown" or bool(command.facts.get("opaque"))


def _runs(command: Command) -> bool:
    """Tell whether a program may run by the command: by its kind, or as it is a command line."""
    return command.kind in ("execute", "unknown") or "shell" in command.facts


def touches_nothing(command: Command) -> bool:
    """Tell whether the command is known to touch no object: SQL that reads, with its tables known to be none."""
    facts = command.facts
    if reads_nothing(command):
        return True
    return (
        not command.objects
        and command.kind == "read"
        and not is_dark(command)
        and ("tables_read" in facts or "tables" in facts)
        and not (facts.get("tables_read") or facts.get("tables_written") or facts.get("tables"))
    )


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands that a rule speaks of: any entry within a key, all keys. opaque: whether of dark ones too."""

    kinds: frozenset[str] | None = None
    verbs: frozenset[str] | None = None
    objects: Globs | None = None
    opaque: Opaque = "also"
    programs: Globs | None = None
    places: Places | None = None

    def names(self, command: Command) -> bool:
        """Tell whether a rule speaks of this command of kind session by name."""
        return (self.verbs is not None and command.verb in self.verbs) or (
            self.kinds is not None and command.kind in self.kinds
        )

    @property
    def names_no_thing(self) -> bool:
        """Whether it does not matter what is touched: objects, programs and places are left out."""
        return self.objects is None and self.programs is None and self.places is None

    def covers(self, other: Commands) -> bool:
        """Tell whether every command of other is one of these; False where that is not certain."""
        return (
            (self.kinds is None or (other.kinds is not None and self.kinds >= other.kinds))
            and (self.verbs is None or (other.verbs is not None and self.verbs >= other.verbs))
            and (self.names_no_thing or self == other)
            and self.opaque in ("also", other.opaque)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. verdict is None for a mask rule; masks are kept beside it and put on by the decision."""

    name: str
    line: int
    effect: Effect
    who: Who
    on: On
    commands: Commands
    when: Condition | None
    verdict: Allow | Hold | Deny | None
    masks: tuple[Mask, ...] = ()
    canonical: Mapping[str, Any] = field(default_factory=dict)  # what the file says, as JSON values

    @property
    def permits(self) -> bool:
        """Whether the rule lets something through by itself, now or after an approval."""
        return self.effect in ("allow", "hold")

    @property
    def sweeping(self) -> bool:
        """Whether it is a deny of who, where and when alone, so that it also denies opening a session."""
        return self.effect == "deny" and self.general

    @property
    def general(self) -> bool:
        """Whether it is of who, where and when alone: nothing of the command matters."""
        return (
            self.commands.kinds is None
            and self.commands.verbs is None
            and self.commands.names_no_thing
            and self.commands.opaque != "only"
            and (self.when is None or not self.when.reads_any(*OF_COMMANDS))
        )

    def static_mismatch(self, identity: Identity, target: Target) -> str | None:
        """Why the rule is none of this session's, None if it is."""
        return self.who.mismatch(identity) or self.on.mismatch(target)

    def command_mismatch(self, command: Command) -> str | None:
        """Why the rule does not speak of this command, None if it does (its condition aside)."""
        wanted = self.commands
        if wanted.kinds is not None and command.kind not in wanted.kinds:
            return f"commands.kinds: {command.kind!r} is not {', '.join(sorted(wanted.kinds))}"
        if wanted.verbs is not None and command.verb not in wanted.verbs:
            return f"commands.verbs: {command.verb!r} is not {', '.join(sorted(wanted.verbs))}"
        if is_dark(command):
            # A rule that names the kind 'unknown' has said that it means what nobody can read.
            if wanted.opaque == "never" and not (command.kind == "unknown" and wanted.kinds is not None):
                return "nobody can read what the command does, and the rule does not say opaque: true"
        elif wanted.opaque == "only":
            return "the rule speaks of opaque commands only"
        named = wanted.verbs is not None and command.verb in wanted.verbs
        if self.effect == "allow" and not named and command.protocol == PROTOCOL and command.verb in NAMED_ONLY:
            return f"commands.verbs: an allow of {command.verb!r} must name it"
        if self.effect == "allow" and unasked(command) and not (self.when and "bigquery.special" in self.when.reads):
            return f"it asks for {', '.join(unasked(command))}: an allow of that must read bigquery.special in its when"
        if wanted.places is not None:
            elsewhere = wanted.places.mismatch(command, self.effect != "allow", named)
            if elsewhere is not None:
                return elsewhere
        return self._programs_mismatch(command) or self._objects_mismatch(command)

    def _programs_mismatch(self, command: Command) -> str | None:
        globs = self.commands.programs
        if globs is None:
            return None
        script = script_of(command)
        if self.effect != "allow":
            if globs.any(script.names) or ((is_dark(command) or script.opaque) and _runs(command)):
                return None
            return f"commands.programs: none of the command's programs is {globs}"
        if not script.names:
            return f"commands.programs: it is not known that the command runs {globs}"
        if script.opaque and self.commands.opaque == "never":
            return "nobody can read the whole command line, and the rule does not say opaque: true"
        strange = next((name for name in script.names if not globs.match(name)), None)
        return None if strange is None else f"commands.programs: {strange!r} is not {globs}"

    def _objects_mismatch(self, command: Command) -> str | None:
        globs = self.commands.objects
        if globs is None:
            return None
        if self.effect == "allow":
            if command.objects:
                matches = globs.match if command.protocol != WAREHOUSE else partial(covered, globs)
                for name in command.objects:
                    if not matches(name):
                        return f"commands.objects: {name!r} is not {globs}"
                return None
            if touches_nothing(command):
                return None
            return f"commands.objects: it is not known what the command touches, so it may not be {globs}"
        if is_dark(command) or globs.any(command.objects) or self._unqualified(command, globs):
            return None
        if command.protocol == WAREHOUSE:
            return (
                None if touches(globs, command) else f"commands.objects: none of the command's objects may be {globs}"
            )
        beneath = command.facts.get("beneath", ())
        if beneath and globs.any(beneath):
            return None
        return f"commands.objects: none of the command's objects is {globs}"

    @staticmethod
    def _unqualified(command: Command, globs: Globs) -> bool:
        """A name without its schema may be the one that a deny or mask speaks of: it counts as that."""
        if "tables_read" not in command.facts and "tables" not in command.facts:
            return False
        bare = [name for name in command.objects if "." not in name]
        return bool(bare) and Globs(tuple(text.rpartition(".")[2] for text in globs.texts)).any(bare)
