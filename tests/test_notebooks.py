"""The notebooks as documents and as tests: each is well formed, and each runs cell by cell.

`make test` has run all cells with `nbdev_test` before; it says so with NBDEV_TESTED=1 and they are not run twice.
"""
import ast
import os
import re

import pytest
from conftest import LIBRARY, NOTEBOOKS, cells, module_of, python
from docs_build import front_matter, page_name

each = pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.stem)
library = pytest.mark.parametrize("nb", LIBRARY, ids=lambda p: p.stem)


def exported(nb):
    return [s for _, s, _ in cells(nb, "code") if re.search(r"^#\|\s*exports?\b", s, re.M)]


def test_there_are_notebooks():
    assert {"index", "00_core", "00_viz", "10_train_otfm"} <= {p.stem for p in NOTEBOOKS}


@each
@pytest.mark.skipif(os.environ.get("NBDEV_TESTED") == "1", reason="make test has just run every cell with nbdev_test")
def test_cells_run(nb):
    done = python("-c", "import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0)", nb)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@each
def test_begins_with_title_and_line(nb):
    "`# Title` and `> one line`, or front matter with both: the line becomes the module's docstring and the page's description."
    kind, first, _ = next(c for c in cells(nb) if c[0] != "code")
    if kind == "raw":
        assert front_matter(first).get("title") and front_matter(first).get("description"), first
        return
    assert re.match(r"# [^#\s].*\n+> \S", first), f"{nb.name} begins with {first[:80]!r}"


@each
def test_text_is_text(nb):
    "No markdown cell whose every line is commented out, as a converter between formats may leave it."
    for _, text, _ in cells(nb, "markdown"):
        lines = text.splitlines()
        assert not (len(lines) > 1 and all(re.match(r"#( |$)", line) for line in lines)), f"{nb.name}: every line of this text begins with '#':\n{text[:200]}"
        assert not re.match(r"# #+ ", text), f"{nb.name}: {text[:60]!r} is a heading of a heading"


def test_page_and_module_names_are_unique():
    pages = [page_name(p) for p in NOTEBOOKS]
    assert len(set(pages)) == len(pages)
    modules = [module_of(p) for p in LIBRARY]
    assert len(set(modules)) == len(modules)


@library
def test_library_notebook_ends_with_export(nb):
    last = [s for _, s, _ in cells(nb, "code")][-1]
    assert "#| hide" in last and "nbdev_export()" in last, f"last cell of {nb.name}: {last[:80]!r}"


@library
def test_exported_cells_keep_imports_apart(nb):
    "The documentation build runs cells with imports; one that also works would work there."
    for code in exported(nb):
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body}
        assert len(kinds) < 2, f"{nb.name}: imports and other code in one exported cell:\n{code[:200]}"


@library
def test_exported_imports(nb):
    "Exported code needs neither fastcore nor nbdev, Jupyter only where a widget is made, and imports only from chapters before its own."
    order = {module_of(p): i for i, p in enumerate(LIBRARY)}
    for code in exported(nb):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {"fastcore", "nbdev", "execnb", "pytest"} | ({"IPython", "ipywidgets"} if node in tree.body else set()), f"{nb.name} exports an import of {name}"
                if name.startswith("skeletal_fm."):
                    other = name.split(".")[1]
                    assert order.get(other, 99) < order[module_of(nb)], f"{nb.name} imports from {other}, a chapter that comes later or does not exist"


@library
def test_library_notebook_tests_itself(nb):
    "At least one visible cell proves something."
    visible = [s for _, s, _ in cells(nb, "code") if "#| hide" not in s and not re.search(r"^#\|\s*export", s, re.M)]
    assert any(re.search(r"\b(test_\w+|assert|expect_fail)\b", s) for s in visible)
