# `make quickstart` and `make test` set themselves up on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

BENCHMARKS := polar orthonormalize spectron_step lora_muon_step communication step_share data_wait checkpoint_wait throughput seventy_b telemetry compare

.PHONY: always install quickstart test test-cluster lint types docs notebooks bench bench-gpu clean

# The versions of constraints.txt, with which the figures were measured; LATEST=1 takes the newest that pyproject.toml allows.
install: $(READY)

$(READY): pyproject.toml setup.py constraints.txt $(if $(LATEST),always)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lrtrain needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]' $(if $(LATEST),--upgrade --upgrade-strategy eager,-c constraints.txt)
	touch $@

quickstart: $(READY)
	$(BIN)/lrtrain fit --config configs/quickstart.yaml

test: $(READY)
	$(BIN)/python -m pytest -n 2

# Real schedulers, hosts and image builds on this machine: needs root and Debian's packages below, takes about an hour.
CLUSTER_PACKAGES := slurm-wlm slurmctld slurmd slurm-client munge buildah mmdebstrap iproute2 crun

test-cluster: $(READY)
	for name in $(CLUSTER_PACKAGES); do dpkg -s $$name > /dev/null 2>&1 || missing="$$missing $$name"; done; \
	  [ -z "$$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }
	$(BIN)/python -m pytest -m cluster --timeout 1800

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The documentation site, for a browser that opens files: no network to build it or to read it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "open build/site/index.html"

# Executes all notebooks, minutes each, and renders them to pages in build/notebooks.
notebooks: $(READY)
	$(BIN)/python -m notebooks.execute

# Minutes to an hour, on an otherwise idle machine; tables on the screen, JSON in benchmarks/results.
bench: $(READY)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

# For whoever has a GPU: one table in under ten minutes.
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) runs data
