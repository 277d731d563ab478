"""The nine promises of the design, for every protocol in protocols.load() and for echo, the one that shows how."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

import protocols
from proxy.core.events import Command, Frame
from proxy.core.parties import Identity
from proxy.core.session import Permit, Session
from proxy.core.stream import HIGH_WATER_BYTES, MemoryStream
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict, combine
from proxy.core.writers import TargetWriter, UserWriter
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.tape import Kind, Recorder
from recorder.verify import verify
from tests.conformance import CANARY, FLOOD_BYTES, Adapter, Caller, Reply, WatchedRecorder, adapters, play, stage, turns
from tests.fakes import SECRET, TOKEN, FakeApprovals, FakeIdentities, FakeMasker, Rule, allow_all

ADAPTERS = adapters()
MASK = Mask("hide-email", columns=("public.people.email",), detectors=("email",))


@pytest.fixture(params=sorted(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return ADAPTERS[request.param]


def word_of(command: Command) -> str:
    """The suite's word in a command's text, for rules."""
    text = command.text.partition("/* ")[2].partition(" */")[0] or command.text
    return text.split(" ")[0]


def deny(*words: str) -> Rule:
    def rule(command: Command) -> Verdict:
        return Deny("no-writing", "read only on Fridays") if word_of(command) in words else Allow("rest")

    return rule


def hold(*words: str, seconds: float = 60.0) -> Rule:
    def rule(command: Command) -> Verdict:
        return Hold("ask", ("mia@acme.com",), seconds, "money") if word_of(command) in words else Allow("rest")

    return rule


def masked(command: Command) -> Verdict:
    return Allow("masked", (MASK,))


async def ask(caller: Caller, word: str) -> Reply:
    await caller.say(word)
    return await caller.hear()


def test_every_protocol_takes_part() -> None:
    assert set(protocols.load()) < set(ADAPTERS) and "echo" in ADAPTERS


# -- 1. No decision, no passage ---------------------------------------------------------------------------------


async def raises(identity: object, target: object, command: Command) -> Verdict:
    if word_of(command) == "write":
        raise RuntimeError("a bug in a rule")
    return Allow("rest")


async def times_out(identity: object, target: object, command: Command) -> Verdict:
    if word_of(command) == "write":
        raise TimeoutError
    return Allow("rest")


async def says_nothing(identity: object, target: object, command: Command) -> Any:
    return None if word_of(command) == "write" else Allow("rest")


async def no_rule(identity: object, target: object, command: Command) -> Verdict:
    return combine([]) if word_of(command) == "write" else Allow("rest")


@pytest.mark.parametrize("policy", [raises, times_out, says_nothing, no_rule])
def test_without_an_allow_nothing_passes(adapter: Adapter, policy: Any) -> None:
    async def body() -> None:
        async with stage(adapter, policy=policy) as on:
            caller = await on.call()
            for _ in range(2):
                refused = await ask(caller, "write 1")
                assert refused.error and not refused.ended
            assert (await ask(caller, "read 2")).cells == ["2", CANARY]
            assert on.backend.commands == ["read 2"]

    play(body())


def test_a_policy_that_never_answers_passes_nothing(adapter: Adapter) -> None:
    asked = asyncio.Event()

    async def never(identity: object, target: object, command: Command) -> Verdict:
        if word_of(command) == "write":
            asked.set()
            await asyncio.Event().wait()
        return Allow("rest")

    async def body() -> None:
        async with stage(adapter, policy=never) as on:
            caller = await on.call()
            await caller.say("write 1", "read 2")
            await asked.wait()
            await turns()
            assert on.backend.commands == []
            on.tasks[0].cancel()  # as the operator who kills the session
            await asyncio.wait(on.tasks)
            on.tasks.clear()
            assert on.backend.commands == []

    play(body())


def test_a_message_that_nobody_knows_passes_nothing(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            assert not (await ask(caller, "read 1")).error
            before = bytes(on.backend.received)
            await caller.violate()
            last = await caller.hear()
            assert last.ended and last.error
            await on.ended()
            assert on.backend.commands == ["read 1"]
            assert b"write 1" not in on.backend.received[len(before) :]

    play(body())


def test_only_the_allowed_of_a_pipeline_pass(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, deny("write")) as on:
            caller = await on.call()
            await caller.say("read 1", "write 2", "read 3", "write 4", "read 5")
            replies = [await caller.hear() for _ in range(5)]
            assert [bool(reply.error) for reply in replies] == [False, True, False, True, False]
            assert [reply.cells for reply in replies if reply.cells] == [["1", CANARY], ["3", CANARY], ["5", CANARY]]
            assert on.backend.commands == ["read 1", "read 3", "read 5"]

    play(body())


def test_nothing_is_dialled_for_a_session_that_is_denied(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, lambda command: Deny("closed", "we are closed")) as on:
            refused = await on.connect(TOKEN)
            assert isinstance(refused, str) and "closed" in refused and "we are closed" in refused
            assert on.backend.connections == 0

    play(body())


@pytest.mark.parametrize("outcome", ["expired", "denied"])
def test_a_hold_that_is_not_approved_passes_nothing(adapter: Adapter, outcome: Any) -> None:
    async def body() -> None:
        async with stage(adapter, hold("write")) as on:
            caller = await on.call()
            await caller.say("write 1", "read 2")
            note = await caller.note()
            assert "ap_0" in note and "ask" in note
            await turns()
            assert on.backend.commands == []
            on.approvals.pending[0].decide(outcome, "mia@acme.com", "no")
            refused = await caller.hear()
            assert "ap_0" in refused.error and "ask" in refused.error
            assert (await caller.hear()).cells == ["2", CANARY]
            assert on.backend.commands == ["read 2"]

    play(body())


def test_an_approved_hold_passes_once(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, hold("write")) as on:
            caller = await on.call()
            await caller.say("write 1")
            await caller.note()
            on.approvals.pending[0].decide("approved", "mia@acme.com")
            assert not (await caller.hear()).error
            await caller.say("write 1")  # the same again is held again
            await caller.note()
            assert len(on.approvals.pending) == 2 and on.backend.commands == ["write 1"]
            on.approvals.pending[1].decide("denied", "mia@acme.com")
            assert (await caller.hear()).error

    play(body())


def test_what_the_rules_deny_by_now_is_not_passed_by_an_approval(adapter: Adapter) -> None:
    later = False

    def rule(command: Command) -> Verdict:
        if word_of(command) != "write":
            return Allow("rest")
        return Deny("frozen", "no more") if later else Hold("ask", ("mia@acme.com",), 60.0)

    async def body() -> None:
        nonlocal later
        async with stage(adapter, rule) as on:
            caller = await on.call()
            await caller.say("write 1")
            await caller.note()
            later = True
            on.approvals.pending[0].decide("approved", "mia@acme.com")
            assert "frozen" in (await caller.hear()).error
            assert on.backend.commands == []

    play(body())


def test_a_user_who_leaves_takes_the_held_command_back(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, hold("write")) as on:
            caller = await on.call()
            await caller.say("write 1")
            await caller.note()
            await on.ends[0].close()
            await on.ended()
            assert (await on.approvals.pending[0].wait()).outcome == "withdrawn"
            assert on.backend.commands == []

    play(body())


def test_a_user_who_leaves_before_the_hold_is_opened_takes_it_back(adapter: Adapter) -> None:
    """Command and end of file in one: nobody waits for an approval of it."""
    approvals = FakeApprovals()

    async def body() -> None:
        async with stage(adapter, hold("write"), approvals=approvals) as on:
            caller = await on.call()
            await caller.say("write 1")
            await on.ends[0].close()
            await on.ended()
            assert all([(await pending.wait()).outcome == "withdrawn" for pending in approvals.pending])
            assert on.backend.commands == []

    play(body())


def test_a_user_who_leaves_while_the_session_is_held_takes_it_back(adapter: Adapter) -> None:
    approvals = FakeApprovals()

    async def body() -> None:
        rule: Rule = lambda command: Hold("ask", ("mia@acme.com",), 60.0)  # noqa: E731
        async with stage(adapter, rule, approvals=approvals) as on:
            async with asyncio.TaskGroup() as group:
                connecting = group.create_task(on.connect(TOKEN))
                await approvals.opened.wait()
                await on.ends[0].close()
                assert isinstance(await connecting, str)
            await on.ended()
            assert (await approvals.pending[0].wait()).outcome == "withdrawn"
            assert on.backend.connections == 0

    play(body())


def test_approvals_that_cannot_be_opened_pass_nothing(adapter: Adapter) -> None:
    class Broken(FakeApprovals):
        async def open(self, *arguments: Any, **more: Any) -> Any:
            raise RuntimeError("the store is gone")

    async def body() -> None:
        async with stage(adapter, hold("write"), approvals=Broken()) as on:
            caller = await on.call()
            await caller.say("write 1", "write 2")
            assert (await caller.hear()).error
            assert on.backend.commands == []

    play(body())


def test_a_revoked_identity_passes_nothing_more(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            assert not (await ask(caller, "write 1")).error
            identities = on.gate.identities
            assert isinstance(identities, FakeIdentities)
            identities.revoked = True
            assert "revoked" in (await ask(caller, "write 2")).error
            assert on.backend.commands == ["write 1"]

    play(body())


@pytest.mark.parametrize("raising", [False, True])
def test_what_the_masks_guard_refuses_does_not_pass(adapter: Adapter, raising: bool) -> None:
    class Guard(FakeMasker):
        def guard(self, masks: tuple[Mask, ...], command: Command) -> Deny | None:
            if raising:
                raise RuntimeError("a bug in the masks")
            return Deny("guard", "it would carry masked values away")

    async def body() -> None:
        rule: Rule = lambda command: Allow("x", (MASK,) if word_of(command) == "write" else ())  # noqa: E731
        async with stage(adapter, rule, masker=Guard()) as on:
            caller = await on.call()
            assert (await ask(caller, "write 1")).error
            assert not (await ask(caller, "read 2")).error
            assert on.backend.commands == ["read 2"]

    play(body())


def test_only_permits_and_frames_go_to_a_target() -> None:
    async def body() -> None:
        async with stage(ADAPTERS["echo"]) as on:
            await on.call()
            tape = on.tape
            assert tape is not None
            session = Session(on.gate, Identity("x"), on.backend.target, tape)
            writer = TargetWriter(on.ends[0], session)
            for cargo in (b"raw", Command("echo", "DO", "write", "x", b"x")):
                with pytest.raises(TypeError):
                    writer.send(cargo)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                Permit(object(), session, Command("echo", "DO", "write", "x"), Allow("x"), 0)

            async def on_hold(pending: object) -> None:
                raise AssertionError

            permit = await session.decide(Command("echo", "DO", "write", "x", b""), on_hold)
            writer.send(permit)
            with pytest.raises(TypeError):
                writer.send(permit)

    play(body())


# -- 2. Recorded before it leaves -------------------------------------------------------------------------------


def test_nothing_leaves_before_it_is_durable(adapter: Adapter) -> None:
    """The tape takes its time with every commit; stage() notes whatever comes before it, each way."""

    async def body() -> None:
        async with stage(adapter, deny("fail")) as on:
            caller = await on.call()
            for word in ("read 1", "write 2", "bulk 3", "notice 4", "error 5", "fail 6", "begin", "end"):
                await ask(caller, word)
            await caller.say("read 7", "write 8", "read 9")
            for _ in range(3):
                await caller.hear()
            assert len(on.backend.commands) == 10
            assert on.early == []

    play(body())


def test_a_command_waits_for_the_disk(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            tape = on.tape
            assert tape is not None
            tape.may_commit.clear()
            await caller.say("write 1")
            await turns(200)
            assert on.backend.commands == [] and not on.backend.received
            tape.may_commit.set()
            assert not (await caller.hear()).error
            assert on.backend.commands == ["write 1"]

    play(body())


def test_an_answer_waits_for_the_tape(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            tape = on.tape
            assert tape is not None
            arrived = on.backend.on_command

            def from_now_on(word: str) -> None:
                arrived(word)
                tape.may_write.clear()

            on.backend.on_command = from_now_on
            await caller.say("read 1")
            while not on.backend.commands:
                await turns()
            await turns(200)
            assert not caller.heard or not adapter.streams
            assert not on.ends[0]._buffer
            tape.may_write.set()
            assert (await caller.hear()).cells == ["1", CANARY]

    play(body())


def test_verdict_and_approval_are_taped_in_order(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, hold("write")) as on:
            caller = await on.call()
            await caller.say("write 1")
            await caller.note()
            tape = on.tape
            assert tape is not None
            pending = [entry["state"] for entry in tape.of(Kind.APPROVAL)]
            assert pending == ["pending"] and tape.durable > 0
            on.approvals.pending[0].decide("approved", "mia@acme.com", "go")
            await caller.hear()
            kinds = [kind for _, kind, _ in tape.records if kind in (Kind.COMMAND, Kind.APPROVAL, Kind.VERDICT)]
            assert kinds[-4:] == [Kind.COMMAND, Kind.APPROVAL, Kind.APPROVAL, Kind.VERDICT]
            approved, verdict = tape.of(Kind.APPROVAL)[-1], tape.of(Kind.VERDICT)[-1]
            assert approved["by"] == "mia@acme.com" and verdict["approval"] == approved["id"] == "ap_0"

    play(body())


# -- 3. Masked before recorded ----------------------------------------------------------------------------------


def test_masked_values_are_nowhere(adapter: Adapter) -> None:
    """In rows, errors, remarks, unasked messages and bulk; on the wire to the user, on the tape and in the log."""

    async def body() -> None:
        for rule, hidden in ((allow_all, False), (masked, True)):
            async with stage(adapter, rule) as on:
                caller = await on.call()
                for word in ("read 1", "error 2", "bulk 3", "notice 4", "read 5"):
                    assert not (await ask(caller, word)).ended
                replies = [await ask(caller, word) for word in ("later 6", "read 7")]
                assert [len(reply.notes) for reply in replies] == [0, 1]
                assert (CANARY in replies[1].notes[0]) is not hidden
                assert len(on.backend.commands) == 7
                for place in (bytes(caller.heard), on.everything()):
                    assert (CANARY.encode() in place) is not hidden, place
                assert CANARY not in repr(on.logs)

    play(body())


def test_the_tape_has_what_the_user_saw(adapter: Adapter) -> None:
    async def body() -> None:
        for rule in (allow_all, masked):
            async with stage(adapter, rule) as on:
                caller = await on.call()
                for word in ("read 1", "error 2", "bulk 3", "notice 4"):
                    await ask(caller, word)
                tape = on.tape
                assert tape is not None
                assert tape.safe_output(adapter.streams).endswith(bytes(caller.heard)) and len(caller.heard) > 50

    play(body())


def test_masked_values_are_in_no_file(adapter: Adapter, tmp_path: Path) -> None:
    """The real recorder: its blocks unpacked, and its index of commands."""
    recorder = Recorder(tmp_path, SealKey.generate())

    async def body(rule: Rule) -> None:
        async with stage(adapter, rule, recorder=recorder) as on:
            on.watching = False
            caller = await on.call()
            for word in ("read 1", "error 2", "bulk 3", "notice 4"):
                await ask(caller, word)

    found = []
    for rule in (allow_all, masked):
        play(body(rule))
        path = sorted(tmp_path.rglob("*.gct"))[-1]
        reader = TapeReader(path)
        everything = b"".join(record.payload for record in reader.records()) + repr(list(reader.commands())).encode()
        found.append(CANARY.encode() in everything + path.read_bytes())
    recorder.close()
    assert found == [True, False]


def test_a_masker_that_fails_shows_nothing(adapter: Adapter) -> None:
    class Broken(FakeMasker):
        def plan(self, *arguments: Any) -> Any:
            raise RuntimeError("a bug in the masks")

        def fields(self, *arguments: Any) -> Any:
            raise RuntimeError("a bug in the masks")

        def stream(self, *arguments: Any) -> Any:
            raise RuntimeError("a bug in the masks")

    async def body() -> None:
        async with stage(adapter, masked, masker=Broken()) as on:
            caller = await on.call()
            reply = await ask(caller, "read 1")
            assert reply.ended and reply.error and not reply.cells
            await on.ended()
            assert CANARY.encode() not in bytes(caller.heard) + on.everything()

    play(body())


# -- 4. No tape, no session -------------------------------------------------------------------------------------


def test_without_a_tape_there_is_no_session(adapter: Adapter) -> None:
    recorder = WatchedRecorder()
    recorder.fail = True

    async def body() -> None:
        async with stage(adapter, recorder=recorder) as on:
            refused = await on.connect(TOKEN)
            assert isinstance(refused, str) and "recorded" in refused
            assert on.backend.connections == 0

    play(body())


async def _until_the_tape_fails(adapter: Adapter, call: str, count: int) -> bool:
    """One session whose tape fails at one call; returns whether it came to that."""
    recorder = WatchedRecorder()
    recorder.fail_next = (call, count)
    async with stage(adapter, recorder=recorder) as on:
        said: list[str] = []
        texts: list[str] = []
        caller = await on.connect(TOKEN)
        if isinstance(caller, str):
            texts.append(caller)
        else:
            for word in ("read 1", "write 2", "error 3", "bulk 4"):
                said.append(word)
                reply = await ask(caller, word)
                texts.append(reply.error)
                if reply.ended:
                    break
        tape = on.tape
        assert tape is not None
        if not tape.failed:
            return False
        if not isinstance(caller, str) and not reply.ended:  # it failed behind the last answer
            said.append("read 5")
            texts.append((await ask(caller, "read 5")).error)
        await on.ended()
        cut = texts[-1] in adapter.cut
        assert cut or "recorded" in texts[-1], texts
        # What got to the target before is on the tape, durably; nothing got there afterwards.
        assert on.backend.commands in (said, said[:-1])
        for word in on.backend.commands:
            assert tape.safe_command(adapter.text(word))
        assert tape.closed is None or tape.closed[0] == "failed"
    return True


@pytest.mark.parametrize("call", ["append", "written", "commit"])
def test_a_tape_that_fails_ends_the_session(adapter: Adapter, call: str) -> None:
    """At its first call, at its second, and so on, until none is left to fail at."""
    count = 1
    while play(_until_the_tape_fails(adapter, call, count)):
        count += 1
    assert count > 4


def test_a_tape_that_fails_ends_its_own_session_only(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            one = await on.call()
            two = await on.call()
            tape = on.tape
            assert tape is not None
            tape.failed = True
            assert (await ask(one, "write 1")).ended
            assert not (await ask(two, "write 2")).error
            assert on.backend.commands == ["write 2"]

    play(body())


# -- 5. Refusal is native and survivable ------------------------------------------------------------------------


def test_a_refusal_names_the_rule_and_the_reason(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, deny("write")) as on:
            caller = await on.call()
            refused = await ask(caller, "write 1")
            assert "no-writing" in refused.error and "read only on Fridays" in refused.error
            assert not refused.ended
            assert (await ask(caller, "read 2")).cells == ["2", CANARY]

    play(body())


def test_a_refusal_leaves_the_state_of_any_other_failure(adapter: Adapter) -> None:
    """Idle, in a transaction and in a broken one: as if the target had failed the command itself."""

    if not adapter.transactions:
        pytest.skip("the protocol has no transactions")

    async def body() -> None:
        states: dict[str, list[str]] = {}
        for word, rule in (("fail 1", allow_all), ("write 1", deny("write"))):
            async with stage(adapter, rule) as on:
                caller = await on.call()
                words = (word, "read 2", "begin", "read 3", word, "read 4", word, "end", "read 5")
                replies = [await ask(caller, each) for each in words]
                states[word] = [f"{reply.state} {bool(reply.error)}" for reply in replies]
        assert states["fail 1"] == states["write 1"]
        assert len({state.split()[0] for state in states["write 1"]}) == 3  # idle, open, broken

    play(body())


def test_a_pipeline_behind_a_refusal_in_a_transaction_stays_in_order(adapter: Adapter) -> None:
    if not adapter.transactions:
        pytest.skip("the protocol has no transactions")

    async def body() -> None:
        async with stage(adapter, deny("write")) as on:
            caller = await on.call()
            await caller.say("begin", "read 1", "write 2", "read 3", "end", "read 4")
            replies = [await caller.hear() for _ in range(6)]
            assert [bool(reply.error) for reply in replies] == [False, False, True, True, False, False]
            assert "no-writing" in replies[2].error and "no-writing" not in replies[3].error
            assert replies[5].cells == ["4", CANARY]

    play(body())


def test_a_hold_tells_its_approval_at_once(adapter: Adapter) -> None:
    approvals = FakeApprovals()

    async def body() -> None:
        async with stage(adapter, hold("write"), approvals=approvals) as on:
            caller = await on.call()
            await caller.say("read 1", "write 2")
            first = await caller.hear()
            assert first.cells == ["1", CANARY]  # what was decided before does not wait
            notes = first.notes or [await caller.note()]
            assert "ap_0" in notes[0]
            approvals.pending[0].decide("approved", "mia@acme.com")
            assert not (await caller.hear()).error

    play(body())


# -- 6. Credentials stay inside ---------------------------------------------------------------------------------


def test_secrets_and_tokens_are_nowhere(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter, deny("write")) as on:
            caller = await on.call()
            for word in ("read 1", "write 2", "error 3", "notice 4", "garbage 5"):
                await ask(caller, word)
            assert on.backend.secret_seen  # else this proves nothing
            credential = await on.gate.credentials.get(Identity("x"), on.backend.target)
            shown = f"{on.gate!r} {on.tape!r} {credential!r} {credential} {credential.secret}"
            places = on.everything() + bytes(caller.heard) + shown.encode()
            assert SECRET.encode() not in places and TOKEN.encode() not in places

    play(body())


def test_a_wrong_token_is_not_repeated(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            refused = await on.connect("canary-wrong-token-9d1")
            assert isinstance(refused, str) and "closed" not in refused
            assert "canary-wrong" not in refused + repr(on.logs)
            assert on.backend.connections == 0 and on.recorder.tapes == []

    play(body())


# -- 7. Verifiable by a stranger --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["user", "target", "violation", "cancelled"])
def test_every_end_of_a_session_leaves_a_tape_that_verifies(adapter: Adapter, tmp_path: Path, ending: str) -> None:
    key = SealKey.generate()
    recorder = Recorder(tmp_path, key)

    async def body() -> None:
        async with stage(adapter, deny("write"), recorder=recorder) as on:
            on.watching = False
            caller = await on.call()
            for word in ("read 1", "write 2", "bulk 3", "error 4"):
                await ask(caller, word)
            match ending:
                case "target":
                    assert (await ask(caller, "garbage 5")).ended
                case "violation":
                    await caller.violate()
                case "cancelled":
                    on.tasks[0].cancel()
                    await asyncio.wait(on.tasks)
                    on.tasks.clear()

    play(body())
    recorder.close()
    (tape,) = tmp_path.rglob("*.gct")
    assert verify(tape, key.public_keys()).exit_code == 0
    assert verify(tape, SealKey.generate().public_keys()).exit_code != 0
    data = tape.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        tape.write_bytes(data[:place] + bytes((data[place] ^ 4,)) + data[place + 1 :])
        assert verify(tape, key.public_keys()).exit_code != 0, place
        tape.write_bytes(data[:place])
        assert verify(tape, key.public_keys()).exit_code != 0, place


# -- 8. Bounded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_command_at_its_limit(adapter: Adapter, over: int) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            word = adapter.sized(adapter.limit + over)
            reply = await ask(caller, word)
            if over <= 0:
                assert not reply.error and on.backend.commands == [word.rstrip()]
            else:
                assert reply.error and reply.ended
                assert on.backend.commands == [] and b"xxxx" not in on.backend.received

    play(body())


def test_a_slow_reader_slows_its_own_session_only(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            slow = await on.call()
            other = await on.call()
            await slow.say("flood 1")
            sent = -1
            number = 1
            while on.backend.sent_bytes != sent:
                sent = on.backend.sent_bytes
                for _ in range(20):
                    number += 1
                    assert (await ask(other, f"read {number}")).cells == [str(number), CANARY]
                sent += on.backend.sent_bytes - sent if on.backend.sent_bytes - sent < 20 * 512 else 0
            # Kernel buffers of loopback are megabytes; what the gate holds is the last of these.
            assert HIGH_WATER_BYTES < on.backend.sent_bytes < FLOOD_BYTES // 2
            assert len(on.ends[0]._buffer) < 4 * HIGH_WATER_BYTES

    play(body())


def test_a_held_command_stops_the_reader(adapter: Adapter) -> None:
    """What a user sends behind a held command stays with the user, however much it is."""

    if adapter.streams:
        pytest.skip("it stops its own stream alone: tests/ssh/test_conversation_ssh_windows.py")

    async def body() -> None:
        async with stage(adapter, hold("write")) as on:
            caller = await on.call()
            await caller.say("write 1")
            await caller.note()
            said = 0

            async def insist() -> None:
                nonlocal said
                while said < 100_000:
                    await caller.say(*[f"read {i}" for i in range(50)])
                    said += 50

            async with asyncio.TaskGroup() as group:
                insisting = group.create_task(insist())
                await turns(2000)
                assert 0 < said < 20_000
                insisting.cancel()
            assert on.backend.commands == []

    play(body())


def test_two_writers_to_one_user_do_not_overlap() -> None:
    """A stream may wait in the middle of a write (TLS records): a note must not get in between."""

    class Halves(MemoryStream):
        async def write(self, data: bytes) -> None:
            await super().write(data[: len(data) // 2])
            await turns(5)
            await super().write(data[len(data) // 2 :])

    async def body() -> None:
        async with stage(ADAPTERS["echo"]) as on:
            await on.call()
            tape = on.tape
            assert tape is not None
            end, user = Halves(), MemoryStream()
            end.other, user.other = user, end
            writer = UserWriter(end, Session(on.gate, Identity("x"), on.backend.target, tape))

            async def say(text: bytes) -> None:
                writer.send(None, Frame(text))
                await writer.flush()

            async with asyncio.TaskGroup() as group:
                for text in (b"one row\n", b"a note\n", b"another\n"):
                    group.create_task(say(text))
                    await turns(4)
            assert sorted(bytes(user._buffer).splitlines()) == [b"a note", b"another", b"one row"]

    play(body())


# -- 9. Their tools keep working --------------------------------------------------------------------------------


def test_what_is_allowed_passes_byte_for_byte(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            words = ("read 1", "write 2", "error 3", "bulk 4", "notice 5", "begin", "fail 6", "read 7", "end", "read 8")
            for word in words:
                await ask(caller, word)
            await caller.say(*words)
            for _ in words:
                await caller.hear()
            assert on.backend.received == caller.sent
            assert on.backend.sent == caller.heard
            assert on.backend.commands == [*words, *words]

    play(body())


def test_a_target_that_breaks_its_protocol_is_told_as_such(adapter: Adapter) -> None:
    async def body() -> None:
        async with stage(adapter) as on:
            caller = await on.call()
            last = await ask(caller, "garbage 1")
            assert last.ended and "target" in last.error
            await on.ended()

    play(body())


def test_the_suite_covers_each_promise() -> None:
    """A section for each, so that none is lost when this file is edited."""
    source = inspect.getsource(inspect.getmodule(test_every_protocol_takes_part))  # type: ignore[arg-type]
    assert [f"# -- {number}. " in source for number in range(1, 10)] == [True] * 9
