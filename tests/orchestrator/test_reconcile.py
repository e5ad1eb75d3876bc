"""What a found machine is, by its label and our books."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fakes import T0
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.lease import is_ours
from orchestrator.ledger import Book, Entry
from orchestrator.lifecycle import Signal
from orchestrator.safety.reconcile import LABEL_MOST, Verdict, banner, hand_call, is_over, label_for, read_label, verdict
from providers.base import SelfDestroy

RUNS = st.from_regex(r"[a-z][a-z0-9-]{0,60}-[0-9a-f]{6}", fullmatch=True)
ENDS = st.datetimes(datetime(2025, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  the zone comes with it


def book(label: str, *signals: Signal) -> Book:
    intent = {"provider": "fake", "label": label, "gpu": "g", "usd_per_hour": "0.4", "disk_gib": 1, "prices": {}}
    entries = [Entry(seq=1, at=T0, kind=Signal.INTENT, attempt=1, data=intent)]
    entries += [Entry(seq=n, at=T0, kind=s, attempt=1, data={"instance_id": "i-1"}) for n, s in enumerate(signals, 2)]
    return Book(entries)


@given(RUNS, st.integers(1, 999), ENDS)
def test_a_label_says_run_attempt_and_deadline_wherever_it_is_read(run: str, attempt: int, ends_at: datetime):
    label = label_for(run, attempt, ends_at)
    said = read_label(label)
    assert len(label) <= LABEL_MOST
    assert said is not None
    assert run.endswith(said.run)
    assert (said.attempt, said.ends_at is not None) == (attempt, True)
    assert timedelta(0) <= said.ends_at - ends_at <= timedelta(minutes=1)  # never too early: that would end a machine at work


@given(RUNS, st.integers(1, 999), ENDS, st.integers(0, 60))
def test_a_label_cut_behind_the_run_is_still_ours_and_tells_no_deadline_that_it_had_not(
    run: str, attempt: int, ends_at: datetime, kept: int
):
    label = label_for(run, attempt, ends_at)
    cut = label[:kept]
    assert is_ours(cut, label) == (kept >= len(label.rpartition("-a")[0]))
    said = read_label(cut)
    assert cut == label or said is None or said.ends_at is None  # an earlier one would end a machine at work


def test_only_a_machine_that_nobody_can_want_is_over():
    late, now = label_for("autumn-3f2a91", 1, T0), T0 + timedelta(minutes=6)
    assert verdict(late, {}, now) is Verdict.OVER
    assert verdict(late, {}, T0 + timedelta(minutes=4)) is Verdict.ELSEWHERE
    assert verdict(late, {"autumn-3f2a91": book(late, Signal.LAUNCHED)}, now) is Verdict.IN_HAND
    assert verdict(late, {"autumn-3f2a91": book(late, Signal.LAUNCHED, Signal.GIVE_UP, Signal.GONE)}, T0) is Verdict.BELIEVED_GONE
    for other in ("", "my-own-machine", "lorry", "notlorry-a1-x0", "lorry-old-3f2a91-a1", "lorry-cut-3f2a91-a", "lorry-"):
        assert not is_over(other, {}, T0 + timedelta(days=9999)), other


@given(st.text(max_size=70))
def test_no_label_that_is_not_ours_is_ever_over(text: str):
    if not text.startswith("lorry-"):
        assert verdict(text, {}, T0 + timedelta(days=9999)) is Verdict.STRANGER


def test_the_banner_names_what_it_costs_where_to_see_it_and_the_call_that_ends_it():
    attempt = book(label_for("autumn-3f2a91", 1, T0), Signal.LAUNCHED).attempts[1]
    call = SelfDestroy(method="DELETE", url="https://cloud.example/v1/pods/{POD_ID}", key="{POD_KEY}", id_env="POD_ID")
    assert banner("autumn-3f2a91", attempt, console_url="https://cloud.example/console", self_destroy=call) == [
        "run autumn-3f2a91 MAY BE BILLING $0.400 an hour: g at fake, instance i-1",
        "  by hand: see and stop it at https://cloud.example/console",
        "  or: curl -X DELETE -H 'Authorization: Bearer YOUR_API_KEY' https://cloud.example/v1/pods/i-1",
    ]


def test_a_machine_whose_id_nobody_heard_is_told_by_its_label_and_no_call_is_made_up():
    label = label_for("autumn-3f2a91", 1, T0)
    call = SelfDestroy(method="DELETE", url="https://{HOST}/v1/pods/{POD_ID}", key="{POD_KEY}", id_env="POD_ID")
    (line, where) = banner("autumn-3f2a91", book(label).attempts[1], console_url="https://c", self_destroy=call)
    assert line.endswith(f"instance labelled {label}")
    assert where.endswith("https://c")
    assert hand_call(call, "i-1") == hand_call(None, "i-1") == "", "an address that only the machine knows is no address"
