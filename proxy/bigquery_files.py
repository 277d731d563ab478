"""What the configuration says of BigQuery, made into what runs: settings, credentials, the token seal, the SQL reader.

Warehouse is the gate's WarehouseReader: worker processes that read SQL (proxy/policy/bigquery_workers.py), started at
the first text, and anew when a reload changes which routines are trusted; texts that are being read then are read to
their end. Which routines count is the same for all targets: their names begin with a project, of which there is one
in the world.
Source: bigquery note 2 and 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from protocols.bigquery.dial_settings import API_HOST
from protocols.bigquery.sts import Seal
from proxy.bigquery_sections import SERVICES, TargetBigQuery
from proxy.config import Loaded
from proxy.core.parties import Target
from proxy.core.warehouse import Analysis, AnalysisLimits, Replacement, Rewritten, unknown
from proxy.credentials.gcp import GcpSource
from proxy.credentials.static import Account, StaticCredential
from proxy.kube_files import check_authority
from proxy.kube_sections import BIGQUERY, GcpSection
from proxy.policy.bigquery_workers import Analysts
from proxy.sections import Listener
from proxy.sections import Target as TargetSection

KEY_NAME: Final = "sts.key"  # in the state directory: what the access tokens of BigQuery's callers are sealed with


def host_of(section: TargetSection) -> str:
    """Where the REST endpoint of a target is."""
    return section.host or API_HOST


def settings_of(loaded: Loaded, section: TargetBigQuery) -> dict[str, object]:
    """A target's settings, as protocols/bigquery/dial_settings.py lists them. Raises ConfigError."""
    settings: dict[str, object] = {
        "session_idle": section.session_idle,
        "dry_run": section.dry_run,
        "rewrite": section.rewrite,
        "trusted_routines": section.trusted_routines,
        "storage_plain": section.storage_plain,
    }
    if section.ca_file is not None:
        file = loaded.resolve(section.ca_file)
        check_authority(file)
        settings["ca_file"] = str(file)
    for name in ("server_name", "storage", "maximum_bytes_billed", "price_per_tib"):
        value = getattr(section, name)
        if value not in (None, ""):
            settings[name] = value
    return settings


def credential_of(loaded: Loaded, section: TargetSection) -> StaticCredential:
    """Where the credentials of a target are."""
    source, settings = section.credential, section.bigquery or TargetBigQuery()
    accounts = tuple(
        Account(
            account.groups,
            _credential(loaded, account.credential.token_env, account.credential.token_file, account.credential.gcp),
        )
        for account in settings.accounts
    )
    return _credential(loaded, source.token_env, source.token_file, source.gcp, accounts)


def _credential(
    loaded: Loaded,
    token_env: str | None,
    token_file: Path | None,
    gcp: GcpSection | None,
    accounts: tuple[Account, ...] = (),
) -> StaticCredential:
    return StaticCredential(
        user="",
        per_request=True,
        token_env=token_env,
        token_file=loaded.resolve(token_file) if token_file is not None else None,
        gcp=GcpSource(loaded.resolve(gcp.key_file) if gcp.key_file is not None else None) if gcp is not None else None,
        accounts=accounts,
        absent=token_env is None and token_file is None and gcp is None,
    )


def universe_of(section: Listener) -> str:
    """The domain of the universe that a listener serves; "" for none."""
    return (section.bigquery.universe if section.bigquery is not None else None) or ""


def door_of(section: Listener, key: bytes) -> Mapping[str, Any]:
    """What protocols/bigquery reads of its listener: Gate.settings["bigquery"]. key: that of KEY_NAME."""
    target = section.bigquery.target if section.bigquery is not None else None
    more = {} if target is None else {"target": target}
    return {"universe": universe_of(section), "seal": Seal([key]), **more}


def uncovered(section: Listener, names: Iterable[str]) -> list[str]:
    """The hosts of a listener's universe that its certificate, with these names, is not for (RFC 6125 6.4.3)."""
    universe = universe_of(section)
    hosts = [f"{service}.{universe}" for service in SERVICES] if universe else []
    known = [name.lower() for name in names]
    return [host for host in hosts if host not in known and f"*.{universe}" not in known]


def trusted_of(targets: Iterable[Target]) -> frozenset[str]:
    """The routines that operators vouch for."""
    found: set[str] = set()
    for target in targets:
        routines = target.settings.get("trusted_routines", ()) if target.protocol == BIGQUERY else ()
        if isinstance(routines, tuple | list):
            found.update(str(routine) for routine in routines)
    return frozenset(found)


class Warehouse:
    """The gate's WarehouseReader. targets: those of this moment; make: makes the processes that read, for tests."""

    def __init__(
        self,
        targets: Callable[[], Mapping[str, Target]],
        make: Callable[[AnalysisLimits], Analysts] = Analysts,
    ) -> None:
        self._targets = targets
        self._make = make
        self._seen: Mapping[str, Target] | None = None
        self._trusted: frozenset[str] = frozenset()
        self._running: Analysts | None = None
        self._reading: dict[Analysts, int] = {}
        self._closed = False

    async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
        """See proxy.core.gate.WarehouseReader."""
        if self._closed:
            return unknown(text, "the gateway stops")
        analysts = self._current()
        self._reading[analysts] += 1
        try:
            return await analysts.read(text, project, dataset)
        finally:
            self._reading[analysts] -= 1
            await self._retire()

    async def rewrite(
        self, text: str, project: str, dataset: str | None, scans: Mapping[str, tuple[Replacement, ...]]
    ) -> Rewritten:
        """See proxy.core.gate.WarehouseRewriter."""
        if self._closed:
            return Rewritten(text, why="the gateway stops")
        analysts = self._current()
        self._reading[analysts] += 1
        try:
            return await analysts.rewrite(text, project, dataset, scans)
        finally:
            self._reading[analysts] -= 1
            await self._retire()

    async def warm(self) -> None:
        """Start a process ahead of the first text, if any target needs one. Raises OSError or TimeoutError."""
        if not self._closed and any(target.protocol == BIGQUERY for target in self._targets().values()):
            await self._current().start()

    async def close(self) -> None:
        """End all processes; what is read later is opaque."""
        self._closed = True
        for analysts in tuple(self._reading):
            await analysts.close()

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of all that read."""
        return tuple(process for analysts in self._reading for process in analysts.processes)

    def _current(self) -> Analysts:
        targets = self._targets()
        if self._running is None or targets is not self._seen:
            trusted = trusted_of(targets.values())
            if self._running is None or trusted != self._trusted:
                self._running = self._make(AnalysisLimits(trusted_routines=trusted))
                self._reading[self._running] = 0
            self._seen, self._trusted = targets, trusted
        return self._running

    async def _retire(self) -> None:
        """End the processes of before a reload that nobody waits for any more."""
        idle = [one for one, count in self._reading.items() if not count and one is not self._running]
        for analysts in idle:
            del self._reading[analysts]
        for analysts in idle:
            await analysts.close()
