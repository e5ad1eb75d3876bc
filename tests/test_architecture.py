"""The rules of the house, read from the code itself. Each scan says that it found something to read."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import orchestrator
import providers
from orchestrator.config import CODES
from orchestrator.errors import EXIT_CODES, LorryError
from orchestrator.file.keys import ProviderName
from providers.errors import ProviderError
from tests.sources import parsed
from trainer import errors as trainer_errors
from trainer.protocol import FAMILIES

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "providers", "trainer")

TORCH_FREE = (
    "trainer.protocol",
    "trainer.errors",
    "trainer.dataset",
    "trainer.items",
    "trainer.notes",
    "trainer.optimizer_names",
    "trainer.opening",
    "trainer.sidecars",
    "trainer.captions",
    "trainer.buckets",
    "trainer.base",
    "trainer.header",
    "trainer.prompts",
    "trainer.names",
    "trainer.methods",
    "trainer.targets",
    "trainer.selection",
)
"""All of the trainer that the user's computer may import: `check` and `plan` count as the trainer counts."""

NUMPY_ONLY = ("trainer.baking", "trainer.convert", "trainer.lora", "trainer.plain", "trainer.tensorfile", "trainer.weights")
"""Of the trainer too: `lorry convert` works with arrays, and asks for numpy when it is called."""

MAY_IMPORT = {
    "orchestrator": ("orchestrator", "providers", "templates", *TORCH_FREE, *NUMPY_ONLY),
    "providers": ("providers",),
    "trainer": ("trainer",),
}
OURS = {"orchestrator", "providers", "trainer", "templates", "tests"}

SHARED_BY_CLOUDS = {"answers", "base", "errors", "http", "keys", "wrappers"}
"""Files of `providers/` that are no cloud; every cloud may import them."""

PURE = (
    "orchestrator/file/guide.py",
    "orchestrator/plan.py",
    "orchestrator/pricing/families.py",
    "orchestrator/pricing/shapes.py",
    "orchestrator/pricing/footprint.py",
    "orchestrator/pricing/roofline.py",
    "orchestrator/pricing/probing.py",
    "orchestrator/budget.py",
    "orchestrator/cap/pace.py",
    "orchestrator/lifecycle.py",
    "orchestrator/commands.py",
    "orchestrator/machines/guard.py",
    "orchestrator/machines/proof.py",
    "orchestrator/safety/reconcile.py",
    "orchestrator/machines/recovery.py",
    "orchestrator/learning/calibration.py",
    "orchestrator/learning/lessons.py",
    "orchestrator/learning/records.py",
    "orchestrator/learning/timeline.py",
    "orchestrator/pricing/adapter_size.py",
    "orchestrator/pricing/alternatives.py",
    "orchestrator/pricing/estimate.py",
    "orchestrator/pricing/hosted.py",
    "orchestrator/pricing/needs.py",
    "orchestrator/pricing/phases.py",
    "orchestrator/pricing/quantiles.py",
    "orchestrator/pricing/risk.py",
    "orchestrator/pricing/settings.py",
    "orchestrator/pricing/work.py",
    "orchestrator/pricing/reasons.py",
    "orchestrator/machines/inspection.py",
    "orchestrator/setup/versions.py",
    "orchestrator/border/words.py",
    "trainer/header.py",
    "trainer/blocks.py",
    "trainer/methods.py",
    "trainer/targets.py",
    "trainer/objective.py",
    "trainer/course.py",
    "trainer/optimizer_names.py",
    "trainer/schedules.py",
    "trainer/buckets.py",
    "trainer/captions.py",
    "trainer/rotation.py",
)
"""Time, money and noise come in as arguments: no clock, network, file or randomness of their own."""
IMPURE_MODULES = {
    "asyncio", "glob", "http", "httpx", "io", "multiprocessing", "numpy.random", "os", "paramiko", "pathlib", "platform", "random",
    "secrets", "select", "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip
IMPURE_CALLS = {
    "now", "utcnow", "today", "fromtimestamp", "Random", "SystemRandom", "open", "print", "input",
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "manual_seed",
    "normal_", "uniform_",
}  # fmt: skip
LONGEST_FUNCTION = 70


def files_of(*packages: str) -> list[Path]:
    return sorted(file for package in packages for file in (ROOT / package).rglob("*.py"))


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree_of(file: Path) -> ast.Module:
    return parsed(file)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> Iterator[str]:
    """Every module or name that the file imports, absolute: `from .base import Offer` gives `providers.base.Offer`."""
    package = module_of(file).split(".") if file.name == "__init__.py" else module_of(file).split(".")[:-1]
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


EVERY_FILE = files_of(*PACKAGES)


def test_the_scan_finds_all_three_packages():
    assert {file.relative_to(ROOT).parts[0] for file in EVERY_FILE} == set(PACKAGES)
    assert len(EVERY_FILE) > 30
    assert sum(len(list(imported(file))) for file in EVERY_FILE) > 200


@pytest.mark.parametrize("file", EVERY_FILE, ids=named)
def test_imports_point_one_way(file: Path):
    """orchestrator -> providers, orchestrator -> the torch-free part of the trainer; nothing else."""
    package = file.relative_to(ROOT).parts[0]
    ours = [name for name in imported(file) if name.split(".")[0] in OURS]
    # `import trainer` alone tells where its files are, which are shipped; its modules must still be named to be had.
    astray = [name for name in ours if name != "trainer" and not any(within(name, allowed) for allowed in MAY_IMPORT[package])]
    assert astray == [], f"{named(file)} may import {', '.join(MAY_IMPORT[package])}"


def test_the_modules_named_torch_free_are_free_of_torch_and_numpy():
    """Imported by a fresh Python, so that nothing of this one counts."""
    for modules, brings in ((TORCH_FREE, []), (NUMPY_ONLY, ["numpy"])):
        code = (
            f"import sys; import {', '.join(modules)}; print(*sorted({{'torch', 'numpy', 'diffusers', 'transformers'}} & set(sys.modules)))"
        )
        answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert answer.stdout.split() == brings


def clouds() -> list[Path]:
    return [file for file in sorted((ROOT / "providers").glob("*.py")) if file.stem not in SHARED_BY_CLOUDS | {"__init__"}]


def test_a_cloud_never_imports_another_cloud():
    """So that a newcomer reads one file, and a broken cloud breaks alone."""
    found = [file for file in (ROOT / "providers").rglob("*.py") if file.stem != "__init__"]
    assert len(found) > 3
    others = {cloud.stem for cloud in clouds()} | {"sandbox"}
    for file in found:
        own = file.relative_to(ROOT / "providers").parts[0].removesuffix(".py")
        if own in SHARED_BY_CLOUDS:
            continue
        foreign = [name for name in imported(file) for other in others - {own} if within(name, f"providers.{other}")]
        assert foreign == [], f"{named(file)} imports another cloud"


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_no_world(name: str):
    """A value in, a value out: they can be tested a million times a minute, with any clock."""
    file = ROOT / name
    modules = {module for module in imported(file) if module != "random.Random"}  # its type may be named; a call is found below
    worldly = [module for module in modules for impure in IMPURE_MODULES if within(module, impure)]
    called = [node.func for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)]
    names = {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in called}
    assert worldly == []
    assert sorted(names & IMPURE_CALLS) == []


def prints(file: Path) -> list[int]:
    """Lines that write to the terminal."""
    lines = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func)
            if words == "print" or re.fullmatch(r"sys\.(stdout|stderr)(\.buffer)?\.write(lines)?|typer\.(echo|secho)|click\.s?echo", words):
                lines.append(node.lineno)
    return lines


def test_only_console_prints():
    """So that what came from a stranger's machine passes one place before it reaches a terminal."""
    assert prints(ROOT / "orchestrator/console.py"), "the scan no longer sees printing"
    programs = {
        "trainer/__main__.py",
        "trainer/supervisor.py",
        "trainer/tracing/__main__.py",
        "providers/sandbox/__main__.py",
    }  # of their own, with no console near
    allowed = {"orchestrator/console.py", *programs}
    assert {named(file): lines for file in EVERY_FILE if named(file) not in allowed and (lines := prints(file))} == {}


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_a_function_fits_the_screen():
    lengths = {(named(file), one.name): (one.end_lineno or 0) - one.lineno + 1 for file in EVERY_FILE for one in functions(file)}
    assert len(lengths) > 200
    assert {where: lines for where, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def asks_which_provider(file: Path) -> list[int]:
    """Lines that compare anything with a provider's name."""
    names = set(get_args(ProviderName))
    lines = []
    for node in ast.walk(tree_of(file)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        constants = {inner.value for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Constant)}
        if names & {constant for constant in constants if isinstance(constant, str)}:
            lines.append(node.lineno)
    return lines


def test_nothing_outside_providers_asks_which_cloud_it_is(tmp_path: Path):
    (tmp_path / "x.py").write_text('if offer.provider == "vast": pass\n')
    assert asks_which_provider(tmp_path / "x.py") == [1]
    found = files_of("orchestrator", "trainer")
    assert {named(file): lines for file in found if (lines := asks_which_provider(file))} == {}


def test_cloud_names_stand_in_the_table_of_the_config_only():
    """A constant that is a cloud's name is a branch waiting to happen."""
    holders = {
        named(file)
        for file in files_of("orchestrator", "trainer")
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and node.value in {"vast", "runpod"}
    }
    assert holders == {"orchestrator/file/keys.py"}


def test_the_loop_names_no_family():
    """One loop for every model family: what differs is in `families/`."""
    loop = ROOT / "trainer/loop.py"
    text = loop.read_text(encoding="utf-8").lower()
    assert len(text) > 1000
    assert [family for family in (*FAMILIES, "sdxl", "sd3", "flux") if family in text] == []


def error_classes() -> list[type[Exception]]:
    for package in (orchestrator, providers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: list[type[Exception]] = [LorryError, ProviderError]
    for one in found:
        found.extend(one.__subclasses__())
    return found


def test_every_error_has_its_own_code_and_a_listed_exit_code():
    """A script reads the number, a search engine the code; neither may mean two things."""
    classes = [one for one in error_classes() if one.__name__ != "WithFindings"]  # never raised itself
    assert len(classes) > 15
    codes = [one.__dict__.get("code") for one in classes]  # inherited from nobody
    assert sorted(str(code) for code in codes if codes.count(code) > 1) == []
    assert [one.__name__ for one in classes if one.exit_code not in EXIT_CODES] == []
    assert not {str(code) for code in codes} & (CODES.keys() | trainer_errors.CODES.keys())
    assert not CODES.keys() & trainer_errors.CODES.keys()
    assert {code for code, _ in trainer_errors.CODES.values()} <= EXIT_CODES.keys()


def test_every_code_that_is_written_down_is_listed_and_every_listed_one_is_used():
    listed = {"LRY-CONFIG-": set(CODES), "LRY-DATA-": set(), "LRY-BASE-": set(), "LRY-JOB-": set(), "LRY-TRAIN-": set()}
    for code in trainer_errors.CODES:
        for start in listed:
            listed[start] |= {code} if code.startswith(start) else set()
    written = {
        match
        for file in EVERY_FILE
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for match in re.findall(r"^LRY-(?:CONFIG|DATA|BASE|JOB|TRAIN)-[A-Z0-9-]*[A-Z0-9]$", node.value)
    }
    assert len(written) > 20
    assert written - set().union(*listed.values()) == set()


def documented(file: Path) -> Iterator[tuple[str, bool]]:
    """Public classes and functions at the top of a file."""
    tree = tree_of(file)
    drawn = ast.get_docstring(tree) or ""
    for node in tree.body:
        is_main = file.name == "__main__.py" and getattr(node, "name", "") == "main"  # the module says it
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_") and not is_main:
            yield node.name, bool(ast.get_docstring(node)) or bool(re.search(rf"\b{node.name}\b", drawn))  # a tree drawn above says it


def test_public_names_have_a_docstring():
    found = {(named(file), name): has for file in EVERY_FILE for name, has in documented(file)}
    assert len(found) > 100
    assert [where for where, has in found.items() if not has] == []


def test_every_module_says_what_it_owns():
    assert [named(file) for file in EVERY_FILE if not ast.get_docstring(tree_of(file)) and file.read_text(encoding="utf-8").strip()] == []
