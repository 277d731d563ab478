"""What the index asks the vault's own file, on a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from recorder.index import Index, IndexUnavailable
from recorder.index_vault import VaultView
from recorder.vault_state import STATE_NAME, Item, State, VaultState

SID = "01M7YHXSH8NCS733C3JQ6A9YHN"


def test_a_session_is_there_once_it_was_uploaded(tmp_path: Path) -> None:
    with VaultView(tmp_path) as view:
        assert not view.has(SID)
        assert (view.removals(), list(view.removed())) == (0, [])
    state = VaultState(tmp_path)
    path = f"2026/11/21/{SID}.000.gct"
    state.notice([Item(path, "segment", SID, "main", 0, State.ACTIVE)])
    there = []
    for event in ("seal", "upload", "purge"):
        state.move(path, event)
        with VaultView(tmp_path) as view:
            there.append(view.has(SID))
            assert not view.has("0" * 26)
    assert there == [False, True, True]
    with state.transaction() as connection:
        connection.execute("INSERT INTO removals VALUES (?, 'all', 'term', 'two', 1.0, 0)", (SID,))
    with VaultView(tmp_path) as view:
        assert view.removals() == 0  # decided, but not in the node log yet
    with state.transaction() as connection:
        connection.execute("UPDATE removals SET tombstoned = 1")
    with VaultView(tmp_path) as view:
        assert (view.removals(), list(view.removed())) == (1, [SID])
    state.close()


def test_a_vault_that_cannot_be_read_takes_nothing_from_the_index(tmp_path: Path) -> None:
    """Its trouble is neither damage of the index nor a reason to forget a session."""
    day = tmp_path / "2026" / "11" / "21"
    day.mkdir(parents=True)
    (day / f"{SID}.000.gct").write_bytes(b"no tape")
    Index.update(tmp_path)
    (day / f"{SID}.000.gct").unlink()
    (tmp_path / STATE_NAME).write_bytes(b"no database" * 1000)
    with VaultView(tmp_path) as view, pytest.raises(IndexUnavailable, match="cannot be read"):
        Index.update(tmp_path, elsewhere=view)
    with Index(tmp_path) as index:
        assert index.counts() == (1, 0)
    assert not (tmp_path / "index.db.damaged").exists()
