# make run     train on phantom skulls and generate new ones     (ARGS="-p preset half" passes parameters on)
# make test    run every test: cells of the notebooks, then tests/
# make help    all commands
#
# Each command sets itself up in .venv the first time. Needed before: Python 3.11 or newer, make, git.
# Another interpreter:               make run PYTHON=python3.12
# The small CPU build of torch:      PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run

PYTHON   ?= python3
VENV     ?= .venv
ARGS     ?=
NOTEBOOK := nbs/10_train_otfm.ipynb
OUTPUT   := out/10_train_otfm.ipynb
BIN      := $(VENV)/bin
READY    := $(VENV)/.ready

.PHONY: help run test export readme docs lab clean
.DELETE_ON_ERROR:

help:
	@echo "make run     train on phantom skulls and generate new ones; ARGS=\"-p preset half -p data scans/\" passes parameters on"
	@echo "make test    run every test"
	@echo "make export  after editing a notebook: write the modules and README.md, clean the notebooks"
	@echo "make docs    build the pages of the book into _docs/, without Quarto"
	@echo "make lab     open JupyterLab"
	@echo "make clean   remove build products; keeps .venv/ and out/"

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "skeletal_fm needs Python 3.11 or newer, but '$(PYTHON)' is `$(PYTHON) -V 2>&1 || true`. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV): the locked environment of constraints.txt, once, a few minutes and up to some GB with a CUDA build of torch ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Could not make a virtual environment. On Debian and Ubuntu install python3-venv; or name another interpreter with PYTHON=..." >&2; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(READY)
	@mkdir -p out
	@$(BIN)/python -m papermill --no-progress-bar --stdout-file - --stderr-file - $(NOTEBOOK) $(OUTPUT) $(ARGS)
	@echo
	@echo "make run: done. $(NOTEBOOK) was executed from top to bottom."
	@echo "Look at $(OUTPUT) (figures, numbers, conclusions) and at the folder it names for volumes, meshes, tables and checkpoints."
	@echo "The same command again reuses what is finished."

test: $(READY)
	@echo "1/2 cells of the notebooks (nbdev_test)"
	@$(BIN)/nbdev_test --do_print
	@echo "2/2 tests/ (pytest)"
	@NBDEV_TESTED=1 $(BIN)/python -m pytest tests -q -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder
	@echo "make test: all passed: `ls nbs/[0-9]*.ipynb nbs/index.ipynb | wc -l | tr -d ' '` notebooks cell by cell (nbdev_test), then tests/ (pytest, counts above)."

export: $(READY)
	@$(BIN)/nbdev_export
	@$(BIN)/python tests/docs_build.py quiet
	@$(BIN)/nbdev_clean
	@$(BIN)/python tests/docs_build.py readme
	@echo "make export: modules in skeletal_fm/ and README.md written, notebooks cleaned; git status shows what changed."

readme: $(READY)
	@$(BIN)/python tests/docs_build.py readme

docs: $(READY)
	@$(BIN)/python tests/docs_build.py pages --out _docs
	@echo "make docs: open _docs/index.html"

lab: $(READY)
	@$(BIN)/jupyter lab nbs

clean:
	rm -rf build dist _proc _docs _preview *.egg-info .pytest_cache
