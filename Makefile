# Each target runs with the Python that `PYTHON` names (default: python3).
PYTHON ?= python3

.PHONY: check lint types test test_comfyui test_train

check: ## format, lint, then types
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	$(MAKE) types

lint: ## what CI runs: changes nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types: ## pyright, basic, with the libraries of this Python
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test: ## pure tests: no ComfyUI, no network
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m "not comfyui and not train and not slow"

test_train: ## real commands on tiny models
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m "train and not slow"

test_comfyui: ## needs a ComfyUI: COMFYUI_PATH, a parent custom_nodes/, ~/comfy/ComfyUI, COMFYUI_PATH_NEW or ~/comfy/ComfyUI-new
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m "comfyui and not slow" $(OPTIONS)
