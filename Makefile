# make demo   the whole path on a sandbox, from a fresh clone
# make test   lint, types, architecture, all tests
# make bench  our speed beside the peers', in one run
# make docs   rewrite what is generated: command reference, completions

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint bench docs postgres clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(BIN)/rdsrepl demo

test: $(INSTALLED) postgres lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(INSTALLED) postgres
	$(BIN)/python -m tests.benchmarks

docs: $(INSTALLED)
	RDSREPL_UPDATE=1 $(BIN)/python -m pytest -q tests/test_reference.py tests/test_completions.py

# PostgreSQL 15 with wal2json and test_decoding, which the tests compare with. Where it cannot be installed the tests
# that need it are left out and named; with CI=true that is a failure.
postgres:
	@sh tests/install-postgres.sh

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "venv is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[sandbox,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
