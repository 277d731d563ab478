"""What the sessions of one target database share: its catalogue, the reader of commands, columns for masks.

A catalogue that cannot be loaded leaves names unresolved ("?.table", which no pattern with a schema matches) and
origins unknown, so that rules and masks fail closed. After DDL that passed here it is read again before the next
decision; DDL that went another way is noticed by an unknown name or oid, or when the snapshot is old.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import structlog

from protocols.postgres.catalog import Catalog, CatalogError
from protocols.postgres.images import describe
from protocols.postgres.meaning import Known, parts_of
from protocols.postgres.reading import CommandReader
from protocols.postgres.wire import Field
from proxy.core.events import Column
from proxy.core.gate import Reader
from proxy.core.parties import Credential, Target
from proxy.core.session import Permit
from proxy.core.statement import Copy, Statement

COLUMNS_LIMIT: Final = 1024  # results whose columns are kept described
MISSED_LIMIT: Final = 4096  # temporary tables, mostly: their oids are looked for once a snapshot
WORLDS_LIMIT: Final = 256  # target databases with a catalogue in memory

_log = structlog.get_logger(__name__)


class World:
    """One target database as its sessions see it."""

    def __init__(self, catalog: Catalog, target: Target) -> None:
        self._catalog = catalog
        self._target = target
        self._warned = False
        self._columns: dict[tuple[tuple[Field, ...], str], tuple[Column, ...]] = {}
        self._columns_of = -1  # the version that _columns was made of
        self._missed: set[tuple[int, int]] = set()  # (version, oid): looked for, and not there
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
        parts = parts_of(name)
        if len(parts) > 1:
            return (".".join(parts[-2:]),)
        return (f"{search_path[0]}.{parts[0]}",) if search_path else (f"?.{parts[0]}",)

    def bases(self, name: str) -> frozenset[str]:
        return self._catalog.bases(name)

    def known(self, name: str) -> Known | None:
        return self._catalog.known(name)

    def hides(self, name: str) -> bool:
        return self._catalog.hides(name)

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
        return self._catalog.old

    def stale(self) -> None:
        """DDL has passed."""
        self._catalog.stale()

    async def refresh(self) -> None:
        """Read the catalogue again; without it everything goes on, and knows no names."""
        try:
            await self._catalog.refresh()
            self._warned = False
        except CatalogError as error:
            if not self._warned:
                _log.warning("catalogue not loaded", target=self._target.name, error=str(error))
            self._warned = True

    def use(self, credential: Credential) -> None:
        """Read the catalogue with this credential from now on."""
        self._catalog.use(credential)

    # -- columns for masks -------------------------------------------------------------------------------

    async def columns(self, fields: tuple[Field, ...], date_style: str) -> tuple[Column, ...]:
        """Describe the columns of a result for the masks; unknown tables are looked for once more.

        The same result of the same catalogue gives the same tuple: the masker keeps its plans by it.
        """
        place = (fields, date_style)
        if self._columns_of != self.version:
            self._columns.clear()
            self._columns_of = self.version
        known = self._columns.get(place)
        if known is not None:
            return known
        unknown = {field.table_oid for field in fields if field.table_oid and self._origins(field) is None}
        if any((self.version, oid) not in self._missed for oid in unknown):
            self._catalog.stale()
            await self.refresh()
            if len(self._missed) > MISSED_LIMIT:
                self._missed.clear()
            self._missed |= {(self.version, oid) for oid in unknown}
        columns = tuple(self._column(field, date_style) for field in fields)
        if not unknown and self._columns_of == self.version:
            if len(self._columns) >= COLUMNS_LIMIT:
                self._columns.clear()
            self._columns[place] = columns
        return columns

    def _origins(self, field: Field) -> tuple[str, ...] | None:
        return self._catalog.origins(field.table_oid, field.attnum) if field.table_oid else None

    def _column(self, field: Field, date_style: str) -> Column:
        binary = field.format == 1
        image = describe(field.type_oid, field.type_mod, binary, self._catalog.user_type, date_style)
        return Column(
            field.name, self._origins(field), image.kind, image.constant, image.prefix, image.type_name, binary
        )

    async def copy_columns(
        self, copy: Copy, statement: Statement, count: int, permit: Permit | None
    ) -> tuple[Column, ...]:
        """Describe the columns of a COPY TO STDOUT, which says their number only."""
        binary = copy.format == "binary"
        unknown = Column("?", None, "other", None, binary=binary)
        columns = tuple(unknown for _ in range(count))
        if copy.relation is None or permit is None:
            return columns
        # With several candidates, or none, nobody knows which columns these are.
        meant = permit.command.facts.get("tables_read", ())
        if len(meant) != 1 or not permit.command.facts["resolved"].get(copy.relation):
            return columns
        known = self._catalog.columns(meant[0])
        names = copy.columns or tuple(column.name for column in known)
        by_name = {column.name: column for column in known}
        if len(names) != count or any(name not in by_name for name in names):
            return columns
        described = []
        for name in names:
            column = by_name[name]
            image = describe(column.type_oid, column.type_mod, binary, self._catalog.user_type)
            origins = self._catalog.origins(column.table_oid, column.attnum)
            described.append(Column(name, origins, image.kind, image.constant, image.prefix, image.type_name, binary))
        return tuple(described)


class Worlds:
    """The worlds of this process, by target, database and the user that the gate logs in as."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._worlds: OrderedDict[tuple[str, str, int, str, str], World] = OrderedDict()

    async def world(self, target: Target, credential: Credential) -> World:
        """Return the world of a target database, loaded."""
        key = (target.name, target.host, target.port, target.database, credential.user)
        world = self._worlds.get(key)
        if world is None:
            world = self._worlds[key] = World(Catalog(target, credential, self._reader), target)
            if len(self._worlds) > WORLDS_LIMIT:
                self._worlds.popitem(last=False)
        self._worlds.move_to_end(key)
        world.use(credential)
        if world.behind:
            await world.refresh()
        return world
