# The front door. Every target makes the virtual environment first where it is missing; what is done is not done again.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
# such as --n 60 --epochs 1, where it should end sooner
DEMO_ARGS ?=
README_DIR ?= .
# outputs of notebooks must not depend on the colours or the width of the terminal they were run from
export NO_COLOR := 1
# tests run side by side, a thread of the numerical libraries each: more threads than cores make all of them slower
JOBS ?= 2
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
NBTEST := OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(JOBS) --skip-folder-re 'experiments|checkpoints'

.PHONY: help demo test pytest faults notebooks translations readme screenshots docs lint audit clean-check hooks wheel bench venv dev

help:
	@echo "make demo       train and sort on synthetic images: no data, no network but the package index"
	@echo "make test       install the dev extras and run every test"
	@echo "make faults     the fault tests in full: kills, full disks, bad input (minutes)"
	@echo "make notebooks  run the library notebooks and keep their outputs"
	@echo "make translations  bring the page's French catalogue up to date with its English"
	@echo "make readme     write README.md from nbs/index.ipynb"
	@echo "make screenshots  the README's pictures of the page (needs Chromium)"
	@echo "make docs       render every notebook as a page in _docs/"
	@echo "make lint       chkstyle over the notebooks"
	@echo "make audit      known vulnerabilities of what is installed (pip-audit; needs the network)"
	@echo "make bench      speed, as ratios of runs made side by side (about 20 minutes)"
	@echo "make wheel      build the wheel into dist/"
	@echo "make hooks      git hooks that keep notebooks clean"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10))' || { echo "mednist_fastai needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

# stamps: installing again only when the metadata changed
$(VENV)/.installed: $(VENV)/bin/python settings.ini setup.py pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python settings.ini setup.py pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.installed

venv: $(VENV)/.installed
dev: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/mednist-demo --dst $(DEMO) $(DEMO_ARGS)

test: $(VENV)/.installed-dev
	$(NBTEST)
	$(TEST) tests

pytest: $(VENV)/.installed-dev
	$(TEST) tests

# small disks are mounted and devices made only where that is allowed, as for root on Linux
faults: $(VENV)/.installed-dev
	MEDNIST_FASTAI_FAULTS=full $(BIN)/python -m pytest tests/test_faults.py tests/test_web_people.py::test_killed_while_people_review

notebooks: $(VENV)/.installed-dev
	$(BIN)/nbdev-export
	$(NBTEST) --save
	$(BIN)/nbdev-clean

# what is new or has changed is left empty in messages.po; write it there and run this once more
translations: $(VENV)/.installed-dev
	cd mednist_fastai/web && ../../$(BIN)/pybabel -q extract -F translations/babel.cfg -k N_ --sort-output --no-location --omit-header -o translations/messages.pot . \
	 && ../../$(BIN)/pybabel -q update -i translations/messages.pot -d translations -l fr -w 10000 --no-fuzzy-matching && rm translations/messages.pot && ../../$(BIN)/pybabel -q compile -d translations

readme: $(VENV)/.installed-dev
	$(BIN)/jupyter nbconvert --log-level ERROR --config nbs/nbconvert_config.py --to markdown --output-dir $(README_DIR) --output README nbs/index.ipynb

screenshots: $(VENV)/.installed-dev
	$(BIN)/python tests/screenshots.py nbs/images

docs: $(VENV)/.installed-dev
	$(BIN)/jupyter nbconvert --config nbs/nbconvert_config.py --to html --output-dir _docs nbs/*.ipynb nbs/experiments/*.ipynb

lint: $(VENV)/.installed-dev
	$(BIN)/chkstyle nbs

audit: $(VENV)/.installed-dev
	.ci/audit $(BIN)

hooks: $(VENV)/.installed-dev
	$(BIN)/nbdev-install-hooks

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel --outdir dist .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/basics.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/feed.py
	$(BIN)/python benchmarks/sort.py
