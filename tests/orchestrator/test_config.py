"""The reader of lorry.toml: what it accepts, what it says against the rest, and that it always says something."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import templates
from orchestrator.config import CODES, find, load
from orchestrator.errors import ConfigError, Finding
from orchestrator.file.keys import PROVIDERS, TABLES, LoraConfig, ProviderName, RunConfig
from orchestrator.file.wording import OTHER_SPELLINGS
from trainer.protocol import FAMILIES, TrainingOptions

GOOD = """\
name = "autumn"

[budget]
max_usd = 5.10

[machine]
providers = ["vast", "runpod"]
gpus = ["RTX 4090"]
max_usd_per_hour = 0.80
min_reliability = 0.98
regions = ["SE", "NO"]

[defaults]
base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
recipe = "character"
batch_size = 4

[[lora]]
name = "lisa"
dataset = "datasets/lisa"
trigger = "lisabp woman"
steps = 2000

[[lora]]
name = "forest-style"
dataset = "datasets/forest"
epochs = 12
"""


@pytest.fixture
def written(tmp_path: Path):
    """Writes a config and gives its path."""

    def write(text: str | bytes) -> Path:
        file = tmp_path / "lorry.toml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    return write


@pytest.fixture
def findings(written):
    """What is wrong with a text; fails when nothing is."""

    def ask(text: str | bytes) -> tuple[Finding, ...]:
        with pytest.raises(ConfigError) as caught:
            load(written(text))
        return caught.value.findings

    return ask


@pytest.fixture
def finding(findings):
    """The only thing that is wrong with a text."""

    def ask(text: str | bytes) -> Finding:
        (only,) = findings(text)
        return only

    return ask


def swapped(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def pointed_at(found: Finding) -> str:
    """The word above which the caret would stand."""
    assert found.column is not None
    return found.excerpt[found.column :].split(" ")[0]


# --- what is accepted ------------------------------------------------------------------------------------


def test_a_good_file_becomes_a_config(written, tmp_path):
    config = load(written(GOOD))
    assert (config.name, config.budget.max_usd, config.machine.regions) == ("autumn", Decimal("5.10"), ("SE", "NO"))
    assert [job.name for job in config.jobs] == ["lisa", "forest-style"]
    assert config.jobs[0].dataset == tmp_path / "datasets/lisa"


def test_money_is_read_as_it_was_written(written):
    """0.1 is no binary fraction; a cap of 0.1 is a tenth of a dollar all the same."""
    assert load(written(swapped("5.10", "0.1"))).budget.max_usd == Decimal("0.1")
    assert load(written(swapped("5.10", "5"))).budget.max_usd == 5
    assert str(load(written(GOOD)).machine.max_usd_per_hour) == "0.80"


def test_a_job_wins_over_defaults_and_they_over_the_recipe(written):
    config = load(written(swapped("steps = 2000", "steps = 2000\nbatch_size = 8\nrank = 4")))
    lisa, forest = config.jobs
    recipe = tomllib.loads(templates.recipe_text("sd15-character"))
    assert (lisa.batch_size, forest.batch_size, recipe["batch_size"]) == (8, 4, 2)
    assert (lisa.rank, forest.rank) == (4, recipe["rank"])
    assert forest.min_snr_gamma == recipe["min_snr_gamma"]
    said = config.sources
    assert (said["lisa"]["batch_size"], said["forest-style"]["batch_size"]) == ("[[lora]]", "[defaults]")
    assert (said["lisa"]["min_snr_gamma"], said["lisa"].get("seed")) == ("recipe sd15-character", None)


def test_whoever_says_epochs_has_also_answered_for_steps(written):
    """The recipe says 1500 steps; a job that says 12 epochs means 12 epochs."""
    lisa, forest = load(written(GOOD)).jobs
    assert (lisa.steps, lisa.epochs) == (2000, None)
    assert (forest.steps, forest.epochs) == (None, 12)
    lisa, _ = load(written(swapped("batch_size = 4", "epochs = 5"))).jobs
    assert (lisa.steps, lisa.epochs) == (2000, None)


def test_a_base_is_a_path_where_it_is_one_and_a_hub_id_where_it_is_none(written, tmp_path):
    def base_of(text: str) -> str:
        told = swapped("stable-diffusion-v1-5/stable-diffusion-v1-5", text).replace('"character"', '"sd15-character"')  # no base to tell it
        return load(written(told)).jobs[0].base

    assert base_of("runwayml/sd") == "runwayml/sd"
    (tmp_path / "runwayml/sd").mkdir(parents=True)
    assert base_of("runwayml/sd") == str(tmp_path / "runwayml/sd")
    assert base_of("models/dreamlike.safetensors") == str(tmp_path / "models/dreamlike.safetensors")
    assert base_of("./model") == str(tmp_path / "model")
    assert base_of("/models/sd15") == "/models/sd15"
    assert base_of("~/models/sd15") == str(Path.home() / "models/sd15")


def test_paths_are_relative_to_the_file_not_to_where_lorry_was_called(written, tmp_path, monkeypatch):
    file = written(GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(Path("../lorry.toml")).jobs[0].dataset.resolve() == tmp_path / "datasets/lisa"
    assert load(file).file == file


def test_a_byte_order_mark_and_windows_lines_are_fine(written):
    assert load(written(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())).name == "autumn"


def test_jobs_written_as_one_list_are_the_same(written):
    text = GOOD[: GOOD.index("[machine]")].replace(
        'name = "autumn"', 'name = "autumn"\nlora = [{ name = "x", dataset = "d", base = "a/b", family = "sd15" }]'
    )
    assert load(written(text)).jobs[0].name == "x"


def test_the_options_of_a_job_are_the_trainers_own(written):
    options = load(written(GOOD)).jobs[0].training_options()
    assert type(options) is TrainingOptions
    assert (options.steps, options.trigger) == (2000, "lisabp woman")


# --- where the file is looked for ------------------------------------------------------------------------


def test_the_file_of_this_folder_is_found_and_those_above_are_not(tmp_path):
    """The wrong folder would spend money on the wrong pictures."""
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "lorry.toml").write_text(GOOD)
    assert find(None, tmp_path) == tmp_path / "lorry.toml"
    with pytest.raises(ConfigError) as caught:
        find(None, below)
    assert "lorry init" in caught.value.findings[0].hint


def test_the_only_named_config_is_found_and_two_are_asked_about(tmp_path):
    (tmp_path / "autumn.lorry.toml").write_text(GOOD)
    assert find(None, tmp_path).name == "autumn.lorry.toml"
    (tmp_path / "winter.lorry.toml").write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        find(None, tmp_path)
    assert "autumn.lorry.toml, winter.lorry.toml" in caught.value.findings[0].hint
    (tmp_path / "lorry.toml").write_text(GOOD)
    assert find(None, tmp_path).name == "lorry.toml"


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path, written):
    def said(file: Path) -> Finding:
        with pytest.raises(ConfigError) as caught:
            load(file)
        (only,) = caught.value.findings
        return only

    written(GOOD)
    assert "no such file" in said(tmp_path / "lory.toml").message
    assert "lorry.toml" in said(tmp_path / "lory.toml").hint
    assert "folder" in said(tmp_path).message
    assert "1 MB" in said(written(b"#" * 1_000_001)).message
    assert said(written(GOOD.encode() + b'# caf\xe9"\n')).line == GOOD.count("\n") + 1
    assert said(Path("a\0b")).code == "LRY-CONFIG-FILE"


# --- what is wrong, and what to write instead ------------------------------------------------------------


def test_everything_wrong_is_said_at_once(findings):
    text = GOOD.replace("max_usd =", "max_ours = 6\nmax_usd =").replace("steps = 2000", 'steps = "2000"').replace('["vast"', '["vsat"')
    said = {(found.line, found.code) for found in findings(text)}
    assert said == {(4, "LRY-CONFIG-KEY"), (8, "LRY-CONFIG-PROVIDER"), (23, "LRY-CONFIG-TYPE")}


@pytest.mark.parametrize(
    ("old", "new", "code", "caret", "hint"),
    [
        ("max_usd =", "max_ours = 6\nmax_usd =", "KEY", "max_ours", "did you mean `max_hours`?"),
        ("steps =", "seed = 1\nnetwork_dim = 8\nsteps =", "KEY", "network_dim", "here it is called `rank`"),
        ("steps = 2000", "max_train_steps = 2000", "KEY", "max_train_steps", "here it is called `steps`"),
        ("steps = 2000", "train_batch_size = 2", "KEY", "train_batch_size", "here it is called `batch_size`"),
        ("steps = 2000", "num_repeats = 2", "KEY", "num_repeats", "repeats are in the folder's name: `10_lisabp woman`"),
        ("gpus =", "max_usd = 3\ngpus =", "KEY", "max_usd", "did you mean `max_usd_per_hour`?"),
        ("gpus =", "steps = 3\ngpus =", "KEY", "steps", "write `steps` under [[lora]] or [defaults]"),
        ("[budget]", "max_usd = 3\n[budget]", "KEY", "max_usd", "write `max_usd` under [budget]"),
        ("5.10", '"5.10"', "TYPE", '"5.10"', "write max_usd = 5.10, without quotes"),
        ("5.10", "nan", "VALUE", "nan", ""),
        ("5.10", "inf", "VALUE", "inf", ""),
        ("5.10", "0", "VALUE", "0", ""),
        ("5.10", "-1", "VALUE", "-1", ""),
        ("5.10", "true", "TYPE", "true", ""),
        ("0.98", "1.5", "VALUE", "1.5", ""),
        ('["RTX 4090"]', '"RTX"', "TYPE", '"RTX"', 'write gpus = ["RTX"]'),
        ('"NO"', '"Norway"', "VALUE", '"Norway"]', ""),
        ('"runpod"', '"runpond"', "PROVIDER", '"runpond"]', 'write "runpod"'),
        ('["vast", "runpod"]', "[]", "VALUE", "[]", ""),
        ('"character"', '"charakter"', "RECIPE", '"charakter"', 'write "character"'),
        ("recipe =", 'family = "sd1"\nrecipe =', "FAMILY", '"sd1"', 'write "sd15"'),
        ("steps = 2000", "steps = 2000.0", "TYPE", "2000.0", "write steps = 2000"),
        ("steps = 2000", "steps = 1e999999", "TYPE", "1e999999", ""),
        ("steps = 2000", "steps = 0", "VALUE", "0", ""),
        ("steps = 2000", "steps = 1979-05-27", "TYPE", "1979-05-27", ""),
        ("steps = 2000", "flip = 1", "TYPE", "1", ""),
        ("steps = 2000", 'flip = "yes"', "TYPE", '"yes"', "write flip = true, without quotes"),
        ("steps = 2000", 'optimizer = "adamw8bit"', "VALUE", '"adamw8bit"', 'write "AdamW8bit"'),
        ("steps = 2000", "learning_rate = 1e999", "VALUE", "1e999", ""),
        ("steps = 2000", 'optimizer = "torch..Adam"', "VALUE", '"torch..Adam"', "it can be AdamW, "),
        ("steps = 2000", "optimizer_args = 3", "TYPE", "3", ""),
        ("steps = 2000", "optimizer_args = { d_coef = 2.0 }", "RULE", "{", ""),
        ("steps = 2000", "optimizer_args = { betas = [0.9, true] }", "VALUE", "{", ""),
        ("steps = 2000", 'optimizer = "Prodigy"', "RULE", "", ""),
        ("steps = 2000", "lr_warmup_steps = 1.5", "RULE", "1.5", ""),
        ("steps = 2000", "steps = 2000\nepochs = 3", "RULE", "epochs", "take one of the two out"),
        ("steps = 2000", "resolution = 2048", "RULE", "2048", ""),
        ("steps = 2000", 'trigger = "a\\u001b[31mb"', "SYNTAX", "", "this key is there twice: keep one"),
        ('"lisabp woman"', '"a\\u001b[31mb"', "VALUE", '"a\\u001b[31mb"', "write it on one line"),
        ('"forest-style"', '"lisa"', "NAME", '"lisa"', "give it another name"),
        ('"forest-style"', '"Lisa"', "NAME", '"Lisa"', "give it another name"),
        ('"forest-style"', '"../up"', "VALUE", '"../up"', ""),
        ('"autumn"', '"autumn leaves"', "VALUE", '"autumn', ""),
        ("recipe =", 'name = "both"\nrecipe =', "RULE", "name", "give each [[lora]] its own"),
    ],
)
def test_each_mistake_has_its_place_and_its_cure(finding, old, new, *, code, caret, hint):
    found = finding(swapped(old, new))
    assert found.code == f"LRY-CONFIG-{code}"
    assert found.hint.startswith(hint) if hint.endswith(", ") else found.hint == hint
    if caret:
        assert pointed_at(found) == caret


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ('[budget]\nmax_usd = 1\n[[lora]]\nname = "x"\ndataset = "d"\nbase = "a/b"\n', "no `name`", None),
        (GOOD.replace("max_usd = 5.10\n", ""), "no `max_usd`", 3),
        (GOOD.replace("[budget]\nmax_usd = 5.10\n", ""), "no `max_usd`", None),
        (GOOD.replace('dataset = "datasets/lisa"\n', ""), 'job "lisa" has no `dataset`', 18),
        (GOOD[: GOOD.index("[[lora]]")], "no [[lora]]", 16),
        (GOOD.replace("[[lora]]", "[lora]", 1).partition("[[lora]]")[0], "`lora` is a list", 18),
        ('budget = 5\nname = "x"\n[[lora]]\nname = "x"\ndataset = "d"\nbase = "a/b"\n', "`budget` is a table", 1),
    ],
)
def test_what_is_missing_is_asked_for_where_it_belongs(findings, text, says, line):
    found = findings(text)
    assert [one.line for one in found if says in one.message] == [line], [one.message for one in found]


def test_a_misspelt_required_key_is_not_missing_as_well(finding):
    assert finding(swapped("max_usd", "max_usdd")).hint == "did you mean `max_usd`?"


def test_a_mistake_in_defaults_is_said_once_and_there(finding):
    """Two jobs inherit it; it is one thing to put right."""
    found = finding(swapped("batch_size = 4", "batch_size = 0"))
    assert (found.line, found.excerpt) == (16, "batch_size = 0")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name = autumn\n", "double quotes"),
        ('name = "a"\nname = "b"\n', "twice"),
        ("[budget]\nmax_usd = 1\n[budget]\nmax_usd = 2\n", "twice"),
        ('dataset = "C:\\data\\lisa"\n', "backslashes"),
        ('dataset = "C:\\users\\lisa"\n', "backslashes"),
        ("flip = True\n", "small letters"),
        ('name = "a" name = "b"\n', "a line"),
        ("just words\n", "key = value"),
    ],
)
def test_what_is_not_toml_is_told_in_words(finding, text, hint):
    found = finding(text)
    assert found.code == "LRY-CONFIG-SYNTAX"
    assert hint in found.hint
    assert found.line


def test_a_file_made_to_break_a_parser_is_refused_like_any_other(findings):
    for text in ("a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1e" + "9" * 30, "a = " + "{b=" * 400 + "1" + "}" * 400, "\x00", ""):
        assert findings(text)


def test_numbers_too_big_to_print_are_refused(findings):
    huge = "0x" + "f" * 5000
    for old, new in (("5.10", huge), ("steps = 2000", f"steps = {huge}"), ("0.98", huge), ("steps = 2000", f"learning_rate = {huge}")):
        assert findings(swapped(old, new))


def test_every_code_has_an_entry_and_every_other_spelling_a_true_key():
    keys = {key for _, _, table in TABLES for key in table}
    assert set(OTHER_SPELLINGS.values()) <= keys
    assert not OTHER_SPELLINGS.keys() & keys
    assert all(code.startswith("LRY-") for code in CODES)


def test_tables_of_the_module_agree_with_its_types():
    assert tuple(PROVIDERS) == ProviderName.__args__
    keys = {heading: set(table) for heading, _, table in TABLES}
    assert keys["[[lora]]"] == set(LoraConfig.model_fields)
    assert set(RunConfig.model_fields) - {"budget", "machine", "jobs", "file", "sources"} == keys[""]


def test_every_key_is_described():
    assert [key for _, _, table in TABLES for key, info in table.items() if not info.description] == []


# --- any mutation of a good file ends in a config or in findings -----------------------------------------


VALUES = st.sampled_from(
    ["1", "0", "-1", "1.5", "1e400", "nan", "true", '""', '"x"', "'C:\\x'", "[]", '["vast"]', "[1, [2]]", "{}", "{ a = 1 }", "[{}]",
     "2024-01-01", "07:32:00", "0xffff", '"é\\u0000"', '"' + "x" * 300 + '"', "9" * 400, '"""a\nb"""', "", "=", "[["]
)  # fmt: skip
KEYS = st.sampled_from(
    [*(key for _, _, table in TABLES for key in table), *OTHER_SPELLINGS, "lora", "defaults", "budget", "machine", '"quoted key"', "a.b.c",
     "lora.name", '""', "é", "file", "sources", "jobs"]
)  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A good file after a few accidents: lines lost, doubled and swapped, values replaced, keys invented, characters thrown in."""
    lines = GOOD.splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1)) if lines else 0
        kind = draw(st.sampled_from(["drop", "double", "swap", "value", "key", "add", "character", "cut"]))
        if not lines or kind == "add":
            lines.insert(at, f"{draw(KEYS)} = {draw(VALUES)}")
        elif kind == "drop":
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "value":
            lines[at] = f"{lines[at].partition('=')[0]}= {draw(VALUES)}"
        elif kind == "key":
            lines[at] = f"{draw(KEYS)} ={lines[at].partition('=')[2]}"
        elif kind == "character":
            spot = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:spot] + draw(st.characters(exclude_categories=["Cs"])) + lines[at][spot:]
        else:
            lines = lines[: at + 1]
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


def outcome(file: Path) -> tuple[Finding, ...]:
    """The findings; none for a config."""
    try:
        config = load(file)
    except ConfigError as error:
        return error.findings or pytest.fail("an error without findings")
    assert config.jobs
    return ()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=mutations())
@example(text=GOOD + "[lora.extra]\na = 1\n")
@example(text=GOOD + "[[lora.extra]]\na = 1\n")
@example(text=GOOD.replace("[machine]", "[machine.gpus]"))
def test_any_accident_ends_in_a_config_or_in_findings(written, text):
    """Never another exception, and every finding can be shown: a known code, a message, a place within the file."""
    findings = outcome(written(text))
    lines = text.replace("\r\n", "\n").split("\n")
    for found in findings:
        assert found.code in CODES
        assert found.message
        assert found.line is None or 1 <= found.line <= len(lines)
        assert found.column is None or 0 <= found.column <= len(lines[(found.line or 1) - 1])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_end_in_findings(written, data):
    with pytest.raises(ConfigError):
        load(written(data))


# --- recipes ---------------------------------------------------------------------------------------------


def test_the_scan_of_recipes_finds_some():
    assert {f"{family}-{kind}" for family in ("sd15", "sd2", "sdxl") for kind in ("character", "style")} <= set(templates.recipe_names())


@pytest.mark.parametrize("name", templates.recipe_names())
def test_a_recipe_has_only_keys_of_a_job_and_says_what_it_promises(name):
    """Its header says how to call it, on what, and how sure its figures are."""
    text = templates.recipe_text(name)
    keys = tomllib.loads(text)
    assert name.partition("-")[0] in FAMILIES
    TrainingOptions.model_validate(keys)
    assert {"Command", "Hardware", "Takes", "Expect"} <= {
        line.strip("# ").split(" ")[0] for line in text.splitlines() if line.startswith("#")
    }
    assert ("estimated, not measured" in text) != ("measured 20" in text)
    assert "unet_lr" not in keys, "it would win over a learning_rate that the user writes"


def test_positions_cost_nothing_while_all_is_well(tmp_path):
    """The TOML parser with positions is imported for the first finding only."""
    (tmp_path / "lorry.toml").write_text(GOOD)
    code = "import sys, pathlib; from orchestrator.config import load; load(pathlib.Path(sys.argv[1])); print('tree_sitter' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lorry.toml")], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_recipes_and_templates_are_packed_into_the_wheel():
    """They are no Python files, so setuptools takes only what is listed."""
    root = Path(templates.__file__).parent.parent
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    packed = {
        file for package, patterns in data.items() for pattern in patterns for file in root.joinpath(*package.split(".")).glob(pattern)
    }
    assert {*(root / "templates/recipes").glob("*.toml"), root / "templates/lorry.toml.j2"} <= packed


@pytest.mark.parametrize(("value", "fits"), [("150", True), ('"150"', False), ("100", False)])
def test_a_choice_of_numbers_is_written_as_a_number(tmp_path, value, fits):
    file = tmp_path / "lorry.toml"
    lora = f'[[lora]]\nname = "a"\ndataset = "d"\nbase = "stable-diffusion-v1-5/stable-diffusion-v1-5"\nmax_token_length = {value}\n'
    file.write_text(f'name = "a"\n[budget]\nmax_usd = 1\n{lora}')
    if fits:
        assert load(file).jobs[0].max_token_length == 150
    else:
        with pytest.raises(ConfigError):
            load(file)
