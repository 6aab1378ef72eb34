# Two commands, either one first: `make demo` and `make test`. Both set up what they need, look for an NVIDIA GPU, and
# say what they found. `make gpu-check` proves and measures everything on one.
#
# PYTHON  the Python that the environment is made with (3.11 or newer)
# STACK   the family of OpenMMLab packages to install: onedl (maintained) or openmmlab (upstream)
# DEVICE  where to run: auto (a GPU, where there is one and mmcv has operators for it), cpu or cuda
# TORCH   pinned (installed with the rest) or installed: that of PYTHON, and no other is installed
# WHEELS  a folder that everything is installed from, without a network; `make wheels` fills it for PYTHON_VERSION
# BUILDER what `make docs` puts into build/docs: html, or linkcheck, which tries the links to other sites

PYTHON ?= python3
STACK ?= onedl
DEVICE ?= auto
TORCH ?= pinned
WHEELS ?=
PYTHON_VERSION ?= 3.12
BUILDER ?= html
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))$(if $(filter-out pinned,$(TORCH)),-$(TORCH)-torch)
LOOK := $(VENV)/bin/python tools/environment/device.py
ON_DEVICE := $(LOOK) $(DEVICE)
# torch's own threads spin while they wait: on a busy machine they make the demo's training several times slower, and on
# a quiet one of two cores they bring nothing.
ONE_THREAD := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1)
SET_UP := $(STACK) $(VENV) --torch $(TORCH) $(if $(WHEELS),--wheels $(WHEELS))

# An environment that was made for a folder of another name has the package of that folder; and one without operators
# for a GPU is made anew where they are asked for.
MADE_FOR := $(shell cat $(VENV)/ready 2>/dev/null)
ifneq ($(MADE_FOR),$(CURDIR) cuda)
ifneq ($(MADE_FOR)$(filter cuda,$(DEVICE)),$(CURDIR) cpu)
$(shell rm -f $(VENV)/ready)
endif
endif

.PHONY: demo test benchmark gpu-check lint docs environment wheels clean

demo: environment
	@$(ONE_THREAD) $(ON_DEVICE) tools/demo.py

# The tests that need a GPU run on it; all others run on the CPU, as everywhere, with a process for each core. In the
# order of their names: the files of few tests are the slow ones, and would come last, on one core.
test: environment
	@$(ON_DEVICE)
	CUDA_VISIBLE_DEVICES= $(ONE_THREAD) $(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
	@$(LOOK) --gpu-only $(DEVICE) -m pytest tests -m gpu

benchmark: environment
	$(VENV)/bin/python tools/benchmark_ema.py --device $(if $(filter auto,$(DEVICE)),cpu,$(DEVICE))

gpu-check:
	$(PYTHON) tools/gpu_check.py --device $(DEVICE) $(SET_UP)

lint: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

docs: $(VENV)/docs
	$(VENV)/bin/sphinx-build -M $(BUILDER) docs build/docs --fail-on-warning --keep-going --quiet

$(VENV)/docs: tools/environment/docs.txt $(VENV)/ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

environment: $(VENV)/ready

$(VENV)/ready: tools/environment/$(STACK).txt tools/environment/create.py tools/environment/verify.py \
		tools/environment/build_mmcv.py tools/environment/device.py tools/environment/peers.txt setup.py pyproject.toml
	$(PYTHON) tools/environment/create.py $(SET_UP) --device $(DEVICE)

wheels:
	$(PYTHON) tools/environment/wheels.py $(STACK) $(or $(WHEELS),$(error name the folder to fill: make wheels WHEELS=dir)) $(PYTHON_VERSION)

clean:
	rm -rf .venv .venv-*
