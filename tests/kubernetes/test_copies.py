"""kubectl cp: its command lines, and the files in its tar streams: of three writers, cut anywhere, bounded, fuzzed."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from protocols.kubernetes.copies import (
    META_LIMIT,
    CopiedFile,
    Copy,
    TarFiles,
    probed_directory,
    read_copy,
)

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def archive(entries: list[tuple[str, bytes | str | None]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar: contents are a file, None is a directory, "-> x" a symlink, "= x" a hard link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, contents in entries:
            info = tarfile.TarInfo(name)
            if contents is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(contents, str):
                info.type = tarfile.SYMTYPE if contents.startswith("->") else tarfile.LNKTYPE
                info.linkname = contents.split(" ", 1)[1]
            else:
                info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents) if isinstance(contents, bytes) else None)
    return buffer.getvalue()


def read(data: bytes, *sizes: int) -> tuple[list[CopiedFile], TarFiles]:
    """The files of a stream that comes in pieces of these sizes, over and over."""
    files, at, turn = TarFiles(), 0, 0
    found: list[CopiedFile] = []
    while at < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        found += files.feed(data[at : at + size])
        at += size
        turn += 1
    return found + files.finish(), files


def header(kind: bytes, size: int, name: bytes = b"f", **more: bytes) -> bytes:
    """A header of ustar. more: at_<offset>."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for place, value in more.items():
        at = int(place[3:])
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


# -- command lines ----------------------------------------------------------------------------------------


def test_the_command_lines_of_kubectl_cp() -> None:
    assert read_copy(["tar", "cf", "-", "/etc/hosts"]) == Copy("out", "/etc/hosts")
    assert read_copy(("tar", "-xmf", "-", "-C", "/tmp")) == Copy("in", "/tmp")
    assert read_copy(["tar", "-xmf", "-"]) == Copy("in", ".")
    assert read_copy(["tar", "-xf", "-", "-C", "/srv"]) == Copy("in", "/srv")
    assert read_copy(["tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C", "d"]) == Copy("in", "d")
    assert probed_directory(["test", "-d", "/tmp/x"]) == "/tmp/x"


def test_what_is_not_exactly_that_is_no_copy() -> None:
    for argv in (
        [], ["tar"], ["tar", "cf", "-"], ["tar", "cf", "-", "-C", "/"], ["tar", "cf", "-", "--to-command=sh"],
        ["tar", "cf", "-", "a", "b"], ["tar", "-xmf", "-", "-C", "--to-command=sh"], ["tar", "-xmf", "-", "-C"],
        ["tar", "xmf", "-", "--to-command=sh"], ["/bin/tar", "cf", "-", "/x"], ["sh", "-c", "tar cf - /x"],
        ["tar", "czf", "-", "/x"], ["tar", "-xmf", "-", "-C", "/x", "y"], ["tar", "cf", "/tmp/f", "/x"],
    ):  # fmt: skip
        assert read_copy(argv) is None, argv
    assert probed_directory(["test", "-f", "x"]) is probed_directory(["test", "-d"]) is None


# -- files ------------------------------------------------------------------------------------------------

ENTRIES: list[tuple[str, bytes | str | None]] = [
    ("app", None), ("app/a.txt", b"hello"), ("app/empty", b""), ("app/block", bytes(512)), ("app/513", b"x" * 513),
    ("app/link", "-> a.txt"), ("app/hard", "= app/a.txt"), ("app/ümläut", b"u"), ("app/last", b"z" * 5000),
]  # fmt: skip


def expected(entries: list[tuple[str, bytes | str | None]]) -> list[CopiedFile]:
    found = []
    for name, contents in entries:
        if contents is None:
            found.append(CopiedFile(name + "/", 0, "", "dir"))
        elif isinstance(contents, str):
            kind, link = contents.split(" ", 1)
            found.append(CopiedFile(name, 0, "", "symlink" if kind == "->" else "hardlink", link=link))
        else:
            found.append(CopiedFile(name, len(contents), sha(contents), "file"))
    return found


def test_files_have_their_names_sizes_and_digests_however_the_stream_is_cut() -> None:
    for form in FORMATS.values():
        data = archive(ENTRIES, form)
        for sizes in ((), (1,), (511,), (512,), (513,), (3, 700, 1, 4096), (10_000,)):
            found, files = read(data, *sizes)
            assert found == expected(ENTRIES) and not files.broken and files.begun
            assert files.finish() == [] == files.feed(data), "it is over"


def test_long_names_are_whole() -> None:
    entries: list[tuple[str, bytes | str | None]] = [
        ("d" * 90 + "/" + "e" * 60, b"prefix"),
        ("/".join(["deep"] * 100) + "/name", b"long"),
        ("ü" * 120, b"utf-8"),
        ("s" * 150, "-> " + "t" * 200),
        ("short", b"after"),
    ]
    for name in ("gnu", "pax"):
        assert read(archive(entries, FORMATS[name]), 100)[0] == expected(entries)
    assert read(archive(entries[:1], FORMATS["ustar"]))[0] == expected(entries[:1]), "the prefix of ustar"


def test_an_extended_header_is_of_one_file_and_a_global_one_of_all() -> None:
    def record(key: str, value: str) -> bytes:
        text = f" {key}={value}\n"
        return f"{len(text) + 2}{text}".encode()

    once, always = record("path", "renamed"), record("path", "global")
    stream = (
        header(b"x", len(once)) + padded(once) + header(b"0", 0)
        + header(b"0", 0)
        + header(b"g", len(always)) + padded(always) + header(b"0", 0) + header(b"0", 0)
    )  # fmt: skip
    assert [file.name for file in read(stream, 7)[0]] == ["renamed", "f", "global", "global"]


def test_a_size_in_an_extended_header_is_the_size() -> None:
    stream = header(b"x", 12) + padded(b"12 size=700\n") + header(b"0", 0) + padded(b"a" * 700) + header(b"0", 1, b"n")
    found, files = read(stream + padded(b"b"))
    assert [(file.name, file.size) for file in found] == [("f", 700), ("n", 1)] and not files.broken


def test_a_size_in_base_256_is_read() -> None:
    stream = header(b"0", 0, at_124=b"\x80" + (700).to_bytes(11, "big")) + padded(b"a" * 700)
    assert read(stream)[0] == [CopiedFile("f", 700, sha(b"a" * 700), "file")]


def test_gnu_times_are_no_prefix() -> None:
    stream = header(b"0", 0, at_257=b"ustar  \0", at_345=b"14000000000\0")
    assert read(stream)[0] == [CopiedFile("f", 0, sha(b""), "file")]


def test_sums_of_signed_bytes_are_right_too() -> None:
    block = bytearray(header(b"0", 0, name=b"\xff\xfe"))
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]) - 512)
    assert read(bytes(block))[0] == [CopiedFile("\\xff\\xfe", 0, sha(b""), "file")]


def test_a_sparse_file_has_no_digest_and_what_follows_is_read() -> None:
    more = bytearray(512)
    sparse = header(b"S", 600, at_482=b"\1")
    stream = sparse + bytes(504) + b"\1" + bytes(7) + bytes(more) + padded(b"s" * 600) + header(b"0", 1, b"n") + b"x"
    found, files = read(stream + bytes(511))
    assert found == [CopiedFile("f", 600, "", "sparse"), CopiedFile("n", 1, sha(b"x"), "file")] and not files.broken


def test_devices_are_named() -> None:
    assert read(header(b"3", 0) + header(b"6", 0))[0] == [CopiedFile("f", 0, "", "other")] * 2


# -- what ends in the middle, or is none --------------------------------------------------------------------


def test_a_file_that_is_cut_off_is_not_complete_and_has_no_digest() -> None:
    data = archive([("a", b"whole"), ("b", b"x" * 1000)])
    for size in (1, 300, 5000):
        found, _ = read(data[: 512 * 3 + 400], size)
        assert found == [
            CopiedFile("a", 5, sha(b"whole"), "file"),
            CopiedFile("b", 400, "", "file", complete=False),
        ]


def test_what_is_no_tar_says_so_once_and_is_left_alone() -> None:
    for data in (b"root:x:0:0\n" * 100, b"\x1f\x8b" + os.urandom(2000), b"x" * 512):
        for size in (1, 100, 5000):
            files, broke = TarFiles(), -1
            for at in range(0, len(data), size):
                piece = data[at : at + size]
                assert not files.begun, "what comes before a header may be anything"
                was = files.broken
                assert files.feed(piece) == []
                if files.broken and not was:
                    broke = at
                    assert data[:at].endswith(files.held) and len(files.held) == min(at, 511)
            assert files.broken and broke >= 0 and files.finish() == []


def test_a_short_stream_that_is_no_tar_is_told_at_its_end() -> None:
    files = TarFiles()
    assert files.feed(b"sh: tar: not found\n") == [] and not files.broken
    assert files.finish() == [] and files.broken and files.held == b"sh: tar: not found\n"
    silent = TarFiles()
    assert silent.finish() == [] and not silent.broken, "nothing at all is fine"


def test_garbage_behind_a_file_keeps_what_was_told() -> None:
    good = header(b"0", 3) + padded(b"abc")
    found, files = read(good + b"garbage!" * 100, 64)
    assert found == [CopiedFile("f", 3, sha(b"abc"), "file")] and files.broken and files.begun
    assert files.held == (b"garbage!" * 100)[:448]


def test_malformed_streams_are_broken() -> None:
    sound = header(b"0", 0)
    wrong = {
        "a wrong sum": bytes([sound[0] ^ 1]) + sound[1:],
        "letters in the size": header(b"0", 0, at_124=b"99999999999\0"),
        "a negative size": header(b"0", 0, at_124=b"\xff" * 12),
        "an unknown type": header(b"D", 0),
        "a directory with contents": header(b"5", 5),
        "a link with contents": header(b"2", 5),
        "a long name that is too long": header(b"L", META_LIMIT + 1),
        "a record without a length": header(b"x", 10) + padded(b"path=abcd\n"),
        "a record of another length": header(b"x", 10) + padded(b"99 path=a\n"),
        "a record without an end": header(b"x", 10) + padded(b"10 path=ab"),
        "a record without a value": header(b"x", 8) + padded(b"8 path_\n"),
        "a size that is none": header(b"x", 12) + padded(b"12 size=-70\n"),
        "a file behind the end": bytes(1024) + sound,
    }
    for name, data in wrong.items():
        assert read(data, 200)[1].broken, name
    assert not read(bytes(512) + sound)[1].broken, "one block of zeros ends nothing"
    assert not read(sound + bytes(10_240))[1].broken


def test_names_are_bounded_and_contents_are_not_held() -> None:
    long = b"n" * (META_LIMIT - 1) + b"\0"
    assert read(header(b"L", META_LIMIT) + long + header(b"0", 0), 65_536)[0][0].name == "n" * (META_LIMIT - 1)
    files, piece = TarFiles(), bytes(65_536)
    files.feed(header(b"0", 0, at_124=b"\x80" + (1 << 40).to_bytes(11, "big")))
    tracemalloc.start()
    try:
        for _ in range(500):
            files.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert files.finish() == [CopiedFile("f", 500 * 65_536, "", "file", complete=False)]


def test_300_mb_cost_less_than_a_second_and_a_half() -> None:
    piece, count = random.Random(1).randbytes(32 * 1024), 9600
    files, found = TarFiles(), list[CopiedFile]()
    begun = time.process_time()
    found += files.feed(header(b"0", len(piece) * count, at_124=b"\x80" + (len(piece) * count).to_bytes(11, "big")))
    for _ in range(count):
        found += files.feed(piece)
    spent = time.process_time() - begun
    assert found[0].complete and found[0].size == 314_572_800 and spent < 1.5


def test_mutations_break_it_and_nothing_else() -> None:
    chance, data, broken = random.Random(5), archive(ENTRIES, tarfile.PAX_FORMAT)[:9000], 0
    for _ in range(5_000):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(changed))
            if chance.random() < 0.2:
                del changed[at : at + chance.randint(1, 600)]
            else:
                changed[at] = chance.randrange(256)
        found, files = read(bytes(changed), chance.choice((512, 4096, 100_000)))
        assert all(file.sha256 == "" for file in found if not file.complete)
        broken += files.broken
    assert 1_000 < broken < 5_000


@pytest.mark.peer
@pytest.mark.parametrize("program", ["tar", "busybox tar"])
def test_what_real_tars_write_is_read(program: str, tmp_path: Path) -> None:
    argv = program.split()
    assert shutil.which(argv[0]), f"{argv[0]} is missing: apt-get install {argv[0]}"
    top = tmp_path / ("long" * 40)
    top.mkdir()
    (top / "data").write_bytes(b"d" * 70_000)
    (top / "ümläut").write_bytes(b"")
    (top / "link").symlink_to("data")
    written = subprocess.run([*argv, "cf", "-", top.name], cwd=tmp_path, capture_output=True, check=True).stdout
    found, files = read(written, 1000)
    assert not files.broken
    assert {(file.name, file.kind, file.size, file.sha256, file.link) for file in found} == {
        (f"{top.name}/", "dir", 0, "", ""),
        (f"{top.name}/data", "file", 70_000, sha(b"d" * 70_000), ""),
        (f"{top.name}/ümläut", "file", 0, sha(b""), ""),
        (f"{top.name}/link", "symlink", 0, "", "data"),
    }
