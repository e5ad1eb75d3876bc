"""The marker of what is measured: `make bench`, and left out of `make test`."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bench: speed and memory, as ratios measured in one run; `make bench`")
