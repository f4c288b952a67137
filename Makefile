PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install lint test slow docs demo demo-3d clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,docs,test,dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

slow: install
	$(BIN)/python -m pytest -m slow

docs: install
	$(BIN)/mkdocs build --strict

demo: install
	$(BIN)/monai-memorization demo --output-dir demo_output

demo-3d: install
	$(BIN)/monai-memorization demo --3d --output-dir demo_output_3d

clean:
	rm -rf $(VENV) build dist site demo_output demo_output_3d *.egg-info
