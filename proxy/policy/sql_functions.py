"""What calling a PostgreSQL function can do, by its name: the class of every builtin, and of what is not one.

A name is looked up as written: bare, or in pg_catalog. PURE builtins compute from their arguments and are reads.
CLASSES holds the others of the catalogue and of well-known extensions. Any other name, and any name in another
schema, is "execute" and opaque: what it runs is not in the text (``SELECT purge()`` never passes as a read).
An operator with an unknown symbol, or in a schema of its own, is such a function too.

Left out: a user may create an overload of a builtin's bare name (public.lower(int)), or have one in a schema
before pg_catalog; only the target's catalogue can tell. So do casts and types that call a user's function.

Source: pg_proc of PostgreSQL 15.18 and 18.6 (sql_functions_data.py), PostgreSQL 18 docs 9.28, 10.3, F.*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from proxy.core.events import Kind
from proxy.policy.sql_functions_data import OPERATORS, PURE, WHOLE_ROW


class FunctionClass(NamedTuple):
    """kind: what a statement that calls it is at least; opaque: it may touch what the text does not name."""

    kind: Kind
    opaque: bool


READ: Final = FunctionClass("read", False)
UNKNOWN: Final = FunctionClass("execute", True)
SET_CONFIG: Final = FunctionClass("session", False)

_HIDES_SQL: Final = FunctionClass("execute", True)  # runs text, or reads tables that it is told by name
_ADMIN: Final = FunctionClass("admin", True)
_WRITE: Final = FunctionClass("write", False)
_LARGE_OBJECT: Final = FunctionClass("transfer", True)  # reads data that is in no table

_MORE_PURE: Final = frozenset(("hashtext", "hashtextextended", "pg_walfile_name", "pg_walfile_name_offset"))

_TABLE: Final[tuple[tuple[FunctionClass, str], ...]] = (
    (
        _HIDES_SQL,
        """query_to_xml query_to_xmlschema query_to_xml_and_xmlschema table_to_xml table_to_xmlschema
        table_to_xml_and_xmlschema schema_to_xml schema_to_xmlschema schema_to_xml_and_xmlschema database_to_xml
        database_to_xmlschema database_to_xml_and_xmlschema cursor_to_xml cursor_to_xmlschema ts_stat ts_rewrite
        dblink dblink_exec dblink_open dblink_fetch dblink_close dblink_connect dblink_connect_u dblink_disconnect
        dblink_send_query dblink_get_result crosstab crosstab2 crosstab3 crosstab4 connectby xpath_table""",
    ),
    (
        _ADMIN,
        """pg_read_file pg_read_file_old pg_read_binary_file pg_stat_file pg_ls_dir pg_ls_logdir pg_ls_waldir
        pg_ls_tmpdir pg_ls_archive_statusdir pg_ls_logicalmapdir pg_ls_logicalsnapdir pg_ls_replslotdir
        pg_ls_summariesdir pg_current_logfile pg_hba_file_rules pg_ident_file_mappings pg_show_all_file_settings
        pg_config pg_file_write pg_file_read pg_file_rename pg_file_unlink pg_file_sync pg_file_length pg_logdir_ls
        lo_import lo_export
        pg_terminate_backend pg_cancel_backend pg_reload_conf pg_rotate_logfile pg_rotate_logfile_old
        pg_log_backend_memory_contexts pg_log_standby_snapshot pg_promote pg_switch_wal pg_create_restore_point
        pg_backup_start pg_backup_stop pg_start_backup pg_stop_backup pg_wal_replay_pause pg_wal_replay_resume
        pg_available_wal_summaries pg_wal_summary_contents pg_import_system_collations pg_nextoid
        pg_stop_making_pinned_objects pg_extension_config_dump pg_event_trigger_ddl_commands
        pg_copy_logical_replication_slot pg_copy_physical_replication_slot pg_create_logical_replication_slot
        pg_create_physical_replication_slot pg_drop_replication_slot pg_replication_slot_advance
        pg_sync_replication_slots pg_logical_emit_message pg_logical_slot_get_binary_changes
        pg_logical_slot_get_changes pg_logical_slot_peek_binary_changes pg_logical_slot_peek_changes
        pg_replication_origin_advance pg_replication_origin_create pg_replication_origin_drop
        pg_replication_origin_oid pg_replication_origin_progress pg_replication_origin_session_is_setup
        pg_replication_origin_session_progress pg_replication_origin_session_reset
        pg_replication_origin_session_setup pg_replication_origin_xact_reset pg_replication_origin_xact_setup
        pg_show_replication_origin_status brin_desummarize_range brin_summarize_new_values brin_summarize_range
        gin_clean_pending_list pg_stat_reset pg_stat_reset_backend_stats pg_stat_reset_replication_slot
        pg_stat_reset_shared pg_stat_reset_single_function_counters pg_stat_reset_single_table_counters
        pg_stat_reset_slru pg_stat_reset_subscription_stats pg_clear_attribute_stats pg_clear_relation_stats
        pg_restore_attribute_stats pg_restore_relation_stats pg_stat_statements_reset""",
    ),
    (
        _WRITE,
        """nextval setval pg_notify lo_creat lo_create lo_from_bytea lo_put lowrite lo_truncate lo_truncate64""",
    ),
    (FunctionClass("delete", False), "lo_unlink"),
    (_LARGE_OBJECT, "lo_get loread lo_open lo_close lo_lseek lo_lseek64 lo_tell lo_tell64"),
    (SET_CONFIG, "set_config"),
)

CLASSES: Final[Mapping[str, FunctionClass]] = {
    **dict.fromkeys(PURE | _MORE_PURE, READ),
    **{name: kind for kind, names in _TABLE for name in names.split()},
}


def function_class(parts: tuple[str, ...], also_pure: frozenset[str] = frozenset()) -> FunctionClass:
    """Classify a function by the parts of its name, ("pg_catalog", "lower") or ("purge",).

    also_pure are names that an operator vouches for, as they are written ("public.st_distance").
    """
    if len(parts) == 1 or parts[0] == "pg_catalog":
        found = CLASSES.get(parts[-1])
        if found is not None:
            return found
    if also_pure and ".".join(parts) in also_pure:
        return READ
    return UNKNOWN


def known_operator(parts: tuple[str, ...]) -> bool:
    """Tell whether an operator is one of PostgreSQL's own: by symbol, bare or in pg_catalog."""
    return parts[-1] in OPERATORS and (len(parts) == 1 or parts[0] == "pg_catalog")


def gives_whole_row(name: str) -> bool:
    """Tell whether ``relation.name`` may be a call of a builtin on the whole row instead of a column."""
    return name in WHOLE_ROW


assert not PURE & {name for _, names in _TABLE for name in names.split()}, "a builtin is of one class"
