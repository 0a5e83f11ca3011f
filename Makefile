# Targets of the house; `make help` lists them. Everything runs in .venv, made at first use.

VENV := .venv
PYTHON := $(VENV)/bin/python
PROTOS := $(wildcard protos/arraylift/v1/*.proto)
PACKAGES := arraylift vcenter hostagent primary_array dedup_target backup_server tests
SOURCES := $(PACKAGES) conftest.py $(if $(wildcard benchmarks/*.py),benchmarks)
TESTS := $(addprefix tests/,unit property contract wire golden crash e2e vm)

# Either stamp is younger than pyproject.toml, or its dependencies are installed again.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: setup fmt check check_format check_lint check_types check_imports check_tidy test test-crash test-vm bench proto guest demo demo-vm clean help

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -nE 's/^([a-z-]+):.*## (.*)/  make \1: \2/p' $(MAKEFILE_LIST)

setup: $(DEV_STAMP)  ## make .venv with everything that development needs

$(PYTHON):
	@for python in python3.14 python3.13 python3.12 python3.11 python3; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making $(VENV) with $$python"; exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "no Python 3.11 or newer with the venv module; on Debian: apt-get install python3 python3-venv" >&2; \
	exit 1

# Python's libvirt is built against the host's: where that can be, it is.
LIBVIRT := $(shell pkg-config --exists libvirt 2>/dev/null && echo ,libvirt)

$(RUN_STAMP): pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev$(LIBVIRT)]'
	@touch $(RUN_STAMP) $@

fmt: $(DEV_STAMP)  ## format, and fix what can be fixed safely
	$(VENV)/bin/ruff check --quiet --fix-only .
	$(VENV)/bin/ruff format .

# `make -k check` goes through all of them whatever fails.
check: check_format check_lint check_types check_imports check_tidy  ## linters, types, import rules, protos

check_format: $(DEV_STAMP)
	$(VENV)/bin/ruff format --check --quiet .
check_lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check --output-format concise .
check_types: $(DEV_STAMP)
	$(VENV)/bin/mypy $(SOURCES)
check_imports: $(DEV_STAMP)
	$(VENV)/bin/lint-imports
check_tidy: $(DEV_STAMP)
	$(PYTHON) -m pytest --quiet tests/unit/test_protos.py tests/unit/test_tidy.py

test: check  ## check, then all tests but long campaigns
	$(PYTHON) -m pytest $(TESTS)

test-crash: $(DEV_STAMP)  ## the long crash and fault campaigns
	$(PYTHON) -m pytest -m campaign --timeout 0 tests

test-vm: $(DEV_STAMP)  ## of these only the tests with real guests under QEMU
	$(PYTHON) -m pytest tests/vm

bench: $(DEV_STAMP)  ## measure against the goals, beside restic and borg
	$(PYTHON) -m benchmarks

proto: $(DEV_STAMP)  ## generate arraylift/v1 from protos
	$(PYTHON) -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

guest: $(RUN_STAMP)  ## build the guest that tests and demo boot, out of Debian's packages
	$(PYTHON) -m arraylift.guest

demo: $(RUN_STAMP)  ## back up and restore a VM on this machine
	$(VENV)/bin/arraylift demo

demo-vm: $(RUN_STAMP)  ## the same with a real guest under QEMU: booted, lost, restored, booted again
	$(VENV)/bin/arraylift demo --vm

clean:  ## remove .venv and every cache
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
	find $(PACKAGES) benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
