"""The protocol's verbs are the SQL reader's verbs and a few of its own."""

from protocols.postgres.verbs import SQL_VERBS
from proxy.policy.sql_verbs import VERBS


def test_sql_verbs_are_those_of_the_reader() -> None:
    assert SQL_VERBS == VERBS
