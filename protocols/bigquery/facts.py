"""The facts of a BigQuery command: what a rule may ask of it, by keys, and what is kept of them with a job.

Command.facts holds, beside those that all SQL has (proxy/policy/conditions.py: tables_read, tables_written, beneath,
functions, kinds, where, where_missing, multi, opaque, why, moves_data, cache_key):

- "warehouse": tuple of proxy.core.warehouse.Statement, for the masks' guard; () where a request has no SQL.
- the keys of FACTS, each of the type that stands for none there. CEL calls them bigquery.<name>.

A part of a command (Command.parts: one an effect) has the same facts.
Left out: values of query parameters (Command.text shows them to a human, conditions do not see them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

WAREHOUSE: Final = "warehouse"

# method: "jobs.insert". job: "query", "load", "copy", "extract", "". project: that is billed. projects, datasets
# ("project.dataset"): of all objects. bytes: of the dry run, 0 before it and where there is none. price: of those, USD.
# dry_run: the target has been asked, so that bytes are known. location: "US", "" where the request names none.
# destination: "project.dataset.table". write_disposition: "WRITE_TRUNCATE", .. uris: that a job reads or writes.
# doors: ways out of BigQuery. outside: places and principals that take part. labels: the caller's. special: see
# requests.py. routines: that are not BigQuery's own. statement_type: as the dry run says. session: it runs in one.
# asks_dry_run: the caller asks for an estimate alone. maximum_bytes: maximumBytesBilled of the caller, 0 for none.
FACTS: Final[Mapping[str, Any]] = {
    "bq_method": "", "bq_job": "", "bq_project": "", "bq_projects": (), "bq_datasets": (), "bq_bytes": 0,
    "bq_price": 0.0, "bq_dry_run": False, "bq_location": "", "bq_destination": "", "bq_write_disposition": "",
    "bq_uris": (), "bq_doors": (), "bq_outside": (), "bq_labels": {}, "bq_special": (), "bq_routines": (),
    "bq_statement_type": "", "bq_session": False, "bq_asks_dry_run": False, "bq_maximum_bytes": 0,
}  # fmt: skip

# In Entry.facts of a job (JSON values), so that any process can tell later where its columns come from, and who asks.
KEPT_SQL: Final = "sql"  # its text, and the project and dataset that complete its names
KEPT_PROJECT: Final = "project"
KEPT_DATASET: Final = "dataset"  # "" for none
KEPT_BEHIND: Final = "behind"  # view, in lower case -> the tables behind it, as schema.of_result takes them
KEPT_TABLE: Final = "table"  # of a read session: "project.dataset.table"
KEPT_IDENTITY: Final = "identity"  # of a held job: identity_map(), with expires_at
