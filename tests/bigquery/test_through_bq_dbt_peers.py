"""dbt against BigQuery: a project with a table, a view, an incremental model and tests, directly and by two doors.

Nightly, as dbt's environment has 730 MB; it takes some 50 s to install, and a build some 9 s.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.bigquery.gateway_bq import Gateway
from tests.bigquery.running_bq import CLIENT_SECONDS, Access
from tests.peers.bigquery import PROJECT, BigQueryServer, Names, need_dbt

pytestmark = [pytest.mark.peer, pytest.mark.nightly, pytest.mark.timeout(240, func_only=True)]
FILES = {
    "dbt_project.yml": 'name: little\nversion: "1.0"\nprofile: gate\nflags: {send_anonymous_usage_stats: false}\n',
    "models/people.sql": """{{ config(materialized='table', labels={'team': 'a'}) }}
select 1 as id, 'a@example.org' as email union all select 2, 'b@example.org'
""",
    "models/mails.sql": "{{ config(materialized='view') }} select email from {{ ref('people') }} where id > 1\n",
    "models/grown.sql": """{{ config(materialized='incremental') }}
select id from {{ ref('people') }} {% if is_incremental() %} where id > (select max(id) from {{ this }}) {% endif %}
""",
    "models/schema.yml": """version: 2
models:
  - name: people
    columns: [{name: id, data_tests: [unique, not_null]}]
""",
}


def dbt(access: Access, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dbt."""
    return subprocess.run(
        [need_dbt(), "--no-use-colors", *arguments, "--profiles-dir", "."], cwd=folder, env=access.environment(folder),
        capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False,
    )  # fmt: skip


@pytest.fixture(params=["direct", "endpoint", "universe"])
def access(request: pytest.FixtureRequest) -> Access:
    """A way."""
    if request.param == "direct":
        direct: Access = request.getfixturevalue("by_endpoint")
        return direct
    gate: Gateway = request.getfixturevalue("bq_gate")
    known: Names = request.getfixturevalue("gate_names")
    return gate.access(request.param, proxy=known.url if request.param == "universe" else "")


def test_dbt_builds(access: Access, bq_service: BigQueryServer, tmp_path: Path) -> None:
    dataset = f"dbt_{uuid.uuid4().hex[:8]}"
    output: dict[str, Any] = {"type": "bigquery", "project": PROJECT, "dataset": dataset, "threads": 2}
    if access.door == "universe":
        output |= {"method": "oauth", "location": "US"}
    else:
        output |= {"method": "oauth-secrets", "token": access.token, "api_endpoint": access.url, "location": "US"}
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    profile = {"gate": {"target": "dev", "outputs": {"dev": output}}}
    (tmp_path / "profiles.yml").write_text(json.dumps(profile))  # JSON is YAML
    built = dbt(access, tmp_path, "build")
    assert built.returncode == 0, built.stdout + built.stderr
    assert "PASS=5 WARN=0 ERROR=0" in built.stdout, built.stdout
    again = dbt(access, tmp_path, "run", "--select", "grown")
    assert again.returncode == 0, again.stdout + again.stderr
    assert bq_service.sql(f"SELECT COUNT(*) AS n FROM {dataset}.grown") == [["2"]]
    assert bq_service.sql(f"SELECT email FROM {dataset}.mails") == [["b@example.org"]]
