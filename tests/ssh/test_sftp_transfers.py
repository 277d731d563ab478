"""What the tape tells of files that went through SFTP: sizes, hashes, ranges, how they ended."""

from __future__ import annotations

import hashlib
import random

import pytest

from protocols.ssh import sftp_wire as wire
from protocols.ssh import transfers
from protocols.ssh.transfers import Course, Reorder
from proxy.terminal.content import Settings
from tests.ssh.sftp_stage import U32, U64, S, begun, closing, opened, packets, reading, request, writing

OK = wire.FX_OK
WRITE_NEW = wire.FXF_WRITE | wire.FXF_CREAT | wire.FXF_TRUNC


def test_a_download_is_recorded_with_its_hash() -> None:
    data = bytes(range(256)) * 300
    stage = opened(begun(), b"/x/a")
    stage.user(request(wire.FSTAT, 9, S(b"h"))).target(request(wire.ATTRS, 9, U32(1), U64(len(data))))
    for number, offset in enumerate(range(0, len(data), 10_000)):
        stage.user(reading(b"h", number, offset, 10_000))
        stage.target(request(wire.DATA, number, S(data[offset : offset + 10_000])))
    stage.now += 2.5
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    result = stage.results[-1]
    assert result.tag == "file-read /x/a" and result.size_bytes == len(data)
    assert dict(result.details) == {
        "flow": 7, "path": "/x/a", "direction": "download", "size": len(data), "seconds": 2.5, "complete": True,
        "in_order": True, "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert stage.done[-1].permit.command is stage.commands[0]
    assert [code for code, _ in packets(stage.down_untaped)] == [wire.DATA] * 8


def test_replies_in_any_order_are_hashed_in_the_order_of_the_file() -> None:
    data = bytes(range(200)) * 100
    stage = opened(begun(), b"/x/a")
    offsets = list(range(0, len(data), 1000))
    for number, offset in enumerate(offsets):
        stage.user(reading(b"h", number, offset, 1000))
    for number in [3, 1, 0, 2, *reversed(range(4, len(offsets)))]:
        stage.target(request(wire.DATA, number, S(data[offsets[number] : offsets[number] + 1000])))
    stage.user(reading(b"h", 1, len(data), 1000)).target(wire.status(1, wire.FX_EOF, ""))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    assert stage.results[-1].details["sha256"] == hashlib.sha256(data).hexdigest()
    assert stage.results[-1].details["complete"] is True


def test_a_prefetch_that_is_overtaken_by_small_reads_keeps_the_hash() -> None:
    """paramiko's reader sees all requests answered while its thread has more to send, and reads the rest itself."""
    data = bytes(range(251)) * 600
    size = len(data)
    large = [(offset, min(32_768, size - offset)) for offset in range(0, size, 32_768)]
    small = [(offset, min(8_192, size - offset)) for offset in range(65_536, size, 8_192)]
    asked = [*large[:2], small[0], large[2], *small[1:3], large[3], small[3], large[4], *small[4:]]
    stage = opened(begun(), b"/x/a")
    stage.user(request(wire.FSTAT, 9, S(b"h"))).target(request(wire.ATTRS, 9, U32(1), U64(size)))
    for number, (offset, length) in enumerate(asked):
        stage.user(reading(b"h", number, offset, length))
        stage.target(request(wire.DATA, number, S(data[offset : offset + length])))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    details = stage.results[-1].details
    assert details["sha256"] == hashlib.sha256(data).hexdigest()
    assert details["in_order"] is True and details["complete"] is True
    assert details["repeated"] == size - 65_536 and details["size"] == 2 * size - 65_536


def test_a_part_of_a_file_has_no_hash() -> None:
    stage = opened(begun(), b"/x/a")
    stage.user(reading(b"h", 1, 5000, 10), reading(b"h", 2, 5010, 10), reading(b"h", 3, 10, 5))
    stage.target(request(wire.DATA, 1, S(b"0123456789")), request(wire.DATA, 2, S(b"0123456789")))
    stage.target(request(wire.DATA, 3, S(b"01234")))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    details = stage.results[-1].details
    assert details["in_order"] is False and "sha256" not in details and details["complete"] is False
    assert details["ranges"] == [[10, 15], [5000, 5020]] and details["size"] == 25


def test_an_upload_is_recorded_with_its_hash() -> None:
    stage = opened(begun(), b"/x/a", flags=WRITE_NEW)
    stage.user(writing(b"h", 2, 6, b"world"), writing(b"h", 1, 0, b"hello "))
    stage.target(wire.status(1, OK, ""), wire.status(2, OK, ""))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    details = stage.results[-1].details
    assert details["sha256"] == hashlib.sha256(b"hello world").hexdigest()
    assert (details["direction"], details["size"], details["complete"]) == ("upload", 11, True)
    assert [code for code, _ in packets(stage.up_untaped)] == [wire.WRITE] * 2


def test_what_the_target_did_not_take_is_not_counted() -> None:
    stage = opened(begun(), b"/x/a", flags=WRITE_NEW)
    stage.user(writing(b"h", 1, 0, b"hello "), writing(b"h", 2, 6, b"world"))
    stage.target(wire.status(1, OK, ""), wire.status(2, wire.FX_FAILURE, "disk full"))
    stage.user(closing(b"h", 9)).target(wire.status(9, wire.FX_FAILURE, ""))
    details = stage.results[-1].details
    assert "sha256" not in details and details["complete"] is False
    assert (details["size"], details["failed"]) == (6, 5) and stage.results[-1].error == {"message": "failure"}


@pytest.mark.parametrize(
    ("flags", "complete", "hashed"),
    [(WRITE_NEW, True, True), (wire.FXF_WRITE, False, True), (wire.FXF_WRITE | wire.FXF_APPEND, False, False),
     (wire.FXF_WRITE | wire.FXF_CREAT | wire.FXF_EXCL, True, True)],
)  # fmt: skip
def test_an_upload_into_an_old_file_is_not_the_whole_file(flags: int, complete: bool, hashed: bool) -> None:
    stage = opened(begun(), b"/x/a", flags=flags)
    stage.user(writing(b"h", 1, 0, b"data")).target(wire.status(1, OK, ""))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    details = stage.results[-1].details
    assert (details["complete"], "sha256" in details) == (complete, hashed)


@pytest.mark.parametrize(("size", "status", "complete"), [(5, OK, True), (4, OK, False), (6, OK, False), (5, 4, False)])
def test_an_upload_that_cuts_the_old_file_where_it_ends_is_whole(size: int, status: int, complete: bool) -> None:
    """OpenSSH's scp opens without truncating, and sets the size when it is through."""
    stage = opened(begun(), b"/x/a", flags=wire.FXF_WRITE | wire.FXF_CREAT)
    stage.user(writing(b"h", 1, 0, b"12345")).target(wire.status(1, OK, ""))
    stage.user(request(wire.FSETSTAT, 2, S(b"h"), U32(1), U64(size)))
    stage.target(wire.status(2, status, ""))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    details = stage.results[-1].details
    assert (details["complete"], details["sha256"]) == (complete, hashlib.sha256(b"12345").hexdigest())


def test_what_is_open_at_the_end_is_recorded_as_incomplete() -> None:
    stage = opened(opened(begun(), b"/x/a", flags=WRITE_NEW), b"/x/b", b"g")
    stage.user(writing(b"h", 1, 0, b"data")).target(wire.status(1, OK, ""))
    stage.user(closing(b"g", 2), request(wire.LSTAT, 3, S(b"/x/c")))
    stage.end()
    assert [(result.tag, result.details.get("complete")) for result in stage.results] == [
        ("file-read /x/b", False),
        ("closed", None),
        ("file-write /x/a", False),
    ]
    assert stage.results[-1].error == {"message": "the channel was closed"}
    stage.end()
    assert len(stage.results) == 3


def test_contents_are_on_the_tape_where_they_are_asked_for() -> None:
    settings = Settings(7, "box", "alice", ("/x/*.sql",))
    stage = opened(begun(settings=settings), b"/x/a.sql", flags=WRITE_NEW | wire.FXF_READ)
    stage.user(writing(b"h", 1, 0, b"data"), reading(b"h", 2, 0, 4))
    stage.target(wire.status(1, OK, ""), request(wire.DATA, 2, S(b"data")))
    assert not stage.up_untaped and not stage.down_untaped
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    assert stage.results[-1].details["also_read"] == 4


def test_a_listing_counts_its_entries() -> None:
    stage = begun().user(request(wire.OPENDIR, 1, S(b"/x"))).target(request(wire.HANDLE, 1, S(b"d")))
    entry = S(b"a") + S(b"-rw a") + U32(0)
    stage.user(request(wire.READDIR, 2, S(b"d"))).target(request(wire.NAME, 2, U32(2), entry, entry))
    stage.user(request(wire.READDIR, 3, S(b"d"))).target(wire.status(3, wire.FX_EOF, ""))
    stage.user(closing(b"d", 4)).target(wire.status(4, OK, ""))
    assert (stage.results[-1].tag, stage.results[-1].row_count) == ("file-list /x", 2)
    assert not stage.down_untaped


@pytest.mark.parametrize(("code", "tag"), [(0, "ok"), (2, "no such file"), (3, "permission denied"), (77, "status 77")])
def test_the_targets_answer_is_the_result(code: int, tag: str) -> None:
    stage = begun().user(request(wire.REMOVE, 1, S(b"/x/a"))).target(wire.status(1, code, "Text"))
    assert [result.tag for result in stage.results] == [tag]
    assert stage.results[0].details == {"flow": 7, "path": "/x/a"}
    assert stage.down == wire.status(1, code, "Text")


# -- the reorder buffer -------------------------------------------------------------------------------------


def course(*pieces: tuple[int, bytes], reorder: Reorder | None = None) -> Course:
    made = Course(reorder or Reorder())
    for offset, data in pieces:
        made.add(offset, memoryview(data))
    return made


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_empty_file_has_a_hash() -> None:
    assert course().end() == sha(b"")


def read_course(*pieces: tuple[int, bytes], reorder: Reorder | None = None) -> Course:
    made = Course(reorder or Reorder(), repeats=True)
    for offset, data in pieces:
        made.add(offset, memoryview(data))
    return made


@pytest.mark.parametrize(
    "again",
    [
        [(0, b"abcdef")],
        [(0, b"ab")],  # the header, and no more
        [(0, b"a"), (1, b"b"), (2, b"cd")],
        [(2, b"cd")],
        [(2, b"c"), (3, b"def")],
        [(4, b"ef"), (2, b"cd"), (4, b"ef")],
        [(2, b"cdefgh")],  # and on
        [(4, b"efgh"), (6, b"gh"), (8, b"ij"), (0, b"abcdefghij")],
    ],
)
def test_what_is_read_twice_and_is_the_same_keeps_its_hash(again: list[tuple[int, bytes]]) -> None:
    made = read_course((0, b"ab"), (2, b"cd"), (4, b"ef"), *again)
    assert made.end() == sha(b"abcdefghij"[: max([6, *(at + len(data) for at, data in again)])])
    assert made.total == 6 + sum(len(data) for _, data in again)


@pytest.mark.parametrize(
    "again",
    [
        [(0, b"abcdeF")],
        [(0, b"aB")],
        [(2, b"CD"), (4, b"ef")],
        [(2, b"cDefgh")],
        [(2, b"c")],  # may be the same: nobody compared it
        [(3, b"def")],
        [(2, b"c"), (0, b"ab")],
        [(2, b"cd"), (5, b"f")],
        [(2, b"C"), (2, b"cd")],
    ],
)
def test_what_is_read_twice_and_may_differ_has_no_hash(again: list[tuple[int, bytes]]) -> None:
    made = read_course((0, b"ab"), (2, b"cd"), (4, b"ef"), *again)
    assert made.end() is None and made.ranges == [[0, max([6, *(at + len(data) for at, data in again)])]]


def test_two_readers_of_one_file_in_any_turn_have_its_hash() -> None:
    data = bytes(number * 7 % 256 for number in range(400))
    for seed in range(200):
        turn = random.Random(seed)
        at, made = [0, 0], read_course()
        while min(at) < len(data):
            reader = turn.choice([0, 0, 1]) if max(at) < len(data) else at.index(min(at))
            piece = data[at[reader] : at[reader] + (32, 8)[reader]]
            made.add(at[reader], memoryview(piece))
            at[reader] += len(piece)
        assert (made.end(), made.total) == (sha(data), 2 * len(data)), seed


@pytest.mark.parametrize(("behind", "hashed"), [(-1, True), (0, True), (1, False)])
def test_a_second_reading_begins_not_too_far_behind(behind: int, hashed: bool) -> None:
    count = transfers.MARKS_LIMIT + behind + 1
    made = read_course(*((number, b"x") for number in range(count)), (1, b"x" * (count - 1)))
    assert made.end() == (sha(b"x" * count) if hashed else None)


@pytest.mark.parametrize(("marks", "hashed"), [(1, False), (2, True), (3, True), (0, False)])
def test_files_of_one_channel_share_the_marks(marks: int, hashed: bool) -> None:
    reorder = Reorder(left_marks=marks + 3)
    other = read_course((0, b"x"), (1, b"x"), (2, b"x"), reorder=reorder)
    made = read_course((0, b"ab"), (2, b"cd"), (4, b"ef"), (2, b"cdef"), reorder=reorder)
    assert made.end() == (sha(b"abcdef") if hashed else None)
    other.lose()
    made.lose()
    assert reorder.left_marks == marks + 3, "they were not given back"


def test_what_is_written_twice_has_no_hash_even_if_it_is_the_same() -> None:
    """The file may have been cut in between."""
    stage = opened(begun(), b"/x/a", flags=WRITE_NEW)
    stage.user(writing(b"h", 1, 0, b"data"), writing(b"h", 2, 0, b"data"))
    stage.target(wire.status(1, OK, ""), wire.status(2, OK, ""))
    stage.user(closing(b"h", 9)).target(wire.status(9, OK, ""))
    details = stage.results[-1].details
    assert "sha256" not in details and details["complete"] is False


def test_what_comes_twice_has_no_hash() -> None:
    assert course((0, b"ab"), (0, b"ab")).end() is None
    assert course((2, b"cd"), (2, b"cd"), (0, b"ab")).end() is None
    assert course((1, b"bc"), (0, b"ab")).end() is None


def test_a_gap_has_no_hash() -> None:
    assert course((0, b"ab"), (3, b"d")).end() is None


@pytest.mark.parametrize(("size", "hashed"), [(7, True), (8, True), (9, False)])
def test_the_reorder_buffer_is_bounded_in_bytes(size: int, hashed: bool) -> None:
    reorder = Reorder(left_bytes=8)
    made = course((1, b"b" * size), (0, b"a"), reorder=reorder)
    assert (made.end() is not None) == hashed
    assert reorder.left_bytes == 8, "it was not given back"


@pytest.mark.parametrize(("pieces", "hashed"), [(2, True), (3, True), (4, False)])
def test_the_reorder_buffer_is_bounded_in_pieces(pieces: int, hashed: bool) -> None:
    reorder = Reorder(left_pieces=3)
    made = course(*((number, b"x") for number in range(pieces, -1, -1)), reorder=reorder)
    assert (made.end() is not None) == hashed
    assert reorder.left_pieces == 3


def test_files_of_one_channel_share_the_reorder_buffer() -> None:
    reorder = Reorder(left_bytes=8)
    one = course((1, b"12345"), reorder=reorder)
    two = course((1, b"12345"), reorder=reorder)
    one.add(0, memoryview(b"0"))
    two.add(0, memoryview(b"0"))
    assert (one.end(), two.end()) == (sha(b"012345"), None)


def test_ranges_are_merged_and_bounded() -> None:
    assert course((4, b"ef"), (0, b"ab"), (2, b"cd")).ranges == [[0, 6]]
    scattered = course(*((2 * number, b"x") for number in range(transfers.RANGES_LIMIT, 0, -1)))
    assert scattered.ranges is None
    assert scattered.total == transfers.RANGES_LIMIT
