"""README.md from nbs/index.ipynb, and the book's pages as HTML, both without Quarto.

    python tests/docs_build.py quiet             take out of the notebooks what only a live JupyterLab shows
    python tests/docs_build.py readme            write README.md
    python tests/docs_build.py pages --out DIR   write DIR/*.html and check every local link
"""
import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]


def notebooks(root=ROOT):
    "The book's notebooks in reading order, the front page first."
    found = [p for p in sorted((root / "nbs").glob("*.ipynb")) if not p.name.startswith(("_", "."))]
    return sorted(found, key=lambda p: (p.stem != "index", p.stem))


def source(cell):
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def front_matter(text):
    "Title, description and so on of a raw cell between two lines of three dashes."
    import yaml
    m = re.match(r"---\n(.*?)\n---\s*$", text.strip(), re.S)
    return (yaml.safe_load(m[1]) if m else None) or {}


def title(path):
    "Title of a notebook: of its front matter, or its first heading."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "raw" and "title" in front_matter(source(cell)):
            return front_matter(source(cell))["title"]
        if cell["cell_type"] == "markdown" and (m := re.search(r"^# (.+)$", source(cell), re.M)):
            return m[1].strip()
    return path.stem


# notebooks ------------------------------------------------------------------------------------------------------

def quiet(path):
    "Drop outputs that say nothing on a page: live widgets, scripts, warnings and progress bars."
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    kept = lambda o: o.get("name") != "stderr" and not any("widget" in kind or kind == "application/javascript" for kind in o.get("data", {}))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if kept(o)]
    nb["metadata"].pop("widgets", None)
    after = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if json.loads(after) != json.loads(text):
        path.write_text(after, encoding="utf-8")


# README ---------------------------------------------------------------------------------------------------------

def relative_to_root(markdown):
    "Local link targets of a page in nbs/, seen from the repository root."
    def target(m):
        link = m[2]
        if urlsplit(link).scheme or link.startswith(("#", "/")):
            return m[0]
        return f"{m[1]}{os.path.normpath(os.path.join('nbs', link))}{m[3]}"
    markdown = re.sub(r"(\]\()([^)\s]+)(\)|\s)", target, markdown)
    return re.sub(r"""((?:src|href)=["'])([^"']+)(["'])""", target, markdown)


def readme(root=ROOT):
    "README.md as text: markdown cells as they are, code cells fenced, text outputs below them."
    nb = json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))
    parts = ["<!-- Written by `make readme` from nbs/index.ipynb: edit there. -->"]
    for cell in nb["cells"]:
        text = source(cell).strip()
        if cell["cell_type"] == "raw":
            front = front_matter(text)
            parts += [f"# {front['title']}"] if "title" in front else []
            parts += [f"> {front['description']}"] if "description" in front else []
            continue
        if not text or re.search(r"^#\|\s*(hide|include:\s*false)\s*$", text, re.M):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(relative_to_root(text))
            continue
        code = "\n".join(line for line in text.splitlines() if not line.startswith("#|")).strip()
        parts.append(f"```python\n{code}\n```")
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            if any(k.startswith("image/") for k in data):
                raise SystemExit("nbs/index.ipynb holds a picture as a cell's output, which README.md cannot show: save it in nbs/images/ and link it from a markdown cell.")
            plain = out.get("text", data.get("text/plain", ""))
            plain = plain if isinstance(plain, str) else "".join(plain)
            if plain.strip():
                parts.append(f"```\n{plain.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


# pages ----------------------------------------------------------------------------------------------------------

STYLE = """<style>
body{max-width:62rem;margin:0 auto!important} nav.book{font:14px/1.9 system-ui,sans-serif;padding:.8rem 0;border-bottom:1px solid #ddd;margin-bottom:1rem}
nav.book a{margin-right:.9em;white-space:nowrap} nav.book a.here{font-weight:bold} img{background:#fff}
</style>"""


def processed(root):
    "Let nbdev prepare the notebooks of a scratch copy of the repository: show_doc, backtick links, front matter."
    code = ("from nbdev.config import get_config; from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar; from nbdev.serve import proc_nbs\n"
            "refresh_quarto_yml(); nbdev_sidebar.__wrapped__(); proc_nbs(get_config().nbs_path, n_workers=0, force=True)")
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    if done.returncode or re.search(r"^(Traceback|.*Error:)", done.stderr, re.M):
        raise SystemExit("nbdev could not prepare the pages:\n" + done.stdout[-2000:] + done.stderr[-4000:])
    return root / "_proc"


def page_name(path):
    return re.sub(r"^\d+[a-zA-Z]?_", "", path.stem) + ".html"


def to_html(path, nav, base_url):
    "One processed notebook as a self-contained page (scripts of MathJax apart)."
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config
    nb = json.loads(path.read_text(encoding="utf-8"))
    front, cells = {}, []
    for cell in nb["cells"]:
        cell.pop("has_sd", None)
        text = source(cell)
        if cell["cell_type"] == "raw":
            front.update(front_matter(text))
            continue
        if cell["cell_type"] == "code":
            if re.search(r"^#\|\s*echo:\s*false", text, re.M):
                cell["metadata"]["tags"] = ["output-only"]
            text = "\n".join(line for line in text.splitlines() if not re.match(r"\s*#\|", line)).strip("\n")
            if not text and not cell.get("outputs"):
                continue
        cell["source"] = text
        cells.append(cell)
    head = f"# {front.get('title', path.stem)}" + (f"\n\n> {front['description']}" if front.get("description") else "")
    cells.insert(0, dict(cell_type="markdown", id="title", metadata={}, source=head))
    nb = nb | {"cells": cells, "metadata": nb.get("metadata", {}) | {"title": front.get("title", path.stem), "language_info": {"name": "python"}}}
    nb = nbformat.reads(json.dumps(nb), 4)
    nbformat.validate(nb)
    only = {"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"output-only"}}}
    body, _ = HTMLExporter(config=Config(only)).from_notebook_node(nb)
    body = re.sub(r'href="(?:\./)?(\d\d\w*_\w+|index)\.ipynb(#[^"]*)?"', lambda m: f'href="{page_name(Path(m[1]))}{m[2] or ""}"', body)
    body = body.replace(f'href="{base_url}/', 'href="').replace("</head>", STYLE + "</head>", 1)
    return re.sub(r"(<body\b[^>]*>)", lambda m: m[1] + nav, body, count=1)


def lower_case_anchors(pages):
    "Quarto writes anchors in lower case, and so nbdev links to them; nbconvert keeps capitals. Point such links at what is there."
    texts = {p: p.read_text(encoding="utf-8") for p in pages}
    ids = {p.name: {i.lower(): i for i in re.findall(r'\bid="([^"]+)"', text)} for p, text in texts.items()}
    for p, text in texts.items():
        def there(m, here=p.name):
            anchor = ids.get(m[2] or here, {}).get(m[3].lower(), m[3])
            return f'{m[1]}{m[2]}#{anchor}"'
        p.write_text(re.sub(r'(href=")([\w.-]*)#([^"]+)"', there, text), encoding="utf-8")


def build(out, root=ROOT):
    "Write all pages into `out`; nothing is written into the repository."
    import tempfile
    from configparser import ConfigParser
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "repository"
        copy.mkdir()
        for name in ["settings.ini", "_quarto.yml", "README.md"]:
            if (root / name).exists():
                shutil.copy(root / name, copy)
        for name in ["nbs", "skeletal_fm"]:
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "nbdev.yml", "sidebar.yml", "_*.ipynb"))
        ini = ConfigParser()
        ini.read(copy / "settings.ini", encoding="utf-8")
        base_url = ini["DEFAULT"]["doc_host"] + ini["DEFAULT"]["doc_baseurl"]
        proc = processed(copy)
        missing = [p.name for p in notebooks(copy) if not (proc / p.name).exists()]
        if missing:
            raise SystemExit(f"nbdev prepared no page for {', '.join(missing)}.")
        books = notebooks(copy)
        names = [page_name(p) for p in books]
        if len(set(names)) != len(names):
            raise SystemExit(f"Two notebooks would become the same page: {sorted(n for n in names if names.count(n) > 1)}.")
        for p, name in zip(books, names):
            nav = '<nav class="book">' + " ".join(
                f'<a {"class=here " if n == name else ""}href="{n}">{html.escape(title(q))}</a>' for q, n in zip(books, names)) + "</nav>"
            (out / name).write_text(to_html(proc / p.name, nav, base_url), encoding="utf-8")
        lower_case_anchors([out / name for name in names])
        for p in proc.rglob("*"):
            if p.suffix.lower() in {".png", ".svg", ".jpg", ".gif", ".css", ".js", ".csv"}:
                target = out / p.relative_to(proc)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(p, target)
    return sorted(out.glob("*.html"))


def broken_links(pages):
    "Local links and pictures of HTML pages that lead nowhere: list of (page, target)."
    texts = {p.name: p.read_text(encoding="utf-8") for p in pages}
    ids = {name: set(re.findall(r"""\b(?:id|name)=["']([^"']+)["']""", text)) for name, text in texts.items()}
    bad = []
    for name, text in texts.items():
        text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
        for link in re.findall(r"""\b(?:href|src)=["']([^"']+)["']""", text):
            link = html.unescape(link)
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = unquote(parts.path) or name
            file = pages[0].parent / target
            if not file.is_file():
                bad.append((name, link))
            elif parts.fragment and target.endswith(".html") and unquote(parts.fragment) not in ids.get(target, set()):
                bad.append((name, link))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quiet", "readme", "pages"])
    parser.add_argument("--out", default="_docs")
    args = parser.parse_args()
    if args.what == "quiet":
        for path in notebooks():
            quiet(path)
        return
    if args.what == "readme":
        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
        return
    pages = build(args.out)
    bad = broken_links(pages)
    print(f"{len(pages)} pages in {args.out}")
    if bad:
        raise SystemExit("Links that lead nowhere:\n" + "\n".join(f"  {page}: {link}" for page, link in bad))


if __name__ == "__main__":
    main()
