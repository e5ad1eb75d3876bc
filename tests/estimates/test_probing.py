"""The probe on a rented machine: it runs, and what it tells moves a prediction as far as it should."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.pricing.gpus import gpu
from orchestrator.pricing.probing import MOST, Probe, correction_of
from orchestrator.pricing.roofline import BANDWIDTH_SHARE, EAGER_S, SHARES, reach
from orchestrator.pricing.shapes import UNCORRECTED

ROOT = Path(__file__).parents[2]
CARD = gpu("RTX 4090")


def as_expected(**more) -> Probe:
    told = {
        "card": "NVIDIA GeForce RTX 4090",
        "product_flops": (SHARES["product"] * reach(CARD),) * 3,
        "convolution_flops": (SHARES["convolution"] * reach(CARD),) * 2,
        "attention_flops": SHARES["attention"] * reach(CARD),
        "copy_bytes_s": CARD.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE,
        "link_bytes_s": 2e10,
        "launch_s": EAGER_S,
        "disk_write_bytes_s": 1e9,
        "disk_read_bytes_s": 1e9,
        "took_s": 12.0,
    }
    return Probe(**{**told, **more})


def test_a_machine_as_the_tables_say_changes_nothing_but_how_sure_one_is():
    found = correction_of(as_expected(), CARD)
    assert (found.compute, found.bandwidth, found.host) == pytest.approx((1, 1, 1))
    assert UNCORRECTED.low < found.low < 1 < found.high < UNCORRECTED.high


def test_a_slow_host_makes_the_host_slow_and_a_slow_memory_the_memory():
    assert correction_of(as_expected(launch_s=2 * EAGER_S), CARD).host == pytest.approx(2)
    slow = CARD.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE / 3
    assert correction_of(as_expected(copy_bytes_s=slow), CARD).bandwidth == pytest.approx(3)
    assert correction_of(as_expected(attention_flops=SHARES["attention"] * reach(CARD) / 2), CARD).compute > 1.1


def test_a_machine_that_lies_moves_a_prediction_only_so_far():
    found = correction_of(as_expected(product_flops=(1e-9, 1e30), copy_bytes_s=1e30, launch_s=1e30), CARD)
    assert min(found.compute, found.bandwidth, found.host) >= 1 / MOST
    assert max(found.compute, found.bandwidth, found.host) <= MOST
    for wrong in ({"launch_s": -1}, {"copy_bytes_s": float("nan")}, {"product_flops": ()}, {"card": "x" * 101}, {"more": 1}):
        with pytest.raises(ValidationError):
            as_expected(**wrong)


def test_the_probe_runs_on_a_machine_without_a_card_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("probe", ROOT / "templates/probe.py")
    assert spec is not None
    assert spec.loader is not None
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    monkeypatch.setattr(probe, "EACH_S", 0.001)
    monkeypatch.setattr(probe, "ON_DISK", 1 << 20)
    monkeypatch.setattr(probe, "COPIED", 1 << 20)
    monkeypatch.setattr(probe, "CONVOLUTIONS", ((64, 64, 16),))
    probe.main(str(tmp_path))
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("@lorry ")
    told = Probe(**json.loads(line.removeprefix("@lorry ")))
    assert told.card == ""
    assert told.link_bytes_s is None
    assert not list(tmp_path.iterdir())
