"""One good reading of everything that may change while the gateway runs: targets, rules, identities, masks.

read_snapshot() reads the files and builds all of it, or raises ConfigError with every mistake and its line; nothing
that runs is touched, so that a reload is: read, then swap. ``gatecast config check`` and the policy commands read
the same way. Live is what the Gate holds for good: it passes every question on to the snapshot of this moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import protocols
from proxy.bigquery_files import host_of
from proxy.bigquery_files import settings_of as bigquery_settings_of
from proxy.bigquery_sections import TargetBigQuery
from proxy.config import ConfigErrors, Loaded, load_config
from proxy.core.errors import ConfigError
from proxy.core.events import Column, Command, FieldMask, RemarkFields
from proxy.core.gate import Plan, StreamMask
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Deny, Mask, Verdict
from proxy.identity.local import LocalUser
from proxy.identity.oidc import Issuer
from proxy.identity.ssh_logins import UserAuthority
from proxy.kube_files import files_of as kube_files_of
from proxy.kube_files import server_of
from proxy.kube_files import settings_of as kube_settings_of
from proxy.kube_sections import BIGQUERY, KUBERNETES, TargetKubernetes
from proxy.lines import Place
from proxy.masking import DETECTORS
from proxy.masking.masker import Masking
from proxy.policy.rules import RuleSet, load_rules
from proxy.sections import Issuer as IssuerSection
from proxy.sections import LocalUser as LocalUserSection
from proxy.sections import Target as TargetSection
from proxy.ssh_files import authorities_of, files_of, settings_of
from recorder.cipher import RECIPIENTS_LIMIT, Recipient
from recorder.errors import KeyFileError

T = TypeVar("T")

VERIFIER_LIMIT_BYTES: Final = 1024  # a verifier has 133 bytes with PostgreSQL's own salt
RULES_LIMIT_BYTES: Final = 1 << 20  # 1,000 rules of a kilobyte each, which is also the rules' own limit


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration and what was built from it. files: whose change asks for a reload."""

    loaded: Loaded
    targets: Mapping[str, Target]
    rules: RuleSet
    issuers: tuple[Issuer, ...]
    users: tuple[LocalUser, ...]
    masking: Masking
    files: frozenset[Path]
    user_authorities: Mapping[str, tuple[UserAuthority, ...]] = field(default_factory=dict)  # by listener


def read_snapshot(path: Path, hash_key: bytes) -> Snapshot:
    """Read a configuration and all that it names. Takes seconds for 1,000 rules. Raises ConfigError."""
    known = protocols.load()
    loaded = load_config(path, frozenset(known))
    problems: list[str] = []
    targets, broken = dict[str, Target](), list[Target]()
    for index, section in enumerate(loaded.config.targets):
        keys = {
            key: _recipients(loaded, ("targets", index, key), getattr(section, key), problems)
            for key in ("encrypt_to", "original_to")
        }
        build = partial(_target, loaded, section, known[section.protocol], **keys)
        target = _try(loaded, ("targets", index), problems, build)
        if target is None:  # rules may speak of it: what is wrong with it is told once
            broken.append(Target(section.name, section.protocol, labels=dict(section.labels)))
            continue
        targets[target.name] = target
    issuers = [
        _try(loaded, ("identity", "oidc", index), problems, partial(_issuer, loaded, section))
        for index, section in enumerate(loaded.config.identity.oidc)
    ]
    users = [
        _try(loaded, ("identity", "users", index), problems, partial(_user, loaded, section))
        for index, section in enumerate(loaded.config.identity.users)
    ]
    authorities = {
        listener.name: _try(
            loaded, ("listeners", index, "ssh", "user_cas"), problems, partial(authorities_of, loaded, listener.ssh)
        )
        for index, listener in enumerate(loaded.config.listeners)
        if listener.ssh is not None
    }
    custom = {detector.name: detector.regex for detector in loaded.config.masking.detectors}
    masking = _try(loaded, ("masking", "detectors"), problems, partial(Masking, hash_key, custom))
    rules: RuleSet | None = None
    try:
        text, name = _rules_text(loaded)
        verbs = {protocol.name: protocol.verbs for protocol in known.values()}
        rules = load_rules(
            text,
            name,
            (*targets.values(), *broken),
            verbs=verbs,
            detectors=DETECTORS | set(custom),
            check_mask=masking.check if masking is not None else None,
        )
    except ConfigError as error:
        problems.append(str(error))
    if problems or masking is None or rules is None:
        raise ConfigErrors(problems)
    return Snapshot(
        loaded,
        targets,
        rules,
        tuple(issuer for issuer in issuers if issuer is not None),
        tuple(user for user in users if user is not None),
        masking,
        _files(loaded),
        {name: found for name, found in authorities.items() if found is not None},
    )


class Live:
    """The Gate's Targets, Policy and Masker: always those of the last good snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def find(self, name: str) -> Target | None:
        """The target of that name."""
        return self.snapshot.targets.get(name)

    async def policy(self, identity: Identity, target: Target, command: Command) -> Verdict:
        """Decide by the rules of this moment: a running session gets new ones at its next command."""
        return await self.snapshot.rules.decide(identity, target, command)

    def plan(self, masks: tuple[Mask, ...], command: Command, columns: tuple[Column, ...]) -> Plan | None:
        """See proxy.core.gate.Masker."""
        return self.snapshot.masking.plan(masks, command, columns)

    def remark(self, masks: tuple[Mask, ...], fields: RemarkFields) -> RemarkFields:
        """See proxy.core.gate.Masker."""
        return self.snapshot.masking.remark(masks, fields)

    def guard(self, masks: tuple[Mask, ...], command: Command) -> Deny | None:
        """See proxy.core.gate.Masker."""
        return self.snapshot.masking.guard(masks, command)

    def fields(self, masks: tuple[Mask, ...], command: Command) -> FieldMask | None:
        """See proxy.core.gate.Masker."""
        return self.snapshot.masking.fields(masks, command)

    def stream(self, masks: tuple[Mask, ...]) -> StreamMask | None:
        """See proxy.core.gate.Masker."""
        return self.snapshot.masking.stream(masks)


def _try(loaded: Loaded, where: Place, problems: list[str], build: Callable[[], T]) -> T | None:
    try:
        return build()
    except ConfigError as error:
        problems.append(loaded.document.error(where, str(error)))
        return None


def _recipients(loaded: Loaded, where: Place, files: tuple[Path, ...], problems: list[str]) -> tuple[Recipient, ...]:
    """The public keys of the files, each once. They are read now: what cannot be encrypted to must stop no session."""
    found: dict[str, Recipient] = {}
    for index, file in enumerate(files):
        try:
            found |= {recipient.id: recipient for recipient in Recipient.load(loaded.resolve(file))}
        except KeyFileError as error:
            place = (*where, index)  # one file may be given without a list
            problems.append(loaded.document.error(place if place in loaded.document.lines else where, str(error)))
    if len(found) > RECIPIENTS_LIMIT:
        problems.append(loaded.document.error(where, f"names {len(found)} keys; the limit is {RECIPIENTS_LIMIT}"))
    return tuple(found.values())


def _target(
    loaded: Loaded,
    section: TargetSection,
    protocol: protocols.Protocol,
    encrypt_to: tuple[Recipient, ...],
    original_to: tuple[Recipient, ...],
) -> Target:
    host, port = section.host, section.port or 0
    if section.protocol == KUBERNETES:
        server = server_of(loaded, section)
        host, port = server.host, server.port
        settings = kube_settings_of(section.kubernetes or TargetKubernetes(), server)
    elif section.protocol == BIGQUERY:
        host = host_of(section)
        settings = bigquery_settings_of(loaded, section.bigquery or TargetBigQuery())
    elif section.ssh is not None:
        settings = settings_of(loaded, section.ssh, section.credential.user)
    else:
        settings = _libpq_settings(loaded, section)
    settings["connect_timeout_seconds"] = section.connect_timeout
    if section.limits.max_connections is not None:
        settings["max_connections"] = section.limits.max_connections
    target = Target(
        name=section.name,
        protocol=section.protocol,
        host=host,
        port=port or protocol.default_port,
        database=section.database if section.ssh is None else section.credential.user,  # the login is its database
        labels=section.labels,
        settings=settings,
        recording=section.recording,
        encrypt_to=encrypt_to,
        original_to=original_to,
    )
    if protocol.check is not None:
        protocol.check(target)
    return target


def _libpq_settings(loaded: Loaded, section: TargetSection) -> dict[str, object]:
    settings: dict[str, object] = {
        name: value
        for name in ("sslmode", "sslnegotiation", "channel_binding", "hostaddr", "require_auth")
        if (value := getattr(section, name))
    }
    for name in ("sslrootcert", "sslcert", "sslkey"):
        path = getattr(section, name)
        if path is not None:
            settings[name] = str(loaded.resolve(path))
    return settings


def _issuer(loaded: Loaded, section: IssuerSection) -> Issuer:
    return Issuer(
        issuer=section.issuer,
        audiences=section.audience,
        jwks_file=loaded.resolve(section.jwks_file) if section.jwks_file else None,
        jwks_uri=section.jwks_uri,
        ca_file=loaded.resolve(section.ca_file) if section.ca_file else None,
        algorithms=tuple(section.algorithms),
        subject_claim=section.subject_claim,
        groups_claims=section.groups_claim,
        agent_claims=section.agent_claim,
        people_clients=frozenset(section.people_clients),
        trusted_audiences=section.trusted_audiences,
        leeway_seconds=section.leeway,
    )


def _user(loaded: Loaded, section: LocalUserSection) -> LocalUser:
    verifier = section.scram_verifier
    if verifier is None:
        assert section.scram_verifier_file is not None  # the model takes exactly one
        verifier = _read(loaded.resolve(section.scram_verifier_file), VERIFIER_LIMIT_BYTES).strip()
    return LocalUser(section.name, verifier, frozenset(section.groups), tuple(section.agents))


def _rules_text(loaded: Loaded) -> tuple[str, str]:
    """The text that holds the rules, and what errors call it; inline rules keep the lines of their file."""
    rules_file = loaded.config.rules_file
    if rules_file is None:
        return loaded.document.only("rules", "timezone"), str(loaded.path)
    path = loaded.resolve(rules_file)
    return _read(path, RULES_LIMIT_BYTES), str(path)


def _read(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise ConfigError(f"{path}: is longer than {limit} bytes")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8") from error


def _files(loaded: Loaded) -> frozenset[Path]:
    config = loaded.config
    named: list[Path | None] = [config.rules_file]
    named += [user.scram_verifier_file for user in config.identity.users]
    named += [file for target in config.targets for file in (*target.encrypt_to, *target.original_to)]
    for listener in config.listeners:
        if listener.tls is not None:
            named += [listener.tls.cert, listener.tls.key, listener.tls.client_ca]
    named += files_of(config)
    named += kube_files_of(config)
    return frozenset({loaded.path, *(loaded.resolve(path) for path in named if path is not None)})
