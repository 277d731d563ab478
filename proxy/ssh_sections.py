"""The sections of gatecast.yaml that only SSH has, and which keys mean nothing to a protocol.

What a target's ``ssh:`` says reaches protocols/ssh as Target.settings, under these names (proxy/snapshot.py):

- "login" (str): the login where the user asks for none: credential.user; Target.database is the same.
- "known_hosts", "host_keys", "host_ca" (tuples of str): lines of a known_hosts file; public keys that the target may
  show; public keys of authorities that certify it. At least one of them holds something.
- "host_key_alias" (str, where it is given): the name that these lines and certificates have it under.
- "exec_only", "hold_when_unsure" (bool); "env", "logins", "record_contents" (tuples of globs, as fnmatch has them).
- "rekey" (int): bytes after which keys are exchanged anew.
- "connect_timeout_seconds" (float), "max_connections" (int, where it is limited): as for every protocol.

A listener's ``ssh:`` becomes an SshDoor (proxy/core/doors.py), made by proxy/ssh_doors.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from proxy.kube_sections import KUBERNETES
from proxy.lines import Place
from proxy.values import Duration, Files, Section, Size, Words

if TYPE_CHECKING:
    from proxy.sections import Config

SSH: Final = "ssh"  # the protocol's name
DEFAULT_ENV: Final = ("LANG", "LC_*", "TERM", "COLORTERM", "GATECAST_*")
BANNER_LIMIT: Final = 8192  # a screenful of text; every client prints it
REKEY_MIN: Final = 1 << 16  # below this, most of the work would be key exchanges
REKEY_LIMIT: Final = 1 << 36  # RFC 4344 3.2: 2^32 blocks of 16 bytes
CERTIFICATE_LIMIT_SECONDS: Final = 7 * 86_400.0  # beyond a week it is a key: gatecast ssh key add

Method = Literal["publickey", "keyboard-interactive", "password"]


class UserCa(Section):
    """An authority of somebody else, whose user certificates are accepted."""

    file: Path
    """Public keys of authorities, one a line, as for sshd's TrustedUserCAKeys."""
    subject: Literal["key_id", "principal"] = "key_id"
    """What of a certificate names the person: its key id, or the only principal that it then may have."""
    groups: Words = ()
    """The groups of everybody whom it certifies."""


def _as_mappings(value: object) -> object:
    found = [value] if isinstance(value, str | dict) else value
    return [{"file": one} if isinstance(one, str) else one for one in found] if isinstance(found, list) else found


def _or_a_path(schema: dict[str, Any]) -> None:
    schema["items"] = {"anyOf": [schema["items"], {"type": "string"}]}


UserCas = Annotated[tuple[UserCa, ...], BeforeValidator(_as_mappings), Field(json_schema_extra=_or_a_path)]


class ListenerSsh(Section):
    """How the gateway shows itself to users of SSH, and what it takes from them."""

    host_keys: Files = ()
    """Private keys, mode 0600; the state directory's ssh/host_ed25519, made on first use, where none is named."""
    host_certificates: Files = ()
    """Certificates of these keys (...-cert.pub), where another authority than ours certifies the gateway."""
    names: Words = ()
    """The names that users reach the gateway by; our host CA certifies them. Default: the host's name."""
    host_ca: Path | None = None
    """The private key of the authority that certifies hosts; the state directory's ssh/host_ca where none is named."""
    user_cas: UserCas = ()
    """Files with public keys of other authorities whose user certificates are accepted here."""
    login: Annotated[tuple[Method, ...], Field(min_length=1)] = ("publickey", "keyboard-interactive", "password")
    """Ways to log in. A password, or the answer to a prompt, is a gateway token or a JWT."""
    banner: Annotated[str, Field(max_length=BANNER_LIMIT)] = ""
    """Text that users see before they log in."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.names:
            if not re.fullmatch(r"[^\s,*?]{1,255}", name):
                raise ValueError("names are those of hosts, without wildcards")
        return self


class TargetSsh(Section):
    """What only targets of SSH have. One of known_hosts, host_keys and host_ca is needed: no host is taken on trust."""

    known_hosts: Path | None = None
    """A known_hosts file, as OpenSSH has it."""
    host_keys: Words = ()
    """Public keys of the target: ssh-ed25519 AAAA..."""
    host_ca: Words = ()
    """Authorities that certify the target: public keys, or files with one a line."""
    host_key_alias: str = ""
    """The name that stands in known_hosts and in certificates, where it is not the target's host."""
    exec_only: bool = False
    """Refuse shells: what is typed on a terminal can only be reconstructed, what is executed is known exactly."""
    env: Words = DEFAULT_ENV
    """Environment variables that users may set, as patterns."""
    logins: Words = ()
    """Names that users may ask for besides credential.user, as patterns; each needs the same credential."""
    record_contents: Words = ()
    """Paths whose files are on the tape whole when they are transferred, as patterns."""
    hold_when_unsure: bool = False
    """A line typed on a terminal that cannot be read for certain waits for a human."""
    rekey: Annotated[Size, Field(ge=REKEY_MIN, le=REKEY_LIMIT)] = 1 << 30
    """Keys are exchanged anew after this much, on either side (RFC 4253 9)."""

    @model_validator(mode="after")
    def _check_host(self) -> Self:
        if self.known_hosts is None and not self.host_keys and not self.host_ca:
            raise ValueError("say how the target's host key is known: known_hosts, host_keys or host_ca")
        return self


class IdentitySsh(Section):
    """SSH keys and certificates (gatecast ssh key, gatecast ssh certificate)."""

    user_ca: Path | None = None
    """The private key of our user CA; the state directory's ssh/user_ca, made on first use, where it is not named."""
    certificate_max: Annotated[Duration, Field(ge=60, le=CERTIFICATE_LIMIT_SECONDS)] = 12 * 3600.0
    """The longest life of a user certificate."""
    key_max_days: Annotated[int, Field(ge=1, le=3650)] = 365
    """The longest time that a registered key counts."""


_TARGET_KEYS: Final = (
    "conninfo", "database", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "channel_binding",
    "hostaddr", "require_auth", "sandbox",
)  # fmt: skip
_KEY_KEYS: Final = ("key_file", "certificate_file", "passphrase_env", "passphrase_file")


def misplaced(config: Config) -> list[tuple[Place, str]]:
    """What stands at a listener or target of a protocol to which it means nothing, and what SSH misses."""
    found: list[tuple[Place, str]] = []
    for index, listener in enumerate(config.listeners):
        where: Place = ("listeners", index)
        if listener.protocol != SSH:
            if listener.ssh is not None:
                found.append(((*where, "ssh"), f"means nothing to protocol {listener.protocol}"))
            continue
        for key in ("tls", "plain", "login"):
            if key in listener.model_fields_set:
                more = "; ssh: {login: [...]} is what you look for" if key == "login" else ": it encrypts by itself"
                found.append(((*where, key), f"means nothing to protocol ssh{more}"))
    for index, target in enumerate(config.targets):
        where = ("targets", index)
        if target.protocol != SSH:
            if target.ssh is not None:
                found.append(((*where, "ssh"), f"means nothing to protocol {target.protocol}"))
            found += [
                ((*where, "credential", key), f"means nothing to protocol {target.protocol}")
                for key in (_KEY_KEYS if target.protocol != KUBERNETES else ())  # which has its own say
                if key in target.credential.model_fields_set
            ]
            continue
        if target.ssh is None:
            found.append((where, "needs ssh: {known_hosts, host_keys or host_ca}: no host key is taken on trust"))
        # What conninfo filled in has no line of its own; conninfo itself is told.
        given = target.model_fields_set if target.conninfo is None else {"conninfo"}
        found += [((*where, key), "means nothing to protocol ssh") for key in _TARGET_KEYS if key in given]
    return found
