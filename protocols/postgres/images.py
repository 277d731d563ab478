"""What a masked value may look like: for each of PostgreSQL's types, an image of no data in each format.

A masked cell must decode as its column's type, in the format that the user asked for: a driver that expects a
binary int8 crashes on the word "redacted". describe() says of a column whether any text may stand there (kind
"text"), any JSON document ("json", behind prefix), or only the constant ("other"); where there is no constant
(None), only NULL will do.

The table holds every type of pg_catalog that a result of PostgreSQL 12 to 18 can have. Types of the user are
known by no oid: the caller may resolve them from the catalogue (UserType); unresolved ones take NULL only.
A constant is the same in every client_encoding (ASCII). In text format dates follow DateStyle, because drivers
read them by it; intervals and money do not follow IntervalStyle and lc_monetary: every style reads them.

Left out: PostGIS and other extensions but citext, hstore and ltree; aclitem, pg_node_tree and the planner's
statistics types, which have no image that a server would take (NULL).

Source: PostgreSQL 18, pg_type.dat and the _in and _recv functions of src/backend/utils/adt; each constant was
given to PostgreSQL 15 and 18 as text and binary input, or is what they write (tests/postgres/test_images.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from struct import pack
from typing import Final, Literal

Kind = Literal["text", "json", "other"]

DESCRIPTIONS_LIMIT: Final = 4096  # cached (type, modifier, format)s: a few hundred occur in one database
BIT_LENGTH_LIMIT: Final = 1024  # a longer bit(n) is masked by one zero: no driver checks n, and 10 MB hide no more
DOMAIN_DEPTH_LIMIT: Final = 32  # domains over domains: far more than anyone stacks, and a loop ends


@dataclass(frozen=True, slots=True)
class ColumnImage:
    """How a value of a column can be masked. constant is a whole image; prefix goes before a text or document.

    max_chars: the width of the type (varchar(n)), None where it has none. No driver checks it; a mask that
    wants values to fit cuts there.
    """

    kind: Kind
    constant: bytes | None
    prefix: bytes = b""
    type_name: str = ""
    max_chars: int | None = None


@dataclass(frozen=True, slots=True)
class UserType:
    """What the catalogue says of a type that is not built in.

    over: the base type of a domain, the item type of an array, 0 otherwise. modifier: of a domain
    (typtypmod). labels: of an enum, in order.
    """

    name: str
    shape: Literal["domain", "enum", "array", "range", "multirange", "composite", "base"]
    over: int = 0
    modifier: int = -1
    labels: tuple[str, ...] = ()


Resolve = Callable[[int], UserType | None]


def describe(
    type_oid: int, type_mod: int, binary: bool, resolve: Resolve | None = None, date_style: str = "ISO, MDY"
) -> ColumnImage:
    """Describe a column by what RowDescription tells of it: type oid, type modifier and format.

    resolve tells what a type that is not built in is; without it (or where it returns None) only NULL will do.
    date_style: the session's parameter DateStyle, for dates in text format.
    """
    known = _builtin(type_oid, type_mod, binary, date_style)
    if known is not None:
        return known
    type_name = ""  # of the outermost domain
    for _ in range(DOMAIN_DEPTH_LIMIT):
        user_type = resolve(type_oid) if resolve is not None else None
        if user_type is None:
            break
        type_name = type_name or user_type.name
        if user_type.shape != "domain":
            return replace(_user(user_type, binary), type_name=type_name)
        type_oid = user_type.over
        base = _builtin(type_oid, user_type.modifier, binary, date_style)
        if base is not None:
            return replace(base, type_name=type_name)
    return ColumnImage("other", None, type_name=type_name or str(type_oid))


@lru_cache(DESCRIPTIONS_LIMIT)
def _builtin(type_oid: int, type_mod: int, binary: bool, date_style: str) -> ColumnImage | None:
    if type_oid in _ITEM_OIDS:
        item = _ITEM_OIDS[type_oid]
        return ColumnImage("other", _empty_array(item, binary), type_name=_TYPES[item].name + "[]")
    entry = _TYPES.get(type_oid)
    if entry is None:
        return None
    name, width = _with_modifier(entry.name, type_mod)
    if type_oid in _TEXT_KINDS:
        image = entry.binary if binary else entry.text
        return ColumnImage("text", image, type_name=name, max_chars=_WIDTHS.get(type_oid, width))
    if type_oid in (_JSON, _JSONB):
        prefix = b"\x01" if binary and type_oid == _JSONB else b""
        return ColumnImage("json", prefix + b"null", prefix, name)
    if type_oid == _BIT and width is not None and width <= BIT_LENGTH_LIMIT:
        image = pack(">i", width) + bytes((width + 7) // 8) if binary else b"0" * width
        return ColumnImage("other", image, type_name=name)
    if not binary and type_oid in _DATES:
        return ColumnImage("other", _date(type_oid, date_style), type_name=name)
    constant = entry.binary if binary else entry.text
    return ColumnImage("other", constant, type_name=name)


def _user(user_type: UserType, binary: bool) -> ColumnImage:
    name = user_type.name
    match user_type.shape:
        case "enum":  # the label is a valid one, and it says nothing about any row
            return ColumnImage("other", user_type.labels[0].encode() if user_type.labels else None, type_name=name)
        case "array":
            return ColumnImage("other", _empty_array(user_type.over, binary), type_name=name)
        case "range":
            return ColumnImage("other", _EMPTY_RANGE[binary], type_name=name)
        case "multirange":
            return ColumnImage("other", _EMPTY_MULTIRANGE[binary], type_name=name)
    kind, text, image = _EXTENSIONS.get(name, ("other", None, None))
    return ColumnImage(kind, image if binary else text, type_name=name)


def _empty_array(item_oid: int, binary: bool) -> bytes:
    return pack(">iiI", 0, 0, item_oid) if binary else b"{}"


def _with_modifier(name: str, type_mod: int) -> tuple[str, int | None]:
    """The type's display name with its modifier, and its width in characters or bits."""
    if name in ("varchar", "bpchar") and type_mod >= 4:
        return f"{name}({type_mod - 4})", type_mod - 4
    if name in ("bit", "varbit") and type_mod > 0:
        return f"{name}({type_mod})", type_mod
    if name == "numeric" and type_mod >= 4:
        scale = ((type_mod - 4 & 0x7FF) ^ 0x400) - 0x400  # 11 bits with sign since PostgreSQL 15
        return f"numeric({type_mod - 4 >> 16},{scale})", None
    return name, None


def _date(type_oid: int, date_style: str) -> bytes:
    """The first of January 2000 in the session's style: SQL and German write it alike with either order."""
    style, _, order = date_style.upper().partition(",")
    day_first = order.strip() in ("DMY", "EUROPEAN", "EURO")
    dates = {
        "SQL": b"01/01/2000",
        "GERMAN": b"01.01.2000",
        "POSTGRES": b"01-01-2000" if type_oid == _DATE else b"Sat 01 Jan" if day_first else b"Sat Jan 01",
    }
    date = dates.get(style.strip(), b"2000-01-01")
    if type_oid == _DATE:
        return date
    text = date + b" 00:00:00" + (b" 2000" if date.startswith(b"Sat") else b"")
    if type_oid == _TIMESTAMPTZ:
        text += b"+00" if date.startswith(b"2000") else b" UTC"
    return text


@dataclass(frozen=True, slots=True)
class _Type:
    """A built-in type; array: the oid of the array over it, 0 for none."""

    name: str
    array: int
    text: bytes | None
    binary: bytes | None


_EMPTY_RANGE: Final = (b"empty", b"\x01")  # text, binary: RANGE_EMPTY of rangetypes.h
_EMPTY_MULTIRANGE: Final = (b"{}", bytes(4))
_SNAPSHOT: Final = pack(">iqq", 0, 1, 1)
_NO_OID: Final = bytes(4)
_NO_ADDRESS: Final = b"0.0.0.0"

_DATE: Final = 1082
_TIMESTAMPTZ: Final = 1184
_DATES: Final = frozenset((_DATE, 1114, _TIMESTAMPTZ))
_BIT: Final = 1560
_JSON: Final = 114
_JSONB: Final = 3802
_TEXT_KINDS: Final = frozenset((18, 19, 25, 705, 1042, 1043, 1790, 2275))
_WIDTHS: Final = {18: 1, 19: 63}  # "char"; name: NAMEDATALEN - 1

_EXTENSIONS: Final[dict[str, tuple[Kind, bytes | None, bytes | None]]] = {
    "citext": ("text", b"", b""),
    "hstore": ("other", b"", bytes(4)),
    "ltree": ("other", b"", b"\x01"),
}

_TYPES: Final[dict[int, _Type]] = {
    16: _Type("bool", 1000, b"f", b"\x00"),
    17: _Type("bytea", 1001, b"\\x", b""),
    18: _Type("char", 1002, b"", b"\x00"),
    19: _Type("name", 1003, b"", b""),
    20: _Type("int8", 1016, b"0", bytes(8)),
    21: _Type("int2", 1005, b"0", bytes(2)),
    # one item: an empty one has no dimension, which int2vectorrecv does not take
    22: _Type("int2vector", 1006, b"0", pack(">iiIiiih", 1, 0, 21, 1, 0, 2, 0)),
    23: _Type("int4", 1007, b"0", bytes(4)),
    24: _Type("regproc", 1008, b"-", _NO_OID),
    25: _Type("text", 1009, b"", b""),
    26: _Type("oid", 1028, b"0", _NO_OID),
    27: _Type("tid", 1010, b"(0,0)", bytes(6)),
    28: _Type("xid", 1011, b"0", bytes(4)),
    29: _Type("cid", 1012, b"0", bytes(4)),
    30: _Type("oidvector", 1013, b"0", pack(">iiIiiiI", 1, 0, 26, 1, 0, 4, 0)),
    114: _Type("json", 199, b"null", b"null"),
    142: _Type("xml", 143, b"<redacted/>", b"<redacted/>"),
    600: _Type("point", 1017, b"(0,0)", bytes(16)),
    601: _Type("lseg", 1018, b"[(0,0),(0,0)]", bytes(32)),
    602: _Type("path", 1019, b"((0,0))", b"\x01" + pack(">i", 1) + bytes(16)),
    603: _Type("box", 1020, b"(0,0),(0,0)", bytes(32)),
    604: _Type("polygon", 1027, b"((0,0))", pack(">i", 1) + bytes(16)),
    628: _Type("line", 629, b"{1,0,0}", pack(">ddd", 1, 0, 0)),  # A and B may not both be zero
    650: _Type("cidr", 651, _NO_ADDRESS + b"/32", bytes((2, 32, 1, 4, 0, 0, 0, 0))),  # 2: PGSQL_AF_INET
    700: _Type("float4", 1021, b"0", bytes(4)),
    701: _Type("float8", 1022, b"0", bytes(8)),
    705: _Type("unknown", 0, b"", b""),
    718: _Type("circle", 719, b"<(0,0),0>", bytes(24)),
    774: _Type("macaddr8", 775, b"00:00:00:00:00:00:00:00", bytes(8)),
    790: _Type("money", 791, b"$0.00", bytes(8)),  # drivers expect a sign of currency
    829: _Type("macaddr", 1040, b"00:00:00:00:00:00", bytes(6)),
    869: _Type("inet", 1041, _NO_ADDRESS, bytes((2, 32, 0, 4, 0, 0, 0, 0))),
    1033: _Type("aclitem", 1034, None, None),
    1042: _Type("bpchar", 1014, b"", b""),
    1043: _Type("varchar", 1015, b"", b""),
    1082: _Type("date", 1182, b"2000-01-01", bytes(4)),
    1083: _Type("time", 1183, b"00:00:00", bytes(8)),
    1114: _Type("timestamp", 1115, b"2000-01-01 00:00:00", bytes(8)),
    1184: _Type("timestamptz", 1185, b"2000-01-01 00:00:00+00", bytes(8)),
    1186: _Type("interval", 1187, b"00:00:00", bytes(16)),
    1266: _Type("timetz", 1270, b"00:00:00+00", bytes(12)),
    1560: _Type("bit", 1561, b"0", pack(">iB", 1, 0)),
    1562: _Type("varbit", 1563, b"", bytes(4)),
    1700: _Type("numeric", 1231, b"0", bytes(8)),
    1790: _Type("refcursor", 2201, b"", b""),
    2202: _Type("regprocedure", 2207, b"-", _NO_OID),
    2203: _Type("regoper", 2208, b"0", _NO_OID),
    2204: _Type("regoperator", 2209, b"0", _NO_OID),
    2205: _Type("regclass", 2210, b"-", _NO_OID),
    2206: _Type("regtype", 2211, b"-", _NO_OID),
    2249: _Type("record", 2287, b"()", bytes(4)),
    2275: _Type("cstring", 1263, b"", b""),
    2278: _Type("void", 0, b"", b""),
    2950: _Type("uuid", 2951, b"00000000-0000-0000-0000-000000000000", bytes(16)),
    2970: _Type("txid_snapshot", 2949, b"1:1:", _SNAPSHOT),
    3220: _Type("pg_lsn", 3221, b"0/0", bytes(8)),
    3614: _Type("tsvector", 3643, b"", bytes(4)),
    3615: _Type("tsquery", 3645, b"", bytes(4)),
    3642: _Type("gtsvector", 3644, None, None),
    3734: _Type("regconfig", 3735, b"-", _NO_OID),
    3769: _Type("regdictionary", 3770, b"-", _NO_OID),
    3802: _Type("jsonb", 3807, b"null", b"\x01null"),
    4072: _Type("jsonpath", 4073, b"$", b"\x01$"),
    4089: _Type("regnamespace", 4090, b"-", _NO_OID),
    4096: _Type("regrole", 4097, b"-", _NO_OID),
    4191: _Type("regcollation", 4192, b"-", _NO_OID),
    5038: _Type("pg_snapshot", 5039, b"1:1:", _SNAPSHOT),
    5069: _Type("xid8", 271, b"0", bytes(8)),
    **{
        oid: _Type(name, array, *_EMPTY_RANGE)
        for oid, array, name in (
            (3904, 3905, "int4range"),
            (3906, 3907, "numrange"),
            (3908, 3909, "tsrange"),
            (3910, 3911, "tstzrange"),
            (3912, 3913, "daterange"),
            (3926, 3927, "int8range"),
        )
    },
    **{
        oid: _Type(name, array, *_EMPTY_MULTIRANGE)
        for oid, array, name in (
            (4451, 6150, "int4multirange"),
            (4532, 6151, "nummultirange"),
            (4533, 6152, "tsmultirange"),
            (4534, 6153, "tstzmultirange"),
            (4535, 6155, "datemultirange"),
            (4536, 6157, "int8multirange"),
        )
    },
}
_ITEM_OIDS: Final = {entry.array: oid for oid, entry in _TYPES.items() if entry.array}
