"""The PostgreSQL conversation as a written one: replies, refusals in place, names, COPY, masks. No sockets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocols.postgres import wire
from protocols.postgres.startup import encode_error, error_fields
from proxy.core.errors import TargetPeerError, UserPeerError
from proxy.core.events import Command
from proxy.core.gate import Decision
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from recorder.tape import GATE, OUT, USER, Kind
from tests.fakes import FakeApprovals, FakeMasker, fake_gate
from tests.playbook import Play, cuts

Z = wire.message(ord("Z"), b"I")
Z_ERROR = wire.message(ord("Z"), b"E")
PARSED, BOUND, CLOSED = wire.message(ord("1"), b""), wire.message(ord("2"), b""), wire.message(ord("3"), b"")
NO_DATA = wire.message(ord("n"), b"")
SYNC = wire.message(wire.SYNC, b"")
SYNTAX = encode_error({"S": "ERROR", "V": "ERROR", "C": "42601", "M": "syntax error", "P": "1"})
MASK = Mask("pii", columns=("*.*.email",))


def tag(text: str) -> bytes:
    return wire.message(ord("C"), text.encode() + b"\0")


def row(*cells: bytes | None) -> bytes:
    body = struct.pack(">h", len(cells))
    for cell in cells:
        body += struct.pack(">i", -1) if cell is None else struct.pack(">i", len(cell)) + cell
    return wire.message(ord("D"), body)


def description(*names: str) -> bytes:
    body = struct.pack(">h", len(names))
    for name in names:
        body += name.encode() + b"\0" + wire.FIELD.pack(16400, 1, 25, -1, -1, 0)
    return wire.message(ord("T"), body)


def query(text: str) -> bytes:
    return wire.encode_query(text.encode())


def parse(name: str, text: str) -> bytes:
    return wire.encode_parse(name.encode(), text.encode())


def bind(portal: str, statement: str) -> bytes:
    return wire.encode_bind(portal.encode(), statement.encode())


def execute(portal: str) -> bytes:
    return wire.encode_execute(portal.encode())


def deny_deletes(command: Command) -> Verdict:
    texts = [part.text for part in command.parts] or [command.text]
    return Deny("no-delete", "not here") if any("DELETE" in text for text in texts) else Allow("rest")


def mask_all(command: Command) -> Verdict:
    return Allow("masked", (MASK,))


def play(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_query_passes_byte_for_byte_however_it_is_cut() -> None:
    asked = query("SELECT 1")
    answer = description("a") + row(b"1") + row(None) + tag("SELECT 2") + Z

    async def run() -> None:
        for up in cuts(asked):
            for down in cuts(answer):
                session = Play()
                assert b"".join([await session.user(piece) for piece in up]) == asked
                assert b"".join([await session.target(piece) for piece in down]) == answer
                (result,) = session.results
                assert (result.tag, result.columns, result.rows, result.row_count) == (
                    "SELECT 2", ("a",), (("1",), (None,)), 2,
                )  # fmt: skip
                assert session.conversation.pipeline.peek() is None

    play(run)


def test_everything_is_on_the_tape_before_it_leaves() -> None:
    async def run() -> None:
        session = Play()
        await session.user(query("SELECT 1"))
        tape: Any = session.tape
        kinds = [kind for _, kind, _ in tape.records]
        assert kinds == [Kind.WIRE, Kind.COMMAND, Kind.VERDICT]
        assert tape.journal == [("commit", 3)]
        await session.target(tag("SELECT 0") + Z)
        assert tape.wire(OUT) == tag("SELECT 0") + Z
        assert tape.wire(USER) == query("SELECT 1")

    play(run)


def test_denied_query_is_replaced_and_its_error_rewritten() -> None:
    async def run() -> None:
        session = Play(fake_gate(deny_deletes))
        sent = await session.user(query("DELETE FROM people"))
        assert sent == query("gatecast_denied /* token1 */")
        seen = await session.target(SYNTAX + Z)
        length = struct.unpack(">I", seen[1:5])[0]
        fields = error_fields(seen[5 : 1 + length])
        assert fields["C"] == "42501" and "no-delete" in fields["M"] and "not here" in fields["M"]
        assert "P" not in fields and fields["S"] == "ERROR"
        assert seen.endswith(Z)
        tape: Any = session.tape
        assert tape.of(Kind.VERDICT) == [{"command": 1, "rule": "no-delete", "verdict": "deny", "reason": "not here"}]
        assert tape.wire(GATE) == sent and tape.wire(USER) == query("DELETE FROM people")

    play(run)


def test_denied_parse_in_a_pipeline_leaves_one_error_and_one_ready() -> None:
    async def run() -> None:
        session = Play(fake_gate(deny_deletes))
        one = parse("", "INSERT 1") + bind("", "") + execute("")
        two = parse("", "DELETE x") + bind("", "") + execute("")
        sent = await session.user(one + two + SYNC)
        assert sent.startswith(one + wire.encode_parse(b"", b"gatecast_denied /* token1 */"))
        assert b"DELETE" not in sent and sent.endswith(SYNC)
        seen = await session.target(PARSED + BOUND + tag("INSERT 0 1") + SYNTAX + Z)
        assert seen.startswith(PARSED + BOUND + tag("INSERT 0 1")) and seen.endswith(Z)
        assert seen.count(b"C42501\0") == 1
        assert session.conversation.pipeline.peek() is None

    play(run)


def test_bind_to_a_denied_parse_is_never_decided_by_an_older_text() -> None:
    """The name of a refused unnamed Parse means nothing afterwards, whatever it meant before."""

    async def run() -> None:
        session = Play(fake_gate(deny_deletes))
        await session.user(parse("", "SELECT 1") + SYNC)
        await session.target(PARSED + Z)
        await session.user(parse("", "DELETE x") + SYNC)
        await session.target(SYNTAX + Z)
        sent = await session.user(bind("", "") + SYNC)
        assert sent == wire.encode_bind(b"", b"token2") + SYNC
        error = encode_error(
            {"S": "ERROR", "V": "ERROR", "C": "26000", "M": 'prepared statement "token2" does not exist'}
        )
        seen = await session.target(error + Z)
        assert b"unnamed prepared statement does not exist" in seen and b"token2" not in seen

    play(run)


def test_failed_parse_of_a_taken_name_keeps_the_old_meaning() -> None:
    """A pipelined Parse that the target rejects must not leave its text behind for a later Bind."""

    async def run() -> None:
        texts: list[str] = []

        def rule(command: Command) -> Verdict:
            texts.append(command.text)
            return Allow("all")

        session = Play(fake_gate(rule))
        await session.user(parse("s", "DELETE x") + SYNC)
        await session.target(PARSED + Z)
        await session.user(parse("s", "SELECT 1") + SYNC + parse("s", "SELECT 2") + SYNC)
        duplicate = encode_error({"S": "ERROR", "V": "ERROR", "C": "42P05", "M": "exists"})
        await session.target(duplicate + Z + duplicate + Z)
        texts.clear()
        await session.user(bind("", "s"))
        assert texts == ["DELETE x"]

    play(run)


def test_skipped_messages_are_taken_back_and_not_sent() -> None:
    async def run() -> None:
        session = Play()
        await session.user(parse("a", "SELECT 1") + bind("p", "a"))
        await session.target(SYNTAX)
        assert await session.user(bind("p", "a") + execute("p")) == b""
        assert session.conversation.pipeline.skipping
        assert await session.user(SYNC) == SYNC
        assert await session.target(Z) == Z
        assert session.conversation.pipeline.prepared.get(b"a") is None
        assert session.conversation.pipeline.portals.get(b"p") is None
        assert [result.tag for result in session.results] == ["", "SKIPPED"]

    play(run)


def test_query_behind_a_failed_parse_is_skipped_by_the_target() -> None:
    """Parse(bad) Query Sync Query answers E Z T D C Z (postgres note 4)."""

    async def run() -> None:
        session = Play()
        await session.user(parse("", "bad") + query("SELECT 1") + SYNC + query("SELECT 2"))
        answer = SYNTAX + Z + description("a") + row(b"2") + tag("SELECT 1") + Z
        assert await session.target(answer) == answer
        assert session.conversation.pipeline.peek() is None

    play(run)


@pytest.mark.parametrize("early_end", [False, True])
def test_copy_in_owes_one_ready_however_syncs_are_sent(early_end: bool) -> None:
    async def run() -> None:
        session = Play()
        first = parse("", "COPY t FROM STDIN") + bind("", "") + execute("") + SYNC
        data = wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DONE, b"") + SYNC
        copy_in = wire.message(ord("G"), b"\0\0\1\0\0")
        if early_end:
            await session.user(first + data)
            seen = await session.target(PARSED + BOUND + copy_in + tag("COPY 1") + Z)
        else:
            await session.user(first)
            seen = await session.target(PARSED + BOUND + copy_in)
            assert await session.user(data) == data
            seen += await session.target(tag("COPY 1") + Z)
        assert seen == PARSED + BOUND + copy_in + tag("COPY 1") + Z
        assert session.conversation.pipeline.peek() is None

    play(run)


def test_sql_prepare_and_cursor_are_decided_as_what_they_run() -> None:
    seen: list[tuple[str, str]] = []

    def rule(command: Command) -> Verdict:
        seen.append((command.verb, command.kind))
        return Allow("all")

    async def run() -> None:
        session = Play(fake_gate(rule))
        from proxy.core.statement import Statement

        inner = Statement("DELETE", "delete", "DELETE FROM people", ("people",))
        statements = {
            "PREPARE d AS DELETE FROM people": Statement("PREPARE", "session", "PREPARE d", name="d", inner=inner),
            "EXECUTE d": Statement("EXECUTE", "execute", "EXECUTE d", name="d", opaque=True),
            "EXECUTE e": Statement("EXECUTE", "execute", "EXECUTE e", name="e", opaque=True),
        }
        session.conversation._read = lambda text: (statements[text],)
        await session.user(query("PREPARE d AS DELETE FROM people"))
        await session.user(query("EXECUTE d"))  # before the target has said that d exists
        assert seen == [("PREPARE", "session")]
        await session.target(tag("PREPARE") + Z)
        await session.user(b"")
        await session.target(tag("DELETE 1") + Z)
        await session.user(query("EXECUTE e"))
        assert seen == [("PREPARE", "session"), ("EXECUTE", "delete"), ("EXECUTE", "unknown")]

    play(run)


def test_hold_waits_at_bind_once_and_execute_follows() -> None:
    approvals = FakeApprovals()
    approvals.answer = Decision("approved", "mia@acme.com")

    def rule(command: Command) -> Verdict:
        return Hold("ask", ("group:oncall",), 60.0)

    async def run() -> None:
        session = Play(fake_gate(rule, approvals=approvals))
        asked = parse("", "UPDATE t") + bind("", "") + execute("") + SYNC
        assert await session.user(asked) == asked
        assert len(approvals.pending) == 1
        tape: Any = session.tape
        assert [entry["state"] for entry in tape.of(Kind.APPROVAL)] == ["pending", "approved"]
        states = [entry["verdict"] for entry in tape.of(Kind.VERDICT)]
        assert states == ["allow", "allow", "allow"]

    play(run)


@pytest.mark.parametrize(("outcome", "code"), [("denied", "57014"), ("expired", "57014"), ("withdrawn", "57014")])
def test_hold_not_approved_is_an_error_in_place(outcome: Any, code: str) -> None:
    approvals = FakeApprovals()
    approvals.answer = Decision(outcome, "mia@acme.com", "no")

    async def run() -> None:
        session = Play(fake_gate(lambda command: Hold("ask", ("x",), 60.0), approvals=approvals))
        assert await session.user(query("UPDATE t")) == query("gatecast_denied /* token1 */")
        seen = await session.target(SYNTAX + Z)
        fields = error_fields(seen[5 : 1 + struct.unpack(">I", seen[1:5])[0]])
        assert fields["C"] == code and "approval=ap_0" in fields["D"]

    play(run)


def test_masked_rows_are_rewritten_and_taped_masked() -> None:
    answer = description("id", "email") + row(b"1", b"ana@acme.com") + row(b"2", None) + tag("SELECT 2") + Z
    wanted = description("id", "email") + row(b"1", b"MASKED") + row(b"2", None) + tag("SELECT 2") + Z

    async def run() -> None:
        for down in cuts(answer):
            session = Play(fake_gate(mask_all, masker=FakeMasker("email")))
            await session.user(query("SELECT * FROM people"))
            assert b"".join([await session.target(piece) for piece in down]) == wanted
            tape: Any = session.tape
            assert tape.wire(OUT) == wanted
            assert session.results[0].rows == (("1", "MASKED"), ("2", None))
            assert not any(b"ana@acme" in payload for _, _, payload in tape.records)

    play(run)


def test_masks_live_as_long_as_the_statement() -> None:
    """A statement run again without Describe has no RowDescription: the gate asks for one itself, unseen."""

    async def run() -> None:
        session = Play(fake_gate(mask_all, masker=FakeMasker("email")))
        await session.user(parse("s", "SELECT email FROM people") + SYNC)
        await session.target(PARSED + Z)
        for _ in range(3):
            sent = await session.user(bind("", "s") + execute("") + SYNC)
            asks = wire.encode_named(wire.DESCRIBE, ord("P"), b"")
            assert sent == bind("", "s") + asks + execute("") + SYNC
            seen = await session.target(BOUND + description("email") + row(b"ana@acme.com") + tag("SELECT 1") + Z)
            assert seen == BOUND + row(b"MASKED") + tag("SELECT 1") + Z

    play(run)


def test_what_a_statement_was_described_as_is_not_what_its_portal_must_be() -> None:
    """A new search_path, or DDL, has the target read a prepared text anew: only the portal's description counts."""

    async def run() -> None:
        session = Play(fake_gate(mask_all, masker=FakeMasker("email")))
        describe = wire.encode_named(wire.DESCRIBE, ord("S"), b"s")
        await session.user(parse("s", "SELECT email FROM people") + describe + SYNC)
        parameters = wire.message(ord("t"), b"\0\0")
        await session.target(PARSED + parameters + description("name") + Z)
        asks = wire.encode_named(wire.DESCRIBE, ord("P"), b"")
        assert await session.user(bind("", "s") + execute("") + SYNC) == bind("", "s") + asks + execute("") + SYNC
        answer = BOUND + description("email") + row(b"a@b.c") + tag("SELECT 1") + Z
        assert await session.target(answer) == BOUND + row(b"MASKED") + tag("SELECT 1") + Z

    play(run)


def test_described_portal_needs_no_second_description() -> None:
    async def run() -> None:
        session = Play(fake_gate(mask_all, masker=FakeMasker("email")))
        asks = wire.encode_named(wire.DESCRIBE, ord("P"), b"")
        batch = parse("s", "SELECT email FROM people") + bind("", "s") + asks + execute("") + SYNC
        assert await session.user(batch) == batch
        seen = await session.target(PARSED + BOUND + description("email") + row(b"a@b.c") + tag("SELECT 1") + Z)
        assert seen == PARSED + BOUND + description("email") + row(b"MASKED") + tag("SELECT 1") + Z

    play(run)


def test_errors_and_notifications_are_masked_once_a_mask_was_met() -> None:
    async def run() -> None:
        session = Play(fake_gate(mask_all, masker=FakeMasker("email")))
        await session.user(query("INSERT x"))
        error = encode_error(
            {"S": "ERROR", "V": "ERROR", "C": "23505", "M": "dup", "D": "Key (email)=(ana@acme.com)", "q": "ana@"}
        )
        seen = await session.target(error + Z)
        assert b"ana@" not in seen and b"C23505\0" in seen
        notification = wire.encode_notification(7, b"ch", b"ana@acme.com")
        seen = await session.target(notification)
        assert seen == wire.encode_notification(7, b"ch", b"?")

    play(run)


def test_fatal_is_passed_on_and_ends_the_session() -> None:
    async def run() -> None:
        session = Play()
        fatal = encode_error({"S": "FATAL", "V": "FATAL", "C": "57P01", "M": "bye"})
        assert await session.target(fatal) == fatal
        assert session.fatal

    play(run)


def test_long_values_go_through_in_pieces() -> None:
    value = b"x" * 300_000
    body = b"\0s\0" + b"\0\0" + b"\0\1" + struct.pack(">i", len(value)) + value + b"\0\0"
    message = wire.message(wire.BIND, body)

    async def run() -> None:
        session = Play()
        await session.user(parse("s", "INSERT x") + SYNC)
        await session.target(PARSED + Z)
        sent = b""
        for start in range(0, len(message), 50_000):
            sent += await session.user(message[start : start + 50_000])
        assert sent == message
        big = row(b"y" * 500_000)
        await session.user(execute("") + SYNC)
        seen = b""
        answer = BOUND + big + tag("SELECT 1") + Z
        for start in range(0, len(answer), 60_000):
            seen += await session.target(answer[start : start + 60_000])
        assert seen == answer

    play(run)


def test_refused_long_bind_drops_all_of_its_pieces() -> None:
    def rule(command: Command) -> Verdict:
        return Allow("x") if command.prepares else Deny("no", "no")

    value = b"x" * 300_000
    body = b"\0s\0" + b"\0\0" + b"\0\1" + struct.pack(">i", len(value)) + value + b"\0\0"

    async def run() -> None:
        session = Play(fake_gate(rule))
        await session.user(parse("s", "INSERT x"))
        message = wire.message(wire.BIND, body) + SYNC
        sent = b""
        for start in range(0, len(message), 70_000):
            sent += await session.user(message[start : start + 70_000])
        assert sent == wire.encode_bind(b"", b"token1") + SYNC

    play(run)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\0\0\0\4", b"Q\0\0\0\3", b"Q\0\0\0\7a\0b", b"Z\0\0\0\5I", b"E" + struct.pack(">I", 20_000), b"p\0\0\0\5\0"],
)
def test_garbage_is_a_protocol_violation(garbage: bytes) -> None:
    async def run() -> None:
        session = Play()
        with pytest.raises(UserPeerError) as caught:
            await session.user(garbage)
        assert caught.value.code == "08P01"

    play(run)


@pytest.mark.parametrize("garbage", [b"\xff\0\0\0\4", row(b"1"), Z, tag("SELECT 1"), PARSED, b"E\0\0\0\3"])
def test_unasked_or_unknown_answers_end_the_session(garbage: bytes) -> None:
    async def run() -> None:
        session = Play()
        with pytest.raises(TargetPeerError):
            await session.target(garbage)

    play(run)


def test_query_longer_than_the_limit_is_refused_natively() -> None:
    async def run() -> None:
        for size, fits in ((1000, True), (1001, False)):
            session = Play()
            session.conversation._messages = wire.UserMessages(query_limit=1000)
            message = query("S" * (size - 5))
            assert len(message) == size + 1
            if fits:
                assert await session.user(message) == message
            else:
                with pytest.raises(UserPeerError) as caught:
                    await session.user(message)
                assert caught.value.code == "54000"

    play(run)


def test_unsafe_encodings_make_every_text_unknown() -> None:
    kinds: list[str] = []

    def rule(command: Command) -> Verdict:
        kinds.append(command.kind)
        return Allow("all")

    async def run() -> None:
        session = Play(fake_gate(rule))
        session.conversation.setting("client_encoding", "SJIS")
        await session.user(query("SELECT 1"))
        session.conversation.setting("client_encoding", "UTF8")
        await session.user(query("SELECT 1"))
        session.conversation.setting("standard_conforming_strings", "off")
        await session.user(query("SELECT '\\'"))
        await session.user(query("SELECT 1"))
        assert kinds == ["unknown", "read", "unknown", "read"]

    play(run)


def test_an_approval_does_not_outlive_the_rule_that_asked_for_it() -> None:
    """Rules changed while it waited, or between Bind and Execute: the new approvers have not been asked."""
    approvals = FakeApprovals()
    approvals.answer = Decision("approved", "mia@acme.com")
    holds = iter([Hold("ask", ("mia@acme.com",), 60.0), Hold("ask-others", ("group:dba",), 60.0)])

    async def waited() -> None:
        session = Play(fake_gate(lambda command: next(holds), approvals=approvals))
        assert await session.user(query("UPDATE t")) == query("gatecast_denied /* token1 */")

    play(waited)
    verdicts: list[Verdict] = [Allow("writes"), Allow("writes"), Hold("writes", ("group:dba",), 60.0)]
    refusing = FakeApprovals()
    refusing.answer = Decision("denied", "mia@acme.com")

    async def bound() -> None:
        session = Play(fake_gate(lambda command: verdicts.pop(0), approvals=refusing))
        sent = await session.user(parse("", "UPDATE t") + bind("", "") + execute("") + SYNC)
        assert sent == parse("", "UPDATE t") + bind("", "") + execute("token1") + SYNC
        assert len(refusing.pending) == 1

    play(bound)
