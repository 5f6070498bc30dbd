# The commands of the project; CI runs the same ones.
#   make install    the packages, into .venv
#   make demo       the whole path on a small corpus: prepare, train, export, evaluate, generate
#   make test       the tests; make test-slow: those that take minutes
#   make lint       style
#   make bench      speed and memory, side by side

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
DEMO := config/demo_partial_reverse.py
OTHER := config/demo_no_reverse.py

.PHONY: install demo test test-slow lint bench clean-demo

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(RUN)/python prepare.py $(DEMO)
	$(RUN)/python prepare.py $(OTHER)
	OMP_NUM_THREADS=1 $(RUN)/torchrun --nproc_per_node=2 train.py $(DEMO) --device=cpu
	OMP_NUM_THREADS=1 $(RUN)/torchrun --nproc_per_node=2 train.py $(OTHER) --device=cpu
	$(RUN)/python convert_to_hf.py $(DEMO)
	$(RUN)/python evaluate.py $(OTHER) $(DEMO) --device=cpu
	$(RUN)/python demo.py $(DEMO)

test: $(VENV)/.installed-dev
	$(RUN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(RUN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

bench: $(VENV)/.installed
	$(RUN)/python bench.py

clean-demo:
	rm -rf data/demo_* out/demo_*

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing requirements.txt into $(VENV) (torch is large: this may take minutes)"
	$(RUN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
