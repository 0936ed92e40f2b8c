# Python, git and make are all that is needed: every target sets up what it uses, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
OLDEST := $(shell sed -n 's/^min_python *= *//p' settings.ini)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test soak lab explorer prepare bench bench-full bench-gpu

help:  ## this list
	@echo 'interflow: what make can do here'
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## the whole paper on the embedded photographs, into runs/demo (resumes when interrupted)
	@$(BIN)/interflow demo

test: $(READY)  ## all tests: exports, notebooks, contracts
	@$(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist worksteal --durations 5

soak: $(READY)  ## trainings killed at twenty random moments and resumed, into benchmarks/soak.txt (some minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --out benchmarks

lab: $(READY)  ## JupyterLab on the notebooks, for this machine only; it opens at the map
	@$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) $(LABFLAGS) nbs/index.ipynb

explorer: $(READY)  ## the latent space to touch, in the browser, for this machine only
	@$(BIN)/interflow explore

prepare: $(READY)  ## before a commit: export the notebooks, run those whose code changed (ALL=1: all), store and clean
	@$(BIN)/nbdev_export
	@$(if $(ALL),find nbs -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' | sort,$(BIN)/python tests/rooms.py stale) \
	  | OMP_NUM_THREADS=1 xargs -r -n 1 -P 2 sh -c '$(STORE)'; code=$$?; $(BIN)/nbdev_clean; exit $$code
	@echo 'exported, run and cleaned; see the changes with: git status'

bench: $(READY)  ## what the model costs, into benchmarks/cost.json and cost.png (under 5 minutes; leave the machine alone meanwhile)
	@$(BIN)/python benchmarks/cost.py

bench-full: $(READY)  ## the same, with torch.compile and a 2048x1536 scene
	@$(BIN)/python benchmarks/cost.py --full

bench-gpu: $(READY)  ## what a graphics card gives, into benchmarks/gpu.json (ten minutes, on a machine with CUDA)
	@$(BIN)/python benchmarks/gpu.py

# One notebook: run and stored, or left as it was and named.
STORE = $(BIN)/jupyter-nbconvert --to notebook --execute --inplace --log-level=ERROR \
	  --ExecutePreprocessor.timeout=600 --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.extra_arguments=--log-level=ERROR "$$0" \
	  && $(BIN)/python tests/rooms.py mark "$$0" && echo "ran $$0" || { echo "make: $$0 does not run" >&2; exit 1; }

# The mark is made last: an installation that was cut off is begun again, a whole one is not repeated.
$(READY): requirements.txt constraints.txt settings.ini setup.py
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not here; install Python $(OLDEST) or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(OLDEST)".split("."))))' || { echo "make: $$($(PYTHON) -V 2>&1) is too old; name Python $(OLDEST) or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo 'Installing what interflow needs into $(VENV); this takes some minutes, once.'
	@$(BIN)/python -m pip install -qq -r requirements.txt || { echo 'make: the installation failed, see above; once the cause is mended the same command goes on' >&2; exit 2; }
	@touch $(READY)
