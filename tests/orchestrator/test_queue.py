"""The order of a session's jobs, and how many share a pass: what a base is loaded for stands together, and the cap loses the fewest."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pricing.gpus import gpu
from orchestrator.pricing.needs import Bucket, JobShape, memory, usable_bytes
from orchestrator.pricing.queue import WIDEST, Entry, company, queue

ENTRIES = st.lists(
    st.builds(
        Entry,
        name=st.uuids().map(str),
        resident=st.tuples(st.sampled_from(["sdxl", "sd15", "flux"])),
        seconds=st.sampled_from([10.0, 20.0, 30.0, 45.0]),
        size=st.tuples(st.sampled_from([512, 1024])),
    ),
    min_size=1,
    max_size=6,
)


@given(ENTRIES)
def test_everybody_is_in_the_queue_once_and_a_base_is_loaded_once(entries: list[Entry]):
    order = queue(entries)
    assert sorted(order) == sorted(entry.name for entry in entries)
    bases = [next(e.resident for e in entries if e.name == name) for name in order]
    changes = sum(one != other for one, other in pairwise(bases))
    assert changes == len(set(bases)) - 1


@given(ENTRIES.filter(lambda entries: len({entry.resident for entry in entries}) == 1), st.floats(0, 200))
def test_no_other_order_on_one_base_finishes_more_by_any_time(entries: list[Entry], cap_s: float):
    seconds = {entry.name: entry.seconds for entry in entries}

    def done(order: tuple[str, ...]) -> int:
        passed = [sum(seconds[name] for name in order[: count + 1]) for count in range(len(order))]
        return sum(end <= cap_s for end in passed)

    assert done(tuple(queue(entries))) == max(map(done, permutations(seconds)))


def test_jobs_that_are_alike_keep_the_order_of_the_file():
    names = [f"j{number}" for number in range(5)]
    assert queue([Entry(name=name, resident=("a",), seconds=5.0) for name in names]) == names


@given(st.integers(1, 40), st.sampled_from(["RTX 3060", "RTX 4090", "H100 SXM"]), st.sampled_from(["sd15", "sdxl"]), st.booleans())
def test_a_company_fits_its_card_and_one_more_would_not(count: int, card: str, family: str, checkpointing: bool):
    side = 512 if family == "sd15" else 1024
    shape = JobShape(family=family, buckets=(Bucket(width=side, height=side),), checkpointing=checkpointing)

    def fits(jobs: int) -> bool:
        return memory(replace(shape, jobs=jobs)).total <= usable_bytes(gpu(card))

    found = company([shape] * count, gpu(card))
    assert 1 <= found <= min(count, WIDEST)
    assert found == 1 or fits(found)
    assert found in (count, WIDEST) or not fits(found + 1)
