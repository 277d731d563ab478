"""Every statement of PostgreSQL's grammar has an entry, and every entry is reached by a text.

NODES are the node names behind ``stmt`` in gram.y of PostgreSQL 12 to 18 (18 added none), by hand from the sources.
"""

# ruff: noqa: SIM905 - lists of one name a line would be pages

from __future__ import annotations

from typing import get_args

import pgparse
import pytest

from proxy.core.events import KINDS, Kind
from proxy.policy.sql import VERBS, read_sql
from proxy.policy.sql_functions import CLASSES, function_class
from proxy.policy.sql_functions_data import PURE
from proxy.policy.sql_verbs import STATEMENTS
from tests.policy.test_sql_statements import TABLE

NODES = """
AlterCollationStmt AlterDatabaseRefreshCollStmt AlterDatabaseSetStmt AlterDatabaseStmt AlterDefaultPrivilegesStmt
AlterDomainStmt AlterEnumStmt AlterEventTrigStmt AlterExtensionContentsStmt AlterExtensionStmt AlterFdwStmt
AlterForeignServerStmt AlterFunctionStmt AlterObjectDependsStmt AlterObjectSchemaStmt AlterOpFamilyStmt
AlterOperatorStmt AlterOwnerStmt AlterPolicyStmt AlterPublicationStmt AlterRoleSetStmt AlterRoleStmt AlterSeqStmt
AlterStatsStmt AlterSubscriptionStmt AlterSystemStmt AlterTSConfigurationStmt AlterTSDictionaryStmt
AlterTableMoveAllStmt AlterTableSpaceOptionsStmt AlterTableStmt AlterTypeStmt AlterUserMappingStmt CallStmt
CheckPointStmt ClosePortalStmt ClusterStmt CommentStmt CompositeTypeStmt ConstraintsSetStmt CopyStmt CreateAmStmt
CreateCastStmt CreateConversionStmt CreateDomainStmt CreateEnumStmt CreateEventTrigStmt CreateExtensionStmt
CreateFdwStmt CreateForeignServerStmt CreateForeignTableStmt CreateFunctionStmt CreateOpClassStmt
CreateOpFamilyStmt CreatePLangStmt CreatePolicyStmt CreatePublicationStmt CreateRangeStmt CreateRoleStmt
CreateSchemaStmt CreateSeqStmt CreateStatsStmt CreateStmt CreateSubscriptionStmt CreateTableAsStmt
CreateTableSpaceStmt CreateTransformStmt CreateTrigStmt CreateUserMappingStmt CreatedbStmt DeallocateStmt
DeclareCursorStmt DefineStmt DeleteStmt DiscardStmt DoStmt DropOwnedStmt DropRoleStmt DropStmt DropSubscriptionStmt
DropTableSpaceStmt DropUserMappingStmt DropdbStmt ExecuteStmt ExplainStmt FetchStmt GrantRoleStmt GrantStmt
ImportForeignSchemaStmt IndexStmt InsertStmt ListenStmt LoadStmt LockStmt MergeStmt NotifyStmt PrepareStmt
ReassignOwnedStmt RefreshMatViewStmt ReindexStmt RenameStmt RuleStmt SecLabelStmt SelectStmt TransactionStmt
TruncateStmt UnlistenStmt UpdateStmt VacuumStmt VariableSetStmt VariableShowStmt ViewStmt
""".split()

# Texts for the entries that the table of statements does not reach.
MORE_TEXTS = """
alter collation c refresh version
alter database d refresh collation version
alter database d allow_connections false
alter event trigger e disable
alter extension e add table t
alter foreign data wrapper f options (a 'b')
alter server s options (a 'b')
alter function f() depends on extension e
alter operator family f using btree add operator 1 < (int, int)
alter operator + (int, int) set (restrict = eqsel)
alter publication p add table t
alter statistics s set statistics 10
alter text search configuration c drop mapping for word
alter text search dictionary d (a = b)
alter table all in tablespace a set tablespace b
alter tablespace t set (seq_page_cost = 1)
alter type t set (receive = f)
alter user mapping for u server s options (a 'b')
create access method a type index handler h
create conversion c for 'LATIN1' to 'UTF8' from f
create foreign data wrapper f
create operator class c for type int using btree as operator 1 <
create operator family f using btree
create transform for int language l (from sql with function f(internal))
create or replace language l handler h
""".strip().splitlines()


def test_every_node_of_the_grammar_has_an_entry() -> None:
    assert set(NODES) == set(STATEMENTS)


def test_every_entry_is_reached() -> None:
    texts = [line.rsplit("|", 4)[0].strip() for line in TABLE.strip().splitlines()]
    reached = set()
    for text in (*texts, *MORE_TEXTS):
        try:
            reached |= {tag for node in pgparse.parse(text) for tag in node["stmt"]}
        except pgparse.PGQueryError:
            assert text == "insert into s.t (a) default values"
    assert reached == set(STATEMENTS)


@pytest.mark.parametrize("text", MORE_TEXTS)
def test_less_common_statements(text: str) -> None:
    (statement,) = read_sql(text)
    words = text.upper().split()
    assert statement.verb in VERBS
    assert statement.verb.startswith("CREATE" if words[0] == "CREATE" else "ALTER")
    assert statement.kind in ("define", "admin")
    assert statement.outputs == ()


def test_kinds_are_the_waist_s() -> None:
    assert {kind for _, kind in STATEMENTS.values()} <= set(KINDS) == set(get_args(Kind))


def test_builtins_are_classified() -> None:
    for name in ("lower", "count", "now", "unnest", "jsonb_agg", "row_number", "to_char", "pg_table_is_visible"):
        assert function_class((name,)) == ("read", False)
    assert len(PURE) > 800
    assert not any(
        name.startswith(("pg_read", "pg_ls_", "lo_", "dblink", "pg_logical", "pg_replication")) for name in PURE
    )
    assert not any(name.endswith("_to_xml") for name in PURE)
    assert {CLASSES[name].kind for name in ("nextval", "setval", "pg_read_file", "set_config", "lo_unlink")} == {
        "write",
        "admin",
        "session",
        "delete",
    }
    assert function_class(("public", "lower")) == ("execute", True)
