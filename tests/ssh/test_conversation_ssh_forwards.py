"""Written conversations: forwards, agents, displays, and global requests in their order."""

from __future__ import annotations

import pytest

from protocols.ssh import wire
from protocols.ssh.actions import Disconnect, Forget
from protocols.ssh.channels import Limits
from protocols.ssh.wire_bodies import DirectStreamlocal, ForwardedStreamlocal, Listen, Origin, Tun, Word, X11Request
from proxy.core.verdict import Allow
from tests.fakes import SSH_PERMITS
from tests.ssh.playing_ssh import DENY, PACKET, WINDOW, Play, confirm, direct, forwarded, listen, request, verbs

KEEPALIVE = wire.GlobalRequest("keepalive@openssh.com", True)
PROHIBITED = wire.ADMINISTRATIVELY_PROHIBITED


def test_a_direct_forward_from_its_open_to_its_close() -> None:
    play = Play().user(direct(2)).target(confirm(2, 5)).user(wire.Data(5, b"ask")).target(wire.Data(2, b"answer"))
    play.target(wire.Eof(2)).user(wire.Data(5, b"more"), wire.Eof(5), wire.Close(5)).target(wire.Close(2))
    assert play.at_target() == [
        direct(2), wire.Data(5, b"ask"), wire.Data(5, b"more"), wire.Eof(5), wire.Close(5),
    ]  # fmt: skip
    assert play.at_user() == [confirm(2, 5), wire.Data(2, b"answer"), wire.Eof(2), wire.Close(2)]
    [command] = play.commands
    assert (command.verb, command.kind, command.text) == ("direct-tcpip", "transfer", "db.internal:5432")
    assert command.objects == ("db.internal:5432",) and command.flow == 0
    expected = {"login": "deploy", "host": "db.internal", "port": 5432, "origin": "127.0.0.1:40000"}
    assert command.facts == expected
    [record] = play.records
    assert record.result.tag == "closed" and record.result.details == {"flow": 0, "sent": 7, "bytes": 6}


def test_an_address_of_ipv6_is_in_brackets() -> None:
    assert Play().user(direct(0, "::1", 80)).commands[0].objects == ("[::1]:80",)


def test_a_denied_forward_fails_to_open_and_its_number_is_free() -> None:
    play = Play(lambda _: DENY).user(direct(2))
    assert play.at_user() == [wire.OpenFailure(2, PROHIBITED, 'gatecast: denied by rule "no": not here')]
    assert play.at_target() == [] and play.of(Forget) == [Forget(0)]
    play.user(direct(2))
    assert not play.of(Disconnect) and play.commands[1].flow == 1


def test_a_forward_that_the_target_cannot_make() -> None:
    play = Play().user(direct()).target(wire.OpenFailure(0, wire.CONNECT_FAILED, "refused"))
    assert play.at_user() == [wire.OpenFailure(0, wire.CONNECT_FAILED, "refused")]
    [record] = play.records
    assert record.result.tag == "failed" and record.result.error == {"message": "refused"}


def test_an_open_that_is_undecided_cannot_be_answered_yet() -> None:
    play = Play(lambda _: None).user(direct())
    assert play.at_target() == []
    play.target(confirm())
    assert play.of(Disconnect)[0].blame == "target"


def test_sockets_and_tunnels() -> None:
    streamlocal = wire.ChannelOpen("direct-streamlocal@openssh.com", 0, 9, 9, DirectStreamlocal("/run/x").encode())
    tun = wire.ChannelOpen("tun@openssh.com", 1, 9, 9, Tun(1, 0x7FFFFFFF).encode())
    play = Play().user(streamlocal, tun)
    one, two = play.commands
    assert (one.verb, one.objects, one.facts["path"]) == ("direct-streamlocal", ("/run/x",), "/run/x")
    assert (two.verb, two.kind, two.facts["opaque"]) == ("tun", "admin", True)
    assert play.at_target() == [streamlocal, tun]


@pytest.mark.parametrize("asked", [direct(), wire.ChannelOpen("tun@openssh.com", 0, 9, 9, Tun(1, 0).encode())])
def test_a_login_without_forwarding_opens_none(asked: wire.ChannelOpen) -> None:
    play = Play(permits=frozenset({"permit-pty"})).user(asked, listen())
    assert play.at_user() == [
        wire.OpenFailure(0, PROHIBITED, "gatecast: the login permits no forwarding"), wire.RequestFailure(),
    ]  # fmt: skip
    assert not play.commands and play.at_target() == []


def test_a_target_connects_only_to_a_forward_that_was_allowed() -> None:
    play = Play().target(forwarded(4))
    assert play.at_target() == [wire.OpenFailure(4, PROHIBITED, "gatecast: no such forward was asked for")]
    play.user(listen()).target(wire.RequestSuccess())
    assert play.at_user() == [wire.RequestSuccess()] and play.at_target() == [listen()]
    play.target(forwarded(4))
    assert play.at_user() == [forwarded(4)]
    assert play.commands[-1].verb == "forwarded-tcpip" and play.commands[-1].objects == ("localhost:8080",)
    play.user(confirm(4, 6)).target(wire.Data(6, b"GET")).user(wire.Data(4, b"200"))
    assert play.at_target() == [confirm(4, 6), wire.Data(4, b"200")] and play.at_user() == [wire.Data(6, b"GET")]
    play.user(wire.Close(4)).target(wire.Close(6))
    listened, connected = play.records
    assert listened.result.tag == "ok" and listened.permit.command.verb == "tcpip-forward"
    assert connected.result.details == {"flow": 0, "sent": 3, "bytes": 3}
    play.target(forwarded(4, port=8081))
    assert isinstance(play.at_target()[-1], wire.OpenFailure)


def test_a_denied_connection_of_the_target_fails() -> None:
    play = Play(verbs("tcpip-forward", otherwise=DENY)).user(listen()).target(wire.RequestSuccess(), forwarded(4))
    assert play.at_target()[-1] == wire.OpenFailure(4, PROHIBITED, 'gatecast: denied by rule "no": not here')
    assert play.at_user() == [wire.RequestSuccess()]


def test_a_port_that_the_target_chose_is_learned() -> None:
    play = Play().user(listen(port=0)).target(forwarded(1, port=40404))
    assert isinstance(play.at_target()[-1], wire.OpenFailure)
    play.target(wire.RequestSuccess(wire.u32(40404)), forwarded(1, port=40404))
    assert play.at_user() == [wire.RequestSuccess(wire.u32(40404)), forwarded(1, port=40404)]


def test_what_the_target_refused_or_the_user_cancelled_is_forgotten() -> None:
    play = Play().user(listen()).target(wire.RequestFailure(), forwarded())
    assert isinstance(play.at_target()[-1], wire.OpenFailure)
    cancel = listen(name="cancel-tcpip-forward")
    play = Play().user(cancel)
    assert play.at_user() == [wire.RequestFailure()] and play.at_target() == []
    play.user(listen()).target(wire.RequestSuccess()).user(cancel).target(wire.RequestSuccess(), forwarded())
    assert play.at_target()[:2] == [listen(), cancel]
    assert play.at_user() == [wire.RequestSuccess(), wire.RequestSuccess()]


def test_sockets_are_forwarded_by_their_path() -> None:
    asked = wire.GlobalRequest("streamlocal-forward@openssh.com", True, Word("/tmp/s").encode())
    opens = wire.ChannelOpen("forwarded-streamlocal@openssh.com", 0, 9, 9, ForwardedStreamlocal("/tmp/s").encode())
    other = wire.ChannelOpen("forwarded-streamlocal@openssh.com", 1, 9, 9, ForwardedStreamlocal("/tmp/t").encode())
    play = Play().user(asked).target(wire.RequestSuccess(), opens, other)
    assert play.at_user() == [wire.RequestSuccess(), opens]
    assert play.at_target()[-1] == wire.OpenFailure(1, PROHIBITED, "gatecast: no such forward was asked for")
    assert play.commands[0].objects == ("/tmp/s",)


def test_global_requests_keep_the_order_of_their_replies() -> None:
    play = Play(lambda command: None if "8080" in command.text else DENY)
    play.user(
        KEEPALIVE, listen(), KEEPALIVE, listen(port=9090), wire.GlobalRequest("no-more-sessions@openssh.com", False)
    )
    assert play.at_target() == [KEEPALIVE, wire.GlobalRequest("no-more-sessions@openssh.com", False)]
    play.decide(Allow("all"))
    assert play.at_target() == [listen(), KEEPALIVE]
    assert play.at_user() == [], "the refusal of 9090 comes behind the replies to what was asked before"
    play.target(wire.RequestFailure(), wire.RequestSuccess())
    assert play.at_user() == [wire.RequestFailure(), wire.RequestSuccess()]
    play.target(wire.RequestFailure())
    assert play.at_user() == [wire.RequestFailure(), wire.RequestFailure()]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_only_so_many_global_requests_wait(count: int) -> None:
    play = Play(lambda _: None, limits=Limits(waiting=3)).user(listen(), *[KEEPALIVE] * count)
    assert bool(play.of(Disconnect)) is (count > 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_so_many_forwards_are_allowed(count: int) -> None:
    play = Play(limits=Limits(forwards=2))
    play.user(*(listen(port=8000 + number, want_reply=False) for number in range(count)))
    assert len(play.at_target()) == min(count, 2)


def test_host_keys_are_no_business_of_the_other_side() -> None:
    play = Play().target(wire.GlobalRequest("hostkeys-00@openssh.com", False, b"keys"))
    play.user(wire.GlobalRequest("hostkeys-prove-00@openssh.com", True, b"keys"))
    assert play.at_user() == [wire.RequestFailure()] and play.at_target() == [] and not play.marks


def test_keepalives_pass_both_ways() -> None:
    play = Play().target(KEEPALIVE).user(wire.RequestFailure(), KEEPALIVE).target(wire.RequestSuccess())
    assert play.at_user() == [KEEPALIVE, wire.RequestSuccess()]
    assert play.at_target() == [wire.RequestFailure(), KEEPALIVE]


def test_unknown_global_requests_fail() -> None:
    play = Play().user(wire.GlobalRequest("warp@x", True), wire.GlobalRequest("warp@x", False))
    play.target(wire.GlobalRequest("warp@x", True), wire.GlobalRequest("tcpip-forward", True, Listen("", 1).encode()))
    assert play.at_user() == [wire.RequestFailure()] and play.at_target() == [wire.RequestFailure()] * 2
    assert play.marks == ["ssh-unknown"] * 4


def test_a_reply_to_nothing_is_swallowed() -> None:
    play = Play().target(wire.RequestSuccess()).user(wire.RequestFailure())
    assert play.at_user() == [] and play.at_target() == [] and play.marks == ["ssh-unknown"] * 2


AGENT = request("auth-agent-req@openssh.com")
AGENT_OPEN = wire.ChannelOpen("auth-agent@openssh.com", 8, WINDOW, PACKET)
X11 = request("x11-req", X11Request(False, "MIT-MAGIC-COOKIE-1", "c00c1e", 0).encode())
X11_OPEN = wire.ChannelOpen("x11", 8, WINDOW, PACKET, Origin("127.0.0.1", 6010).encode())


@pytest.mark.parametrize(("asked", "opens", "verb"), [(AGENT, AGENT_OPEN, "auth-agent"), (X11, X11_OPEN, "x11")])
def test_the_users_agent_and_display_are_lent_only_where_that_was_allowed(
    asked: wire.ChannelRequest, opens: wire.ChannelOpen, verb: str
) -> None:
    play = Play(lambda _: DENY).opened().user(asked).target(opens)
    assert play.at_user() == [wire.ChannelFailure(0)]
    assert isinstance(play.at_target()[0], wire.OpenFailure)
    play = Play().opened().user(asked).target(wire.ChannelSuccess(0), opens).user(confirm(8, 1))
    [command] = play.commands
    assert (command.verb, command.kind, command.facts["opaque"]) == (verb, "admin", True)
    assert "c00c1e" not in command.text
    assert play.at_user() == [wire.ChannelSuccess(0), opens]
    play.target(wire.Data(1, b"list")).user(wire.Data(8, b"keys"))
    assert play.at_target() == [asked, confirm(8, 1), wire.Data(8, b"keys")]


@pytest.mark.parametrize("asked", [AGENT, X11])
def test_a_login_may_lend_neither(asked: wire.ChannelRequest) -> None:
    play = Play(permits=SSH_PERMITS - {"permit-agent-forwarding", "permit-X11-forwarding"}).opened().user(asked)
    assert play.at_user() == [wire.ChannelFailure(0)] and not play.commands
