"""What each value detector finds, and what it leaves alone."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import ConfigError
from proxy.masking import DETECTORS, custom_detector
from proxy.masking.checksums import IBAN_LENGTHS, is_card, is_iban, luhn
from proxy.masking.patterns import BUILT_IN, PRIVATE_KEY_LIMIT
from proxy.masking.scanner import PATTERN_LIMIT, Scanner

JWT = b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = b"-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabcd+/==\n-----END RSA PRIVATE KEY-----"
SECRET = b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
B64_86 = b"Ab3+" * 21 + b"Ab"


def join(*parts: bytes) -> bytes:
    """Put a made-up secret together here, so that scanners of this repository stay quiet."""
    return b"".join(parts)


# detector, text, what must be found in it
FOUND: list[tuple[str, bytes, list[bytes]]] = [
    ("email", b"bob@example.com", [b"bob@example.com"]),
    ("email", b"To: <Bob.O'Neil+x_1@mail.example.co.uk>, x", [b"Bob.O'Neil+x_1@mail.example.co.uk"]),
    ("email", b"a@b.de,c@d.de", [b"a@b.de", b"c@d.de"]),
    ("email", b"mailto?to=bob@x.org&y", [b"bob@x.org"]),
    ("email", b"'bob@x.org'", [b"bob@x.org"]),
    ("email", b"bob%40example.com", [b"bob%40example.com"]),
    ("email", "j\u00fcrgen@b\u00fccher.example".encode(), ["j\u00fcrgen@b\u00fccher.example".encode()]),
    ("email", b"x@example.xn--p1ai ", [b"x@example.xn--p1ai"]),
    ("email", b"ends a sentence bob@example.com.", [b"bob@example.com"]),
    ("card", b"4111111111111111", [b"4111111111111111"]),
    ("card", b"4111 1111 1111 1111 exp 12/29", [b"4111 1111 1111 1111"]),
    ("card", b"4111-1111-1111-1111", [b"4111-1111-1111-1111"]),
    ("card", b"378282246310005", [b"378282246310005"]),
    ("card", b"3782 822463 10005", [b"3782 822463 10005"]),
    ("card", b"30569309025904", [b"30569309025904"]),
    ("card", b"4222222222222", [b"4222222222222"]),
    ("card", b"%B4111111111111111^DOE/J^", [b"4111111111111111"]),
    ("card", b"12 4111 1111 1111 1111 34", [b"4111 1111 1111 1111"]),
    ("card", b"5555555555554444,6011111111111117", [b"5555555555554444", b"6011111111111117"]),
    ("card", b"2223003122003222", [b"2223003122003222"]),
    ("card", b"card4111111111111111", [b"4111111111111111"]),
    ("iban", b"DE89370400440532013000", [b"DE89370400440532013000"]),
    ("iban", b"to DE89 3704 0044 0532 0130 00 today", [b"DE89 3704 0044 0532 0130 00"]),
    ("iban", b"gb82-west-1234-5698-7654-32", [b"gb82-west-1234-5698-7654-32"]),
    ("iban", b"IBANGB82WEST12345698765432.", [b"GB82WEST12345698765432"]),
    ("iban", b"NO9386011117947", [b"NO9386011117947"]),
    ("iban", b"MT84MALT011000012345MTLCAST001S", [b"MT84MALT011000012345MTLCAST001S"]),
    ("phone", b"+49891234567", [b"+49891234567"]),
    ("phone", b"tel:+1-212-555-0123;", [b"+1-212-555-0123"]),
    ("phone", b"+44 (0)20 7946 0958", [b"+44 (0)20 7946 0958"]),
    ("phone", b"0049 89 1234567", [b"0049 89 1234567"]),
    ("phone", b"call (212) 555-0123 now", [b"(212) 555-0123"]),
    ("phone", b"212.555.0123", [b"212.555.0123"]),
    ("phone", b"1-212-555-0123", [b"1-212-555-0123"]),
    ("phone", b"030/12345678", [b"030/12345678"]),
    ("phone", b"(0171) 1234567", [b"(0171) 1234567"]),
    ("phone", b"020 7946 0958", [b"020 7946 0958"]),
    ("phone", b"01 23 45 67 89", [b"01 23 45 67 89"]),
    ("phone", b"a,212-555-0123,212-555-0124", [b"212-555-0123", b"212-555-0124"]),
    ("jwt", b"Bearer " + JWT, [JWT]),
    ("jwt", b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", [b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."]),
    ("cloud_key", join(b"id AKIA", b"IOSFODNN7EXAMPLE."), [join(b"AKIA", b"IOSFODNN7EXAMPLE")]),
    ("cloud_key", b"aws_secret_access_key = " + SECRET, [SECRET]),
    ("cloud_key", b'"SecretAccessKey": "' + SECRET + b'"', [SECRET]),
    ("cloud_key", b"AWS_SECRET_ACCESS_KEY='" + SECRET + b"'", [SECRET]),
    ("cloud_key", b"aws configure set aws_secret_access_key " + SECRET, [SECRET]),
    (
        "cloud_key",
        join(b"AKIA", b"IOSFODNN7EXAMPLE:") + SECRET,
        [join(b"AKIA", b"IOSFODNN7EXAMPLE"), SECRET],
    ),
    ("cloud_key", b"key=" + join(b"AIza", b"SyA") + b"b" * 32, [join(b"AIza", b"SyA") + b"b" * 32]),
    ("cloud_key", b'"private_key_id": "' + b"0a" * 20 + b'"', [b"0a" * 20]),
    ("cloud_key", b"AccountKey=" + B64_86 + b"==;", [B64_86 + b"=="]),
    ("cloud_key", b"abc8Q~" + b"x" * 34, [b"abc8Q~" + b"x" * 34]),
    ("private_key", b"x " + PEM + b" y", [PEM]),
    ("private_key", PEM.replace(b"\n", b"\\n"), [PEM.replace(b"\n", b"\\n")]),
    ("private_key", PEM.replace(b"RSA", b"OPENSSH"), [PEM.replace(b"RSA", b"OPENSSH")]),
    ("private_key", b"a " + PEM[:50], [PEM[:50]]),
    ("token", join(b"ghp", b"_") + b"a1" * 18, [join(b"ghp", b"_") + b"a1" * 18]),
    ("token", join(b"xox", b"b-123456789012-abcdefgh"), [join(b"xox", b"b-123456789012-abcdefgh")]),
    ("token", join(b"sk", b"_live_") + b"4eC39HqLyjWD", [join(b"sk", b"_live_") + b"4eC39HqLyjWD"]),
    ("token", join(b"sk", b"-proj-") + b"A1b2" * 6, [join(b"sk", b"-proj-") + b"A1b2" * 6]),
    ("token", b"https://" + join(b"hooks.slack", b".com/services/T000/B000/") + b"X" * 24, [b"T000/B000/" + b"X" * 24]),
]

QUIET: list[tuple[str, bytes]] = [
    ("email", b"user@localhost"),
    ("email", b"@decorator.name"),
    ("email", b"a @ b.com"),
    ("email", b"react@18.2.0"),
    ("card", b"4111111111111112"),
    ("card", b"1234567890123"),
    ("card", b"1700000000000000"),
    ("card", b"0.4111111111111111"),
    ("card", b"41111111111111111111"),
    ("card", b"d41d8cd98f00b2044111111111111111ecf8427e"),
    ("card", b"4111 1111-1111 1111"),
    ("card", b"2024-01-12 10:22:33.123456"),
    ("iban", b"DE88370400440532013000"),
    ("iban", b"DE8937040044053201300"),
    ("iban", b"DE893704004405320130001"),
    ("iban", b"XX89370400440532013000"),
    ("iban", b"d9428888-122b-11e1-b85c-61cd3cbb3210"),
    ("phone", b"2024-01-12 10:22:33.123456+01:00"),
    ("phone", b"20240112102233"),
    ("phone", b"01234-5678"),
    ("phone", b"192.168.100.200"),
    ("phone", b"d9428888-122b-11e1-b85c-61cd3cbb3210"),
    ("phone", b"+12345"),
    ("phone", b"1,234,567.00"),
    ("phone", b"order 212-555-0123-77"),
    ("jwt", b"eyJhbGciOiJIUzI1NiJ9"),
    ("jwt", b"eyJmb28iOiJiYXIifQ.abc.def"),
    ("cloud_key", b"AKIA1234"),
    ("cloud_key", b"no secret here: " + b"x" * 10),
    ("cloud_key", b"commit " + b"ab" * 20),
    ("private_key", b"-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----"),
    ("token", b"task-force-meeting-notes-for-monday"),
    ("token", b"ghp_short"),
    ("token", b"risk-management-and-mitigation-plan"),
]


def scan(name: str, text: bytes) -> list[bytes]:
    found = Scanner([(BUILT_IN[name], 0)]).locate(text)
    return [text[each.start : each.end] for each in found]


@pytest.mark.parametrize(("name", "text", "expected"), FOUND)
def test_finds(name: str, text: bytes, expected: list[bytes]) -> None:
    assert scan(name, text) == expected


@pytest.mark.parametrize(("name", "text"), QUIET)
def test_leaves_alone(name: str, text: bytes) -> None:
    assert scan(name, text) == []


@pytest.mark.parametrize(("name", "text", "expected"), FOUND)
def test_the_scan_of_all_detectors_covers_what_each_finds(name: str, text: bytes, expected: list[bytes]) -> None:
    scanner = Scanner([(detector, place) for place, detector in enumerate(BUILT_IN.values())])
    covered = {at for each in scanner.locate(text) for at in range(each.start, each.end)}
    for value in expected:
        at = text.index(value)
        assert set(range(at, at + len(value))) <= covered


@pytest.mark.parametrize(("name", "text", "expected"), FOUND)
def test_no_match_is_shorter_than_its_detector_says(name: str, text: bytes, expected: list[bytes]) -> None:
    assert all(len(value) >= BUILT_IN[name].shortest for value in expected)
    needs = BUILT_IN[name].needs
    assert not needs or all(any(byte in text for byte in needs) for _ in expected)


def test_every_detector_is_in_both_tables() -> None:
    assert {name for name, _, _ in FOUND} == {name for name, _ in QUIET} == DETECTORS


@pytest.mark.parametrize("number", ["79927398713", "4111111111111111", "0", "18"])
def test_luhn_accepts(number: str) -> None:
    assert luhn(number.encode())
    assert not luhn((number[:-1] + str((int(number[-1]) + 1) % 10)).encode())


@given(st.text("0123456789", min_size=1, max_size=30))
def test_luhn_has_exactly_one_check_digit(number: str) -> None:
    assert sum(luhn((number + digit).encode()) for digit in "0123456789") == 1


@given(st.sampled_from(sorted(IBAN_LENGTHS)), st.data())
def test_iban_check_digits_by_the_standard_are_accepted_and_others_are_not(country: bytes, data: st.DataObject) -> None:
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    size = IBAN_LENGTHS[country] - 4
    account = data.draw(st.text(alphabet, min_size=size, max_size=size))
    number = int("".join(str(int(each, 36)) for each in account + country.decode() + "00"))
    check = 98 - number % 97
    assert is_iban(country + b"%02d" % check + account.encode())
    assert not is_iban(country + b"%02d" % ((check + 1) % 97) + account.encode())


def test_card_needs_its_schemes_length() -> None:
    assert is_card(b"378282246310005")
    assert not is_card(b"3782822463100053")
    assert not is_card(b"4" * 12)


@pytest.mark.parametrize("size", [PRIVATE_KEY_LIMIT - 40, PRIVATE_KEY_LIMIT, PRIVATE_KEY_LIMIT * 2])
def test_a_private_key_without_an_end_is_masked_up_to_the_limit(size: int) -> None:
    text = b"-----BEGIN PRIVATE KEY-----\n" + b"A" * size
    (found,) = Scanner([(BUILT_IN["private_key"], 0)]).locate(text)
    assert (found.start, found.end) == (0, min(len(text), PRIVATE_KEY_LIMIT))


def test_overlapping_matches_become_one_with_the_first_rules_choice() -> None:
    one, two = custom_detector("one", "abc"), custom_detector("two", "bcd")
    (found,) = Scanner([(one, 3), (two, 1)]).locate(b"xabcdx")
    assert found == (1, 5, 1)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?<=a)b", "not a pattern of RE2"),
        ("a(?=b)", "not a pattern of RE2"),
        (r"(a)\1", "not a pattern of RE2"),
        ("(", "not a pattern of RE2"),
        ("a*", "matches the empty text"),
        ("a" * (PATTERN_LIMIT + 1), "longer than"),
        ("\ud800", "not valid text"),
    ],
)
def test_a_bad_pattern_fails_the_load_with_a_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        custom_detector("mine", pattern)


def test_a_custom_detector_may_not_take_a_built_in_name() -> None:
    with pytest.raises(ConfigError, match="taken by a built-in"):
        custom_detector("email", "x")


def test_a_custom_pattern_is_on_unicode_text_and_its_group_narrows_it() -> None:
    detector = custom_detector("mine", "n\u00b0([\u00e4\u00f6]+)")
    text = "x n\u00b0\u00e4\u00f6\u00e4!".encode()
    (found,) = Scanner([(BUILT_IN["email"], 0), (detector, 1)]).locate(text)
    assert text[found.start : found.end] == "\u00e4\u00f6\u00e4".encode()


def test_a_pattern_limit_long_is_taken() -> None:
    ((_, find),) = custom_detector("mine", "a" * PATTERN_LIMIT).probes
    assert find(b"a" * PATTERN_LIMIT) == [(0, PATTERN_LIMIT)]


@pytest.mark.parametrize(
    "text",
    [
        b"a" * 300_000,
        b"a@" * 150_000,
        b"1 " * 150_000,
        b"4111 " * 60_000,
        b"eyJ" * 100_000,
        b"DE89 " * 60_000,
        b"+49 " * 75_000,
        b"0171 " * 60_000,
        b"secret=" * 40_000,
        b"-----BEGIN PRIVATE KEY-----" * 10_000,
        b"." * 300_000,
    ],
)
def test_time_grows_with_the_text_and_not_faster(text: bytes) -> None:
    scanner = Scanner([(detector, 0) for detector in BUILT_IN.values()])

    def seconds(size: int) -> float:
        start = time.perf_counter()
        scanner.locate(text[:size])
        return time.perf_counter() - start

    seconds(1000)
    small, large = min(seconds(len(text) // 8) for _ in range(2)), seconds(len(text))
    assert large < 40 * small + 0.05  # eight times the text; a square would be 64 times


@given(st.binary(max_size=200))
def test_garbage_is_scanned_without_an_error(text: bytes) -> None:
    scanner = Scanner([(detector, 0) for detector in BUILT_IN.values()])
    found = scanner.locate(text)
    assert all(0 <= each.start < each.end <= len(text) for each in found)
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))
