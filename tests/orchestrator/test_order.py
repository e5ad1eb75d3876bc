"""The order is complete and stands by itself: what is sent is what was looked at, and what was written is what is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, SilentView, an_order, offer, safetensors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import trainer
from orchestrator import provenance
from orchestrator.config import RunConfig, load
from orchestrator.errors import DatasetError
from orchestrator.file.check import check
from orchestrator.home import Home, RunFolder
from orchestrator.hub import Hub, HubBase, HubFile
from orchestrator.machines.recovery import SAVE_PAUSE_S, checkpoint_every_s
from orchestrator.order import (
    CheckedJob,
    Order,
    checked_jobs,
    held_to,
    load_of,
    make_order,
    read_order,
    rest_of,
    saving_often,
    write_order,
)
from orchestrator.plan import Load, disk_gib, step_seconds
from orchestrator.prepare import asked, looked_up, prepare, to_be_sent
from orchestrator.pricing.families import COSTS
from orchestrator.safety.interrupts import Interrupts
from orchestrator.trip import Tools
from providers.base import Prices
from trainer.protocol import JobSpec


def picture(file: Path, caption: str | None = "lisabp woman") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (512, 512), (len(file.name), 120, 60)).save(file)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def a_base(folder: Path) -> None:
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(safetensors())
    (folder / "unet/config.json").write_text(json.dumps({"cross_attention_dim": 768}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (folder / "unet" / "model.bin").write_bytes(b"pickle")


CONFIG = """
name = "autumn"
[budget]
max_usd = 5
max_hours = 2
[machine]
gpus = ["RTX 4090"]
max_usd_per_hour = 0.8
[defaults]
base = "{base}"
family = "sd15"
[[lora]]
name = "lisa"
dataset = "data sets/lisa"
steps = 100
save_every_steps = 25
[[lora]]
name = "forest"
dataset = "data sets/forest"
epochs = 3
sample_prompts = ["a", "b"]
sample_every_steps = 10
"""


class Desk:
    """A config that passed its check, and a run to write the order into."""

    def __init__(self, path: Path, base: str) -> None:
        for n in range(3):
            picture(path / f"data sets/lisa/6_lisabp woman/it's {n}.png")
        picture(path / "data sets/forest/ü.png")
        (path / "data sets/lisa/secret.env").write_text("TOKEN")
        (path / "data sets/lisa/6_lisabp woman/notes.md").write_text("private")
        (path / "data sets/lisa/.DS_Store").write_bytes(b"x")
        a_base(path / "base")
        (path / "lorry.toml").write_text(CONFIG.format(base=base))
        self.config: RunConfig = load(path / "lorry.toml")
        looked = check(self.config)
        assert not looked.errors, looked.errors
        self.jobs: list[CheckedJob] = checked_jobs(self.config, looked)
        self.load = load_of(self.jobs)
        self.folder = Home(path / "home").new_run("autumn")

    def order(self) -> Order:
        cap = self.config.budget.max_usd
        return make_order(self.config, self.jobs, self.load, self.folder, cap_usd=cap, disk_gib=disk_gib(self.load, None))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, "base")


def test_what_is_sent_is_pictures_captions_base_trainer_and_set_up_and_nothing_else(desk: Desk):
    sent = {i.remote for i in desk.order().items}
    data = {name for name in sent if name.startswith("jobs/") and "/data/" in name}
    assert data == {
        *(f"jobs/lisa/data/lisa/6_lisabp woman/it's {n}.{kind}" for n in range(3) for kind in ("png", "txt")),
        "jobs/forest/data/forest/ü.png",
        "jobs/forest/data/forest/ü.txt",
    }
    rest = sent - data
    assert {name.split("/")[0] for name in rest} == {"bases", "jobs", "setup", "trainer"}
    assert {n for n in rest if n.startswith("jobs/")} == {"jobs/lisa/job.json", "jobs/forest/job.json"}
    assert not [n for n in sent if n.endswith((".bin", ".pyc", ".env", ".md")) and n != "trainer/README.md"]
    assert {"trainer/__init__.py", "trainer/supervisor.py", "setup/bootstrap.sh", "setup/requirements.txt"} <= rest


def test_masks_and_regularisation_pictures_are_sent_and_found(tmp_path: Path):
    """What will be read of them, and no more; the estimate counts their bytes, and the pictures that are encoded."""
    for n in range(3):
        mask = tmp_path / f"data sets/masks/6_lisabp woman/it's {n}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64), 255).save(mask)
        picture(tmp_path / f"data sets/reg/1_woman/r{n}.png")
    (tmp_path / "data sets/reg/1_woman/notes.md").write_text("private")
    (tmp_path / "data sets/masks/stray.png").write_bytes(mask.read_bytes())
    plain = Desk(tmp_path, "base")
    config = (tmp_path / "lorry.toml").read_text()
    more = 'masks = "data sets/masks"\nregularisation = "data sets/reg"\nmore_resolutions = [640]\n'
    (tmp_path / "lorry.toml").write_text(config.replace('dataset = "data sets/lisa"\n', 'dataset = "data sets/lisa"\n' + more))
    jobs = checked_jobs(load(tmp_path / "lorry.toml"), check(load(tmp_path / "lorry.toml")))
    counted, folder = load_of(jobs), Home(tmp_path / "home").new_run("more")
    order = make_order(plain.config, jobs, counted, folder, cap_usd=plain.config.budget.max_usd, disk_gib=10)
    job = order.jobs[0]
    assert (job.masks, job.regularisation) == ("jobs/lisa/masks/masks", "jobs/lisa/regularisation/reg")
    sent = {i.remote for i in order.items}
    assert {n for n in sent if n.startswith("jobs/lisa/masks")} == {f"{job.masks}/6_lisabp woman/it's {n}.png" for n in range(3)}
    assert {n for n in sent if n.startswith("jobs/lisa/reg")} == {
        f"{job.regularisation}/1_woman/r{n}.{kind}" for n in range(3) for kind in ("png", "txt")
    }
    extra = [i.size for i in order.items if i.remote.startswith(("jobs/lisa/masks", "jobs/lisa/reg"))]
    assert counted.jobs[0].dataset_bytes == plain.load.jobs[0].dataset_bytes + sum(extra)
    assert (counted.jobs[0].images, counted.jobs[0].resolution) == (12, 640)
    assert order.jobs[1].masks is None


def test_a_lora_to_begin_with_is_sent_and_found(tmp_path: Path):
    plain = Desk(tmp_path, "base")
    header = json.dumps({"a.lora_up.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "old one.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    config = (tmp_path / "lorry.toml").read_text()
    more = 'start_from = "old one.safetensors"\nmerge_lora = "old one.safetensors"\nmerge_weight = 0.5\n'
    (tmp_path / "lorry.toml").write_text(config.replace('dataset = "data sets/lisa"\n', 'dataset = "data sets/lisa"\n' + more))
    jobs = checked_jobs(load(tmp_path / "lorry.toml"), check(load(tmp_path / "lorry.toml")))
    folder = Home(tmp_path / "home").new_run("more")
    order = make_order(plain.config, jobs, load_of(jobs), folder, cap_usd=plain.config.budget.max_usd, disk_gib=10)
    lisa, forest = order.jobs
    assert (lisa.start_from, lisa.merge_lora, lisa.merge_weight) == (
        "jobs/lisa/start_from/old one.safetensors",
        "jobs/lisa/merge_lora/old one.safetensors",
        0.5,
    )
    assert {lisa.start_from, lisa.merge_lora} <= {item.remote for item in order.items}
    assert forest.start_from is None


def test_every_hash_in_the_order_is_that_of_the_file(desk: Desk):
    order = desk.order()
    assert len(order.items) > 20
    for sent in order.items:
        content = sent.source.read_bytes()
        assert (sent.size, sent.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert len({i.remote for i in order.items}) == len(order.items), "two files never go to one place"


def test_the_trainer_that_is_sent_is_this_one(desk: Desk):
    source = Path(trainer.__file__).parent
    sent = {i.remote: i.sha256 for i in desk.order().items if i.remote.startswith("trainer/")}
    here = {f"trainer/{p.relative_to(source).as_posix()}": p for p in source.rglob("*.py")}
    assert set(here) <= set(sent)
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == sent[name] for name, p in here.items())


def test_two_jobs_with_one_base_send_it_once_and_find_it(desk: Desk):
    order = desk.order()
    bases = {job.base for job in order.jobs}
    assert len(bases) == 1
    (base,) = bases
    assert sum(i.remote == f"{base}/model_index.json" for i in order.items) == 1


def test_a_job_as_the_machine_reads_it_is_the_job_of_the_order(desk: Desk):
    order = desk.order()
    for job in order.jobs:
        written = desk.folder.path / "ship" / "jobs" / job.name / "job.json"
        assert JobSpec.model_validate_json(written.read_bytes()) == job
        folders = {i.remote.rpartition("/")[0] for i in order.items}
        assert any(folder == job.dataset or folder.startswith(f"{job.dataset}/") for folder in folders)
        assert job.output == f"jobs/{job.name}/out"
    assert [job.steps for job in order.jobs] == [100, None]


def test_what_was_written_is_what_another_process_reads(desk: Desk):
    order = desk.order()
    assert read_order(RunFolder(desk.folder.path)) == order
    assert order.root == f"lorry/{desk.folder.id}"


@given(
    cap=st.decimals("0.01", 99999, places=4), hours=st.none() | st.floats(0.01, 1000), timeout=st.floats(1, 1e5),
    image=st.text(st.characters(blacklist_categories=["Cs"]), max_size=30),
)  # fmt: skip
def test_any_order_survives_being_written_down(tmp_path_factory: pytest.TempPathFactory, cap, hours, timeout, image):
    folder = RunFolder(tmp_path_factory.mktemp("r"))
    order = an_order(folder, cap_usd=cap, max_hours=hours, boot_timeout_s=timeout, image=image)
    write_order(folder, order)
    assert read_order(folder) == order


def test_the_order_stands_when_the_users_file_is_edited_or_gone(desk: Desk, tmp_path: Path):
    order = desk.order()
    (tmp_path / "lorry.toml").unlink()
    assert read_order(desk.folder) == order


def test_no_secret_of_the_environment_gets_into_it(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAST_API_KEY", "canary-1234")
    monkeypatch.setenv("HF_TOKEN", "canary-5678")
    desk.order()
    assert b"canary" not in (desk.folder.path / "order.json").read_bytes()


def test_the_load_counts_what_is_sent_and_what_comes_home(desk: Desk):
    order = desk.order()
    assert sum(i.size for i in order.items) <= desk.load.upload_bytes + 500_000
    assert desk.load.hub_bytes == 0
    lisa, forest = desk.load.jobs
    assert (lisa.steps, lisa.saves, lisa.samples, lisa.images) == (100, 5, 0, 3)
    assert forest.samples == 2 * (1 + forest.steps // 10)
    assert desk.load.download_bytes > 0


def test_a_base_of_the_hub_is_fetched_there_and_not_sent(tmp_path: Path):
    desk = Desk(tmp_path, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    order = desk.order()
    assert not [i for i in order.items if i.remote.startswith("bases/")]
    assert {job.base for job in order.jobs} == {"stable-diffusion-v1-5/stable-diffusion-v1-5"}
    assert desk.load.hub_bytes == COSTS["sd15"].hub_bytes, "once, for both jobs"
    assert desk.load.base_scale == 1.0


def test_a_picture_that_became_a_link_is_not_ordered(desk: Desk, tmp_path: Path):
    victim = tmp_path / "data sets/forest/ü.png"
    victim.unlink()
    victim.symlink_to("/etc/hostname")
    with pytest.raises(DatasetError, match="link"):
        desk.order()


# -- what is left ----------------------------------------------------------------------------------


@given(at=st.integers(0, 100))
def test_what_is_left_shrinks_with_what_is_at_home(desk_load: Load, at: int):
    """Never more than the whole, but for the checkpoints that are sent again; nothing at home is the whole."""
    lisa, forest = desk_load.jobs
    rest = rest_of(desk_load, {"lisa": at} if at else {}, ["lisa", "forest"])
    assert rest.jobs[0].steps == 100 - at
    assert rest.jobs[1] == forest
    assert rest.jobs[0].saves <= lisa.saves
    assert rest.download_bytes <= desk_load.download_bytes
    assert rest.upload_bytes >= desk_load.upload_bytes, "another machine needs all of it"
    if not at:
        assert rest == desk_load


def test_a_job_that_is_at_home_is_neither_trained_nor_sent_again(desk_load: Load):
    rest = rest_of(desk_load, {"lisa": 100}, ["forest"])
    assert [work.name for work in rest.jobs] == ["forest"]
    assert rest.upload_bytes == desk_load.upload_bytes - desk_load.jobs[0].dataset_bytes


@pytest.fixture(scope="module")
def desk_load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """As if its base were a real one."""
    load = replace(Desk(tmp_path_factory.mktemp("desk"), "base").load, base_scale=1.0)
    whole = rest_of(load, {}, ["lisa", "forest"])
    assert replace(whole, download_bytes=load.download_bytes) == load
    return whole


# -- machines that may be taken away ---------------------------------------------------------------


def test_who_says_how_often_to_save_is_obeyed(desk: Desk):
    often = saving_often(desk.jobs, desk.load, offer(interruptible=True))
    assert often[0].config.save_every_steps == desk.jobs[0].config.save_every_steps


def test_machines_that_may_be_taken_away_save_as_often_as_wastes_least(desk: Desk):
    """And seldom where traffic is dear."""
    load = replace(desk.load, base_scale=1.0)

    def steps(**fields: object) -> int:
        bare = [replace(job, config=job.config.model_copy(update={"save_every_steps": None})) for job in desk.jobs]
        every = saving_often(bare, load, offer(interruptible=True, **fields))[0].config.save_every_steps
        assert every is not None
        return every

    free, usual = Prices(gpu_usd_per_hour=Decimal("0.4")), steps()
    dear = replace(free, download_usd_per_gib=Decimal(1))
    assert steps(prices=free) <= usual < steps(prices=dear)
    assert steps(prices=free) == round(checkpoint_every_s(SAVE_PAUSE_S) / step_seconds(load.jobs[0], "RTX 4090", 1.0))


def test_a_plan_with_interruptible_machines_counts_the_saves_that_it_adds_and_says_so(tmp_path: Path):
    desk = Desk(tmp_path, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    file, view = tmp_path / "lorry.toml", SilentView()
    file.write_text(file.read_text().replace("[machine]", "[machine]\ninterruptible = true").replace("epochs = 3", "epochs = 30000"))
    cloud = FakeCloud(FakeClock(), offers=[offer(interruptible=True)])
    tools = Tools(clock=cloud.clock, view=view, interrupts=Interrupts(), provider=lambda _: cloud)  # type: ignore[arg-type, return-value]
    ready = prepare(asked([file], tools, providers=None, budget="50", unguarded=True), tools)
    lisa, forest = ready.jobs
    assert lisa.config.save_every_steps == desk.jobs[0].config.save_every_steps, "the file's own interval stands"
    every = forest.config.save_every_steps
    assert every
    assert ready.load.jobs[1].saves == 1 + ready.load.jobs[1].steps // every > 2
    assert ready.plan.load == ready.load
    assert any(f"forest every {every} steps" in line and "lisa" not in line for line in view.said)


def test_pictures_are_sent_without_where_and_when_they_were_taken_unless_told_otherwise(tmp_path: Path):
    """The user's own file keeps it; a clean picture is sent as it lies, from where it lies."""
    desk = Desk(tmp_path, "base")
    told = Image.Exif()
    told[0x0112], told[0x010E] = 6, "Canary Street 7"
    photo = tmp_path / "data sets/lisa/6_lisabp woman/it's 0.png"
    Image.new("RGB", (512, 512), (9, 9, 9)).save(photo, exif=told)
    before = photo.read_bytes()

    sent = {i.remote: i for i in desk.order().items}
    item = sent["jobs/lisa/data/lisa/6_lisabp woman/it's 0.png"]
    data = item.source.read_bytes()
    assert (item.size, item.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert b"Canary" in before
    assert b"Canary" not in data
    with Image.open(item.source) as image:
        assert image.getexif()[0x0112] == 6, "which way is up still stands in it"
    assert photo.read_bytes() == before
    clean = sent["jobs/lisa/data/lisa/6_lisabp woman/it's 1.png"]
    assert clean.source == photo.with_name("it's 1.png")

    kept = [replace(job, config=job.config.model_copy(update={"keep_metadata": True})) for job in desk.jobs]
    folder = Home(tmp_path / "home").new_run("kept")
    order = make_order(desk.config, kept, desk.load, folder, cap_usd=desk.config.budget.max_usd, disk_gib=10)
    assert photo in {i.source for i in order.items}


def test_every_job_says_what_it_is_made_with_and_the_hashes_are_those_of_what_is_sent(desk: Desk):
    """Which the machine compares before anything runs; so that years later somebody can tell what made a file."""
    order = desk.order()
    items = sorted((i.remote.removeprefix("trainer/"), i.sha256) for i in order.items if i.remote.startswith("trainer/"))
    made = [job.made_with for job in order.jobs]
    assert all(one == made[0] for one in made), "they share base and session"
    assert made[0]["trainer_sha256"] == provenance.digest((f"trainer/{name}", sha256) for name, sha256 in items)
    assert made[0]["image"] == desk.config.machine.image
    base = order.jobs[0].base
    files = [(i.remote.removeprefix(f"{base}/"), i.sha256) for i in order.items if i.remote.startswith(base)]
    assert made[0]["base_sha256"] == provenance.digest(files)
    (packages,) = [i for i in order.items if i.remote == "setup/requirements.txt"]
    assert made[0]["requirements_sha256"] == provenance.digest([("setup/requirements.txt", packages.sha256)])


def test_a_base_of_the_hub_is_named_by_its_commit_and_the_hashes_of_its_weights(tmp_path: Path):
    desk = Desk(tmp_path, "someone/model")
    files = (HubFile(name="unet/model.safetensors", size=1, sha256="a" * 64), HubFile(name="unet/config.json", size=1))
    base = HubBase(repo="someone/model", revision="b" * 40, files=files)
    jobs = [held_to(job, [base]) for job in desk.jobs]
    order = make_order(desk.config, jobs, desk.load, desk.folder, cap_usd=Decimal(5), disk_gib=10, hub=[base])
    assert {job.base_revision for job in order.jobs} == {"b" * 40}
    assert order.jobs[0].made_with["base_revision"] == "b" * 40
    assert order.jobs[0].made_with["base_sha256"] == provenance.digest([("unet/model.safetensors", "a" * 64)])
    assert read_order(desk.folder) == order
    assert not order.is_offline
    assert order.model_copy(update={"hub": (base.model_copy(update={"needs_token": True}),)}).is_offline


def test_what_would_be_sent_is_told_by_count_and_size_before_anything_is_rented(desk: Desk):
    files = {file for job in desk.jobs for file in job.files}
    assert len(files) == 8
    size = f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
    assert to_be_sent(desk.jobs) == f"what is sent of yours: 8 files, {size}, and base; pictures without place, time and camera"
    kept = [replace(desk.jobs[0], config=desk.jobs[0].config.model_copy(update={"keep_metadata": True})), desk.jobs[1]]
    assert to_be_sent(kept).endswith("with place, time and camera for lisa")


def test_a_hub_that_does_not_answer_is_said_and_the_jobs_stay_as_they_are(tmp_path: Path):
    desk, view = Desk(tmp_path, "someone/model"), SilentView()
    tools = Tools(clock=FakeClock(), view=view, interrupts=Interrupts(), provider=lambda _: FakeCloud(FakeClock()))  # type: ignore[arg-type, return-value]
    assert looked_up(desk.jobs, Hub("http://127.0.0.1:9"), tools) == ((), desk.jobs)
    assert "the machine fetches the base by itself" in view.said[0]
