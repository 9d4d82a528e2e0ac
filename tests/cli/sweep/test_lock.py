"""The locks of a sweep overwrite nothing that they are linked to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bhfl.cli.sweep.lock import locked


@pytest.mark.parametrize("name", [".sweep.lock", ".runs.lock"])
def test_a_lock_is_opened_through_no_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match=name), locked(tmp_path):
        pass
    assert (tmp_path / "notes").read_text() == "mine"
