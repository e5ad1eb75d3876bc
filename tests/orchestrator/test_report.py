"""The receipt speaks the product page's words; the page loads nothing, runs nothing and shows a stranger's text as text."""

from __future__ import annotations

import json
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, an_order, offer, png, safetensors, spec, write

from orchestrator.errors import EXIT_CODES
from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.plan import make_plan
from orchestrator.report.log import told
from orchestrator.report.page import write_page
from orchestrator.report.plan_document import plan_document
from orchestrator.report.receipt import in_words, phases, receipt
from providers.errors import NoCapacity
from trainer.protocol import Ended, Evaluated, Started, Step, Warned, dump_event

HOSTILE = "</p><script src=http://evil.example/x.js></script><img src=x onerror=alert(1)>\" onmouseover='x' {{ 7*7 }} &lt;"


class Finished:
    """A run with one lease and one job, as its folder stands at the end."""

    def __init__(self, path: Path, words: str = "all well") -> None:
        path.mkdir(parents=True)
        self.clock = FakeClock()
        self.folder = RunFolder(path)
        self.order = an_order(self.folder, ("lisa", "forest"))
        self.cloud = FakeCloud(self.clock)
        self.ledger = Ledger(path / "ledger.jsonl", self.clock)
        self.ledger.record("opened", cap_usd=self.order.cap_usd, run=self.order.run)
        plan = make_plan(self.order.load, [offer()], self.order.requirements, cap_usd=Decimal(5))
        self.folder.write("plan.json", plan_document(plan))
        self.ledger.record("confirmed", usd=plan.best.estimate.usd)
        self.lease = Lease.take(self.cloud, offer(), spec(), ledger=self.ledger, clock=self.clock)
        for signal in (Signal.REACHABLE, Signal.SHIPPED, Signal.STARTED, Signal.ENDED, Signal.PULLED):
            self.clock.sleep(60)
            self.ledger.record(signal, attempt=1)
        events = [
            Started(at_s=1, job="lisa", steps=20, images=3, epochs=2),
            *(Step(at_s=i, job="lisa", step=i, steps=20, epoch=0, loss=1 / i, lr=1e-4, samples_per_s=2) for i in range(1, 21)),
            Evaluated(at_s=20, job="lisa", step=10, loss=0.3),
            Evaluated(at_s=20, job="lisa", step=20, loss=0.2),
            Warned(at_s=20, job="lisa", message=words),
            Ended(at_s=21, job="lisa", state="done", step=20),
            Ended(at_s=22, job="forest", state="failed", step=0, message=words),
        ]
        write(path / "events-1.jsonl", b"".join(map(dump_event, events)))
        write(self.folder.job("lisa") / "lisa.safetensors", safetensors())
        write(self.folder.job("lisa") / "checkpoints" / "lisa-000010.safetensors", safetensors(10))
        write(self.folder.job("lisa") / "samples" / "step000010-0.png", png())

    def close(self, exit_code: int = 0, *, gone: bool = True, message: str = "") -> dict[str, object]:
        if gone:
            self.lease.release("done")
        self.clock.sleep(5)
        self.ledger.record("closed", exit_code=exit_code, message=message, hint="")
        return receipt(self.folder, self.clock.now())


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return Finished(tmp_path / "runs" / "autumn-1")


# -- the receipt -----------------------------------------------------------------------------------


def test_every_attempt_is_told_with_its_time_money_steps_and_end(tmp_path: Path):
    """One that was outbid, one that never let us in, one that could not be had, one that did the rest."""
    path = tmp_path / "runs" / "autumn-1"
    path.mkdir(parents=True)
    clock, folder = FakeClock(), RunFolder(path)
    order, cloud = an_order(folder), FakeCloud(clock)
    ledger = Ledger(path / "ledger.jsonl", clock)
    ledger.record("opened", cap_usd=order.cap_usd, run=order.run)

    def attempt(number: int, seconds: float, end: str, *, step: int = 0, **offered: object) -> None:
        ledger.record("chosen", number=number, offer={"interruptible": offered.get("interruptible", False)})
        lease = Lease.take(cloud, offer(f"o{number}", **offered), spec(f"lorry-autumn-1-a{number}"), ledger=ledger, clock=clock)
        if step:
            for signal in (Signal.REACHABLE, Signal.SHIPPED, Signal.STARTED):
                ledger.record(signal, attempt=number)
            ledger.record("fetched", attempt=number, job="lisa", role="checkpoint", step=step, final=False)
        clock.sleep(seconds)
        lease.release(end, {"exit_code": 0} if end == "the work is done" else None)

    attempt(1, 600, "it is stopped: outbid", step=60, interruptible=True)
    attempt(2, 300, "it did not boot: loading")
    cloud.plot.launch = NoCapacity("somebody else has it")
    with pytest.raises(NoCapacity):
        attempt(3, 0, "")
    cloud.plot.launch = None
    attempt(4, 400, "the work is done", step=100)
    ledger.record("closed", exit_code=0, message="", hint="")
    document = json.loads(json.dumps(receipt(folder, clock.now()), allow_nan=False))
    machines = document["machines"]
    assert [m["attempt"] for m in machines] == [1, 2, 3, 4]
    assert [m["steps_gained"] for m in machines] == [60, 0, 0, 40]
    assert [m["interruptible"] for m in machines] == [True, False, False, False]
    assert [m["id"] for m in machines] == ["i-0", "i-1", None, "i-2"]
    assert sum(m["metered_usd"] for m in machines) == pytest.approx(document["cost"]["metered_usd"], abs=1e-5)
    lines = "\n".join(in_words(document))
    assert "RTX 4090 at fake (i-0), $0.408/h, a bid: destroyed, seen to be gone\n    10m0" in lines
    assert ", 60 steps gained: it is stopped: outbid" in lines
    assert "    somebody else has it" in lines
    assert ": it did not boot: loading" in lines
    page = write_page(folder, document).read_text()
    assert page.count("<td>it is stopped: outbid</td>") == page.count("<td>somebody else has it</td>") == 1


def test_the_receipt_has_the_words_that_scripts_rely_on(finished: Finished):
    """As on the product page; more may be added, nothing may go."""
    document = finished.close()
    assert {"run", "status", "exit_code", "jobs", "machines", "cost", "report"} <= set(document)
    assert {"name", "status", "steps", "adapter", "sha256", "checkpoints"} <= set(document["jobs"][0])  # type: ignore[index]
    assert {"provider", "id", "gpu", "usd_per_hour", "destroyed_verified"} <= set(document["machines"][0])  # type: ignore[index]
    assert {"estimated_usd", "metered_usd", "billed_usd", "cap_usd"} <= set(document["cost"])  # type: ignore[arg-type]
    assert set(document["cost"]["estimated_usd"]) == {"p10", "p50", "p90"}  # type: ignore[index, call-overload]
    json.dumps(document, allow_nan=False)


def test_the_receipt_tells_what_is_so(finished: Finished):
    document = json.loads(json.dumps(finished.close()))
    lisa, forest = document["jobs"]
    assert (document["run"], document["status"], document["exit_code"]) == ("autumn-1", "done", 0)
    assert (lisa["status"], lisa["steps"], len(lisa["checkpoints"])) == ("done", 20, 1)
    assert Path(lisa["adapter"]).read_bytes() == safetensors()
    assert (forest["status"], forest["adapter"], forest["sha256"]) == ("failed", None, None)
    (machine,) = document["machines"]
    assert machine["destroyed_verified"] is True
    assert machine["metered_usd"] == pytest.approx(300 / 3600 * 0.408, rel=0.02)
    assert document["cost"]["metered_usd"] == machine["metered_usd"]
    assert document["cost"]["billed_usd"] is None, "not known is not nothing"
    assert document["cost"]["cap_usd"] == 5.0


def test_a_machine_that_was_not_seen_gone_wins_over_every_other_end(finished: Finished):
    document = finished.close(0, gone=False)
    assert (document["exit_code"], document["status"]) == (10, "may still bill")
    assert document["machines"][0]["destroyed_verified"] is False  # type: ignore[index]
    assert any("NOT KNOWN TO BE GONE" in line for line in in_words(document))
    assert not any("destroyed, seen" in line for line in in_words(document))


def test_the_meter_of_a_living_machine_runs_on_and_stops_with_it(finished: Finished):
    now = receipt(finished.folder, finished.clock.now())["cost"]["metered_usd"]
    finished.clock.sleep(3600)
    later = receipt(finished.folder, finished.clock.now())["cost"]["metered_usd"]
    assert later - now == pytest.approx(0.408)
    closed = finished.close()["cost"]["metered_usd"]  # type: ignore[index, call-overload]
    finished.clock.sleep(3600)
    assert receipt(finished.folder, finished.clock.now())["cost"]["metered_usd"] == closed


@pytest.mark.parametrize("code", sorted(EXIT_CODES))
def test_every_exit_code_has_a_status_in_words(tmp_path: Path, code: int):
    document = Finished(tmp_path / str(code)).close(code, message="because")
    assert document["exit_code"] == code
    assert document["status"]
    assert (document["status"] == "done") == (code == 0)


def test_the_phases_are_those_of_the_ledger(finished: Finished):
    finished.close()
    found = {p["phase"]: p["seconds"] for p in phases(finished.ledger.entries)}
    assert found.pop("destroy") < 10
    assert found == {"boot": 60.0, "upload and set-up": 120.0, "training": 60.0, "pull": 60.0}


@pytest.mark.parametrize("upto", range(12))
def test_a_receipt_can_be_written_of_a_run_that_died_at_any_entry(finished: Finished, upto: int):
    finished.close()
    file = finished.folder.path / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:upto]) + b"torn")
    document = receipt(finished.folder, finished.clock.now())
    assert write_page(finished.folder, document).exists()
    assert in_words(document)
    assert bool([m for m in document["machines"] if not m["destroyed_verified"]]) == (3 <= upto <= 10)


def test_a_run_of_which_nothing_is_left_but_its_book_has_a_receipt(tmp_path: Path):
    folder = RunFolder(tmp_path / "x")
    folder.path.mkdir()
    folder.ledger(FakeClock()).record("opened", cap_usd="5", run="x")
    document = receipt(folder, FakeClock().now())
    assert (document["jobs"], document["machines"], document["cost"]["metered_usd"]) == ([], [], 0.0)


# -- the page --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of it."""

    VOID = frozenset({"meta", "img", "br", "polyline", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run: Finished) -> Page:
    return Page(write_page(run.folder, run.close()).read_text(encoding="utf-8"))


@pytest.mark.parametrize("words", ["all well", HOSTILE])
def test_the_page_is_whole_and_loads_nothing(tmp_path: Path, words: str):
    page = page_of(Finished(tmp_path / "runs" / "autumn-1", words))
    assert page.open == []
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td", "code", "svg", "polyline",
        "div", "figure", "img", "figcaption", "ul", "li", "span", "tbody",
    }  # fmt: skip
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attrs.get(name) or "data:").startswith("data:"), (tag, attrs)
        assert "url(" not in (attrs.get("style") or "")


def test_the_page_forbids_everything_but_itself(finished: Finished):
    policies = [a.get("content") or "" for tag, a in page_of(finished).tags if (a.get("http-equiv") or "") == "Content-Security-Policy"]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "script-src" not in rules
    assert "http" not in policies[0]


def test_a_strangers_text_is_shown_as_text(tmp_path: Path):
    page = page_of(Finished(tmp_path / "runs" / "autumn-1", HOSTILE))
    assert page.text.count("<script src=http://evil.example/x.js></script>") >= 1
    assert "{{ 7*7 }}" in page.text


def test_the_page_shows_curves_samples_and_money(finished: Finished):
    page = page_of(finished)
    classes = [attrs.get("class") for tag, attrs in page.tags if tag == "polyline"]
    assert classes == ["raw", "smooth", "heldout"]
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 1
    assert (pictures[0]["src"] or "").startswith("data:image/png;base64,")
    for fact in ("autumn-1", "lisa", "step 20 of 20", "destroyed, seen to be gone", "no record yet", "$5.00"):
        assert fact in page.text, fact


# -- the log ---------------------------------------------------------------------------------------


def test_the_log_tells_every_event_of_every_machine_in_order(finished: Finished):
    second = dump_event(Warned(at_s=1, job="lisa", message="from the second machine"))
    write(finished.folder.path / "events-2.jsonl", second)
    write(finished.folder.path / "events-10.jsonl", dump_event(Warned(at_s=1, job="lisa", message="from the tenth")))
    events = list(told(finished.folder, follow=False))
    assert len(events) == 28
    assert [getattr(e, "message", "") for e in events[-2:]] == ["from the second machine", "from the tenth"]
