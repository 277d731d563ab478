"""Attacks on SSH that need no sockets: paths that hide where they lead, terminals that are none, and the like."""

from __future__ import annotations

import pytest

from protocols.ssh import sftp_wire as wire
from tests.ssh.sftp_stage import U32, S, begun, opening, packets, request

# -- SFTP: a path that REALPATH gives up on, and the kernel does not ------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_file_whose_links_the_target_does_not_resolve_is_not_opened(there: bool) -> None:
    stage = begun()
    stage.answering = False
    stage.user(opening(b"/home/alice/chain", 5))
    (parent, _), (whole, path) = stage.lookups
    assert path == b"/home/alice/chain"
    stage.target(request(wire.NAME, parent, U32(1), S(b"/home/alice"), S(b""), U32(0)))
    stage.target(wire.status(whole, wire.FX_NO_SUCH_FILE, "too many links"))
    assert packets(stage.gate_up)[-1] == (wire.LSTAT, (whole - 1).to_bytes(4, "big") + S(b"/home/alice/chain"))
    attributes = request(wire.ATTRS, whole - 1, U32(0))
    stage.target(attributes if there else wire.status(whole - 1, wire.FX_NO_SUCH_FILE, ""))
    assert stage.commands[0].facts["resolved"] is False
    up = stage.take()[0]
    assert [code for code, _ in up] == ([] if there else [wire.OPEN])


@pytest.mark.parametrize("status", [wire.FX_NO_SUCH_FILE, wire.FX_FAILURE, wire.FX_BAD_MESSAGE])
def test_a_file_in_a_directory_that_cannot_be_resolved_is_decided_and_never_opened(status: int) -> None:
    stage = begun()
    stage.answering = False
    stage.user(request(wire.LSTAT, 5, S(b"chain/x")))
    ((parent, _),) = stage.lookups
    stage.target(wire.status(parent, status, ""))
    assert [command.objects for command in stage.commands] == [("/home/alice/chain/x",)]
    assert stage.statuses() == [(5, status, "gatecast: the path cannot be resolved")]
    assert [result.tag for result in stage.results] == [wire.status_text(status)]
    stage.answering = True
    stage.lookups.clear()
    stage.user(request(wire.LSTAT, 6, S(b"/etc/passwd")))
    assert [code for code, _ in stage.take()[0]] == [wire.LSTAT], "the session goes on"


def test_what_a_new_link_holds_may_lead_nowhere() -> None:
    stage = begun()
    stage.missing = {b"/gone"}
    stage.user(request(wire.SYMLINK, 5, S(b"/gone/x"), S(b"/home/alice/l")))
    assert [code for code, _ in stage.take()[0]] == [wire.SYMLINK]
