# make verify: prove the port of a trained Mixer. make test: the whole suite. Both install once, into .venv.

.DEFAULT_GOAL := help
PYTHON ?= python3
HERE := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
VENV := $(HERE).venv
INSTALLED := $(VENV)/.installed
RUN := cd "$(HERE)" && "$(VENV)/bin/python" -m

.PHONY: help verify test nightly check format train clean

help:
	@grep -E '^[a-z]+:.*##' "$(HERE)Makefile" | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(INSTALLED): $(HERE)pyproject.toml $(HERE)constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mixer_equiv needs Python 3.11 or newer; \
	this is %d.%d: try make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv "$(VENV)"
	cd "$(HERE)" && "$(VENV)/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch "$(INSTALLED)"

verify: $(INSTALLED)  ## the main job: a Mixer trained in Flax, its PyTorch port, and the proof
	@$(RUN) mixer_equiv verify

test: $(INSTALLED)  ## the whole suite
	@$(RUN) pytest

nightly: $(INSTALLED)  ## the suite with 2000 examples a property, and what is too slow for every run
	@export HYPOTHESIS_PROFILE=nightly && $(RUN) pytest -m 'nightly or not nightly'

check: $(INSTALLED)  ## formatting, lint and types
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy

format: $(INSTALLED)  ## format and sort imports
	@$(RUN) ruff check --fix --select I .
	@$(RUN) ruff format .

train: $(INSTALLED)  ## train the digits checkpoint anew
	@$(RUN) examples.train_digits

clean:  ## remove the virtual environment and caches
	rm -rf "$(VENV)" "$(HERE)".*_cache "$(HERE)".hypothesis "$(HERE)build" "$(HERE)dist"
