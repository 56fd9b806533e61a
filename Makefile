# `make demo` and `make test` are the two commands that matter; `make help` lists the others.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
# The Python that the environment is made with; unset takes the first of these that is 3.11 or 3.12.
PYTHON ?=
PORT ?= 8000
CHECK ?=
# Arguments for pytest, e.g. `make test ARGS="-k trie"`.
ARGS ?=
UPGRADE ?=
UV_VERSION := 0.13.9
SBOM_VERSION := 7.5.0

python := $(VENV)/bin/python
is_supported := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))

define make_environment
	@for python in "$(PYTHON)" python3.11 python3.12 python3 python; do \
		if [ -n "$$python" ] && "$$python" -c '$(is_supported)' 2>/dev/null; then \
			exec "$$python" requirements/install.py --venv "$(VENV)" $(1); \
		fi; \
	done; \
	echo "install: no Python 3.11 or 3.12 was found; install one, or name it: make install PYTHON=/path/to/python3.11" >&2; \
	exit 1
endef

.PHONY: help install install-dev demo test test-long lint lock licences release-check sbom images clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: ## make .venv from the lock files (CPU); does nothing when it is up to date
	$(call make_environment,)

install-dev: ## the same with the tools that the tests need
	$(call make_environment,--dev)

demo: install ## train on the demo catalogue, serve on PORT=8000; CHECK=1 verifies the answers and stops
	@exec $(python) -m training.demo --port $(PORT) $(if $(filter-out 0,$(CHECK)),--check)

# Two workers for two cores; then the tests that start vLLM, whose own processes want both, by themselves.
test: install-dev ## lint, types, import rules and every test that is not slow
	@OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadgroup -m "not slow and not vllm" $(ARGS)
	@OMP_NUM_THREADS=1 $(python) -m pytest -m "vllm and not slow" $(ARGS)

test-long: install-dev ## what `make test` leaves out: big fuzz runs, soak, million-item checks
	@exec $(python) -m pytest -m slow $(ARGS)

lint: install-dev ## ruff, pyright and the import rules alone
	@$(python) -m pytest -q tests/test_quality.py $(ARGS)

lock: install ## rewrite requirements/*.txt from pyproject.toml; UPGRADE=1 raises the versions
	@$(python) -m pip install --quiet uv==$(UV_VERSION)
	@UV=$(VENV)/bin/uv UPGRADE=$(UPGRADE) requirements/lock.sh

licences: install ## rewrite requirements/LICENCES.md from the installed packages
	@$(python) requirements/release.py licences

release-check: test ## the tests, then: version, changelog, licences, nothing uncommitted
	@$(python) requirements/release.py check

sbom: install ## bill of materials of the installed packages: build/sbom.cdx.json (CycloneDX)
	@test -x build/sbom/bin/cyclonedx-py || { $(python) -m venv build/sbom && \
		build/sbom/bin/pip install --quiet cyclonedx-bom==$(SBOM_VERSION); }
	@build/sbom/bin/cyclonedx-py environment "$(VENV)" --pyproject pyproject.toml --output-reproducible \
		-o build/sbom.cdx.json
	@echo "build/sbom.cdx.json"

images: ## build cpu and training images without a Docker daemon, run them, ask them (root on Debian; 12 GB)
	@exec .ci/images

clean: ## remove the environment and everything the tools left behind; keeps runs/ and data/
	rm -rf "$(VENV)" build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
