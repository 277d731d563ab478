"""Where the columns of a job's result come from: from the SQL that the registry keeps with the job.

A page may be asked for in another process, after a restart, of the job, its anonymous table or the Storage API; so the
text is read again (kept by its hash in proxy/policy/bigquery_workers.py), never remembered here. Where nothing is known
the lineage is unknown, and masks cover the column: this fails closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocols.bigquery.facts import KEPT_BEHIND, KEPT_DATASET, KEPT_PROJECT, KEPT_SQL
from protocols.bigquery.schema import Lineage, Schema, of_result, unknown
from proxy.core.gate import WarehouseReader
from proxy.core.warehouse import Analysis


async def lineage_of(reader: WarehouseReader | None, facts: Mapping[str, Any], schema: Schema) -> Lineage:
    """Return the lineage of a job's rows by what is kept with it (Entry.facts)."""
    sql, project, dataset = (facts.get(key) for key in (KEPT_SQL, KEPT_PROJECT, KEPT_DATASET))
    if reader is None or not isinstance(sql, str) or not isinstance(project, str):
        return unknown
    analysis = await reader.read(sql, project, dataset if isinstance(dataset, str) and dataset else None)
    return _of_analysis(analysis, facts.get(KEPT_BEHIND), schema)


def _of_analysis(analysis: Analysis, behind: object, schema: Schema) -> Lineage:
    """Only of a text of one statement: which of a script's results a page shows is not told."""
    if analysis.opaque or len(analysis.statements) != 1 or analysis.statements[0].opaque:
        return unknown
    outputs = analysis.statements[0].outputs
    if outputs is None:
        return unknown
    names: dict[str, tuple[str, ...]] = {}
    if isinstance(behind, Mapping):
        names = {str(view): tuple(map(str, tables)) for view, tables in behind.items()}
    return of_result(outputs.resolve([field.name for field in schema]), names)
