# make train: train the main job.  make test: run the tests.  Either sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN_ARGS ?= copying --compare lstm --seconds 60
PYTEST_ARGS ?=
FUZZ_ARGS ?=
MICRO_ARGS ?=
BENCH_ARGS ?=
AOT_ARGS ?=
PTX_ARGS ?= --every 4
# Without an NVIDIA GPU the CPU build of torch is enough, and gigabytes smaller.
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OLDEST := .venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup train test fuzz test-oldest lint bench bench-long aot ptx gpu package docs clean
help:
	@echo "make train   train a unitary RNN on a long-memory task, an LSTM beside it (3 minutes)"
	@echo "make test    the tests          make lint    ruff and mypy"
	@echo "make fuzz    20,000 hostile cases, each against float64 (15 minutes on 2 cores; FUZZ_ARGS='--cases 500')"
	@echo "make bench   the benchmarks in their short form, against the last run and against the field (10 minutes on 2 quiet cores)"
	@echo "             MICRO_ARGS='-k linear' chooses of the former, BENCH_ARGS='field' of the latter"
	@echo "make bench-long  the rows of docs/results.md and docs/field.md, anew (hours)"
	@echo "make clean   remove what was made"
	@echo "make test-oldest  the oldest Triton supported: the kernels' tests, and every variant compiled"
	@echo "make aot     compiles the kernels for seven GPU architectures, without a GPU; fails on a spill"
	@echo "make ptx     executes compiled kernels on the processor: a quarter of their checks (12 minutes; PTX_ARGS='--op basis')"
	@echo "make package sdist and wheel in dist/, the wheel installed and tried in an environment of its own"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make gpu     on a GPU, in place, 5 minutes: tests, checks, tuning, timings, one page of summary"
	@echo "             QUICK=1 2 minutes  OUT=gpu-results  PEERS=wheels/  PUBLISHED=projUNN/  SANITIZE=1"

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) \
	  else "projunn needs Python 3.11 to 3.13; $(PYTHON) is %d.%d (make PYTHON=...)" % v)'
	@echo "Setting up $(VENV): a minute or two"
	@$(PYTHON) -m venv $(VENV)
	@command -v nvidia-smi >/dev/null || $(INSTALL) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(INSTALL) --extra-index-url $(CPU_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(INSTALL) "torch==$(TORCH)"
	@$(INSTALL) -e ".[dev]"
	@touch $@

train: setup
	$(BIN)/projunn train $(TRAIN_ARGS)

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# A violation is a line; "python -m tests.fuzz FAMILY SEED" repeats it.  Runs that are killed, signalled,
# corrupted and raced: "python -m tests.trials".
fuzz: setup
	PYTHONPATH=.:kernels $(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@$(INSTALL) -e ".[dev,bench]"
	$(BIN)/python -m bench.micro $(MICRO_ARGS)
	$(BIN)/python -m bench --quick $(BENCH_ARGS)

bench-long: setup
	@$(INSTALL) -e ".[dev,bench]"
	$(BIN)/python -m bench $(BENCH_ARGS)

# The kernels with the oldest Triton supported, in an environment of its own.  (Its interpreter needs
# NumPy before 2.4; torch's CPU build does not ask for a Triton.)  Each kernel is compiled for every
# architecture, and every variant for one: what has not changed since the last run is not compiled again.
test-oldest:
	@test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	@$(OLDEST) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(OLDEST) --extra-index-url $(CPU_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(OLDEST) "torch==$(TORCH)"
	@$(OLDEST) -e ".[test]" "triton==3.6.0" "numpy<2.4"
	.venv-oldest/bin/python -m pytest tests/kernels -n auto --dist worksteal $(PYTEST_ARGS)
	env -u TRITON_INTERPRET .venv-oldest/bin/python -m projunn_kernels.tuning.aot --tiny
	env -u TRITON_INTERPRET .venv-oldest/bin/python -m projunn_kernels.tuning.aot --variants --arch sm_90 \
	  --out .venv-oldest/variants.jsonl

# AOT_ARGS=--full compiles every candidate; AOT_ARGS="--out FILE" goes on where FILE ends.
aot: setup
	env -u TRITON_INTERPRET $(BIN)/python -m projunn_kernels.tuning.aot $(AOT_ARGS)

# PTX_ARGS="--arch sm_80 --order descending" chooses the GPU, and the order in which warps run.
ptx: setup
	env -u TRITON_INTERPRET PYTHONPATH=.:kernels $(BIN)/python -m tests.ptx $(PTX_ARGS)

# No setup: torch, triton and einops of the machine are used as they are.  QUICK=1: two minutes in place of
# five; OUT: folder of results; PEERS: folder of wheels (POGO, geoopt, geotorch); PUBLISHED: folder of the published
# code; SANITIZE=1 adds compute-sanitizer.
gpu:
	@PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick) $(if $(PEERS),--peers $(PEERS)) \
	  $(if $(PUBLISHED),--published $(PUBLISHED)) $(if $(SANITIZE),--sanitizer)

# What is in the packages is what tests/test_packaging.py says; here the wheel is installed and run.
package: setup
	@$(INSTALL) build twine
	rm -rf dist build/trial
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/trial
	@build/trial/bin/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH)+cpu" 2>/dev/null \
	  || build/trial/bin/python -m pip install --quiet --disable-pip-version-check --extra-index-url $(CPU_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || build/trial/bin/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH)"
	build/trial/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build/trial && bin/projunn --version && bin/projunn info && bin/projunn train --help >/dev/null

docs: setup
	@$(INSTALL) -e ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs . site

clean:
	rm -rf $(VENV) .venv-oldest build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
