# The commands of the project; CI runs the same ones.
#   make install      the packages, into .venv
#   make install-hop  spaCy and its model, for the Hop languages
#   make demo         the whole path on a small corpus: prepare, train, export, evaluate, sample
#   make test         the tests; make test-slow: those that take minutes
#   make lint         style, and who may import whom
#   make bench        speed and memory, compared with other programs
#   make gpu          the first checks on a GPU, as one report
#   make constraints  update constraints.txt, after a change of a requirements file

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
DEMO := config/demo_partial_reverse.py
OTHER := config/demo_no_reverse.py
INSTALL := $(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install install-hop demo test test-slow lint bench gpu constraints clean-demo

install: $(VENV)/.installed

install-hop: $(VENV)/.installed
	$(INSTALL) -r requirements-hop.txt

demo: $(VENV)/.installed
	$(RUN)/python prepare.py $(DEMO) $(OTHER)
	OMP_NUM_THREADS=1 $(RUN)/torchrun --nproc_per_node=2 train.py $(DEMO) --device=cpu
	OMP_NUM_THREADS=1 $(RUN)/torchrun --nproc_per_node=2 train.py $(OTHER) --device=cpu
	$(RUN)/python convert_to_hf.py $(DEMO)
	$(RUN)/python eval.py $(OTHER) $(DEMO) --device=cpu
	$(RUN)/python sample.py $(DEMO) --checkpoint=all --prompt="The people of" --device=cpu
	@echo
	@echo "Two small GPT-2 models were trained on State of the Union addresses: one reads them as"
	@echo "PartialReverse, the other as NoReverse, its control. Their checkpoints were exported,"
	@echo "checked and evaluated. In out/demo_evaluation/differences.png, PartialReverse is harder to"
	@echo "predict than NoReverse where the curve is above 0. The picture cannot show whether this"
	@echo "holds for other seeds, other texts or larger models. To plan a study of several seeds, type:"
	@echo "    $(RUN)/python study.py config/study_speeches.py --dry_run"

test: $(VENV)/.installed-dev
	$(RUN)/python -m pytest -n 3 -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(RUN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports

bench: $(VENV)/.installed
	$(RUN)/python -m bench

gpu: $(VENV)/.installed-dev
	$(RUN)/python -m bench gpu

constraints: $(VENV)/.installed-dev
	$(RUN)/uv pip compile --universal --python-version 3.11 --quiet --no-header --no-annotate \
		requirements-dev.txt --output-file constraints.txt

clean-demo:
	rm -rf data/demo_* out/demo_*

$(VENV)/.installed: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing requirements.txt into $(VENV) (torch is large: this may take minutes)"
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-hop.txt requirements-lm-eval.txt $(VENV)/.installed
	$(INSTALL) -r requirements-dev.txt
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/lm-eval -r requirements-lm-eval.txt
	touch $@
