# Python 3.11 or later and make are all that has to be there: no database, no Docker, no account.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
POOLED := $(addprefix tests/,lifecycle faults cleanup retention manual-resolution sla-monitoring) \
          $(addprefix tests/utils/test_,db_utils.py redis_lock.py rate_limit.py tracing.py check_ins.py)

# Compiled modules are kept: compiling the tests anew costs each process that runs them eight seconds.
unexport PYTHONDONTWRITEBYTECODE
# What runs side by side writes its output in one piece, where make can do that (4.0 and later).
IN_ONE_PIECE := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help demo test soak fetch collect map schema lint picture requirements licences stack stack-stop bench bench-foreground bench-blobs bench-queue bench-archive bench-erasure bench-partitions bench-lookups bench-audit

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: $(READY)  ## start servers, load sample data, run the jobs, show what happened
	$(BIN)/python backend/demo.py

test: $(READY)  ## lint, types and the tests, on real servers; what takes longest is in make soak
	$(MAKE) --jobs=3 $(IN_ONE_PIECE) lint fetch collect
	$(BIN)/python -m pytest -n 4 -m "not soak" --cov --cov-branch --cov-report=term

soak: $(READY) fetch  ## the tests that are too long for every change, and all of them through a real PgBouncer
	$(BIN)/python -m pytest -n 4 -m soak
	$(BIN)/python -m pytest -n 4 -m "not soak" --through-pgbouncer $(POOLED)

fetch: $(READY)  ## fetch the programs and libraries that only tests need
	$(BIN)/python tests/packages.py

collect: $(READY)  ## import every test once: a mistake there is told at once, and what was compiled is kept
	$(BIN)/python -m pytest --collect-only --quiet --no-summary >/dev/null || $(BIN)/python -m pytest --collect-only --quiet

map: $(READY)  ## write the list of modules in STRUCTURE.md anew, from their docstrings
	$(BIN)/python -m tests.project.structure

schema: $(READY)  ## write the policy file's JSON Schema and the reference of its keys anew, from the models
	$(BIN)/python -m tests.project.schema

lint: $(READY)  ## ruff, mypy and the order of the rooms (import-linter)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

picture: $(READY)  ## draw the README's picture of a real run anew
	$(BIN)/python backend/picture.py

requirements: $(READY)  ## write requirements.txt anew: requirements.in with the hashes of every wheel and source archive
	{ echo "# Written by make requirements, from requirements.in; install it with --require-hashes."; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-strip-extras requirements.in; } > requirements.new && mv requirements.new requirements.txt

licences: $(READY)  ## write docs/licences.md anew, from what the dependencies say of themselves
	$(BIN)/python -m tests.project.licences

stack: $(READY)  ## start the local PostgreSQL and Valkey with sample data, to try a script by hand
	$(BIN)/python backend/local_stack.py start

stack-stop: $(READY)  ## stop them; the data stays
	$(BIN)/python backend/local_stack.py stop

bench: $(READY)  ## measure the purge; writes nothing outside a database of its own
	$(BIN)/python benchmarks/purge.py

bench-foreground: $(READY)  ## measure what a user feels while the purge runs; in a database of its own too
	$(BIN)/python benchmarks/foreground.py

bench-blobs: $(READY)  ## measure the cleanup of PDFs, tokens and blacklist, and the limit that processes share
	$(BIN)/python benchmarks/blobs.py

bench-queue: $(READY)  ## measure the manual-resolution queue: fifty operators at once, a million items
	$(BIN)/python benchmarks/manual_resolution.py

bench-archive: $(READY)  ## measure archive-then-delete against fetch, JSON, gzip, delete by id
	$(BIN)/python benchmarks/archive.py

bench-erasure: $(READY)  ## measure 10 000 erasures among a million rows
	$(BIN)/python benchmarks/erasure.py

bench-partitions: $(READY)  ## measure dropping thirty expired partitions against deleting the same rows by batches
	$(BIN)/python benchmarks/partitions.py

bench-lookups: $(READY)  ## measure rules that look into another table against a plain rule
	$(BIN)/python benchmarks/lookups.py

bench-audit: $(READY)  ## measure how fast the audit is verified, on one core
	$(BIN)/python benchmarks/audit.py

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed. Name one: make PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "No virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@# uv takes a tenth of pip's time. It does not read pip's settings: where only those name an index, pip does it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -o '^uv==[^ ]*' requirements-dev.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.txt || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements-dev.txt || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
