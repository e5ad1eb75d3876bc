"""What a machine tells is held against what was offered: a wrong one never passes, the right one always does, nonsense is nonsense."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fakes import offer
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.budget import GIB
from orchestrator.machines.inspection import (
    ALIKE,
    DISK_SLACK_BYTES,
    TOLD_MOST_BYTES,
    Line,
    Told,
    cuda_of,
    hardware_wrong,
    line_wrong,
    read,
    same_card,
)
from orchestrator.plan import Load, Work, estimate, vram_bytes
from orchestrator.pricing.gpus import GPUS
from providers.base import Offer

WORK = Work(
    name="lisa", steps=2000, images=30, batch_size=1, gradient_accumulation=1, resolution=512, rank=16,
    gradient_checkpointing=False, saves=4, samples=8, dataset_bytes=60_000_000,
)  # fmt: skip
LOAD = Load(jobs=(WORK,), upload_bytes=2_000_000_000, hub_bytes=0.0, base_scale=1.0, download_bytes=300_000_000)
CUDA = 12080


def told(*cards: tuple[str, float], **fields: Any) -> dict[str, Any]:
    """What an honest machine says, as JSON would have it."""
    some = [{"name": name, "vram_bytes": int(gib * GIB), "free_bytes": int(gib * GIB * 0.98)} for name, gib in cards]
    values = {"cuda": 13000, "driver": "580.65", "trouble": "", "disk_free_bytes": 100 * GIB, "disk_trouble": "", "practice": False}
    return {"cards": some} | values | fields


def wrong(said: dict[str, Any], against: Offer, *, near: bool = False, load: Load = LOAD) -> str:
    return hardware_wrong(Told.model_validate_json(json.dumps(said)), against, load, cuda=CUDA, near=near)


RIGHT = told(("NVIDIA GeForce RTX 4090", 23.64))


def test_the_machine_that_was_offered_passes():
    assert wrong(RIGHT, offer()) == ""


@pytest.mark.parametrize(
    ("said", "against", "words"),
    [
        (told(("NVIDIA GeForce RTX 3060", 11.76)), offer(), "offered RTX 4090 24 GiB, the machine has RTX 3060 12 GiB"),
        (told(("NVIDIA GeForce RTX 4090", 23.6)), offer(gpu_count=2), "offered 2 x RTX 4090 24 GiB, the machine has RTX 4090 24 GiB"),
        (
            told(("NVIDIA A100-SXM4-40GB", 39.4)),
            offer(gpu_name="A100 SXM4", vram_gib=80.0),
            "offered A100 SXM4 80 GiB, the machine has A100-SXM4-40GB 39 GiB",
        ),
        (
            told(("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9.5)),
            offer(gpu_name="A100 SXM4", vram_gib=80.0),
            "the machine has A100-SXM4-80GB MIG 1g.10gb 10 GiB",
        ),
        (RIGHT | {"cards": [], "trouble": "cuInit answered 803, system has unsupported display driver"}, offer(), "CUDA does not work"),
        (RIGHT | {"cards": []}, offer(), "the machine has no card"),
        (RIGHT | {"cuda": 12040}, offer(), "its driver can do CUDA 12.4 at most, the image's torch needs 12.8"),
        (RIGHT | {"disk_free_bytes": 1 * GIB}, offer(), "1.0 GiB of its disk are free"),
        (RIGHT | {"disk_trouble": "Read-only file system"}, offer(), "Read-only file system"),
        (RIGHT | {"practice": True}, offer(), "only plays"),
    ],
)
def test_another_one_is_told_apart_in_words(said: dict[str, Any], against: Offer, words: str):
    assert words in wrong(said, against)


def test_the_disk_must_hold_what_is_sent_what_comes_of_it_and_the_environment():
    need = LOAD.upload_bytes + 2 * LOAD.download_bytes + DISK_SLACK_BYTES
    assert "of its disk are free" in wrong(RIGHT | {"disk_free_bytes": need - 1}, offer())
    assert wrong(RIGHT | {"disk_free_bytes": need}, offer()) == ""


def test_a_card_that_somebody_else_uses_is_refused():
    said = json.loads(json.dumps(RIGHT))
    said["cards"][0]["free_bytes"] = vram_bytes(LOAD) - 1
    assert "somebody else uses it" in wrong(said, offer())


def test_a_played_card_is_believed_on_this_computer_only():
    played = RIGHT | {"practice": True}
    assert wrong(played, offer(), near=True) == ""
    assert wrong(played, offer(), near=False) != ""


CARDS = {
    "4090": ("RTX 4090", "NVIDIA GeForce RTX 4090"),
    "4090 D": ("RTX 4090D", "NVIDIA GeForce RTX 4090 D"),
    "4070 Ti SUPER": ("RTX 4070S Ti", "NVIDIA GeForce RTX 4070 Ti SUPER"),
    "4070 Ti": ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti"),
    "4080 SUPER": ("RTX 4080S", "NVIDIA GeForce RTX 4080 SUPER"),
    "4060 Ti": ("RTX 4060 Ti", "NVIDIA GeForce RTX 4060 Ti"),
    "6000 Ada": ("RTX 6000Ada", "RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"),
    "A6000": ("RTX A6000", "NVIDIA RTX A6000"),
    "Q8000": ("Q RTX 8000", "Quadro RTX 8000"),
    "A10": ("A10", "NVIDIA A10"),
    "A100": ("A100 SXM4", "A100 PCIE", "A100 SXM", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB"),
    "H100": ("H100 SXM", "H100 NVL", "NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA H100 PCIe"),
    "H200": ("H200", "NVIDIA H200"),
    "T4": ("Tesla T4", "Tesla T4"),
    "V100": ("Tesla V100", "Tesla V100-SXM2-32GB"),
    "L4": ("L4", "NVIDIA L4"),
    "L40": ("L40", "NVIDIA L40"),
    "L40S": ("L40S", "NVIDIA L40S"),
    "PRO 6000": ("RTX PRO 6000 S", "RTX PRO 6000 WS", "RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
}
"""Names of one chip, as marketplaces and drivers write them; how much memory is on it is compared by itself."""


@pytest.mark.parametrize("chip", CARDS)
def test_a_card_is_known_by_all_its_names_and_taken_for_no_other(chip: str):
    for name in CARDS[chip]:
        assert [other for other in CARDS if any(same_card(name, told) for told in CARDS[other])] == [chip], name
        assert all(same_card(name, told) for told in CARDS[chip])


def test_no_card_of_the_table_is_taken_for_another_one_of_it():
    """Apart from the same card in another socket."""
    chips = {name: name.split(" PCIE")[0].split(" SXM")[0] for name in GPUS}
    assert [(a, b) for a in GPUS for b in GPUS if same_card(a, b) != (chips[a] == chips[b])] == []


@given(name=st.sampled_from(sorted(GPUS)), share=st.floats(0.01, 1.2), kept=st.floats(0.9, 1.0))
def test_less_memory_than_offered_never_passes_and_what_a_driver_keeps_for_itself_always_does(name: str, share: float, kept: float):
    promised = offer(gpu_name=name, vram_gib=float(GPUS[name].vram_gib))
    small = replace(LOAD, jobs=(replace(WORK, gradient_checkpointing=True, rank=1),), base_scale=0.02)
    said = told((f"NVIDIA {name}", promised.vram_gib * share))
    if share < 0.89:
        assert "offered" in wrong(said, promised, load=small)
    assert wrong(told((f"NVIDIA {name}", promised.vram_gib * max(kept, 0.901))), promised, load=small) == ""


# --- what is hostile -------------------------------------------------------------------------------


def as_answer(document: object) -> bytes:
    return b"Welcome to the machine!\n@lorry " + json.dumps(document).encode() + b"\n"


def test_an_answer_is_found_behind_a_greeting():
    assert read(as_answer(RIGHT)) == Told.model_validate_json(json.dumps(RIGHT))


NONSENSE: list[object] = [
    [], 7, None, "x", {}, RIGHT | {"more": 1}, RIGHT | {"cuda": "13000"}, RIGHT | {"cuda": -1}, RIGHT | {"cuda": True},
    RIGHT | {"practice": 0},
    RIGHT | {"disk_free_bytes": 10**30}, RIGHT | {"disk_free_bytes": 1.5}, RIGHT | {"driver": "\x1b[31m"}, RIGHT | {"trouble": "x" * 301},
    RIGHT | {"cards": [RIGHT["cards"][0]] * 65}, RIGHT | {"cards": [RIGHT["cards"][0] | {"name": "a\nb"}]},
    RIGHT | {"cards": [RIGHT["cards"][0] | {"name": "\u202egnp"}]},
    RIGHT | {"cards": [RIGHT["cards"][0] | {"vram_bytes": "24"}]},
    RIGHT | {"cards": [RIGHT["cards"][0] | {"more": 1}]}, {name: value for name, value in RIGHT.items() if name != "cuda"},
]  # fmt: skip


@pytest.mark.parametrize("document", NONSENSE, ids=range(len(NONSENSE)))
def test_what_does_not_make_sense_is_nothing(document: object):
    assert read(as_answer(document)) is None


@settings(max_examples=300)
@given(raw=st.binary(max_size=400) | st.text().map(lambda text: b"@lorry " + text.encode(errors="surrogatepass")))
def test_any_bytes_can_be_read(raw: bytes):
    assert read(raw) is None or isinstance(read(raw), Told)


@pytest.mark.parametrize("padding", [TOLD_MOST_BYTES, 10**7])
def test_an_endless_line_is_nothing(padding: int):
    assert read(b"@lorry " + b" " * padding + json.dumps(RIGHT).encode()) is None


# --- the line --------------------------------------------------------------------------------------


def said_s(against: Offer) -> float:
    phases = estimate(LOAD, against, 0).phases
    return phases["upload"].p50 + phases["pull"].p50


@given(factor=st.floats(0.01, 100))
def test_a_line_is_slow_from_three_times_the_plans_time_on(factor: float):
    bytes_s = (LOAD.upload_bytes + LOAD.download_bytes) / (said_s(offer()) * factor)
    words = line_wrong(Line(up_bytes_s=bytes_s, down_bytes_s=bytes_s), offer(), LOAD, last=None)
    if factor < 2.99:
        assert words == ""
    elif factor > 3.01:
        assert "its line is slow" in words


def test_a_load_that_is_there_at_once_over_any_line_makes_no_line_slow():
    tiny = replace(LOAD, upload_bytes=10_000, download_bytes=10_000)
    assert line_wrong(Line(up_bytes_s=1000.0, down_bytes_s=1000.0), offer(), tiny, last=None) == ""


def test_for_two_minutes_nobody_changes_machines():
    short = replace(LOAD, upload_bytes=1_000_000, download_bytes=0)
    for bytes_s, slow in ((1_000_000 / 110, False), (1_000_000 / 180, True)):
        assert bool(line_wrong(Line(up_bytes_s=bytes_s, down_bytes_s=1e9), offer(), short, last=None)) is slow


def test_a_line_that_is_slow_one_way_only_is_not_like_one_that_is_slow_the_other_way():
    up, down = Line(up_bytes_s=1e4, down_bytes_s=1e8), Line(up_bytes_s=1e8, down_bytes_s=1e4)
    assert "slow" in line_wrong(up, offer(), LOAD, last=down)


@given(speed=st.floats(1e3, 1e5), last=st.floats(1e3, 1e9))
def test_two_machines_that_are_equally_slow_have_our_own_line_in_common(speed: float, last: float):
    slow = Line(up_bytes_s=speed, down_bytes_s=speed)
    words = line_wrong(slow, offer(), LOAD, last=Line(up_bytes_s=last, down_bytes_s=last))
    assert (words == "") == (speed / last >= ALIKE)


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime", 12080), ("runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404", 12080),
        ("nvcr.io/nvidia/pytorch:25.01-py3", 0), ("me/mine:cu130", 13000),
    ],
)  # fmt: skip
def test_the_cuda_of_an_image_is_read_from_its_name(image: str, version: int):
    assert cuda_of(image) == version
