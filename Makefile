# `make demo` and `make test` need Python >= 3.10 with pip, and make; everything else they install into .venv.
PYTHON ?= python3
VENV ?= .venv
CORES := $(shell getconf _NPROCESSORS_ONLN)
BENCH := $(VENV)/bin/bench
INSTALLED := $(VENV)/.installed

DEMO_UPSTREAMS = fbank fbank_cmvn mfcc spectrogram hf:examples/hubert_tiny@random \
  $(foreach name,$(SHIPPED),$(name)_mini $(name)_mini@random)
# What is shipped, and of which clips of the pool some are made: those in which somebody speaks.
SHIPPED := ssast atst dino masr pms
ONLY_dino := --only speaker
ONLY_masr := --only speaker
ONLY_pms := --only speaker
FSDD ?= ../shared/data/fsdd

.PHONY: install demo test browser test-slow check checkpoints claims results speed clean

install: $(INSTALLED)

# Debian ships Python without ensurepip: then the machine's own pip fills the new environment.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && \
	  PYTHONPATH="$$($(PYTHON) -c 'import os, pip; print(os.path.dirname(os.path.dirname(pip.__file__)))')" \
	  $(VENV)/bin/python -m pip install --quiet --ignore-installed pip; }

# s3prl's SSAST and AST need just this timm; what that depends on for images is not needed, and does not load beside torch.
$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps timm==0.4.5
	@touch $@

demo: $(INSTALLED)
	$(BENCH) run $(DEMO_UPSTREAMS) --home demo/home --results demo/results --workers $(CORES)

# One process for each core, each with one thread: as many threads as cores in every process would only wait for each other.
test: $(INSTALLED) browser
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(CORES) --dist worksteal

# The tests of the HTML page drive a real browser. Where none is found and apt-get may be used, Chromium is installed;
# elsewhere these tests are skipped, and say so.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name && exit 0; done; \
	  [ -n "$(BROWSER_PATH)" ] && exit 0; \
	  [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && { echo "installing chromium for the tests of the page"; \
	    (timeout 300 apt-get install -qq -y --no-install-recommends chromium || (timeout 100 apt-get update -qq && \
	     timeout 300 apt-get install -qq -y --no-install-recommends chromium)) > /dev/null 2>&1; }; \
	  command -v chromium || echo "no browser: the tests of the page will be skipped; install chromium to run them"

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The checkpoints that this project ships, made anew side by side.
checkpoints: $(INSTALLED)
	$(BENCH) data prepare tiny_pool --home demo/home --workers $(CORES)
	rm -f upstreams/weights/*_mini.*
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 $(SHIPPED:%=upstreams/weights/%_mini.safetensors)

upstreams/weights/%_mini.safetensors:
	$(BENCH) pretrain $* --corpus tiny_pool $(ONLY_$*) --size mini --half --out $@ --home demo/home --workers 1 --device cpu

# What README's "The papers' claims" shows, made anew.
claims: $(INSTALLED)
	$(BENCH) claims $(SHIPPED) --home demo/home --results results --workers $(CORES) --device cpu

# The tables that README shows, made anew by the code of this commit.
results: $(INSTALLED)
	$(BENCH) run $(DEMO_UPSTREAMS) --home demo/home --results results --workers $(CORES)
	$(BENCH) run $(DEMO_UPSTREAMS) --suite fsdd --data fsdd=$(FSDD) \
	  --home demo/home --results results --workers $(CORES)
	$(BENCH) run masr_mini pms_mini --task tiny_keyword --task tiny_verification --per-layer \
	  --home demo/home --results results --workers $(CORES)
	$(BENCH) run hf:examples/hubert_tiny@random ssast_mini --precision bf16 --home demo/home --results results/bf16 --workers $(CORES)
	$(BENCH) pack --results results
	$(BENCH) pack --results results/bf16

# `bench extract` and a sweep of 5 learning rates x 3 seeds, against the bare forward pass over the same clips.
speed: $(INSTALLED)
	$(VENV)/bin/python -m tests.speed

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
