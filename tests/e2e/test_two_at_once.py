"""Two machines begun at once: the one that is ready first does the job, and no death of the client leaves the other alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from .world import Lorry, adapters, check_gone, check_receipt, check_results, config


@pytest.fixture
def twice(lorry: Lorry, base: Path, drawn: Path) -> Path:
    """The quick job, on the faster of two machines."""
    return config(lorry.folder, base, {"one": drawn}, machine="start_two = true")


def test_the_first_that_is_ready_does_the_job_and_the_other_is_given_back_before(lorry: Lorry, twice: Path, undisturbed):
    done = lorry("run", str(twice), "-y", "--json")
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    check_results(lorry, lorry.run)
    assert adapters(lorry, lorry.run) == undisturbed("quick")["adapters"]
    assert len(check_gone(lorry, lorry.run)) == 2
    assert [m["outcome"] for m in done.document["machines"]].count("the other of two was ready first") == 1
    kinds = lorry.kinds(lorry.run)
    assert kinds.index("gone") < kinds.index("shipped"), "nothing is sent while two are paid"


@pytest.mark.slow
@pytest.mark.parametrize("then", ["attach", "down"])
def test_a_client_killed_with_two_machines_leaves_none_behind_its_next_command(lorry: Lorry, twice: Path, undisturbed, then: str):
    killed = lorry("run", str(twice), "-y", "--no-keeper", LORRY_CRASH_AT="inspected-written")
    assert killed.code == -9, killed.err
    assert [m.live for m in lorry.cloud.machines(lorry.run)] == [True, True]
    done = lorry(then, lorry.run, "--json")
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    assert len(check_gone(lorry, lorry.run)) == 2
    if then == "attach":
        assert adapters(lorry, lorry.run) == undisturbed("quick")["adapters"]
