"""The book's pages build without Quarto, and their local links, pictures and anchors lead somewhere."""
import pytest
from conftest import NOTEBOOKS, ROOT
from docs_build import broken_links, build, page_name, relative_to_root


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return build(tmp_path_factory.mktemp("docs"), ROOT)


def test_every_notebook_becomes_a_page(pages):
    assert {p.name for p in pages} == {page_name(nb) for nb in NOTEBOOKS}


def test_links_lead_somewhere(pages):
    bad = broken_links(pages)
    assert not bad, "\n".join(f"{page}: {link}" for page, link in bad)


def test_exported_functions_are_shown(pages):
    "Signatures come from the installed modules, with a table of parameters."
    core = next(p for p in pages if p.name == "core.html").read_text(encoding="utf-8")
    assert "marching cubes" in core.lower() or "to_mesh" in core
    assert "<strong>Type</strong>" in core and "<strong>Details</strong>" in core


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
