"""The book's pages build without Quarto, and their local links, pictures and anchors lead somewhere."""
import importlib
import inspect
import json
import re

import pytest
from conftest import LIBRARY, NOTEBOOKS, ROOT, module_of
from docs_build import broken_links, build, page_name, quiet, relative_to_root


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return build(tmp_path_factory.mktemp("docs"), ROOT)


def test_every_notebook_becomes_a_page(pages):
    assert {p.name for p in pages} == {page_name(nb) for nb in NOTEBOOKS}


def test_links_lead_somewhere(pages):
    bad = broken_links(pages)
    assert not bad, "\n".join(f"{page}: {link}" for page, link in bad)


@pytest.mark.parametrize("nb", LIBRARY, ids=lambda p: p.stem)
def test_exported_names_are_shown(pages, nb):
    "Every function and class has its place on the page, with its signature instead of the call that draws it."
    module = importlib.import_module(f"skeletal_fm.{module_of(nb)}")
    text = next(p for p in pages if p.name == page_name(nb)).read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    names = {n for n in module.__all__ if inspect.isfunction(getattr(module, n)) or inspect.isclass(getattr(module, n))}
    assert not {n for n in names if n not in ids and n.lower() not in ids}
    assert ">show_doc<" not in text


def test_broken_links_are_found(tmp_path):
    "The check itself."
    (tmp_path / "a.html").write_text('<a href="b.html#here">x</a><a href="b.html#gone">x</a><img src="no.png"><a href="https://example.org/z">x</a><h2 id="top">t</h2><a href="#top">x</a>')
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="c.html">x</a>')
    bad = broken_links([tmp_path / "a.html", tmp_path / "b.html"])
    assert bad == [("a.html", "b.html#gone"), ("a.html", "no.png"), ("b.html", "c.html")]


def test_links_from_the_root():
    text = "![s](images/a.png) [v](03_volume.ipynb#top) [u](https://example.org) [h](#cite) [m](../Makefile) <img src='images/b.png'>"
    want = "![s](nbs/images/a.png) [v](nbs/03_volume.ipynb#top) [u](https://example.org) [h](#cite) [m](Makefile) <img src='nbs/images/b.png'>"
    assert relative_to_root(text) == want


def test_live_outputs_are_dropped(tmp_path):
    "Restart and run all in JupyterLab, then `make export`: a page keeps its figures and tables, not its widgets."
    picture, table = dict(output_type="display_data", data={"image/png": "x"}, metadata={}), dict(output_type="stream", name="stdout", text=["6"])
    live = [dict(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox()"}, metadata={}),
            dict(output_type="display_data", data={"application/javascript": "x"}, metadata={}), dict(output_type="stream", name="stderr", text=["50%"])]
    nb = dict(cells=[dict(cell_type="code", id="a", source=[], metadata={}, execution_count=None, outputs=[picture, *live, table])], metadata={"widgets": {}}, nbformat=4, nbformat_minor=5)
    (tmp_path / "a.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    quiet(tmp_path / "a.ipynb")
    after = json.loads((tmp_path / "a.ipynb").read_text(encoding="utf-8"))
    assert after["cells"][0]["outputs"] == [picture, table] and not after["metadata"]
