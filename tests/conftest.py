"""What every test folder shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from fakes import FakeClock
from machines import Host, machine

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody is at home there: no test asks the real hub
hypothesis.settings.register_profile("lorry", deadline=None)  # how busy the computer is says nothing about the code
hypothesis.settings.load_profile("lorry")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A real machine with sshd; one a test file, ended with it."""
    with machine(tmp_path_factory.mktemp("host")) as host:
        yield host
