# make demo   the whole path on a sandbox, from a fresh clone
# make test   lint, types, architecture, all tests
# make bench  benchmarks of rdsrepl and of other tools, in one run
# make docs   rewrite what is generated: command reference, completions
# make lambda the package of the Lambda function: build/rdsrepl-lambda.zip

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pip that comes with Python 3.11 chooses among the releases of boto3 and its stubs three times as slowly as a new
# one. Python compiles what it imports; to compile everything that is installed takes 10 s.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
INSTALLED := $(VENV)/installed
BENCH_INSTALLED := $(VENV)/installed-bench

.PHONY: demo test lint bench docs lambda postgres clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(BIN)/rdsrepl demo

# The lint, which uses one core, runs beside the tests; what it printed follows them.
# The first pytest compiles all modules, which otherwise each of the four workers would do.
test: $(INSTALLED) postgres
	@mkdir -p build
	@$(MAKE) --no-print-directory lint > build/lint.txt 2>&1 & lint=$$!; \
	export PYTHONDONTWRITEBYTECODE=; \
	$(BIN)/python -m pytest --collect-only -qq > build/collected.txt 2>&1; \
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder; tested=$$?; \
	wait $$lint; linted=$$?; cat build/lint.txt; \
	if [ $$linted -ne 0 ]; then echo "make lint failed" >&2; fi; exit $$((tested ? tested : linted))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BENCH_INSTALLED) postgres
	@sh tests/install-chromium.sh
	$(BIN)/python -m tests.benchmarks

docs: $(INSTALLED)
	RDSREPL_UPDATE=1 $(BIN)/python -m pytest -q tests/cli/test_reference.py tests/cli/test_completions.py

# For Lambda's runtimes: make lambda LAMBDA_PYTHON=3.12 LAMBDA_PLATFORM=manylinux2014_aarch64
LAMBDA_PYTHON := 3.13
LAMBDA_PLATFORM := manylinux2014_x86_64
lambda: $(INSTALLED)
	rm -rf build/lambda build/rdsrepl-lambda.zip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --only-binary=:all: \
		--python-version $(LAMBDA_PYTHON) --platform $(LAMBDA_PLATFORM) --target build/lambda '.[kinesis]'
	$(BIN)/python -c 'import shutil; shutil.make_archive("build/rdsrepl-lambda", "zip", "build/lambda")'
	@ls -l build/rdsrepl-lambda.zip

# PostgreSQL 15 with wal2json and test_decoding, which the tests compare with. Where it cannot be installed the tests
# that need it are left out and named; with CI=true that is a failure.
postgres:
	@sh tests/install-postgres.sh

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "venv is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PIP) --upgrade pip
	$(PIP) -e '.[sandbox,dev]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(PIP) -e '.[sandbox,dev,bench]'
	@touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
