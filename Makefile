# Everything a newcomer needs: `make demo` and `make test` set themselves up on a machine that has
# Python >= 3.11, pip and make. `make` alone lists the targets.
#
#   VENV=DIR      where the environment lives (default .venv)
#   PYTHON=FILE   which Python makes it (default: the first of python3.11, python3, ... that is >= 3.11)
#   ARGS='...'    more arguments for the command of the target, e.g. make test ARGS='-k flow'

VENV   ?= .venv
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
ARGS   ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PAPER  := $(filter-out vbvr_% %_large,$(basename $(notdir $(wildcard configs/*.py))))

DOCUMENTED := config variants files wan loop generation preview runs staged \
	devices model media weights sampling lab experiments

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint ruff pyright format docs train evaluate paper bench clean

help:  ## this list
	@echo "Targets:"
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) \
		| while IFS='|' read -r name what; do printf '%-16s %s\n' "$$name" "$$what"; done

demo: $(READY)  ## watch a small model solve a puzzle: results as a page for the browser
	$(BIN)/jcos demo $(ARGS)

test: $(READY)  ## all tests, on the CPU, a few processes at a time
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: ruff pyright  ## ruff check, ruff format --check, pyright

ruff: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

pyright: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)  ## sort the imports, fix what ruff can fix, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the reference of the library, from its docstrings, into out/api
	$(BIN)/python -W error -m pdoc --no-show-source -o out/api jcos $(DOCUMENTED:%=jcos.%)

train: $(READY)  ## train the tiny model
	$(BIN)/python scripts/train_tiny.py $(ARGS)

evaluate: $(READY)  ## the table of what the tiny model solves
	$(BIN)/python scripts/evaluate.py $(ARGS)

paper: $(PAPER:%=paper-%)  ## every experiment of the paper, into out/paper; -j2: two at a time

paper-%: $(READY)  # one of them, or paper-ensemble_large; goes on where it stopped
	$(BIN)/jcos run configs/$*.py --out out/paper/$* $(ARGS)

bench: $(READY)  ## compile and step times on this machine
	$(BIN)/python scripts/benchmark.py $(ARGS)

clean:  ## remove the environment, the caches and the build output (results stay)
	rm -rf .venv .venv312 .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(READY)  ## only the environment, which the other targets also set up

# Once per change of the dependencies. A Debian without python3-venv has a Python that cannot make
# environments: then virtualenv, put into a temporary folder, makes it.
$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "No Python >= 3.11 found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		echo "Making $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"; \
		$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
			echo "This Python cannot make environments by itself; taking virtualenv instead."; \
			boot=$$(mktemp -d) \
			&& $(PYTHON) -m pip install --quiet --target "$$boot" virtualenv \
			&& PYTHONPATH="$$boot" $(PYTHON) -m virtualenv --quiet $(VENV); \
			made=$$?; rm -rf "$$boot"; test $$made -eq 0; \
		} || { echo "No environment. Install venv and try again: sudo apt install python3-venv" >&2; exit 1; }; \
	}
	@echo "Installing the packages into $(VENV) (once; a few minutes on a slow line)"
	@$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@
