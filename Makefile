# Everything a user or CI runs. Each target sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check bench docs polis-model clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/neuropolis demo --out demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir site

bench: $(READY)
	$(BIN)/python benchmarks/attribution_pass.py
	$(BIN)/python benchmarks/attribution_pass.py --shape qwen --only ways
	$(BIN)/python benchmarks/activation_pass.py --qwen
	$(BIN)/python benchmarks/slice_training.py --threads 2
	$(BIN)/python benchmarks/offload.py

docs: $(READY)
	$(BIN)/mkdocs build --strict --site-dir site

polis-model: $(READY)
	$(BIN)/python -m neuropolis.finetune.bundled

clean:
	rm -rf .venv site demo build dist *.egg-info .pytest_cache .ruff_cache
