PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
SPARK := .venv/.spark
PEERS := build/bench/.installed

# What `make train` runs. Any other job: make train PARAMETERS="-P data=../images -P epochs=50"
PARAMETERS ?= -P backbone=compact -P epochs=6

.DEFAULT_GOAL := help
.PHONY: help install lock licences sbom train test slow fuzz bench bench-training docs ui clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

$(INSTALLED): pyproject.toml requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'captcha needs Python 3.11 or newer, but "$(PYTHON)" is none: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(INSTALLED) ## make .venv with the dependencies of requirements.lock, checked by their hashes

lock: $(INSTALLED) ## renew requirements.lock after a pin has changed (all versions: OPTIONS=--upgrade)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --quiet \
		--custom-compile-command 'make lock' --output-file requirements.lock $(OPTIONS)

licences: $(INSTALLED) ## renew the table in docs/licences.md
	@table=$$($(BIN)/pip-licenses --from=mixed --with-system --format=markdown \
		--packages $$(sed -n 's/^\([a-z0-9.-]*\)==.*/\1/p' requirements.lock)) && \
		text=$$(grep -v '^|' docs/licences.md) && printf '%s\n\n%s\n' "$$text" "$$table" >docs/licences.md

sbom: $(INSTALLED) ## write what is installed, with licences, to build/sbom.json (CycloneDX)
	@mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json \
		$(BIN)/python

train: $(INSTALLED) ## train on drawn captchas through MLflow, register the model, show what to do next
	PATH="$$PWD/$(BIN):$$PATH" mlflow run . --env-manager local --experiment-name captcha $(PARAMETERS)

test: $(INSTALLED) ## every check: format, lint, types, import layers, security, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml captcha docs benchmarks
	$(BIN)/python -m pytest

$(SPARK): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --editable '.[spark]'
	@touch $@

slow: $(SPARK) ## whole jobs as real processes (minutes)
	$(BIN)/python -m pytest -m slow

fuzz: $(INSTALLED) ## look for files and requests that break the reader, SECONDS each (900)
	nice -n 19 $(BIN)/python -m tests.hostile.fuzz_images -max_total_time=$(or $(SECONDS),900)
	nice -n 19 $(BIN)/python -m tests.hostile.fuzz_requests -max_total_time=$(or $(SECONDS),900)

# What others use, in an environment of its own.
$(PEERS): benchmarks/peers.txt
	"$(PYTHON)" -m venv build/bench/venv
	build/bench/venv/bin/python -m pip install --disable-pip-version-check --quiet -r benchmarks/peers.txt
	@touch $@

bench: $(INSTALLED) $(PEERS) ## speed and exact match beside ddddocr and captcha-whisperer, into docs/benchmarks (MODELS="NAME=MODEL …" BENCH_DATA=DIR)
	$(BIN)/python -m benchmarks.bench $(MODELS) $(if $(BENCH_DATA),--data "$(BENCH_DATA)") $(OPTIONS)

bench-training: $(INSTALLED) $(PEERS) ## time to 99 % on the images in CAPTCHA_DATA, beside the net of Keras's captcha_ocr (an hour or more)
	$(BIN)/python -m benchmarks.training "$(CAPTCHA_DATA)" $(OPTIONS)

docs: $(INSTALLED) ## take the pictures in docs/ anew, of runs trained for it or of those at RUNS=TRACKING_URI
	$(BIN)/python docs/screenshots.py $(RUNS)

ui: $(INSTALLED) ## MLflow's pages on the runs and models
	PATH="$$PWD/$(BIN):$$PATH" mlflow ui --workers 1

clean: ## remove .venv and caches; runs and models stay
	rm -rf .venv *.egg-info build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
