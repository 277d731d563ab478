"""Is this number really a card, is this really an IBAN? Arithmetic and tables of issuers, on bytes of ASCII.

How: a card needs a known prefix, a length that its scheme issues and Luhn's check digit; an IBAN its country's length
and the remainder 1 modulo 97. Left out: schemes that issue under 13 digits, countries without an IBAN.

Specification: ISO/IEC 7812-1 (numbers, annex B: Luhn), ISO 13616-1 (IBAN); lengths from the SWIFT IBAN registry,
release 99.
"""

from __future__ import annotations

from typing import Final

# First prefix, last prefix (of the same number of digits), the lengths that are issued.
_CARD_RANGES: Final[tuple[tuple[int, int, frozenset[int]], ...]] = (
    (4, 4, frozenset((13, 16, 19))),  # Visa
    (51, 55, frozenset((16,))),  # Mastercard
    (2221, 2720, frozenset((16,))),  # Mastercard
    (34, 34, frozenset((15,))),  # American Express
    (37, 37, frozenset((15,))),  # American Express
    (6011, 6011, frozenset((16, 19))),  # Discover
    (644, 649, frozenset((16, 19))),  # Discover
    (65, 65, frozenset((16, 19))),  # Discover, RuPay
    (60, 60, frozenset((16,))),  # RuPay
    (508, 508, frozenset((16,))),  # RuPay
    (81, 82, frozenset((16,))),  # RuPay, UnionPay
    (62, 62, frozenset((16, 17, 18, 19))),  # UnionPay
    (300, 305, frozenset((14, 16))),  # Diners Club
    (3095, 3095, frozenset((14, 16))),  # Diners Club
    (36, 36, frozenset((14, 16))),  # Diners Club
    (38, 39, frozenset((14, 16))),  # Diners Club
    (3528, 3589, frozenset((16, 17, 18, 19))),  # JCB
    (2200, 2204, frozenset((16, 17, 18, 19))),  # Mir
    (9792, 9792, frozenset((16,))),  # Troy
    (5018, 5018, frozenset(range(13, 20))),  # Maestro
    (5020, 5020, frozenset(range(13, 20))),
    (5038, 5038, frozenset(range(13, 20))),
    (5893, 5893, frozenset(range(13, 20))),
    (6304, 6304, frozenset(range(13, 20))),
    (6759, 6759, frozenset(range(13, 20))),
    (6761, 6763, frozenset(range(13, 20))),
)
CARD_DIGITS: Final = range(13, 20)

_PREFIXES: Final[dict[bytes, frozenset[int]]] = {}
for _first, _last, _lengths in _CARD_RANGES:
    for _number in range(_first, _last + 1):
        _prefix = b"%d" % _number
        _PREFIXES[_prefix] = _PREFIXES.get(_prefix, frozenset()) | _lengths

_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

IBAN_LENGTHS: Final[dict[bytes, int]] = {
    country.encode(): length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def luhn(digits: bytes) -> bool:
    """Tell whether the last digit is the check digit of those before it. Source: ISO/IEC 7812-1 annex B."""
    total = sum(digits[-1::-2]) - 48 * len(digits[-1::-2])
    total += sum(_DOUBLED[digit - 48] for digit in digits[-2::-2])
    return total % 10 == 0


def is_card(digits: bytes) -> bool:
    """Tell whether these digits (no separators) are a number that a card scheme issues."""
    length = len(digits)
    if length not in CARD_DIGITS:
        return False
    known = any(length in _PREFIXES.get(digits[:width], ()) for width in (4, 3, 2, 1))
    return known and luhn(digits)


def is_iban(text: bytes) -> bool:
    """Tell whether these letters and digits (no separators, any case) are an IBAN. Source: ISO 13616-1."""
    upper = text.upper()
    if IBAN_LENGTHS.get(upper[:2]) != len(upper) or not upper.isalnum():
        return False
    return int("".join(str(int(chr(each), 36)) for each in upper[4:] + upper[:4])) % 97 == 1
