"""From the parts of a name in a text to the table that it means.

A quoted part may hold dots, so parts are joined and cut again. ``google.com:project`` is one part. A name of one part
is a temporary table that the text made before, else of the default dataset, else a temporary table of the session.
INFORMATION_SCHEMA is a schema within a dataset or a region. Partition decorators ("t$20260101") are cut off.

The default dataset of a request has a project of its own ("project.dataset"); SET @@dataset_id and
SET @@dataset_project_id change the defaults. Where it is not documented which of them wins, names of one part are
refused from there on.

Left out: datasets that compare names without case. Source: GoogleSQL, "Lexical structure", Path expressions; BigQuery,
"Introduction to INFORMATION_SCHEMA", Syntax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy.core.warehouse import TEMPORARY, UNRESOLVED, TableName
from proxy.policy.bigquery_lex import Unreadable

_DOMAIN: Final = re.compile(r"^([A-Za-z0-9.-]+:[A-Za-z0-9-]+)\.(.+)$", re.DOTALL)
_SCHEMA: Final = "INFORMATION_SCHEMA"
# Views that a dataset has; all others are of a project or an organization, in the region that is named before them, or
# in the US. Source: "Introduction to INFORMATION_SCHEMA", "Dataset qualifier" and "Region qualifier".
_OF_DATASETS: Final = frozenset({
    "COLUMNS", "COLUMN_FIELD_PATHS", "CONSTRAINT_COLUMN_USAGE", "KEY_COLUMN_USAGE", "MATERIALIZED_VIEWS", "PARAMETERS",
    "PARTITIONS", "ROUTINES", "ROUTINE_OPTIONS", "SEARCH_INDEXES", "SEARCH_INDEX_COLUMNS",
    "SEARCH_INDEX_COLUMN_OPTIONS", "SEARCH_INDEX_OPTIONS", "TABLES", "TABLE_CONSTRAINTS", "TABLE_OPTIONS",
    "TABLE_SNAPSHOTS", "VECTOR_INDEXES", "VECTOR_INDEX_COLUMNS", "VECTOR_INDEX_OPTIONS", "VIEWS",
})  # fmt: skip
_REGION: Final = "region-us"
# Longest name in all: project 30, dataset 1,024 and table 1,024 characters (BigQuery, "Quotas and limits", naming).
NAME_LIMIT: Final = 4_096

# Project, dataset, its project, why names cannot be told, temporary tables: see Names.
State = tuple[str, str | None, str, str, frozenset[str]]


@dataclass(slots=True)
class Names:
    """What names without a project or dataset mean, at one place of a text. temporary: tables that it made before.

    dataset: the default one, "dataset" or "project.dataset". home: its project, where it has one of its own. unclear:
    why names of one part cannot be told. moved: the text made or dropped a temporary table. Raises Unreadable.
    """

    project: str
    dataset: str | None
    temporary: set[str] = field(default_factory=set)
    home: str = ""
    unclear: str = ""
    moved: bool = False
    _project_set: bool = False

    def __post_init__(self) -> None:
        if self.dataset is not None and "." in self.dataset:
            project, segments = _cut([self.dataset])
            if len(segments) != (1 if project else 2):
                raise Unreadable("the default dataset has a name that cannot be read")
            self.home, self.dataset = project or segments[0], segments[-1]

    @property
    def state(self) -> State:
        """All that decides what names mean, to be compared and restored."""
        return self.project, self.dataset, self.home, self.unclear, frozenset(self.temporary)

    def restore(self, state: State) -> None:
        """Go back to a state."""
        self.project, self.dataset, self.home, self.unclear, temporary = state
        self.temporary = set(temporary)

    def made(self, table: str) -> None:
        """A temporary table is there from here on."""
        self.temporary.add(table.lower())
        self.moved = True

    def dropped(self, table: TableName) -> None:
        """If that was a temporary table, its name means what it meant before it was made."""
        if table.dataset == TEMPORARY:
            self.temporary.discard(table.table.lower())
            self.moved = True

    def set_dataset(self, dataset: str) -> None:
        """SET @@dataset_id."""
        self.dataset = dataset
        if self.home not in ("", self.project):
            self.unclear = "SET @@dataset_id leaves open of which project that dataset is"
        elif self._project_set:
            self.unclear = ""
        self.home = ""

    def set_project(self, project: str) -> None:
        """SET @@dataset_project_id."""
        if self.dataset is not None:
            self.unclear = "SET @@dataset_project_id leaves open of which project the default dataset is"
        self.project, self.home, self._project_set = project, "", True

    def table(self, parts: Sequence[str]) -> TableName:
        """Return the table that a name means. Raises Unreadable."""
        project, segments = _cut(parts)
        upper = [segment.upper() for segment in segments]
        if _SCHEMA in upper:
            at = upper.index(_SCHEMA)
            return self._metadata(project, segments[:at], ".".join(upper[at:]))
        last = re.split(r"[$@]", segments[-1], maxsplit=1)[0] or segments[-1]
        match len(segments):
            case 1:
                if last.lower() in self.temporary:
                    return TableName(project or self.project, TEMPORARY, last)
                if self.unclear:
                    raise Unreadable(self.unclear)
                dataset = self.dataset if self.dataset is not None else UNRESOLVED
                return TableName(project or self.home or self.project, dataset, last)
            case 2:
                if segments[0].upper() == TEMPORARY:
                    return TableName(self.project, TEMPORARY, last)
                return TableName(project or self.project, segments[0], last)
            case 3 if not project:
                return TableName(segments[0], segments[1], last)
            case _:  # a catalogue's: project.catalog.namespace.table
                first = segments if project else segments[1:]
                return TableName(project or segments[0], ".".join(first[:-1]), last)

    def _metadata(self, project: str, before: Sequence[str], view: str) -> TableName:
        if view.split(".")[1:2] and view.split(".")[1] not in _OF_DATASETS and len(before) < 2:
            # It tells of a whole project, whatever the default dataset is: others' jobs, all datasets.
            if before and before[0].lower().startswith("region-"):
                return TableName(project or self.project, before[0], view)
            if before and (project or before[0] != self.project):
                raise Unreadable(f"{view} has no dataset, and no region is named: it may be of another project")
            return TableName(project or self.project, _REGION, view)
        match before:
            case []:
                if self.unclear:
                    raise Unreadable(self.unclear)
                return TableName(project or self.home or self.project, self.dataset or UNRESOLVED, view)
            case [dataset]:
                return TableName(project or self.project, dataset, view)
            case [owner, dataset] if not project:
                return TableName(owner, dataset, view)
            case _:
                raise Unreadable("a name of INFORMATION_SCHEMA has too many parts")

    def dataset_of(self, parts: Sequence[str]) -> TableName:
        """Return all that is in the dataset (schema) that a name means. Raises Unreadable."""
        project, segments = _cut(parts)
        if len(segments) == 1:
            return TableName(project or self.project, segments[0], "*")
        if len(segments) == 2 and not project:
            return TableName(segments[0], segments[1], "*")
        raise Unreadable("the name of a dataset has too many parts")


def is_single(parts: Sequence[str]) -> bool:
    """Tell whether a name has one part: no dataset."""
    return len(parts) == 1 and "." not in parts[0]


def _cut(parts: Sequence[str]) -> tuple[str, list[str]]:
    whole = ".".join(parts)
    if len(whole) > NAME_LIMIT:
        raise Unreadable(f"a name is longer than {NAME_LIMIT} characters")
    project = ""
    if found := _DOMAIN.match(whole):
        project, whole = found.groups()
    segments = whole.split(".")
    if not all(segment and segment.strip() == segment for segment in segments):
        raise Unreadable("a name has an empty part")
    return project, segments
