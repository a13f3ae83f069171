# The two commands a newcomer types. Each makes .venv if it is missing and installs into it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/tools
VIEWER := cmt_med/reports/assets/viewer.js
QUICK := tests/test_layers.py tests/launch tests/config tests/base tests/blocks tests/tasks tests/evaluation tests/data/conventions \
    tests/data/sources tests/inference/test_windows.py tests/inference/test_native.py tests/inference/test_predict.py \
    tests/inference/test_model.py tests/training/test_schedule.py tests/training/test_budget.py tests/training/test_optimiser.py
# What browser tests drive; where npm is missing they skip, and say why.
VIEWER_IF_NPM := $(if $(shell command -v npm 2>/dev/null),$(VIEWER))

.PHONY: brats test quick soak lint viewer validators sbom audit clean

brats: $(STAMP)  ## phantom (or your data: MANIFEST=...) -> train -> infer -> evaluate -> report
	$(BIN)/python pipelines/brats.py $(if $(MANIFEST),--manifest $(MANIFEST)) $(if $(OUTPUT),--output $(OUTPUT))

test: $(STAMP) lint $(VIEWER_IF_NPM)  ## all tests with reduced counts, on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -rsfE

quick: $(STAMP)  ## what matters while editing, in under two minutes
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -rsfE $(QUICK)

soak: $(STAMP) $(VIEWER_IF_NPM)  ## the full counts of every figure that is claimed
	CMT_SOAK=1 $(BIN)/python -m pytest -rs

viewer: $(VIEWER)  ## the volume viewer of reports and of `cmt-med view`; needs node and npm

$(VIEWER): viewer/viewer.js viewer/build.mjs viewer/package.json viewer/package-lock.json $(wildcard viewer/licenses/*)
	@command -v npm >/dev/null || { echo "npm not found; install Node.js 18 or later (Debian: nodejs npm)" >&2; exit 64; }
	cd viewer && npm ci --ignore-scripts --no-audit --no-fund && npm run --silent build

validators: .validators/nnunetv2  ## nnU-Net's and BIDS' own checks, against which tests hold what convert writes

.validators/nnunetv2: $(STAMP) tests/validators.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .validators -r tests/validators.txt
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sbom: $(STAMP) $(TOOLS)/.installed  ## what is installed, with versions and licences: sbom.json (CycloneDX)
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --output-file sbom.json
	@echo "software bill of materials: sbom.json"

audit: $(STAMP) $(TOOLS)/.installed  ## known vulnerabilities of the pinned versions, from PyPI's advisories
	$(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps

$(TOOLS)/.installed: $(STAMP)  # an environment of their own, so that they are not in the bill
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom pip-audit
	touch $@

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later not found; use make PYTHON=/path/to/python" >&2; exit 64; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .validators sbom.json viewer/node_modules cmt_med/reports/assets build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
