"""What the sessions of one target database share: its catalogue, the reader of commands, columns for masks.

A catalogue that cannot be loaded leaves names unresolved ("?.table", which no pattern with a schema matches) and
origins unknown, so that rules and masks fail closed. After DDL that passed here it is read again before the next
decision; DDL that went another way is noticed by an unknown name or oid, or when the snapshot is old.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from protocols.postgres.catalog import Catalog, CatalogError
from protocols.postgres.images import describe
from protocols.postgres.reading import CommandReader
from protocols.postgres.wire import Field
from proxy.core.events import Column
from proxy.core.parties import Credential, Target
from proxy.core.session import Permit
from proxy.core.statement import Copy, Statement

WORLDS_LIMIT: Final = 256  # target databases with a catalogue in memory

_log = structlog.get_logger(__name__)


class World:
    """One target database as its sessions see it."""

    def __init__(self, catalog: Catalog, target: Target) -> None:
        self._catalog = catalog
        self._target = target
        self._behind = True
        self._lock = asyncio.Lock()
        self.commands = CommandReader(self)

    # -- look-ups (reading.World) -----------------------------------------------------------------------

    @property
    def version(self) -> int:
        return self._catalog.version

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return what a written name may mean; never nothing."""
        found = self._catalog.resolve(name, search_path)
        if found:
            return found
        if "." in name:
            return (name,)
        return (f"{search_path[0]}.{name}",) if search_path else (f"?.{name}",)

    def bases(self, name: str) -> frozenset[str]:
        return self._catalog.bases(name)

    def function_name(self, oid: int) -> str | None:
        return self._catalog.function_name(oid)

    @property
    def search_path(self) -> tuple[str, ...] | None:
        """The path that a session has which sets none; None where that is not known."""
        return self._catalog.search_path

    # -- keeping up --------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Whether the catalogue must be read again before the next decision."""
        return self._behind or self._catalog.old

    def stale(self) -> None:
        """DDL has passed."""
        self._behind = True

    async def refresh(self) -> None:
        """Read the catalogue again; one at a time, the others wait for the same one."""
        async with self._lock:
            if not self.behind:
                return
            self._behind = False
            try:
                await self._catalog.refresh()
            except CatalogError as error:
                _log.warning("catalogue not loaded", target=self._target.name, error=str(error))

    # -- columns for masks -------------------------------------------------------------------------------

    async def columns(self, fields: tuple[Field, ...]) -> tuple[Column, ...]:
        """Describe the columns of a result for the masks; unknown tables are looked for once more."""
        if any(field.table_oid and self._catalog.origins(field.table_oid, field.attnum) is None for field in fields):
            self._behind = True
            await self.refresh()
        return tuple(self._column(field) for field in fields)

    def _column(self, field: Field) -> Column:
        binary = field.format == 1
        image = describe(field.type_oid, field.type_mod, binary, self._catalog.user_type)
        origins = self._catalog.origins(field.table_oid, field.attnum) if field.table_oid else None
        return Column(field.name, origins, image.kind, image.constant, image.prefix, image.type_name, binary)

    async def copy_columns(
        self, copy: Copy, statement: Statement, count: int, permit: Permit | None
    ) -> tuple[Column, ...]:
        """Describe the columns of a COPY TO STDOUT, which says their number only."""
        binary = copy.format == "binary"
        unknown = Column("?", None, "other", None, binary=binary)
        columns = tuple(unknown for _ in range(count))
        if copy.relation is None or permit is None:
            return columns
        resolved = permit.command.facts["resolved"].get(copy.relation, ())
        if not resolved:
            return columns
        known = self._catalog.columns(resolved[0])
        names = copy.columns or tuple(column.name for column in known)
        by_name = {column.name: column for column in known}
        if len(names) != count or any(name not in by_name for name in names):
            return columns
        described = []
        for name in names:
            column = by_name[name]
            image = describe(column.type_oid, column.type_mod, binary, self._catalog.user_type)
            origins = self._catalog.origins(column.table_oid, column.attnum)
            described.append(
                Column(name, origins, image.kind, image.constant, image.prefix, image.type_name, binary)
            )
        return tuple(described)


class Worlds:
    """The worlds of this process, by target, database and the user that the gate logs in as."""

    def __init__(self) -> None:
        self._worlds: dict[tuple[str, str, int, str, str], World] = {}

    async def world(self, target: Target, credential: Credential) -> World:
        """Return the world of a target database, loaded."""
        key = (target.name, target.host, target.port, target.database, credential.user)
        world = self._worlds.get(key)
        if world is None:
            if len(self._worlds) >= WORLDS_LIMIT:
                _, oldest = self._worlds.popitem()
                await oldest.aclose()
            world = self._worlds[key] = World(Catalog(target, credential), target)
        if world.behind:
            await world.refresh()
        return world

    async def aclose(self) -> None:
        """Close the catalogues' connections."""
        for world in self._worlds.values():
            await world.aclose()
        self._worlds.clear()
