"""A checkpoint is whole and its own job's, or it is not used."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from trainer import checkpoint, files, optimizers
from trainer.adapters import Adapter, Target
from trainer.cache import Cache, address
from trainer.errors import IntegrityError
from trainer.optimizers import LossScale
from trainer.protocol import TrainingOptions

TARGETS = [Target("unet", "a", 5, 4)]


def saved(folder: Path, *steps: int, digest: str = "d") -> Adapter:
    adapter = Adapter.create(TARGETS, 2, 1.0, 0, torch.device("cpu"))
    optimizer, _ = optimizers.create(TrainingOptions(optimizer="AdamW"), adapter)
    for step in steps:
        adapter.flat["unet"].grad = torch.ones_like(adapter.flat["unet"])
        optimizer.step({"unet": 1e-3})
        checkpoint.save(folder, checkpoint.State(step, digest, adapter, optimizer, LossScale(enabled=True, value=8.0, good=3)))
    return adapter


def test_the_last_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    adapter = saved(tmp_path, 5, 10, 15)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step000010.safetensors", "step000015.safetensors"]
    found = checkpoint.find(tmp_path, "d", pytest.fail)
    assert found is not None
    assert (found.step, found.scale, found.good) == (15, 8.0, 3)
    assert torch.equal(found.tensors["adapter.unet"], adapter.flat["unet"].detach())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_damage_is_seen_and_the_one_before_is_used(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("c")
    saved(folder, 1, 2)
    newest = folder / "step000002.safetensors"
    raw = bytearray(newest.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
    newest.write_bytes(raw)
    words: list[str] = []
    found = None
    with contextlib.suppress(IntegrityError):  # the flipped byte was one of the digest's
        found = checkpoint.find(folder, "d", words.append)
    if found is None:
        return
    if found.step == 2:  # the flipped byte was a space, or a digit of a number that the header only says
        assert torch.equal(found.tensors["adapter.unet"], checkpoint.load(newest, "d").tensors["adapter.unet"])
    else:
        assert "incomplete or damaged" in words[0]


def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1, digest="mine")
    with pytest.raises(IntegrityError) as caught:
        checkpoint.find(tmp_path, "theirs", pytest.fail)
    assert caught.value.code == "LRY-CKPT-DIGEST"


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "step000001.safetensors").write_bytes(pickle.dumps(Bomb()))
    words: list[str] = []
    assert checkpoint.find(tmp_path, "d", words.append) is None
    assert len(words) == 1
    assert not (tmp_path / "exploded").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.write_atomically(path, b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_digest_is_of_every_fact_and_of_no_order() -> None:
    one = checkpoint.digest_of({"a": 1, "b": [1.5, "x"]})
    assert one == checkpoint.digest_of(json.loads('{"b": [1.5, "x"], "a": 1}'))
    assert one != checkpoint.digest_of({"a": 1, "b": [1.5, "y"]})


def test_the_cache_makes_once_and_again_when_a_file_is_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.ones(3)

    where = address("picture", b"bytes", (64, 64))
    for _ in range(2):
        assert torch.equal(Cache(tmp_path).get("latents", where, make), torch.ones(3))
    assert len(made) == 1
    (tmp_path / "latents" / f"{where}.safetensors").write_bytes(b"torn")
    assert torch.equal(Cache(tmp_path).get("latents", where, make), torch.ones(3))
    assert len(made) == 2


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "zeros, as after a power cut": lambda data: bytes(len(data)),
    "one bit of the tensors": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "another shape": lambda data: data.replace(b'"shape":[2,3]', b'"shape":[3,2]'),
    "another header": lambda data: data[:8] + b"[" + data[9:],
    "a safetensors file that is not ours": lambda _: save({"value": torch.zeros(2, 3)}),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_cache_file_that_is_not_what_was_written_is_made_anew(case: str, tmp_path: Path) -> None:
    right, where = torch.arange(6.0).view(2, 3), address("picture")
    Cache(tmp_path).get("latents", where, lambda: right)
    file = tmp_path / "latents" / f"{where}.safetensors"
    spoilt = SPOILT[case](file.read_bytes())
    assert spoilt != file.read_bytes()
    file.write_bytes(spoilt)
    again = Cache(tmp_path)
    assert torch.equal(again.get("latents", where, lambda: right), right)
    assert (again.made, again.found) == (1, 0)
    assert torch.equal(Cache(tmp_path).get("latents", where, torch.zeros), right), "and is whole again"


def test_a_cache_file_at_anothers_address_is_not_believed(tmp_path: Path) -> None:
    """Someone copied or renamed it: the content is whole, but of another picture."""
    one, other = address("one"), address("other")
    Cache(tmp_path).get("latents", one, lambda: torch.zeros(2))
    (tmp_path / "latents" / f"{one}.safetensors").rename(tmp_path / "latents" / f"{other}.safetensors")
    assert torch.equal(Cache(tmp_path).get("latents", other, lambda: torch.ones(2)), torch.ones(2))


FACTS = st.lists(st.text(max_size=3) | st.binary(max_size=3), max_size=4)


@given(FACTS, FACTS)
def test_different_facts_have_different_addresses(one: list[str | bytes], other: list[str | bytes]) -> None:
    """Also when their letters in a row are the same."""

    def plain(facts: list[str | bytes]) -> list[bytes]:
        return [f if isinstance(f, bytes) else f.encode() for f in facts]

    assert (address(*one) == address(*other)) == (plain(one) == plain(other))


def test_bytes_count_as_they_are() -> None:
    assert address("x", b"a", b"bc") != address("x", b"ab", b"c") != address("x", b"", b"")
    assert address(b"a") != address(b"b")


def group(folder: Path, cuts: dict[int, dict[str, int]], torn: str = "") -> list[list[checkpoint.Checkpoint]]:
    """Three jobs' checkpoints after these cuts; `torn`: in the last one this job and those after it were not reached."""
    adapter = saved(folder)
    optimizer, _ = optimizers.create(TrainingOptions(optimizer="AdamW"), adapter)
    for cut, company in cuts.items():
        for name, step in company.items():
            if cut == max(cuts) and name >= (torn or "z"):
                break
            checkpoint.save(folder / name, checkpoint.State(step, "d", adapter, optimizer, LossScale(enabled=False), company, cut))
    return [list(checkpoint.whole(folder / name, "d", pytest.fail)) for name in ("a", "b", "c")]


CUTS = {1: {"a": 2, "b": 3, "c": 2}, 2: {"a": 4, "b": 5, "c": 2}, 3: {"a": 6, "b": 7, "c": 5}}


@pytest.mark.parametrize(("last", "torn", "steps"), [(3, "", [6, 7, 5]), (3, "b", [4, 5, 2]), (3, "c", [4, 5, 2]), (1, "b", [None] * 3)])
def test_a_group_goes_on_from_the_newest_moment_at_which_all_were_saved(last: int, torn: str, steps: list[int], tmp_path: Path) -> None:
    found = group(tmp_path, {n: cut for n, cut in CUTS.items() if n <= last}, torn)
    assert [one and one.step for one in checkpoint.common(found, "abc")] == steps


def test_a_job_that_joins_or_a_lost_file_costs_nobody_a_step(tmp_path: Path) -> None:
    found = group(tmp_path, CUTS)
    assert [one and one.step for one in checkpoint.common([*found, []], "abcd")] == [6, 7, 5, None]
    assert [one and one.step for one in checkpoint.common([found[0][:1], found[1][1:], found[2]], "abc")] == [6, 5, 5]
    assert [one and one.step for one in checkpoint.common(found[1:], "bc")] == [7, 5], "a has ended since"
