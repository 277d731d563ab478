"""asyncssh's internals that adapt.py, records.py, user_side.py and target_side.py stand on, as they were read.

A changed one is no failure of asyncssh's. Read the difference between the two versions, see that each reason beside
the method in our code still holds, run the peer tests, and write the new hashes down (python -m tests.ssh.pin).
"""

from __future__ import annotations

import pytest

from tests.ssh.pin import PINNED, READ_VERSION, digest, found, installed

ADVICE = (
    "asyncssh {version} is not the one that protocols/ssh/adapt.py was written against ({read}): {what}. Read what "
    "changed and whether it still holds there, then run `python -m tests.ssh.pin` for the new table."
)


def test_the_version() -> None:
    version = installed()
    text = ADVICE.format(version=version, read=READ_VERSION, what="its minor version differs")
    assert version.split(".")[:2] == READ_VERSION.split(".")[:2], text


@pytest.mark.parametrize("name", sorted(PINNED))
def test_a_method_is_as_it_was(name: str) -> None:
    what = f"{name} differs"
    assert digest(found(name)) == PINNED[name], ADVICE.format(version=installed(), read=READ_VERSION, what=what)


def test_a_change_is_seen() -> None:
    source = found("connection.SSHConnection._recv_packet")
    assert digest(source.replace("MACError", "OtherError")) != PINNED["connection.SSHConnection._recv_packet"]
    with pytest.raises(AssertionError, match="asyncssh has no"):
        found("connection.SSHConnection._gone_for_good")
