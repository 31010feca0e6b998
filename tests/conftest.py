"""What the tests share: where things are, what is tracked, and how a notebook is run the way a user runs it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from docs_build import notebooks, source  # noqa: E402

NOTEBOOKS = notebooks(ROOT)


def cells(path, kind=None):
    "Cells of a notebook as (type, source, raw cell)."
    read = [(c["cell_type"], source(c), c) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    return [c for c in read if kind in (None, c[0])]


def module_of(path):
    "Name of the module a notebook exports, or None."
    found = [s.split("default_exp", 1)[1].split()[0] for _, s, _ in cells(path, "code") if s.lstrip().startswith("#| default_exp")]
    return found[0] if found else None


LIBRARY = [p for p in NOTEBOOKS if module_of(p)]
EXPERIMENTS = [p for p in NOTEBOOKS if any("parameters" in c["metadata"].get("tags", []) for _, _, c in cells(p))]


def clean_env(**more):
    "The environment of a user: not inside a test, one thread for each process, no colours."
    env = {k: v for k, v in os.environ.items() if k not in {"IN_TEST", "PYTEST_CURRENT_TEST", "MPLBACKEND"}}
    return env | {"NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"} | more


def python(*args, cwd=ROOT, timeout=600, **env):
    "Run this interpreter in a fresh process, without standard input."
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=clean_env(**env), timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


def tracked():
    "Files of the repository: tracked ones and new ones that git does not ignore; without git, what lies there."
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        skip = {".git", ".venv", "out", "build", "dist", "_proc", "_docs", "__pycache__", ".ipynb_checkpoints", ".pytest_cache"}
        names = [p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file() and not skip & set(p.relative_to(ROOT).parts) and "egg-info" not in str(p)]
        names.append(Path("out/.gitignore"))
    else:
        names = [Path(n) for n in done.stdout.split("\0") if n]
    return sorted(n for n in set(names) if (ROOT / n).is_file())


def group(nodeid):
    "Tests that share something slow: those of a file, and of the experiments those of one notebook."
    file, _, test = nodeid.partition("::")
    return next((nb.stem for nb in EXPERIMENTS if nb.stem in test), file) if file.endswith("test_experiments.py") else file


def pytest_collection_modifyitems(items):
    "The longest first: experiments, the last notebook before the others."
    items.sort(key=lambda item: group(item.nodeid), reverse=True)            # keeps the order within a group
    items.sort(key=lambda item: item.path.name != "test_experiments.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With several processes, a group goes to one of them."
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)
    return ByGroup(config, log)


@pytest.fixture(scope="module")
def repository_copy(tmp_path_factory):
    "What is needed to work on a copy of the repository: nothing a test writes there comes back."
    import shutil
    copy = tmp_path_factory.mktemp("copy") / "repository"
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return copy
