"""A deny of a table holds for views over it; an allow of the view is enough to read it."""

from __future__ import annotations

import psycopg
import pytest

from protocols.postgres.verbs import VERBS
from proxy.policy.rules import load_rules
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import gateway

pytestmark = pytest.mark.peer

MADE = """
    CREATE TABLE public.secret (a int); CREATE TABLE public.fine (a int);
    CREATE VIEW public.over_secret AS SELECT a FROM public.secret;
    CREATE VIEW public.over_over AS SELECT a FROM public.over_secret;
    CREATE SCHEMA reporting; CREATE VIEW reporting.numbers AS SELECT a FROM public.fine;
"""

RULES = """
rules:
  - name: no-secret
    commands: {objects: ["public.secret"]}
    deny: {reason: "it is secret"}
  - name: readers
    commands: {kinds: [read], objects: ["public.over*", "reporting.*"]}
    allow: true
"""


def test_views_stand_for_their_tables_where_a_rule_forbids(postgres15: PostgresServer) -> None:
    rules = load_rules(RULES, "rules", None, verbs={"postgres": VERBS}, detectors=())
    with (
        postgres15.database("views", MADE),
        gateway(postgres15.port, database="views", policy=rules.decide) as gate,
        psycopg.connect(gate.conninfo(), autocommit=True) as connection,
    ):
        for name in ("public.secret", "over_secret", "over_over"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-secret"):
                connection.execute(f"SELECT a FROM {name}".encode())
        assert connection.execute("SELECT a FROM reporting.numbers").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="default-deny"):
            connection.execute("SELECT a FROM fine")
