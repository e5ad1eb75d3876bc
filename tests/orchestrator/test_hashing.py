"""A hash that is made while the file comes in is the hash of what is on the disk at the end."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.hashing import hashed_behind


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.binary(max_size=50), pieces=st.lists(st.binary(max_size=50), max_size=5), anew=st.booleans())
def test_whatever_stood_there_came_in_pieces_or_began_anew(tmp_path: Path, before: bytes, pieces: list[bytes], anew: bool):
    path = tmp_path / "part"
    path.unlink(missing_ok=True)
    if before:
        path.write_bytes(before)
    with hashed_behind(path) as digest:
        for number, piece in enumerate(pieces):
            if anew and number == 2:
                path.unlink()
            with path.open("ab") as file:
                file.write(piece)
        path.touch()
        assert digest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_never_comes_holds_nobody_up(tmp_path: Path):
    with hashed_behind(tmp_path / "never"):
        pass
