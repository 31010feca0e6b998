"""The repository as a whole: generated files are in step with the notebooks, files are small, and nothing of a private machine is in them."""
import ast
import inspect
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import EXPERIMENTS, LIBRARY, NOTEBOOKS, ROOT, cells, module_of, python, tracked
from docs_build import readme

each = pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.stem)
TEXT = {".ipynb", ".py", ".md", ".ini", ".yml", ".yaml", ".cff", ".txt", ".css", ".in", ".cfg", ".toml", ".json", ".csv", ".svg", ""}


# in step --------------------------------------------------------------------------------------------------------

def test_exported_modules_are_in_step(repository_copy):
    "`nbdev_export` changes nothing."
    done = python("-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=repository_copy)
    assert done.returncode == 0, done.stderr[-2000:]
    for p in sorted((repository_copy / "skeletal_fm").glob("*.py")):
        mine = ROOT / "skeletal_fm" / p.name
        assert mine.exists() and mine.read_text(encoding="utf-8") == p.read_text(encoding="utf-8"), f"skeletal_fm/{p.name} is not what the notebooks export: run `make export`"


def test_every_module_has_its_notebook():
    "A module whose notebook was deleted would live on unnoticed."
    known = {"__init__", "_modidx"} | {module_of(p) for p in LIBRARY}
    assert {p.stem for p in (ROOT / "skeletal_fm").glob("*.py")} == known


def test_notebooks_are_clean(repository_copy):
    "`nbdev_clean` changes nothing, and keeps the tag of the parameters."
    done = python("-c", "from nbdev.clean import nbdev_clean; nbdev_clean()", cwd=repository_copy)
    assert done.returncode == 0, done.stderr[-2000:]
    for nb in NOTEBOOKS:
        cleaned = json.loads((repository_copy / "nbs" / nb.name).read_text(encoding="utf-8"))
        assert cleaned == json.loads(nb.read_text(encoding="utf-8")), f"nbs/{nb.name} is not clean: run `make export`"
    for nb in EXPERIMENTS:
        assert any("parameters" in c["metadata"].get("tags", []) for _, _, c in cells(repository_copy / "nbs" / nb.name))


@each
def test_saved_outputs_are_quiet(nb):
    "Nothing that changes from run to run or from machine to machine: numbers of execution, warnings, errors, widgets, addresses."
    for _, text, cell in cells(nb, "code"):
        where = f"{nb.name}, cell {cell.get('id')}: {text[:60]!r}"
        assert cell["execution_count"] is None and set(cell["metadata"]) <= {"tags"}, where
        for out in cell["outputs"]:
            assert out["output_type"] != "error" and out.get("name") != "stderr", where
            assert not any("widget" in kind for kind in out.get("data", {})), where
            assert not re.search(r"\bat 0x[0-9a-f]{6,}", json.dumps({k: v for k, v in out.get("data", {}).items() if k.startswith("text/")})), where


def test_readme_is_in_step():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(ROOT), "README.md is not what nbs/index.ipynb gives: run `make readme`"


def test_version_is_said_once():
    import skeletal_fm
    from configparser import ConfigParser
    ini = ConfigParser()
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert ini["DEFAULT"]["version"] == skeletal_fm.__version__
    assert f"\nversion: {skeletal_fm.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {skeletal_fm.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# size and privacy -----------------------------------------------------------------------------------------------

def test_files_are_small():
    "300 kB each; only the shipped weights are larger, and limited, too."
    sizes = {p: (ROOT / p).stat().st_size for p in tracked()}
    weights = {p: n for p, n in sizes.items() if p.as_posix().startswith("skeletal_fm/pretrained/") and p.suffix == ".safetensors"}
    big = {str(p): n for p, n in sizes.items() if n > (16 * 2**20 if p in weights else 300_000)}
    assert not big, f"above 300 kB, or 16 MiB for shipped weights: {big}"
    assert sum(weights.values()) <= 30_000_000, "the shipped weights are above 30 MB together"


# Written with a bracket or a joint each, so that this file does not match itself.
FORBIDDEN = {
    "a path of somebody's machine": r"/wor[k]/|/tm[p]/|/roo[t]/|/hom[e]/\w|/User[s]/\w|[A-Z]:\\\\?User[s]|/op[t]/\w|/var/fol[d]ers|\.pyen[v]|site-pack[a]ges/",
    "an address inside a network": r"\b(?:10|127|192\.16[8])(?:\.\d{1,3}){2,3}\b|\.intern[a]l\b|\.exam[p]le\b",
    "talk of how the work was organised": "|".join(["clau" + "de", "anthr" + "opic", "chat" + "gpt", "copi" + "lot", "subag" + "ent", "help" + "er agent", "the tea" + "m lead", "interfa" + "ces.md"]),
    "a secret": r"gh[p]_\w{20}|AKI[A]\w{12}|BEGIN [A-Z ]*PRIVATE K[E]Y",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_private(what):
    found = []
    for name in tracked():
        if name.suffix not in TEXT or name.name in {"LICENSE", "constraints.txt"}:
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r'"(?:image/(?:png|jpeg)|bdata)": "[^"]*"', "", text)   # pictures are not prose
        found += [f"{name}: ...{text[max(m.start() - 30, 0):m.end() + 30]!r}" for m in re.finditer(FORBIDDEN[what], text, re.I)]
    assert not found, f"{what}:\n" + "\n".join(found[:20])


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines)   # no path, no address, no build of one machine
    assert len(lines) > 100 and any(line.startswith("torch==") for line in lines)


# experiments ----------------------------------------------------------------------------------------------------

def test_numbered_notebooks_export_or_take_parameters():
    other = [p.name for p in NOTEBOOKS if p.stem != "index" and not module_of(p) and p not in EXPERIMENTS]
    assert not other, f"neither a module nor a cell tagged `parameters`: {other}"


@pytest.mark.parametrize("nb", EXPERIMENTS, ids=lambda p: p.stem)
def test_parameters_are_literals_with_types_and_words(nb):
    "One tagged cell; each line `name: type = literal  # meaning`, so that papermill can tell a user what there is."
    tagged = [s for _, s, c in cells(nb, "code") if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    names = set()
    for node in ast.parse(tagged[0]).body:
        assert isinstance(node, ast.AnnAssign), f"{nb.name}: {ast.unparse(node)} has no type"
        ast.literal_eval(node.value)
        line = tagged[0].splitlines()[node.end_lineno - 1]
        assert node.target.id == "seed" or re.search(r"#\s*\S", line), f"{nb.name}: {line} says nothing"
        names.add(node.target.id)
    assert {"preset", "out_dir", "seed"} <= names


# documentation --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("nb", LIBRARY, ids=lambda p: p.stem)
def test_exported_names_are_documented(nb):
    import importlib
    module = importlib.import_module(f"skeletal_fm.{module_of(nb)}")
    assert (module.__doc__ or "").strip(), f"{module.__name__} has no docstring: the line after `>` under the title"
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isfunction(thing) or (inspect.isclass(thing) and thing.__module__ == module.__name__):
            text = inspect.getdoc(thing) or ""
            assert text.strip() and not text.startswith(f"{name}("), f"{module.__name__}.{name} has no docstring"


@pytest.mark.parametrize("name", [p for p in tracked() if p.suffix == ".md"], ids=str)
def test_links_of_text_files(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"""(?:src|href)=["']([^"']+)["']""", text)
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme and parts.path:
            target = (ROOT / name).parent / unquote(parts.path)
            assert target.exists(), f"{name} links to {link}, which is not there"
            assert Path(target).resolve().relative_to(ROOT) in tracked() or target.is_dir(), f"{name} links to {link}, which git ignores"
