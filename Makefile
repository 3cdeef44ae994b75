# make verify: prove the port of a trained Mixer. make test: the whole suite. Both install once, into .venv.

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
GPU_PYTHON ?= $(BIN)/python
INSTALLED := .venv/.installed
# Each worker begins with its share of the tests in their order, and takes from the others when it is done.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal

# One verification of each kind, the laws of imports, layouts and conversion.
QUICK := tests/test_imports.py tests/test_config.py tests/arrays tests/layouts/test_tables.py tests/layouts/test_custom.py \
	tests/checkpoints/test_conversion.py tests/checkpoints/test_relabel.py tests/checkpoints/test_differences.py \
	tests/equivalence/match tests/equivalence/test_policy.py tests/equivalence/test_text.py tests/equivalence/test_verdicts.py

.PHONY: help verify quick test test-plain soundness fuzz bench bench-full gpu rates mutation matrix check format train picture layouts docs clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mixer_equiv needs Python 3.11 or newer; \
	this is %d.%d: try make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

verify: $(INSTALLED)  ## the main job: a Mixer trained in Flax, its PyTorch port, and the proof
	@$(BIN)/mixer-equiv verify

quick: $(INSTALLED)  ## what to run at every save (a minute and a half on 2 cores)
	@$(PYTEST) -q -k 'not two_foreign_models and not torchs_compiler' $(QUICK)

test: $(INSTALLED)  ## the whole suite
	@$(PYTEST)

test-plain: $(INSTALLED)  ## what a processor or system may lack, with less than this one has (about four minutes)
	@$(BIN)/python -m tests.plain

soundness: $(INSTALLED)  ## verdicts at every size and seed, on thousands of draws, and training anew (two hours)
	@$(PYTEST) -m soundness

fuzz: $(INSTALLED)  ## all properties with 500 examples each (at most 45 minutes)
	@HYPOTHESIS_PROFILE=fuzz $(PYTEST) -m '(hypothesis or fuzz) and not soundness and not cuda'

bench: $(INSTALLED)  ## Mixers timed side by side, each proven right first: a quick table (under ten minutes)
	@$(BIN)/python -m benchmarks.speed quick

bench-full: $(INSTALLED)  ## all tables of speed, written to benchmarks/results/ and the README (over two hours)
	@$(BIN)/python -m benchmarks.conversion --write
	@$(BIN)/python -m benchmarks.cold_start --write
	@$(BIN)/python -m benchmarks.verdict --large --write
	@$(BIN)/python -m benchmarks.breakdown --write
	@$(BIN)/python -m benchmarks.mixing --write
	@$(BIN)/python -m benchmarks.speed --write

gpu:  ## tests, verify and speed on a CUDA device, in six minutes: GPU_PYTHON=python3 (with torch for CUDA), GPU=--dry-run
	@$(GPU_PYTHON) -m benchmarks.gpu $(GPU)

rates: $(INSTALLED)  ## cases verified in a second, beside a tutorial's check (about ten minutes)
	@$(BIN)/python -m benchmarks.rates --write

mutation: $(INSTALLED)  ## whether the tests notice 400 changes to what moves and compares weights (an hour or so)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutation]'
	@nice $(BIN)/python -m tests.mutation $(MUTATION)

matrix: $(INSTALLED)  ## the wheel on Python 3.11, 3.12 and 3.13, and with the oldest dependencies: MATRIX_PYTHONS='/a/python3.12 ...'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[matrix]'
	@MATRIX_PYTHONS="$(MATRIX_PYTHONS)" $(BIN)/python -m tests.matrix $(MATRIX)

check: $(INSTALLED)  ## formatting, lint, the laws of imports, and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy

format: $(INSTALLED)  ## format, and sort imports
	@$(BIN)/ruff check --fix --select I .
	@$(BIN)/ruff format .

train: $(INSTALLED)  ## train the digits checkpoint anew
	@$(BIN)/python -m examples.train_digits

picture: $(INSTALLED)  ## draw the README's pictures anew
	@$(BIN)/python -m docs.build.pictures

layouts: $(INSTALLED)  ## write the README's table of layouts anew
	@$(BIN)/python -m docs.build.readme_table

docs: $(INSTALLED)  ## the documentation site, in site/, with its pages run; every warning is an error (a few minutes)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .jax_cache build dist site
