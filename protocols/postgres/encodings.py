"""Client encodings: which of them can hide a quote from us, and how Python calls the others."""

from __future__ import annotations

from typing import Final

# Client encodings in which every byte below 128 is that ASCII character, so that quotes are where they seem; by
# PostgreSQL's names and aliases without punctuation (docs 23.3.1; src/common/encnames.c), with Python's codec.
# SJIS, BIG5, GBK, UHC, GB18030, JOHAB and MULE_INTERNAL are left out: their second bytes reach below 128.
_CODECS: Final = {
    "UTF8": "utf-8", "UNICODE": "utf-8", "SQLASCII": "utf-8", "EUCJP": "euc_jp", "EUCCN": "gb2312",
    "EUCKR": "euc_kr", "KOI8": "koi8-r", "KOI8R": "koi8-r", "KOI8U": "koi8-u", "ALT": "cp866", "WIN866": "cp866",
    "WIN": "cp1251", "ABC": "cp1258", "TCVN": "cp1258", "TCVN5712": "cp1258", "VSCII": "cp1258",
    "ISO88591": "iso8859-1", "ISO88592": "iso8859-2", "ISO88593": "iso8859-3", "ISO88594": "iso8859-4",
    "ISO88595": "iso8859-5", "ISO88596": "iso8859-6", "ISO88597": "iso8859-7", "ISO88598": "iso8859-8",
    "ISO88599": "iso8859-9", "ISO885910": "iso8859-10", "ISO885913": "iso8859-13", "ISO885914": "iso8859-14",
    "ISO885915": "iso8859-15", "ISO885916": "iso8859-16", "LATIN1": "iso8859-1", "LATIN2": "iso8859-2",
    "LATIN3": "iso8859-3", "LATIN4": "iso8859-4", "LATIN5": "iso8859-9", "LATIN6": "iso8859-10",
    "LATIN7": "iso8859-13", "LATIN8": "iso8859-14", "LATIN9": "iso8859-15", "LATIN10": "iso8859-16",
    **{f"{name}{page}": f"cp{page}" for name in ("WIN", "WINDOWS") for page in (874, *range(1250, 1259))},
}  # fmt: skip


def codec_of(client_encoding: str) -> str | None:
    """Return Python's codec for a client_encoding; None if it could hide a quote, or is unknown."""
    return _CODECS.get("".join(char for char in client_encoding.upper() if char.isalnum()))
