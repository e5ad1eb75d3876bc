"""The script that measures, proven on the CPU with tiny models; and on a GPU, where there is one, at real size."""

from __future__ import annotations

import json

import pytest
import torch

from tests.gpu.__main__ import main
from tests.gpu.cases import CONDITIONS, SIDES, cases, real
from trainer.protocol import FAMILIES


def told(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_family_has_its_case() -> None:
    assert tuple(CONDITIONS) == tuple(SIDES) == FAMILIES


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "zimage"])  # which counts words, and here is nothing to count
def test_what_a_caption_is_fits_the_real_size(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device without memory: the true denoiser takes what is said here, and answers in the pictures' shape."""
    monkeypatch.setattr("trainer.families.model._hash_of", lambda *_: "")
    nowhere, case = torch.device("meta"), cases(family)[0]
    bench = real(case, nowhere)
    side = case.side // bench.compressed
    noisy = torch.empty(2, bench.channels, side, side, device=nowhere)
    condition = {name: value.to(nowhere)[None].expand(2, *value.shape) for name, value in bench.condition.items()}
    with torch.no_grad():
        assert bench.model.predict(noisy, torch.ones(2, device=nowhere), condition).shape == noisy.shape


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_the_script_works_where_there_is_no_gpu(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain, recorded, in fewer bits, out of the way: all of them agree, and each is a line of JSON."""
    assert main(["--tiny", "--device", "cpu", "--family", family, "--steps", "1"]) == 0
    lines = told(capsys.readouterr().out)
    assert len({line["case"] for line in lines}) == len(lines) >= 8
    assert [line["recorded"] for line in lines] == [line["speed"] == "graphs" for line in lines]
    assert all(line["agrees"] and not line["error"] and line["s_per_step"] > 0 for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_at_its_real_size_agrees_with_itself(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded and plain passes give the same losses to rounding; a smaller base gives near ones."""
    assert main(["--family", family]) == 0
    lines = told(capsys.readouterr().out)
    ran = [line for line in lines if not line["error"]]
    assert ran, "not even the plain case fits this card"
    by_case = {(line["speed"], line["base_precision"]): line for line in ran}
    if family != "zimage":  # its words are as many as a caption has: no fixed shape
        assert all(line["recorded"] for line in ran if line["speed"] == "graphs"), [line["notes"] for line in ran]
    if ("eager", "nf4") in by_case and ("eager", "fp8") in by_case:
        assert by_case["eager", "nf4"]["peak_gib"] <= by_case["eager", "fp8"]["peak_gib"]
