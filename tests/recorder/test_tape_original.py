"""The original track: what masks changed, as it was, for the auditors' eyes only (promise 3)."""

from __future__ import annotations

import asyncio
import io
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from proxy.core.errors import TapeError
from proxy.core.events import CellMask, Column, Command, Frame, Output, Remark, RemarkFields, Result, Rows
from proxy.core.gate import Pending
from proxy.core.parties import Identity, Target
from proxy.core.session import Permit, Session
from proxy.core.stream import memory_pair
from proxy.core.verdict import Allow, Mask, Verdict
from proxy.core.writers import UserWriter
from recorder.cipher import AuditorKey, Recipient
from recorder.errors import Unreadable
from recorder.format import PAYLOAD_LIMIT, Kind, Record, fields
from recorder.reader import TapeReader
from recorder.tape import OUT, Recorder, Tape
from recorder.verify import verify
from tests.fakes import FakeMasker, FakeTape, fake_gate
from tests.recorder.tapes import KEY, recorder
from tests.recorder.test_tape_encrypted import everything

CANARY = b"canary-mail@acme.example"
MASK = Mask("no-mail", ("*.mail",))
MAIL, NAME = Column("mail", ("s.t.mail",)), Column("name", ("s.t.name",))
KEEPER, AUDITOR = AuditorKey(X25519PrivateKey.generate()), AuditorKey(X25519PrivateKey.generate())


def shop(**more: Any) -> Target:
    return Target("shop", "toy", **{"original_to": (AUDITOR.recipient,), **more})


def rows(*cells: bytes, column: Column = MAIL) -> Rows:
    def rewrite(masks: Sequence[CellMask | None]) -> bytes:
        [mask] = masks
        return b",".join(mask if isinstance(mask, bytes) else cell for cell in cells) + b"\n"

    return Rows((column,), b",".join(cells) + b"\n", rewrite)


def remark(text: bytes) -> Remark:
    def rewrite(said: RemarkFields) -> bytes:
        return b"! " + said["message"].encode()

    return Remark({"message": text.decode()}, b"! " + text, rewrite)


class Stage:
    """A session on a real recorder, with a mask on the column mail for every command that begins with S."""

    def __init__(self, of: Recorder, target: Target) -> None:
        def rule(command: Command) -> Verdict:
            return Allow("all", (MASK,) if command.text.startswith("S") else ())

        self.gate = fake_gate(rule, target, masker=FakeMasker("mail"), recorder=of)
        self.tape = of.open(
            protocol="toy",
            identity={"subject": "ana"},
            target=target.name,
            mode=target.recording,
            recipients=target.encrypt_to,
        )
        self.session = Session(self.gate, Identity("ana"), target, self.tape)
        self.end, self.user = memory_pair()
        self.out = UserWriter(self.end, self.session)

    async def ask(self, text: str) -> Permit:
        async def on_hold(pending: Pending) -> None:
            raise AssertionError

        return await self.session.decide(Command("toy", "SELECT", "read", text, text.encode()), on_hold)


def original_of(path: Path) -> Path:
    return path.with_name(path.name.replace(".000.", ".original.000."))


def said(record: Record) -> dict[str, Any]:
    return fields(record.payload)


async def play(directory: Path, target: Target) -> Path:
    of = recorder(directory)
    stage = Stage(of, target)
    out = stage.out
    first = await stage.ask("SELECT mail")
    out.send(first, rows(CANARY, CANARY + b"2"))
    out.send(first, Output("out", b"plain output\n"))
    out.send(first, rows(b"ana", column=NAME))
    stage.session.result(first, Result("SELECT 1", ("mail",), (("MASKED",),), 1, 10))
    second = await stage.ask("UPDATE")
    out.send(second, rows(b"unmasked, as no rule masks it"))
    out.send(None, remark(CANARY))
    third = await stage.ask("SELECT again")
    out.send(third, remark(b"a key " + CANARY))
    out.send(third, rows(CANARY * 40_000))
    out.send(None, Frame(b"plumbing"))
    await out.flush()
    await stage.session.close("closed", "bye")
    of.close()
    shown = await stage.user.read(1 << 20)
    assert CANARY not in shown
    assert b"MASKED,MASKED\n" in shown
    return stage.tape.path


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("mode", ["durable", "written", "strict"])
def test_both_tracks_line_up(tmp_path: Path, encrypted: bool, mode: Literal["durable", "written", "strict"]) -> None:
    target = shop(recording=mode, encrypt_to=(KEEPER.recipient,) if encrypted else ())
    path = asyncio.run(play(tmp_path, target))
    main = {r.n: r for r in TapeReader(path, [KEEPER]).records()}
    original = list(TapeReader(original_of(path), [AUDITOR]).records())
    marks = [said(r) for r in original if r.kind == Kind.MARK]
    commands = [n for n, r in main.items() if r.kind == Kind.COMMAND]
    assert [mark.get("command") for mark in marks] == [commands[0], None, commands[2], commands[2]]
    assert [main[mark["record"]].payload for mark in marks] == [b"MASKED,MASKED\n", b"! ?", b"! ?", b"MASKED\n"]
    assert all((main[mark["record"]].kind, main[mark["record"]].channel) == (Kind.WIRE, OUT) for mark in marks)
    assert [mark["records"] for mark in marks] == [1, 1, 1, 1]
    wire = [r for r in original if r.kind == Kind.WIRE]
    assert len(wire) == 3 + -(-len(CANARY * 40_000 + b"\n") // PAYLOAD_LIMIT)
    assert wire[0].payload == CANARY + b"," + CANARY + b"2\n"
    assert wire[1].payload == b"! " + CANARY
    assert b"".join(r.payload for r in wire[3:]) == CANARY * 40_000 + b"\n"
    assert said(original[-1]) == {"status": "closed", "reason": "bye"}
    # The same clock: an instant on one track is the same instant on the other.
    one, two = TapeReader(path).header.map_, TapeReader(original_of(path)).header.map_
    assert (one["sid"], one["wall0_ns"], one["mono0_ns"]) == (two["sid"], two["wall0_ns"], two["mono0_ns"])
    assert (one["track"], two["track"]) == ("main", "original")
    marked = [said(r) for r in main.values() if r.kind == Kind.MARK]
    assert [(mark["label"], AUDITOR.id in mark["text"]) for mark in marked] == [("original", True)]
    for decrypt in ([], [KEEPER, AUDITOR]):
        found = verify(tmp_path, KEY.public_keys(), decrypt)
        assert (found.status, [tape.track for tape in found.tapes]) == ("verified", ["main", "original"]), found


def test_an_unmasked_byte_is_nowhere_but_under_the_auditors_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    path = asyncio.run(play(tmp_path, shop(encrypt_to=(KEEPER.recipient,))))
    data = everything(tmp_path)
    assert len(data) > 1000
    assert CANARY not in data
    assert CANARY[:12] not in data
    for keys in ([], [KEEPER], [AUDITOR]):
        reader = TapeReader(path, keys)
        try:
            content = b"".join(r.payload for r in reader.records())
        except Unreadable:
            assert keys != [KEEPER]
        else:
            assert keys == [KEEPER]
            assert CANARY not in content
    with pytest.raises(Unreadable, match=AUDITOR.id):  # who may read the tape may not read the original
        list(TapeReader(original_of(path), [KEEPER]).records())
    shown = capfd.readouterr()
    assert CANARY.decode() not in caplog.text + shown.out + shown.err


def test_exports_of_the_tape_do_not_hold_it(tmp_path: Path) -> None:
    from recorder.export import export_tape

    path = asyncio.run(play(tmp_path, shop()))
    for form in ("asciicast-v2", "asciicast-v3", "txt", "jsonl"):
        out = io.StringIO()
        export_tape(TapeReader(path, [AUDITOR]), form, out)
        assert "MASKED" in out.getvalue()
        assert CANARY.decode() not in out.getvalue()


def test_without_auditors_there_is_no_second_track(tmp_path: Path) -> None:
    path = asyncio.run(play(tmp_path, shop(original_to=())))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert CANARY not in everything(tmp_path)


def test_where_no_mask_changed_anything_there_is_none(tmp_path: Path) -> None:
    async def scenario() -> Path:
        of = recorder(tmp_path)
        stage = Stage(of, shop())
        permit = await stage.ask("SELECT name")
        stage.out.send(permit, rows(b"ana", column=NAME))
        stage.out.send(permit, rows(b"MASKED"))  # what the mask leaves as it was
        await stage.out.flush()
        await stage.session.close("closed")
        of.close()
        return stage.tape.path

    path = asyncio.run(scenario())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_crash_leaves_both_tracks_to_whom_they_are_for(tmp_path: Path) -> None:
    live, after = tmp_path / "live", tmp_path / "after"

    async def scenario() -> Path:
        of = recorder(live)
        stage = Stage(of, shop(recording="strict", encrypt_to=(KEEPER.recipient,)))
        permit = await stage.ask("SELECT mail")
        stage.out.send(permit, rows(CANARY))
        await stage.out.flush()
        shutil.copytree(live, after)  # what a kill leaves
        await stage.session.close("closed")
        of.close()
        return stage.tape.path

    path = after / asyncio.run(scenario()).relative_to(live)
    for file in after.rglob("*.gct"):  # a power cut: what was seen is in the log
        file.unlink()
    for file in after.rglob("*.keys"):
        file.unlink()
    Recorder(after, KEY, node="node-1").recover()
    found = verify(after, KEY.public_keys(), [KEEPER, AUDITOR])
    assert [(tape.track, tape.status, tape.content, tape.ended) for tape in found.tapes] == [
        ("main", "incomplete", "checked", "crashed"),
        ("original", "incomplete", "checked", "crashed"),
    ]
    [mark, wire] = TapeReader(original_of(path), [AUDITOR]).records()
    assert (mark.kind, wire.payload) == (Kind.MARK, CANARY + b"\n")
    main = {r.n: r.payload for r in TapeReader(path, [KEEPER]).records()}
    assert main[said(mark)["record"]] == b"MASKED\n"
    assert CANARY not in everything(tmp_path)


# -- failures -----------------------------------------------------------------------------------------------


class FailingOriginal(Recorder):
    """Opens fake original tapes; the call named by fail raises."""

    def __init__(self, directory: Path, fail: str) -> None:
        super().__init__(directory, KEY)
        self.fail = fail
        self.original = FakeTape()

    def open_original(self, tape: Tape, recipients: Sequence[Recipient]) -> Tape:
        if self.fail == "open":
            raise TapeError("no room")
        tapes = self

        class Failing(FakeTape):
            async def written(self) -> None:
                if tapes.fail == "written":
                    raise TapeError("no room")
                await super().written()

            async def close(self, status: Literal["closed", "failed"], reason: str = "") -> None:
                if tapes.fail == "close":
                    raise TapeError("no room")
                for _ in range(10):  # a disk takes its time
                    await asyncio.sleep(0)
                await super().close(status, reason)

        self.original = Failing(fail=self.fail == "append")
        return self.original


@pytest.mark.parametrize("fail", ["open", "append", "written"])
def test_if_the_original_fails_nothing_reaches_the_user(tmp_path: Path, fail: str) -> None:
    async def scenario() -> None:
        of = FailingOriginal(tmp_path, fail)
        stage = Stage(of, shop())
        permit = await stage.ask("SELECT mail")
        with pytest.raises(TapeError):
            stage.out.send(permit, rows(CANARY))
            await stage.out.flush()
        await stage.end.close()
        assert await stage.user.read(100) == b""
        await stage.session.close("failed", "recording failed")
        found = verify(tmp_path, KEY.public_keys())
        assert [(tape.status, tape.ended) for tape in found.tapes] == [("verified", "failed")]
        of.close()

    asyncio.run(scenario())


def test_each_track_is_sealed_if_the_other_fails(tmp_path: Path) -> None:
    async def scenario(fail: str) -> None:
        of = FailingOriginal(tmp_path / fail, fail)
        stage = Stage(of, shop())
        permit = await stage.ask("SELECT mail")
        stage.out.send(permit, rows(CANARY))
        await stage.out.flush()
        assert of.original.journal == [("written", 2)]
        if fail == "main":
            with pytest.raises(TapeError):
                stage.tape.append(OUT, Kind.COMMAND, bytes(64 << 20))  # above its limit: the tape ends
        with pytest.raises(TapeError):
            await stage.session.close("closed", "bye")
        assert (of.original.closed == ("closed", "bye")) == (fail == "main")  # and not later, by itself
        await stage.session.close("closed", "bye")  # twice is safe
        of.close()

    asyncio.run(scenario("close"))
    found = verify(tmp_path / "close", KEY.public_keys())
    assert [(tape.status, tape.ended) for tape in found.tapes] == [("verified", "closed")]
    asyncio.run(scenario("main"))


def test_the_tape_of_a_target_with_keys_is_encrypted_or_there_is_no_session(tmp_path: Path) -> None:
    """A protocol that forgets to hand the recipients on cannot open a session."""
    of = recorder(tmp_path)
    target = shop(encrypt_to=(KEEPER.recipient,))

    async def scenario() -> None:
        tape = of.open(protocol="toy", identity={"subject": "ana"}, target="shop", mode="durable")
        with pytest.raises(TapeError, match="encrypted"):
            Session(fake_gate(), Identity("ana"), target, tape)
        await tape.close("failed")
        of.close()

    asyncio.run(scenario())


def test_an_original_needs_a_reader(tmp_path: Path) -> None:
    of = recorder(tmp_path)

    async def scenario() -> None:
        tape = of.open(protocol="toy", identity={"subject": "ana"}, target="shop", mode="durable")
        with pytest.raises(TapeError):
            of.open_original(tape, [])
        await tape.close("closed")
        of.close()

    asyncio.run(scenario())
