# Two commands, either one first: `make demo` and `make test`. Both set up what they need.
#
# PYTHON  the Python that the environment is made with (3.10 or newer)
# STACK   the family of OpenMMLab packages to install: onedl (maintained) or openmmlab (upstream)

PYTHON ?= python3
STACK ?= onedl
VENV := $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))

# The environment has mmcv's CPU ops, so a detector cannot be validated on a GPU in it.
export CUDA_VISIBLE_DEVICES :=

# An environment that was made for a folder of another name has the package of that folder.
ifneq ($(shell cat $(VENV)/ready 2>/dev/null),$(CURDIR))
$(shell rm -f $(VENV)/ready)
endif

.PHONY: demo test benchmark lint environment clean

demo: environment
	$(VENV)/bin/python tools/demo.py

test: environment
	$(VENV)/bin/python -m pytest

benchmark: environment
	$(VENV)/bin/python tools/benchmark_ema.py

lint: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

environment: $(VENV)/ready

$(VENV)/ready: tools/environment/$(STACK).txt tools/environment/create.py tools/environment/verify.py \
		tools/environment/build_mmcv.py tools/environment/peers.txt setup.py pyproject.toml
	$(PYTHON) tools/environment/create.py $(STACK) $(VENV)

clean:
	rm -rf .venv .venv-openmmlab
