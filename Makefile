# Two commands on a fresh machine: `make demo` and `make test`. Everything goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup check test demo bench lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Python 3.11 or 3.12 is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest

demo: $(READY)
	rm -rf demo
	$(BIN)/pnasvec sample demo/images --count 200
	$(BIN)/pnasvec embed demo/images/labels.csv --keep-columns label --output demo/run --model small
	$(BIN)/python docs/examples/first_rows.py demo/run

bench: $(READY)
	$(BIN)/python -m benchmarks

# Exact versions of everything, for both Pythons; run it after a change of pyproject.toml.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	  pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv demo build dist *.egg-info
