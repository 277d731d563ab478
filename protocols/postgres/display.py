"""The display text of a single cell, for the people who replay a tape; never for the wire.

Cells in text format are decoded; cells in binary format are written as the server's own text output would be
(DateStyle ISO, IntervalStyle postgres, time zone UTC), for the types that results are mostly made of. Whatever
is not known, or is not what its type says, becomes ``\\x`` and hex digits: this module never raises, and it
never works on more of a cell than it shows.

psycopg's loaders are not used here: they build Python values, which have no month in an interval, no infinity
and no year 10000, and they would tie the replay of every tape to an installed libpq.

Left out: ranges, geometry, text search and composite types in binary format (hex).

Source: PostgreSQL 18, src/backend/utils/adt: the _send functions (array_send, numeric_send, interval_send, ...).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from struct import Struct, unpack
from struct import error as StructError
from typing import Final
from uuid import UUID

from protocols.postgres import wire

VALUES_SHOWN_LIMIT: Final = 100  # parameter values that approvers and tapes' COMMANDs show
CELL_DISPLAY_LIMIT: Final = 200  # characters: what a terminal shows of a cell, and a tape should keep of it
BYTES_LIMIT: Final = 4 * CELL_DISPLAY_LIMIT  # a character takes at most 4 bytes in any server encoding
ARRAY_ITEMS_LIMIT: Final = CELL_DISPLAY_LIMIT  # each item shows at least one character
ARRAY_DIMENSIONS_LIMIT: Final = 6  # MAXDIM of PostgreSQL
ELLIPSIS: Final = "…"

_NULL_ITEM: Final = "NULL"
_EPOCH: Final = datetime(2000, 1, 1)
_INT64_MAX: Final = 2**63 - 1
_INT32_MAX: Final = 2**31 - 1

_I16: Final = Struct(">h")
_I32: Final = Struct(">i")
_U32: Final = Struct(">I")
_I64: Final = Struct(">q")
_U64: Final = Struct(">Q")


def show_cell(data: bytes, type_oid: int, binary: bool, encoding: str = "utf-8") -> str:
    """Return the display text of a non-NULL cell, cut at CELL_DISPLAY_LIMIT characters (then with an ellipsis).

    encoding: Python's name of the session's client_encoding.
    """
    if not binary or type_oid in _TEXT_LIKE:
        return _decode(data, encoding)
    try:
        if type_oid in _ARRAYS:
            return _cut(_array(data, encoding))
        show = _SHOW.get(type_oid)
        if show is None:
            return _hex(data)
        return _decode(data[1:], encoding) if show is _jsonb and data[:1] == b"\x01" else _cut(show(data))
    except (StructError, ValueError, OverflowError, IndexError):
        return _hex(data)


def _cut(text: str, more: bool = False) -> str:
    if len(text) > CELL_DISPLAY_LIMIT:
        return text[:CELL_DISPLAY_LIMIT] + ELLIPSIS
    return text + ELLIPSIS if more else text


def _decode(data: bytes, encoding: str) -> str:
    try:
        return _cut(data[:BYTES_LIMIT].decode(encoding, "replace"), len(data) > BYTES_LIMIT)
    except (LookupError, ValueError):  # an encoding that Python does not know
        return _cut(data[:BYTES_LIMIT].decode("latin-1"), len(data) > BYTES_LIMIT)


def _hex(data: bytes) -> str:
    return _cut("\\x" + data[:CELL_DISPLAY_LIMIT].hex())


def _jsonb(data: bytes) -> str:
    raise ValueError("an unknown version of jsonb")  # the known one is text behind its first byte


def _bool(data: bytes) -> str:
    return {b"\x00": "f", b"\x01": "t"}[data] if data in (b"\x00", b"\x01") else _hex(data)


def _int2(data: bytes) -> str:
    return str(_I16.unpack(data)[0])


def _int4(data: bytes) -> str:
    return str(_I32.unpack(data)[0])


def _int8(data: bytes) -> str:
    return str(_I64.unpack(data)[0])


def _oid(data: bytes) -> str:
    return str(_U32.unpack(data)[0])


def _xid8(data: bytes) -> str:
    return str(_U64.unpack(data)[0])


def _lsn(data: bytes) -> str:
    return "{:X}/{:X}".format(*unpack(">II", data))


def _tid(data: bytes) -> str:
    return "({},{})".format(*unpack(">IH", data))


def _money(data: bytes) -> str:
    cents = _I64.unpack(data)[0]  # lc_monetary is the server's: two fraction digits are the usual ones
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def _float4(data: bytes) -> str:
    (value,) = unpack(">f", data)
    for digits in range(1, 10):  # the shortest text that is this float4 again, as float4_out writes it
        text = f"{value:.{digits}g}"
        try:
            if Struct(">f").pack(float(text)) == data:
                break
        except OverflowError:  # rounded beyond the largest float4
            continue
    return _float(float(text), 6)


def _float8(data: bytes) -> str:
    return _float(unpack(">d", data)[0], 15)


def _float(value: float, exponent: int) -> str:
    """Write a float as the server does: exponents below -4 and from 10**exponent on, no trailing zero."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    mantissa, _, power_text = f"{value!r}".partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    power = int(power_text or 0) - len(fraction)
    trimmed = digits.rstrip("0")
    power += len(digits) - len(trimmed)
    if not trimmed:
        return sign + "0"
    leading = len(trimmed) + power - 1  # the exponent in scientific notation
    if leading < -4 or leading >= exponent:
        return f"{sign}{trimmed[0]}{'.' + trimmed[1:] if len(trimmed) > 1 else ''}e{leading:+03d}"
    if power >= 0:
        return sign + trimmed + "0" * power
    if len(trimmed) > -power:
        return f"{sign}{trimmed[:power]}.{trimmed[power:]}"
    return f"{sign}0.{'0' * (-power - len(trimmed))}{trimmed}"


def _numeric(data: bytes) -> str:
    count, weight, sign, scale = unpack(">HhHH", data[:8])
    if sign in _NUMERIC_NAMES:
        return _NUMERIC_NAMES[sign]
    if len(data) != 8 + 2 * count:
        raise ValueError("digits are missing")
    digits = unpack(f">{count}H", data[8:])
    if weight > CELL_DISPLAY_LIMIT:
        return _hex(data)
    whole = "".join(f"{digits[i] if i < count else 0:04d}" for i in range(weight + 1)).lstrip("0") or "0"
    fraction = "".join(
        f"{digits[i] if 0 <= i < count else 0:04d}" for i in range(weight + 1, weight + 2 + min(scale, 1000) // 4)
    )
    return f"{'-' if sign else ''}{whole}{'.' + fraction[:scale] if scale else ''}"


def _bytea(data: bytes) -> str:
    return _hex(data)


def _uuid(data: bytes) -> str:
    return str(UUID(bytes=data))


def _date(data: bytes) -> str:
    days = _I32.unpack(data)[0]
    if days in (_INT32_MAX, ~_INT32_MAX):
        return "infinity" if days > 0 else "-infinity"
    day: str = (_EPOCH.date() + timedelta(days=days)).isoformat()  # a year beyond 1..9999 overflows: hex
    return day


def _timestamp(data: bytes) -> str:
    micros = _I64.unpack(data)[0]
    if micros in (_INT64_MAX, ~_INT64_MAX):
        return "infinity" if micros > 0 else "-infinity"
    moment = _EPOCH + timedelta(microseconds=micros)
    return f"{moment.date().isoformat()} {_clock(micros % 86_400_000_000)}"


def _timestamptz(data: bytes) -> str:
    text = _timestamp(data)
    return text if text.endswith("y") else text + "+00"


def _clock(micros: int) -> str:
    seconds, fraction = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return text + f".{fraction:06d}".rstrip("0") if fraction else text


def _time(data: bytes) -> str:
    return _clock(_I64.unpack(data)[0])


def _timetz(data: bytes) -> str:
    micros, west = unpack(">qi", data)  # seconds west of UTC
    minutes, seconds = divmod(abs(west), 60)
    text = f"{_clock(micros)}{'-' if west > 0 else '+'}{minutes // 60:02d}"
    if seconds:
        return f"{text}:{minutes % 60:02d}:{seconds:02d}"
    return text + (f":{minutes % 60:02d}" if minutes % 60 else "")


def _interval(data: bytes) -> str:
    micros, days, months = unpack(">qii", data)
    if (micros, days, months) == (_INT64_MAX, _INT32_MAX, _INT32_MAX):
        return "infinity"
    if (micros, days, months) == (~_INT64_MAX, ~_INT32_MAX, ~_INT32_MAX):
        return "-infinity"
    years, months = int(months / 12), months - 12 * int(months / 12)
    parts: list[str] = []
    negative = False  # the sign of the part before: a positive one behind it needs its plus
    for number, unit in ((years, "year"), (months, "mon"), (days, "day")):
        if number:
            parts.append(f"{'+' if negative and number > 0 else ''}{number} {unit}{'' if number == 1 else 's'}")
            negative = number < 0
    if micros or not parts:
        sign = "-" if micros < 0 else "+" if negative else ""
        parts.append(sign + _clock(abs(micros)))
    return " ".join(parts)


def _inet(data: bytes) -> str:
    family, bits, is_cidr, size = data[:4]
    address = data[4:]
    text: str
    if len(address) != size or family not in (2, 3) or size != (4 if family == 2 else 16):
        raise ValueError("no address")
    text = str(ipaddress.IPv4Address(address) if size == 4 else ipaddress.IPv6Address(address))
    return f"{text}/{bits}" if is_cidr or bits != 8 * size else text


def _macaddr(data: bytes) -> str:
    if len(data) not in (6, 8):
        raise ValueError("no address")
    return data.hex(":")


def _bit(data: bytes) -> str:
    bits = _I32.unpack(data[:4])[0]
    body = data[4 : 4 + CELL_DISPLAY_LIMIT]
    return "".join(f"{byte:08b}" for byte in body)[: max(bits, 0)]


def _array(data: bytes, encoding: str) -> str:
    dimensions: int
    dimensions, _, item_oid = unpack(">iiI", data[:12])
    if dimensions == 0:
        return "{}"
    if not 0 < dimensions <= ARRAY_DIMENSIONS_LIMIT:
        raise ValueError("no array has so many dimensions")
    if item_oid in _ARRAYS:
        raise ValueError("an array of int2vector: too rare to show, and nesting needs an end")
    at = 12 + 8 * dimensions
    sizes = unpack(">" + "ii" * dimensions, data[12:at])
    counts, lowers = sizes[::2], sizes[1::2]
    if min(counts) < 1:
        raise ValueError("a dimension without items")
    items: list[str] = []
    total = 1
    for number in counts:
        total *= number
    while at < len(data) and len(items) < min(total, ARRAY_ITEMS_LIMIT):
        (size,) = _I32.unpack_from(data, at)
        at += 4
        if size < 0:
            items.append(_NULL_ITEM)
        else:
            items.append(_quoted(show_cell(data[at : at + size], item_oid, True, encoding)))
            at += size
    whole = len(items) == total and at == len(data)
    if len(items) < min(total, ARRAY_ITEMS_LIMIT) or at > len(data):
        raise ValueError("items are missing")
    prefix: str = "".join(f"[{low}:{low + n - 1}]" for low, n in zip(lowers, counts, strict=True))
    prefix = prefix + "=" if set(lowers) != {1} else ""
    if not whole:  # it is cut anyway: the nesting of what follows does not matter
        return prefix + "{" * dimensions + ",".join(items) + ELLIPSIS
    for number in reversed(counts[1:]):
        items = ["{" + ",".join(items[i : i + number]) + "}" for i in range(0, len(items), number)]
    return prefix + "{" + ",".join(items) + "}"


def _quoted(item: str) -> str:
    if item and item.upper() != _NULL_ITEM and not any(c in _QUOTED or c.isspace() for c in item):
        return item
    return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'


_QUOTED: Final = frozenset('{}",\\')
_NUMERIC_NAMES: Final = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}

# "char", name, text, json, xml, unknown, bpchar, varchar, refcursor, cstring
_TEXT_LIKE: Final = frozenset((18, 19, 25, 114, 142, 705, 1042, 1043, 1790, 2275))

_SHOW: Final[dict[int, Callable[[bytes], str]]] = {
    16: _bool,
    17: _bytea,
    20: _int8,
    21: _int2,
    23: _int4,
    26: _oid,
    27: _tid,
    28: _oid,
    29: _oid,
    650: _inet,
    700: _float4,
    701: _float8,
    774: _macaddr,
    790: _money,
    829: _macaddr,
    869: _inet,
    1082: _date,
    1083: _time,
    1114: _timestamp,
    1184: _timestamptz,
    1186: _interval,
    1266: _timetz,
    1560: _bit,
    1562: _bit,
    1700: _numeric,
    2950: _uuid,
    3220: _lsn,
    3802: _jsonb,
    5069: _xid8,
}

# Arrays of the above, by oid: bool, bytea, "char", name, int2, int2vector, int4, text, tid, xid, cid, bpchar, varchar,
# int8, float4, float8, oid, macaddr, inet, cidr, date, time, timestamp, timestamptz, interval, numeric, timetz, bit,
# varbit, uuid, json, xml, jsonb, money, macaddr8, pg_lsn, xid8; and int2vector, oidvector, which are arrays themselves.
_ARRAYS: Final = frozenset(
    (
        *(1000, 1001, 1002, 1003, 1005, 1007, 1009, 1010, 1011, 1012, 1014, 1015, 1016, 1021, 1022, 1028, 1040),
        *(1041, 651, 1182, 1183, 1115, 1185, 1187, 1231, 1270, 1561, 1563, 2951, 199, 143, 3807, 791, 775, 3221, 271),
        *(22, 30),
    )
)


def show_values(bind: wire.Bind, oids: Sequence[int]) -> tuple[str | None, ...]:
    """The parameter values of a Bind for people, each cut by show_cell; oids are the parameters' types."""
    shown: list[str | None] = []
    for index, value in enumerate(bind.values[:VALUES_SHOWN_LIMIT]):
        if value is None:
            shown.append(None)
        else:
            binary = wire.format_of(bind.parameter_formats, index) == 1
            shown.append(show_cell(value, oids[index] if index < len(oids) else 0, binary))
    if len(bind.values) > VALUES_SHOWN_LIMIT:
        shown.append(f"{ELLIPSIS} {len(bind.values) - VALUES_SHOWN_LIMIT} more are not shown")
    return tuple(shown)
