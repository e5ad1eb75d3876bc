"""What is seen of a run: on terminals of three widths, in a pipe, by a script; and nothing of the machine's text acts on any of them."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from dataclasses import replace
from decimal import Decimal

import pyte
import pytest
from fakes import FakeClock, offer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator import console
from orchestrator.plan import Load, make_plan
from orchestrator.progress import Progress
from orchestrator.report.plan import show_plan
from orchestrator.view import BLOCKS, JsonView, LiveView, PlainView, Snapshot, duration, size, sparkline
from providers.base import Requirements
from trainer.protocol import Ended, Phase, Started, Step, Warned

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b1m\r\nfake line\x00\x08\u202egnp.exe\u2066\u200f\x7f\u2028next"


def training(*, message: str = "") -> Progress:
    progress = Progress(["lisa", "forest-style"])
    progress.take(Phase(at_s=1, job="lisa", phase="training"))
    progress.take(Started(at_s=10, job="lisa", steps=1500, images=30, epochs=5))
    for i in range(1, 341):
        progress.take(Step(at_s=10 + i, job="lisa", step=i, steps=1500, epoch=0, loss=0.2 - i / 4000, lr=1e-4, samples_per_s=4.0))
    if message:
        progress.take(Ended(at_s=400, job="forest-style", state="failed", step=3, message=message))
    return progress


def snapshot(**fields: object) -> Snapshot:
    values: dict[str, object] = {
        "run": "autumn-1a2b3c", "phase": "training", "detail": "", "transfer": None, "provider": "vast", "gpu": "RTX 4090",
        "usd_per_hour": Decimal("0.408"), "spent_usd": Decimal("0.1234"), "cap_usd": Decimal("5.00"), "elapsed_s": 1089.0,
        "progress": training(),
    }  # fmt: skip
    return Snapshot(**(values | fields))  # type: ignore[arg-type]


def screen(snap: Snapshot, width: int, monkeypatch: pytest.MonkeyPatch, *said: str) -> tuple[list[str], str]:
    """What a terminal of that width shows, and the bytes that it got."""
    got = io.StringIO()
    monkeypatch.setattr(
        console, "rich_console", lambda: Console(file=got, force_terminal=True, width=width, height=30, highlight=False, emoji=False)
    )
    view = LiveView()
    view.show(snap)
    for line in said:
        view.say(line)
    view.show(snap)
    terminal = pyte.Screen(width, 30)
    pyte.Stream(terminal).feed(got.getvalue().replace("\n", "\r\n"))
    view.close()
    return [line.rstrip() for line in terminal.display], got.getvalue()


# -- the terminal ----------------------------------------------------------------------------------


def test_jobs_that_train_together_are_all_shown(capsys: pytest.CaptureFixture[str]):
    """The time left is that of the slowest, not the sum."""
    progress = Progress(["cat", "cup", "later"])
    for name, steps in (("cat", 100), ("cup", 200)):
        progress.take(Started(at_s=0, job=name, steps=steps, images=9, epochs=1))
        for step in (1, 10):  # the first lies 30 s after the start: samples are drawn before it, and are no pace
            progress.take(Step(at_s=30 + step, job=name, step=step, steps=steps, epoch=1, loss=0.5, lr=1e-4, samples_per_s=4.0))
    PlainView(lambda: 0.0).show(replace(snapshot(), progress=progress))
    said = capsys.readouterr().err
    assert "cat: training, step 10/100" in said
    assert "cup: training, step 10/200" in said
    assert progress.seconds_left == pytest.approx(190 + 200), "the slower of the two, then the queued one"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_shows_all_that_matters_at_every_width(width: int, monkeypatch: pytest.MonkeyPatch):
    lines, _ = screen(snapshot(), width, monkeypatch)
    text = " ".join(" ".join(lines).split())
    for fact in ("autumn-1a2b3c", "RTX 4090 at vast", "$0.4080/h", "training", "lisa", "forest-style", "waiting"):
        assert fact in text, fact
    assert "step 340/1500" in text
    assert re.search(r"loss 0\.1\d{3}", text)
    assert "4.0 samples/s" in text
    assert "19m20s left" in text
    assert "spent $0.1234 of $5.00 after 18m09s" in text
    curves = [line.split()[-1] for line in lines if line.split()]
    assert any(len(set(curve) & set(BLOCKS)) >= 4 and not set(curve) - set(BLOCKS) for curve in curves), "the curve, behind its job"
    assert max(map(len, lines)) <= width
    assert sum(bool(line) for line in lines) <= 8, "small enough to be taken in at a look"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_transfer_shows_how_far_it_is(width: int, monkeypatch: pytest.MonkeyPatch):
    snap = snapshot(phase="upload", detail="31 files", transfer=(1_500_000, 60_000_000), progress=Progress(["lisa"]))
    text = " ".join(screen(snap, width, monkeypatch)[0])
    for fact in ("upload", "31 files", "1.5 MB of 60.0 MB"):
        assert fact in text


def test_the_view_stays_in_its_place(monkeypatch: pytest.MonkeyPatch):
    """A second drawing replaces the first; what was said stands above it."""
    lines, _ = screen(snapshot(), 80, monkeypatch, "lisa: checkpoint of step 300 is home")
    assert sum("autumn-1a2b3c" in line for line in lines) == 1
    assert lines[0] == "lisa: checkpoint of step 300 is home"


def test_nothing_of_the_machines_text_acts_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    snap = snapshot(detail=HOSTILE, phase="set-up", gpu=HOSTILE, progress=training(message=HOSTILE))
    clean = snapshot(detail="d", phase="set-up", gpu="g", progress=training(message="m"))
    lines, raw = screen(snap, 120, monkeypatch, HOSTILE)
    ours = set(re.findall(r"\x1b[^a-zA-Z]*[a-zA-Z]", screen(clean, 120, monkeypatch, "said")[1]))
    theirs = set(re.findall(r"\x1b[^a-zA-Z]*[a-zA-Z]", raw))
    assert {s for s in theirs if not re.fullmatch(r"\x1b\[\d*[A-Z]", s)} <= ours, "only what rich itself writes"
    assert not set(raw) & set("\x00\x07\x08\x7f\x9b\u202e\u2066\u200f\u2028")
    assert not any(line.startswith("fake line") for line in lines)


# -- the pipe --------------------------------------------------------------------------------------


def test_plain_lines_say_the_same_and_carry_no_control_characters(capsys: pytest.CaptureFixture[str]):
    view = PlainView(FakeClock().monotonic_s)
    view.show(snapshot())
    view.say(HOSTILE)
    view.show(snapshot(phase="set-up", detail=HOSTILE))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("[18m09s] training: lisa: training, step 340/1500, loss 0.1")
    assert "$0.1234 of $5.00" in lines[0]
    assert [c for c in err if unicodedata.category(c).startswith("C") and c != "\n"] == []


def test_plain_lines_come_when_something_changes_and_seldom_otherwise(capsys: pytest.CaptureFixture[str]):
    clock = FakeClock()
    view = PlainView(clock.monotonic_s)
    for second in range(100):
        clock.passed_s = second
        view.show(snapshot(elapsed_s=float(second), progress=training()))
    assert 5 <= len(capsys.readouterr().err.splitlines()) <= 11
    view.show(snapshot(phase="pull"))
    assert len(capsys.readouterr().err.splitlines()) == 1, "a new phase is said at once"


# -- the script ------------------------------------------------------------------------------------


def test_every_line_for_a_script_is_json_and_the_first_names_the_version(capsys: pytest.CaptureFixture[str]):
    view = JsonView("0.1.0")
    view.show(snapshot(transfer=(1, 2), detail=HOSTILE))
    view.show(snapshot(usd_per_hour=None, spent_usd=None, cap_usd=None))
    view.say(HOSTILE)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert (out, [line["type"] for line in lines]) == ("", ["version", "progress", "progress", "note"])
    assert lines[0] == {"type": "version", "lorry": "0.1.0", "events": "1.1"}
    assert lines[1]["spent_usd"] == 0.1234
    assert lines[1]["jobs"][0]["step"] == 340
    assert lines[1]["left_s"] > max(job["left_s"] or 0 for job in lines[1]["jobs"]) > 0, "at the pace that was measured, the queued one too"
    assert not set(lines[3]["text"]) & set("\x1b\x07\u202e")
    assert err.isascii()


@settings(deadline=None, max_examples=50)
@given(loss=st.floats(allow_nan=False, allow_infinity=False), pace=st.floats(0, 1e300), text=st.text())
def test_json_stays_json_whatever_the_machine_tells(loss: float, pace: float, text: str):
    progress = Progress(["lisa"])
    for i in (1, 2, 3):
        progress.take(Step(at_s=i, job="lisa", step=i, steps=10, epoch=0, loss=loss, lr=1, samples_per_s=pace))
    progress.take(Warned(at_s=1, job="lisa", message=text))
    with pytest.MonkeyPatch.context() as patch:
        written = io.StringIO()
        patch.setattr("sys.stderr", written)
        JsonView("0").show(snapshot(progress=progress, detail=text))
    for line in written.getvalue().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# -- words -----------------------------------------------------------------------------------------


@given(text=st.text())
def test_plain_text_is_one_line_of_printable_characters(text: str):
    kept = console.plain(text)
    assert kept.isprintable()
    assert len(kept) <= 2000
    assert console.plain(kept) == kept
    assert not any(unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"} for c in kept)


def test_a_markets_text_is_no_markup_and_no_control_in_the_table_of_offers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from test_plan import LOAD

    monkeypatch.setenv("COLUMNS", "200")
    assert isinstance(LOAD, Load)
    strange = offer("1", gpu_name="[bold red]4090[/] \x1b[31m", region="\u202eXX", provider="[link=http://x]v[/link]")
    show_plan(make_plan(LOAD, [strange], Requirements(disk_gib=40), cap_usd=Decimal(100)), data=True)
    shown = capsys.readouterr().out
    assert "[bold red]4090[/]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599.6, "1h00m"), (7384, "2h03m"), (1e300, "9999h00m")]
)
def test_durations_read_well(seconds: float, shown: str):
    assert duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (60_000_000, "60.0 MB"), (4.3e12, "4300.0 GB")])
def test_sizes_read_well(count: float, shown: str):
    assert size(count) == shown


@given(values=st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=200), width=st.integers(1, 100))
def test_a_curve_fits_its_width_and_shows_its_ends(values: list[float], width: int):
    drawn = sparkline(values, width)
    assert len(drawn) == min(width, len(values))
    assert set(drawn) <= set(BLOCKS)
    assert BLOCKS[0] in drawn
