# make demo     the main job for real on the practice cloud; sets itself up
# make test     every test that runs without a GPU in reasonable time; sets itself up
# make check    linter, formatter, types, architecture: under a minute
# make docs     write the generated pages anew
# make crash    the client killed at every crash point, signals in every phase, and every other long life of a run
# make simulate SEEDS=n FIRST=k   the money protocol in so many faulty worlds, each replayable by its number
# make fuzz MINUTES=n   everything that reads what a stranger wrote, given what it never expected
# make estimates    trace the trainer's step anew for every base: what plans are made from. Minutes, no GPU
# make bench    speed and memory, as ratios; runs alone
# make gpu      every family at its real size on this machine's GPU, a line of JSON a case
# make setup    system packages and .venv, nothing else

VENV ?= .venv
PYTHON = $(VENV)/bin/python
# Spinning OpenMP threads starve whatever else runs on a small machine.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test check docs estimates crash simulate fuzz bench gpu setup
.DEFAULT_GOAL = check

setup:
	@VENV=$(VENV) .ci/setup

demo:
	@VENV=$(VENV) .ci/setup demo
	@$(PYTHON) -m templates.demo.demo

test: setup check
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 3 --dist loadgroup -m "not crash and not slow and not bench and not gpu"

check: setup
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --check --quiet .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest -q tests/test_architecture.py

docs: setup
	$(PYTHON) docs/generate.py

crash: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 3 --dist loadgroup -m "crash or slow" tests

SEEDS ?= 2000000
FIRST ?= 0
# Cut short, it goes on where it was when called again with the same numbers.
simulate: setup
	@nice -n 10 $(PYTHON) -m tests.simulation --seeds $(SEEDS) --first $(FIRST) --cores 2 --state $(VENV)/simulated-$(FIRST)-$(SEEDS).json

MINUTES ?= 10
fuzz: setup
	@nice -n 10 $(PYTHON) tests/hostile/fuzz.py --minutes $(MINUTES)

estimates: setup
	$(PYTHON) -m trainer.tracing orchestrator/pricing/data
	$(PYTHON) -m tests.estimates.published

bench: setup
	$(PYTHON) -m pytest -q -m bench tests/bench

gpu: setup
	$(PYTHON) -m tests.gpu
