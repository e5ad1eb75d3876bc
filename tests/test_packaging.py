"""What pip would install is whole: the command without torch, its recipes and templates, the trainer that runs alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend itself: nothing is fetched."""
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "lorry"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if name.startswith(("tests/", "docs/", "templates/demo/")) or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def lorry(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env = clean | {"PYTHONPATH": str(unpacked), "LORRY_HOME": str(cwd / "home")}
    command = [sys.executable, "-P", "-m", "orchestrator.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_installing_lorry_does_not_install_torch(unpacked: Path) -> None:
    metadata = Parser().parsestr(next(unpacked.glob("*.dist-info/METADATA")).read_text())
    needs = metadata.get_all("Requires-Dist") or []
    assert len(needs) > 10
    heavy = [n for n in needs if n.startswith(("torch", "diffusers", "transformers", "numpy")) and "extra ==" not in n]
    assert heavy == []
    assert set(metadata.get_all("Provides-Extra") or []) >= {"train", "dev"}


def test_the_wheel_brings_everything_that_a_run_reads(unpacked: Path) -> None:
    for name in ("setup.sh", "bootstrap.sh", "requirements.txt", "report.html.j2", "lorry.toml.j2", "recipes/sd15-character.toml"):
        assert (unpacked / "templates" / name).is_file(), name
    assert not (unpacked / "tests").exists()
    shipped = {p.relative_to(unpacked).as_posix() for p in (unpacked / "trainer").rglob("*.py")}
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "trainer").rglob("*.py") if "build" not in p.parts}
    assert shipped == here


def test_an_installed_lorry_writes_and_checks_a_config(unpacked: Path, tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "datasets" / "6_lisabp woman"
    pictures.mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(pictures / "one.png")
    (pictures / "one.txt").write_text("a woman in teal")
    made = lorry(unpacked, tmp_path, "init", "--dataset", "datasets")
    assert made.returncode == 0, made.stderr
    checked = lorry(unpacked, tmp_path, "check")
    assert checked.returncode == 0, checked.stderr


def test_the_remote_requirements_are_pinned_hashed_and_without_torch_or_addresses() -> None:
    text = (ROOT / "templates" / "requirements.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    names = [line.split("==")[0] for line in lines if not line.startswith(" ")]
    assert {"diffusers", "transformers", "safetensors", "pydantic", "pillow", "numpy"} <= set(names)
    assert "torch" not in names
    assert "://" not in text
    for line in lines:
        assert ("==" in line) != line.lstrip().startswith("--hash=sha256:"), line
