# The environment lives in .venv, made once from the pins in constraints.txt, re-used until they or pyproject.toml change.
# Choose another Python with `make PYTHON=/path/to/python3.12 …`.

PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test check lint bench soak audit clean

help:
	@echo "make demo    train, distil, quantize, build and score on built-in synthetic faces"
	@echo "make test    everything CI runs: lint, types, all tests"
	@echo "make check   lint, types, fast tests"
	@echo "make bench   measure speed here; writes under benchmarks/results"
	@echo "make soak    half an hour of kills, hostile inputs and full memory; prints figures"
	@echo "make audit   licences and known faults of all dependencies; writes under benchmarks/results"
	@echo "make clean   remove the environment and caches"

demo: .venv/.android
	.venv/bin/edgeface demo

# Processes of their own: in one, a training in tests/test_benchmark_tables.py once crashed; the cause is not known
# (DECISIONS.md).
test: lint
	.venv/bin/python -m pytest tests/distill tests/edgeface tests/hostile tests/quantize tests/targets
	.venv/bin/python -m pytest tests/*.py
	.venv/bin/python -m pytest tests/reliability

check: lint
	.venv/bin/python -m pytest -m "not slow"

lint: .venv/.all
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/.all
	@mkdir -p benchmarks/results
	.venv/bin/python -m benchmarks.student_speed > benchmarks/results/student_speed.json.partial
	@mv benchmarks/results/student_speed.json.partial benchmarks/results/student_speed.json

soak: .venv/.all
	.venv/bin/python -m benchmarks.soak

audit: .venv/.all
	.venv/bin/python -m benchmarks.audit

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "edgeface needs Python 3.11 or 3.12 and found neither: install one, or run make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.android: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) ".[android]"
	@touch $@

.venv/.all: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) ".[all]"
	@touch $@ .venv/.android
