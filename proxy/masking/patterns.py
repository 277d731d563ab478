"""The built-in value detectors: each has probes, a gate (may it be in here at all?) and a finder (where exactly?).

How: a gate is a regular expression that every match of its finder contains; all gates are compiled into one
re2.Set (scanner.py), so that one pass over a cell asks all of them. Only where a gate opens does its finder run:
RE2 for the shape, then plain code for what a shape cannot tell (check digits, lengths, boundaries). Everything is
linear in the size of the cell. Finders work on bytes, so that offsets are those of the wire; bytes over 0x7f count as
letters of a name.

What each finds, and what it leaves alone on purpose, is said at its pattern. No built-in match but a private key
crosses a control character (other than a tab): streams.py relies on it. Values that are encoded (hex, base64,
compressed), spelled with exotic separators, or taken apart by SQL functions are not found: detectors are a net, column
masks are the promise.

Specification: RE2 syntax (google/re2 wiki); RFC 5322 3.4.1 (addresses, without quoted local parts), ITU-T E.164,
RFC 7519 (JWT), RFC 7468 (PEM).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import re2

from proxy.masking.checksums import CARD_DIGITS, IBAN_LENGTHS, is_card, is_iban

Span = tuple[int, int]
Finder = Callable[[bytes], list[Span]]

# A private key whose END is further away, or missing (a torn text), is masked for this many bytes, or to the end
# of the text. An RSA key of 16,384 bits is 12.7 KB of PEM.
PRIVATE_KEY_LIMIT: Final = 16 * 1024
# A JWT's header is decoded to see that it is one; RFC 7515 headers with a certificate chain are a few KB.
JWT_HEADER_LIMIT: Final = 8 * 1024

_OPTIONS: Final = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False


@dataclass(frozen=True, slots=True)
class Detector:
    """One value detector.

    probes: pairs of a gate and the finder that runs where it opens. shortest: no match has fewer bytes. in_numbers: it
    can match the digits of a number. unicode: the gates are patterns on UTF-8 text, not on bytes. needs: every match
    holds one of these bytes (none given: not so), which are found faster than a gate is asked where they are few.
    """

    name: str
    probes: tuple[tuple[bytes, Finder], ...]
    shortest: int
    in_numbers: bool = False
    unicode: bool = False
    needs: bytes = b""


def by_pattern(pattern: bytes) -> Finder:
    """Return a finder for all matches of a pattern; its one group, if it has one, narrows the match."""
    compiled = re2.compile(pattern, _OPTIONS)
    group = 1 if compiled.groups else 0

    def find(text: bytes) -> list[Span]:
        return [match.span(group) for match in compiled.finditer(text)]

    return find


def _is_word(text: bytes, at: int) -> bool:
    """Whether an ASCII letter or digit stands at this offset (none stands outside)."""
    return 0 <= at < len(text) and text[at : at + 1].isalnum()


# -- e-mail -------------------------------------------------------------------------------------------------------
# Local part @ domain with a dot and a top level of two letters or more, also internationalised, and with %40 for @
# (URLs). Not found: user@host without a dot, quoted local parts. The rarer punctuation that RFC 5322 allows in a local
# part ends it here: what stands before it is left readable, as in key=bob@example.com.
_EMAIL_GATE: Final = rb"(?:@|%40)[A-Za-z0-9\x80-\xff]"
_LABEL: Final = rb"[A-Za-z0-9\x80-\xff](?:[A-Za-z0-9\x80-\xff-]*[A-Za-z0-9\x80-\xff])?"
_EMAIL: Final = re2.compile(
    rb"[A-Za-z0-9_+\x80-\xff][A-Za-z0-9._%+'\x80-\xff-]*(?:@|%40)"
    rb"(?:" + _LABEL + rb"\.)+(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z\x80-\xff]{2,63})",
    _OPTIONS,
)


def find_emails(text: bytes) -> list[Span]:
    """Find e-mail addresses."""
    return [match.span() for match in _EMAIL.finditer(text)]


# -- cards --------------------------------------------------------------------------------------------------------
# 13 to 19 digits of a known scheme with a right check digit: in one run, or in the groups that are printed on cards,
# separated by one kind of separator (space, hyphen, dot). Not found: other groupings, the digits behind a decimal
# point, digits inside a long hexadecimal word.
_CARD_GATE: Final = rb"[0-9]{13}|[0-9]{4}[ .-][0-9]{3,6}[ .-][0-9]|[0-9]{8}[ .-][0-9]{8}|[0-9]{6}[ .-][0-9]{13}"
_DIGITS: Final = re2.compile(rb"[0-9]+(?:[ .-][0-9]+)*", _OPTIONS)
_CARD_GROUPS: Final = frozenset(
    (
        (4, 4, 4, 4),
        (4, 4, 4, 4, 1),
        (4, 4, 4, 4, 2),
        (4, 4, 4, 4, 3),
        (4, 6, 5),
        (4, 6, 4),
        (4, 4, 5),
        (4, 5, 4),
        (4, 4, 4, 1),
        (4, 3, 3, 3),
        (4, 5, 6),
        (8, 8),
        (6, 13),
    )
)
_CARD_GROUP_STARTS: Final = frozenset(groups[0] for groups in _CARD_GROUPS)
_HEX_WORD_BYTES: Final = 24  # MongoDB's ObjectId, the shortest hexadecimal identifier that holds long runs of digits


def find_cards(text: bytes) -> list[Span]:
    """Find payment card numbers."""
    spans: list[Span] = []
    for match in _DIGITS.finditer(text):
        start, end = match.span()
        if end - start >= CARD_DIGITS.start:
            _cards_in_run(text, start, end, spans)
    return spans


def _cards_in_run(text: bytes, start: int, end: int, spans: list[Span]) -> None:
    groups: list[Span] = []
    at = start
    for offset in range(start, end + 1):
        if offset == end or not 48 <= text[offset] <= 57:
            groups.append((at, offset))
            at = offset + 1
    index = 0
    while index < len(groups):
        first, last = groups[index]
        width = last - first
        taken = 0
        if width in CARD_DIGITS:
            taken = int(is_card(text[first:last]) and not _in_fraction(text, first) and not _in_hex(text, first, last))
        elif width in _CARD_GROUP_STARTS:
            taken = _grouped_card(text, groups, index)
        if taken:
            spans.append((first, groups[index + taken - 1][1]))
        index += taken or 1


def _grouped_card(text: bytes, groups: list[Span], index: int) -> int:
    """Return how many groups from index on make a card, 0 if none do; the longest wins."""
    for count in (5, 4, 3, 2):
        chosen = groups[index : index + count]
        if tuple(last - first for first, last in chosen) not in _CARD_GROUPS:
            continue
        separators = {text[last] for _, last in chosen[:-1]}
        if len(separators) == 1 and is_card(b"".join(text[first:last] for first, last in chosen)):
            return len(chosen)
    return 0


def _in_fraction(text: bytes, start: int) -> bool:
    return start >= 2 and text[start - 1] == 46 and 48 <= text[start - 2] <= 57


def _in_hex(text: bytes, start: int, end: int) -> bool:
    """Whether the word around these digits is a hexadecimal identifier: all hex digits, long, not digits alone."""
    low, high = start, end
    while low and start - low < 64 and _is_word(text, low - 1):
        low -= 1
    while high < len(text) and high - end < 64 and _is_word(text, high):
        high += 1
    word = text[low:high]
    return len(word) >= _HEX_WORD_BYTES and not word.strip(b"0123456789abcdefABCDEF")


# -- IBAN ---------------------------------------------------------------------------------------------------------
# Country, check digits and account, of the country's length, together or in groups by single spaces or hyphens.
_IBAN_GATE: Final = rb"[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{2}"
_IBAN_START: Final = re2.compile(rb"[A-Za-z]{2}[0-9]{2}", _OPTIONS)


def find_ibans(text: bytes) -> list[Span]:
    """Find international bank account numbers."""
    spans: list[Span] = []
    for match in _IBAN_START.finditer(text):
        start = match.start()
        length = IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None:
            continue
        if _is_word(text, start - 1) and text[max(0, start - 4) : start].upper() != b"IBAN":
            continue
        end, letters = _take_word(text, start, length)
        if len(letters) == length and not _is_word(text, end) and is_iban(letters):
            spans.append((start, end))
    return spans


def _take_word(text: bytes, start: int, count: int) -> tuple[int, bytes]:
    """Read count letters and digits, with at most one space or hyphen between two; return the end and what was read."""
    taken = bytearray()
    at = start
    while len(taken) < count and at < len(text):
        if _is_word(text, at):
            taken.append(text[at])
        elif not (text[at] in b" -" and _is_word(text, at + 1)):
            break
        at += 1
    return at, bytes(taken)


# -- telephone ----------------------------------------------------------------------------------------------------
# International: + and 8 to 15 digits with the usual separators, or 00 and the same with at least one separator.
# National: North America 3-3-4 with separators; with trunk 0: an area code, a separator, and 10 to 12 digits in all;
# France's five pairs. Not found, to stay quiet on identifiers, dates and amounts: bare digits without + or separator.
_PHONE_GATE: Final = (
    rb"\+[ (]{0,2}[1-9][0-9 ()./-]{7}"
    rb"|\b00[1-9][0-9]{0,3}[ ()./-]"
    rb"|[2-9][0-9]{2}[)]?[ .-]?[2-9][0-9]{2}[ .-][0-9]{4}"
    rb"|\b0[1-9](?:[0-9]{1,4}[)]? ?[ /-]? ?|[)] ?)[0-9]{3}|\b0[1-9](?:[ .-][0-9]{2}){4}"
)
_PHONE: Final = re2.compile(
    rb"(?:"
    rb"\+ ?\(?[1-9](?:[ ()./-]{0,3}[0-9]){7,14}"
    rb"|00[1-9][0-9]{0,3}[ ()./-]{1,3}[0-9](?:[ ()./-]{0,3}[0-9]){4,12}"
    rb"|(?:\b1[ .-])?(?:\([2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}"
    rb"|0[1-9](?:[ .-][0-9]{2}){4}"
    rb"|(?:\(0[1-9][0-9]{0,4}\) ?|0[1-9][0-9]{1,4} ?[ /-] ?)[0-9]{3,8}(?:[ -][0-9]{2,5}){0,3}"
    rb")",
    _OPTIONS,
)
_PHONE_DIGITS: Final = range(8, 16)
_NATIONAL_DIGITS: Final = range(10, 13)  # nine are a ZIP+4 code of New England


def find_phones(text: bytes) -> list[Span]:
    """Find telephone numbers in the forms above, standing alone (no digit, letter or separator touches them)."""
    spans: list[Span] = []
    at = 0
    while True:
        match = _PHONE.search(text, at)
        if match is None:
            return spans
        start, end = match.span()
        digits = sum(48 <= each <= 57 for each in text[start:end])
        national = text[start] in b"0(" and text[start : start + 2] != b"00"
        wanted = _NATIONAL_DIGITS if national else _PHONE_DIGITS
        if digits in wanted and _alone(text, start, end):
            spans.append((start, end))
            at = end
        else:
            at = start + 1
            while at < len(text) and 48 <= text[at] <= 57:
                at += 1


def _alone(text: bytes, start: int, end: int) -> bool:
    before = text[max(0, start - 2) : start]
    if before and (before[-1:].isalnum() or before[-1:] in b"_+"):
        return False
    if len(before) == 2 and before[-1:] in b".-/" and before[:1].isdigit():
        return False  # the tail of a date or a version
    after = text[end : end + 2]
    if after[:1].isalnum() or after[:1] == b"_":
        return False
    return not (len(after) == 2 and after[:1] in b".-/" and after[1:].isdigit())


# -- JSON Web Tokens ----------------------------------------------------------------------------------------------
# JWS (three parts, an empty signature too) and JWE (five parts) in compact form whose header decodes and has an alg.
_JWT_GATE: Final = rb"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*\."
_JWT: Final = re2.compile(
    rb"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)?", _OPTIONS
)


def find_jwts(text: bytes) -> list[Span]:
    """Find JSON Web Tokens."""
    return [match.span() for match in _JWT.finditer(text) if _has_alg(match.group().partition(b".")[0])]


def _has_alg(header: bytes) -> bool:
    if len(header) > JWT_HEADER_LIMIT:
        return True  # fails closed: nothing else looks like this
    try:
        return b'"alg"' in base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4))
    except (binascii.Error, ValueError):
        return False


# -- cloud keys ---------------------------------------------------------------------------------------------------
# AWS: access key ids; the secret beside its id or behind a name that says so; session tokens. Google: API keys, OAuth
# tokens and client secrets, private_key_id of a service account (its private_key is a private_key). Azure: storage
# account keys, SAS signatures, client secrets.
_SEPARATED: Final = rb"\\?[\"']?[ \t]{0,4}(?:=>|:=|[:=,|])[ \t]{0,4}\\?[\"']?"
_AWS_SECRET: Final = rb"([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)"
_CLOUD: Final = (
    (rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{4}", rb"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    (
        rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}[ \t,;:|\"'/=>]",
        rb"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}[ \t,;:|\"'/=>]{1,8}" + _AWS_SECRET,
    ),
    (rb"(?i:secret|aws)", rb"(?i:secret|aws)[A-Za-z_. -]{0,32}" + _SEPARATED + _AWS_SECRET),
    (rb"(?i:secret)[A-Za-z_.-]{0,24}[ \t]", rb"(?i:secret)[A-Za-z_.-]{0,24}[ \t]{1,4}[\"']?" + _AWS_SECRET),
    (rb"(?i:session_?token)", rb"(?i:session_?token)" + _SEPARATED + rb"([A-Za-z0-9/+=]{100,})"),
    (rb"AIza[0-9A-Za-z_-]{4}", rb"\bAIza[0-9A-Za-z_-]{35}"),
    (rb"ya29\.", rb"\bya29\.[0-9A-Za-z_-]{20,}"),
    (rb"GOCSPX-", rb"\bGOCSPX-[0-9A-Za-z_-]{20,}"),
    (rb"private_key_id", rb"private_key_id" + _SEPARATED + rb"([0-9a-f]{40})"),
    (rb"[A-Za-z0-9+/]{20}==", rb"(?:^|[^A-Za-z0-9+/])([A-Za-z0-9+/]{86}==)"),
    (rb"[?&]sig=", rb"[?&]sig=([A-Za-z0-9%+/_-]{40,}=?)"),
    (rb"[0-9]Q~", rb"(?:^|[^A-Za-z0-9_~.-])([A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})"),
)

# -- private keys -------------------------------------------------------------------------------------------------
# PEM of any kind (PKCS#1, PKCS#8, SEC 1, OpenSSH, PGP), also with \n spelled out as in JSON, and PuTTY's format.
_PEM_BEGIN: Final = re2.compile(
    rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]:", _OPTIONS
)
_PEM_END: Final = re2.compile(
    rb"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|Private-MAC: [0-9a-f]{40,64}", _OPTIONS
)
_PEM_GATE: Final = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|PuTTY-User-Key-File-[0-9]:"


def find_private_keys(text: bytes) -> list[Span]:
    """Find private keys, from BEGIN to END; without an END, PRIVATE_KEY_LIMIT bytes or the rest of the text."""
    spans: list[Span] = []
    at = 0
    while True:
        begin = _PEM_BEGIN.search(text, at)
        if begin is None:
            return spans
        start = begin.start()
        last = min(len(text), start + PRIVATE_KEY_LIMIT)
        end = _PEM_END.search(text, begin.end(), last)
        at = end.end() if end is not None else last
        spans.append((start, at))


# -- tokens -------------------------------------------------------------------------------------------------------
# Secrets with a telling prefix: GitHub, GitLab, Slack (and its web hooks), Stripe, OpenAI and Anthropic, npm, PyPI,
# Hugging Face, SendGrid, DigitalOcean.
_TOKENS: Final = (
    (rb"gh[pousr]_[A-Za-z0-9]{8}", rb"\bgh[pousr]_[A-Za-z0-9]{36,255}\b"),
    (rb"github_pat_", rb"\bgithub_pat_[A-Za-z0-9_]{22,255}"),
    (rb"glpat-", rb"\bglpat-[A-Za-z0-9_-]{20,255}"),
    (rb"xox[abeoprs]-", rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,255}"),
    (rb"xapp-[0-9]", rb"\bxapp-[0-9]-[A-Za-z0-9-]{20,255}"),
    (rb"hooks\.slack\.com/", rb"\bhooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{20,200})"),
    (rb"[spr]k_(?:live|test)_", rb"\b[spr]k_(?:live|test)_[A-Za-z0-9]{10,255}"),
    (rb"whsec_", rb"\bwhsec_[A-Za-z0-9+/=]{20,255}"),
    (rb"sk-[A-Za-z0-9_-]{8}", rb"\bsk-[A-Za-z0-9_-]{20,300}"),
    (rb"npm_[A-Za-z0-9]{8}", rb"\bnpm_[A-Za-z0-9]{36}\b"),
    (rb"pypi-[A-Za-z0-9_-]{8}", rb"\bpypi-[A-Za-z0-9_-]{40,500}"),
    (rb"hf_[A-Za-z0-9]{8}", rb"\bhf_[A-Za-z0-9]{30,60}\b"),
    (rb"SG\.[A-Za-z0-9_-]{8}", rb"\bSG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    (rb"do[opr]_v1_", rb"\bdo[opr]_v1_[a-f0-9]{64}\b"),
)


def _probes(patterns: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, Finder], ...]:
    return tuple((gate, by_pattern(pattern)) for gate, pattern in patterns)


BUILT_IN: Final[dict[str, Detector]] = {
    each.name: each
    for each in (
        Detector("email", ((_EMAIL_GATE, find_emails),), 6, needs=b"@%"),
        Detector("card", ((_CARD_GATE, find_cards),), 13, in_numbers=True),
        Detector("iban", ((_IBAN_GATE, find_ibans),), 15),
        Detector("phone", ((_PHONE_GATE, find_phones),), 9),
        Detector("jwt", ((_JWT_GATE, find_jwts),), 10, needs=b"."),
        Detector("cloud_key", _probes(_CLOUD), 20),
        Detector("private_key", ((_PEM_GATE, find_private_keys),), 20, needs=b"-"),
        Detector("token", _probes(_TOKENS), 15),
    )
}
