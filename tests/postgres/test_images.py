"""Every constant of images.py against real servers: it is input and output of its type, in its format."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import psycopg
import pytest
from psycopg import pq
from psycopg.adapt import Transformer

from protocols.postgres import images
from protocols.postgres.images import ColumnImage, UserType, describe
from tests.peers.postgres import PostgresServer

# No input function takes these, so only the server's own output can be compared.
OUTPUT_ONLY = {
    "record": "select row()",
    "void": "select pg_notify('gatecast_nobody_listens', '')",
    "cstring": "select textout('')",
    "tsquery": "select ''::tsquery",  # tsqueryrecv does not take what tsquerysend makes of the empty one
}
# Nothing of these can come from outside: NULL only (aclitem's text names roles, which other servers do not have).
NULL_ONLY = {"aclitem", "gtsvector"}
ALL = sorted(images._TYPES)
STYLES = ("ISO, MDY", "ISO, DMY", "SQL, MDY", "SQL, DMY", "German, DMY", "Postgres, MDY", "Postgres, DMY", "ISO, YMD")


@pytest.fixture(scope="module", params=["postgres15", "postgres18"])
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.connect() as connection:
        connection.execute("set timezone to 'UTC'")
        yield connection


def execute(
    connection: psycopg.Connection[tuple[object, ...]], text: str, value: bytes, oid: int, sent: bool, got: bool
) -> bytes | None:
    """Bind one parameter as it is and return one cell as it comes, with no adaption in between."""
    result = connection.pgconn.exec_params(text.encode(), [value], [oid], [int(sent)], int(got))
    if b"unsupported XML feature" in result.error_message:
        pytest.skip("this server was built without libxml")
    assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message.decode()
    return result.get_value(0, 0)


def image_of(oid: int, binary: bool, style: str = "ISO, MDY") -> ColumnImage:
    return describe(oid, -1, binary, date_style=style)


def constant_of(oid: int, binary: bool) -> bytes:
    constant = image_of(oid, binary).constant
    assert constant is not None
    return constant


@pytest.mark.peer
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("oid", [o for o in ALL if images._TYPES[o].name not in NULL_ONLY | OUTPUT_ONLY.keys()])
def test_the_server_takes_each_constant_and_gives_it_back(
    connection: psycopg.Connection[tuple[object, ...]], oid: int, binary: bool
) -> None:
    constant = constant_of(oid, binary)
    result_type = "" if oid == 705 else f"::{images._TYPES[oid].name if oid != 18 else chr(34) + 'char' + chr(34)}"
    back = execute(connection, f"select $1{result_type}", constant, oid if oid != 705 else 25, binary, binary)
    assert back == constant


@pytest.mark.peer
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("oid", [o for o in ALL if images._TYPES[o].name in OUTPUT_ONLY])
def test_the_server_writes_such_values_itself(
    connection: psycopg.Connection[tuple[object, ...]], oid: int, binary: bool
) -> None:
    text = OUTPUT_ONLY[images._TYPES[oid].name]
    result = connection.pgconn.exec_params(text.encode(), [], result_format=int(binary))
    assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message.decode()
    assert result.ftype(0) == oid
    assert result.get_value(0, 0) == image_of(oid, binary).constant


@pytest.mark.peer
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("oid", sorted(images._ITEM_OIDS))
def test_the_server_takes_each_empty_array(
    connection: psycopg.Connection[tuple[object, ...]], oid: int, binary: bool
) -> None:
    item = images._TYPES[images._ITEM_OIDS[oid]].name
    if item in NULL_ONLY | {"cstring"} or (item == "record" and not binary):
        pytest.skip("no input function")
    constant = constant_of(oid, binary)
    quoted = '"char"' if item == "char" else item
    assert execute(connection, f"select $1::{quoted}[]", constant, oid, binary, binary) == constant


@pytest.mark.peer
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_psycopg_loads_every_constant(connection: psycopg.Connection[tuple[object, ...]], binary: bool) -> None:
    transformer = Transformer(connection)
    loaded = 0
    for oid in [*ALL, *images._ITEM_OIDS]:
        constant = image_of(oid, binary).constant
        if constant is None:
            continue
        transformer.get_loader(oid, pq.Format.BINARY if binary else pq.Format.TEXT).load(constant)
        loaded += 1
    assert loaded > 120


@pytest.mark.peer
def test_every_type_of_the_catalogue_is_known(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    rows = connection.execute(
        "select oid::int8, typname::text, typarray::int8 from pg_type where typnamespace = 'pg_catalog'::regnamespace"
        " and typtype in ('b', 'r', 'm') and typcategory <> 'A'"
    ).fetchall()
    unknown = {str(name) for oid, name, _ in rows if oid not in images._TYPES}
    assert unknown == {
        "pg_node_tree",
        "pg_ndistinct",
        "pg_dependencies",
        "pg_mcv_list",
        "pg_brin_bloom_summary",
        "pg_brin_minmax_multi_summary",
    }
    for oid, name, array in rows:
        if isinstance(oid, int) and oid in images._TYPES:
            assert (images._TYPES[oid].name, images._TYPES[oid].array) == (name, array)


@pytest.mark.peer
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("oid", [1082, 1114, 1184])
def test_dates_follow_the_session(connection: psycopg.Connection[tuple[object, ...]], oid: int, style: str) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(f"set local datestyle to '{style}'".encode())
        reported = connection.pgconn.parameter_status(b"DateStyle")
        assert reported is not None
        constant = image_of(oid, False, reported.decode()).constant
        result = connection.pgconn.exec_params(
            f"select '2000-01-01 00:00:00+00'::{images._TYPES[oid].name}".encode(), []
        )
        assert result.get_value(0, 0) == constant


@pytest.mark.peer
@pytest.mark.parametrize("length", [1, 8, 9, 1024])
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_bits_have_the_length_of_their_column(
    connection: psycopg.Connection[tuple[object, ...]], length: int, binary: bool
) -> None:
    image = describe(1560, length, binary)
    assert image.type_name == f"bit({length})"
    assert image.constant is not None
    # A parameter of bit(n) with another length is an error, an explicit cast would silently cut it.
    back = execute(connection, f"select $1::bit({length})", image.constant, 1560, binary, binary)
    assert back == image.constant


@pytest.mark.peer
@pytest.mark.parametrize("extension", ["citext", "hstore", "ltree"])
def test_constants_of_extensions(postgres15: PostgresServer, extension: str) -> None:
    with postgres15.connect() as connection:
        if not connection.execute("select 1 from pg_available_extensions where name = %s", [extension]).fetchone():
            pytest.skip(f"{extension} is not installed")
        with connection.transaction(force_rollback=True):
            connection.execute(f"create extension {extension}".encode())
            row = connection.execute("select %s::text::regtype::oid::int8", [extension]).fetchone()
            assert row is not None and isinstance(row[0], int)
            oid = row[0]
            for binary in (False, True):
                constant = describe(oid, -1, binary, lambda _: UserType(extension, "base")).constant
                assert constant is not None
                assert execute(connection, f"select $1::{extension}", constant, oid, binary, binary) == constant


def test_text_takes_any_text() -> None:
    for oid in (18, 19, 25, 705, 1042, 1043, 1790, 2275):
        for binary in (False, True):
            image = describe(oid, -1, binary)
            assert (image.kind, image.prefix) == ("text", b"")
            assert image.constant == (b"\x00" if oid == 18 and binary else b"")


def test_json_has_a_version_byte_in_binary_jsonb_alone() -> None:
    assert describe(114, -1, False) == ColumnImage("json", b"null", b"", "json")
    assert describe(114, -1, True) == ColumnImage("json", b"null", b"", "json")
    assert describe(3802, -1, False) == ColumnImage("json", b"null", b"", "jsonb")
    assert describe(3802, -1, True) == ColumnImage("json", b"\x01null", b"\x01", "jsonb")


def test_widths_and_names_come_from_the_modifier() -> None:
    assert describe(1043, 24, False) == ColumnImage("text", b"", b"", "varchar(20)", 20)
    assert describe(1042, 5, True) == ColumnImage("text", b"", b"", "bpchar(1)", 1)
    assert describe(1043, -1, False).max_chars is None
    assert describe(19, -1, False).max_chars == 63
    assert describe(1700, (10 << 16 | 2) + 4, False).type_name == "numeric(10,2)"
    assert describe(1700, (3 << 16 | 0x7FE) + 4, False).type_name == "numeric(3,-2)"
    assert describe(1007, -1, False).type_name == "int4[]"
    assert describe(1560, images.BIT_LENGTH_LIMIT + 1, False).constant == b"0"


def test_what_nobody_knows_takes_null_only() -> None:
    for binary in (False, True):
        assert describe(999_999, -1, binary) == ColumnImage("other", None, type_name="999999")
        assert describe(999_999, -1, binary, lambda _: None) == ColumnImage("other", None, type_name="999999")
        assert describe(194, -1, binary).constant is None  # pg_node_tree
        assert describe(1033, -1, binary).constant is None  # aclitem


def test_a_domain_is_its_base_type() -> None:
    types = {
        70_000: UserType("mail", "domain", over=70_001),
        70_001: UserType("short", "domain", over=1043, modifier=14),
        70_002: UserType("number", "domain", over=20),
        70_003: UserType("loop", "domain", over=70_003),
    }
    assert describe(70_000, -1, True, types.get) == ColumnImage("text", b"", b"", "mail", 10)
    assert describe(70_002, -1, True, types.get) == ColumnImage("other", bytes(8), b"", "number")
    assert describe(70_003, -1, True, types.get).constant is None


def test_a_domain_over_a_domain_is_called_by_its_own_name() -> None:
    types = {1: UserType("outer", "domain", over=2), 2: UserType("inner", "domain", over=25)}
    assert describe(1, -1, False, types.get).type_name == "outer"


def test_user_types_by_shape() -> None:
    def image(user_type: UserType, binary: bool) -> bytes | None:
        described = describe(70_000, -1, binary, lambda oid: user_type)
        assert described.kind == "other"
        assert described.type_name == user_type.name
        return described.constant

    mood = UserType("mood", "enum", labels=("sad", "happy"))
    assert image(mood, False) == image(mood, True) == b"sad"
    assert image(UserType("never", "enum"), True) is None
    moods = UserType("mood[]", "array", over=70_000)
    assert image(moods, False) == b"{}"
    assert image(moods, True) == pack(">iiI", 0, 0, 70_000)
    assert image(UserType("span", "range"), False) == b"empty"
    assert image(UserType("span", "range"), True) == b"\x01"
    assert image(UserType("spans", "multirange"), False) == b"{}"
    assert image(UserType("spans", "multirange"), True) == bytes(4)
    assert image(UserType("person", "composite"), False) is None
    assert image(UserType("geometry", "base"), True) is None
    assert describe(70_000, -1, True, lambda oid: UserType("citext", "base")).kind == "text"
