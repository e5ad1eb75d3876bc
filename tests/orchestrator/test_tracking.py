"""Curves and samples for other programs: made of what the machine told, read back by those programs' own readers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.errors import UsageError
from orchestrator.report import tfevents, tracking
from orchestrator.report.tracking import Source, TensorBoard, Tracked, WandB, tracked
from trainer.protocol import AnyEvent, Committed, Evaluated, Scored, Step, dump_event

BEGAN = 1_700_000_000.0


class Heard:
    """A view that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.closed = False

    def show(self, snapshot) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.closed = True


def step(number: int, loss: float, job: str = "lisa") -> Step:
    return Step(at_s=number, job=job, step=number, steps=9, epoch=1, loss=loss, lr=1e-4, samples_per_s=2.5, grad_norm=0.5)


def sample(number: int) -> Committed:
    path = f"jobs/lisa/out/samples/step{number:06d}-0.png"
    return Committed(at_s=number, job="lisa", path=path, role="sample", step=number, size=1, sha256="0" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs/lisa/samples").mkdir(parents=True)
    return tmp_path


def tell(folder: Path, *events: AnyEvent) -> None:
    with (folder / "events-1.jsonl").open("ab") as file:
        file.write(b"".join(map(dump_event, events)))


def source(folder: Path) -> Source:
    return Source(events=lambda: sorted(folder.glob("events-*.jsonl")), results=folder / "jobs", jobs=("lisa",))


def view_of(folder: Path, *log_to: str) -> tuple[Heard, Tracked]:
    heard = Heard()
    view = tracked(heard, log_to, source(folder), folder, run="autumn-1", began=BEGAN, clock_s=lambda: 0.0)
    assert isinstance(view, Tracked)
    return heard, view


def test_tensorboard_reads_losses_rates_and_samples(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard's own reader is not installed here"
    )
    Image.new("RGB", (1024, 640), "red").save(folder / "jobs/lisa/samples/step000002-0.png")
    tell(folder, step(1, 0.25), step(2, 0.125), sample(2), step(5, 9.0, job="stranger"))
    tell(
        folder,
        Evaluated(at_s=3, job="lisa", step=2, loss=0.5, bands=(0.25, 0.75)),
        Scored(at_s=3, job="lisa", step=2, number=0, clip_score=31),
    )
    heard, view = view_of(folder, "tensorboard")
    view.close()
    assert (heard.said, heard.closed) == ([], True)
    assert [path.name for path in (folder / "tensorboard").iterdir()] == ["lisa"]
    read = accumulator.EventAccumulator(str(folder / "tensorboard/lisa"), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [(one.wall_time - BEGAN, one.step, one.value) for one in read.Scalars("loss")] == [(1, 1, 0.25), (2, 2, 0.125)]
    assert [one.value for one in read.Scalars("lr")] == pytest.approx([1e-4] * 2)
    assert {one: read.Scalars(one)[0].value for one in read.Tags()["scalars"] if one.startswith("heldout")} == {
        "heldout/loss": 0.5,
        "heldout/noise 1 of 2": 0.25,
        "heldout/noise 2 of 2": 0.75,
    }
    assert read.Scalars("clip score/0")[0].value == 31
    (picture,) = read.Images("samples/0")
    assert (picture.step, picture.width, picture.height) == (2, 512, 320)
    assert picture.encoded_image_string.startswith(b"\xff\xd8")


def test_checksums_are_those_of_the_format():
    """The values of RFC 3720, and a record that TensorFlow wrote."""
    assert tfevents.crc32c(bytes(32)) == 0x8A9136AA
    assert tfevents.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert tfevents.crc32c(b"123456789") == 0xE3069283
    assert tfevents.record(b"").hex() == "000000000000000029039807d8ea82a2"
    assert struct.unpack("<Q", tfevents.heading(0.0)[:8])[0] == len(tfevents.heading(0.0)) - 16


def test_a_sample_is_shown_when_it_is_at_home_and_events_go_on_where_they_were(folder):
    told = source(folder)
    tell(folder, step(1, 0.5), sample(1))
    assert [(one.step, one.sample) for one in told.fresh()] == [(1, None)]
    assert list(told.fresh()) == []
    Image.new("RGB", (8, 8)).save(folder / "jobs/lisa/samples/step000001-0.png")
    assert [one.sample and one.sample.name for one in told.fresh()] == ["step000001-0.png"]
    tell(folder, step(2, 0.25))
    assert [one.values["loss"] for one in told.fresh()] == [0.25]


def test_another_process_writes_the_same_file_again(folder):
    """A killed client leaves no cursor behind that could be wrong."""
    tell(folder, step(1, 0.5), step(2, 0.25))
    for _ in range(2):
        view_of(folder, "tensorboard")[1].close()
    whole = (folder / "tensorboard/lisa/events.out.tfevents.0.lorry").read_bytes()
    values = [("loss", 0.0), ("lr", 1e-4), ("images_per_s", 2.5), ("grad_norm", 0.5)]
    again = [tfevents.scalars(BEGAN + at, at, [("loss", loss), *values[1:]]) for at, loss in ((1, 0.5), (2, 0.25))]
    assert whole == tfevents.heading(BEGAN) + b"".join(again)


def test_a_tracker_that_breaks_is_said_once_and_the_run_goes_on(folder):
    (folder / "jobs/lisa/samples/step000001-0.png").write_bytes(b"no picture")
    tell(folder, sample(1), step(1, 0.5))
    heard, view = view_of(folder, "tensorboard")
    view.close()
    tell(folder, step(2, 0.25))
    view.close()
    assert len(heard.said) == 1
    assert heard.said[0].startswith("TensorBoard is left alone from now on: UnidentifiedImageError")
    assert heard.closed


def test_without_trackers_the_view_is_the_one_that_was_given(folder):
    heard = Heard()
    assert tracked(heard, (), source(folder), folder, run="a", began=0.0, clock_s=lambda: 0.0) is heard


def test_a_tracker_that_is_not_installed_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    tracking.expect_installed(("tensorboard",))
    with pytest.raises(UsageError, match="not installed") as raised:
        tracking.expect_installed(("wandb",))
    assert "pip install wandb" in str(raised.value.hint)


def test_weights_and_biases_gets_the_same_points_and_none_of_them_twice(folder, monkeypatch):
    """Offline, by the package itself: what it writes is sent by `wandb sync`."""
    pytest.importorskip("wandb", reason="wandb is not installed here")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(folder, step(1, 0.5), step(2, 0.25))
    heard, view = view_of(folder, "wandb")
    view.close()
    assert heard.said == []
    assert (folder / "wandb/lisa.seen").read_text() == "2"
    assert len(list((folder / "wandb").rglob("*.wandb"))) == 1
    board = WandB(folder / "wandb", "autumn-1")
    for point in source(folder).fresh():
        board.take(point)
    assert board._runs == {}


def test_a_board_of_one_process_begins_with_its_heading(folder):
    TensorBoard(folder / "tensorboard", BEGAN).close()
    assert not (folder / "tensorboard").exists()
