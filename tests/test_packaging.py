"""What `pip install` gives: the package alone, light to import."""
import ast
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser

import pytest
from conftest import LIBRARY, ROOT, clean_env, module_of, python, tracked


@pytest.fixture(scope="module")
def built(repository_copy, tmp_path_factory):
    "Source distribution and wheel, built from the tracked files with what is installed: no network."
    out = tmp_path_factory.mktemp("dist")
    done = python("-m", "build", "--no-isolation", "--outdir", out, repository_copy, cwd=out, PIP_NO_INDEX="1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out


def pretrained_files():
    "The shipped models: weights, cards and their index, as tracked."
    return {p.as_posix() for p in tracked() if p.as_posix().startswith("skeletal_fm/pretrained/")}


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def test_wheel_holds_only_the_package(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {n.split("/")[0] for n in names} - {next(n.split("/")[0] for n in names if ".dist-info/" in n)} == {"skeletal_fm"}
    inside = {n for n in names if n.startswith("skeletal_fm/")}
    assert inside == {f"skeletal_fm/{p.name}" for p in (ROOT / "skeletal_fm").glob("*.py")} | pretrained_files()
    assert any(n.endswith("LICENSE") for n in names)


def test_sdist_holds_what_it_needs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"setup.py", "settings.ini", "README.md", "LICENSE", "skeletal_fm/core.py"} | pretrained_files() <= names
    assert not any(n.startswith(("nbs", "tests", "out", ".venv", ".github", ".ci")) for n in names)


def test_pretrained_models_load_from_the_wheel(unpacked):
    "Every shipped file is listed, is the one that was published, has a card, and loads; together they are small."
    listed = {f"skeletal_fm/pretrained/{told['file']}" for parts in index().values() for told in parts.values()}
    assert {n for n in pretrained_files() if n.endswith(".safetensors")} == listed
    assert all(f"skeletal_fm/pretrained/{name}/card.md" in pretrained_files() for name in index())
    assert sum((ROOT / n).stat().st_size for n in listed) <= 30_000_000
    for name in (n for n, parts in index().items() if "autoencoder" in parts):
        code = ("import sys; sys.path.insert(0, sys.argv[1])\n"
                "from skeletal_fm.synthesis import Generator\n"
                f"for part in {[p for p in index()[name] if p != 'autoencoder']}: g = Generator.load({name!r}, part); print(g.grid.shape, next(g.volumes([5], n_steps=1)).shape)")
        done = python("-c", code, unpacked, cwd=unpacked)
        assert done.returncode == 0, done.stderr[-3000:]


def index():
    "What skeletal_fm/pretrained/index.json lists; nothing where no model ships."
    file = ROOT / "skeletal_fm/pretrained/index.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def test_metadata(unpacked):
    text = next(unpacked.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    assert "Name: skeletal_fm" in text.replace("skeletal-fm", "skeletal_fm") and "Requires-Python: >=3.11" in text
    assert re.search(r"^License(-Expression)?: Apache-2.0$", text, re.M)
    assert "Requires-Dist: torch" in text and 'Requires-Dist: papermill>=2.6; extra == "dev"' in text
    entries = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    assert "skeletal_fm = skeletal_fm._modidx:d" in entries and "skeletal_fm = skeletal_fm.kernels:Engine" in entries


WATCH = """
import json, sys
folder, modules = sys.argv[1], sys.argv[2:]
sys.path.insert(0, folder)
import torch                                     # its own doings are not ours
wrote, called = [], []
def audit(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"): wrote.append(str(args[0]))
    if event in {"os.mkdir", "os.rename", "os.remove"}: wrote.append(f"{event} {args[0]}")
    if event.startswith("socket.") and event not in {"socket.__new__", "socket.gethostname"}: called.append(event)
    if event in {"subprocess.Popen", "os.system"}: called.append(f"{event} {args[0]}")
sys.addaudithook(audit)
sys.dont_write_bytecode = True
for m in modules: __import__(f"skeletal_fm.{m}")
where = sys.modules["skeletal_fm"].__file__
print(json.dumps(dict(where=where, wrote=wrote, called=called, loaded=sorted({m.split(".")[0] for m in sys.modules}))))
"""


@pytest.fixture(scope="module")
def watched(unpacked):
    "Import everything from the wheel, in a fresh interpreter far from the repository."
    def watch(*modules):
        done = python("-c", WATCH, unpacked, *modules, cwd=unpacked)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])
    return watch


def test_import_is_quiet(watched, unpacked):
    "No file written, no network, no process; none of the tools of development, and matplotlib (which writes a list of fonts) only when something is drawn."
    seen = watched(*[module_of(p) for p in LIBRARY])
    assert seen["where"].startswith(str(unpacked))
    assert not seen["wrote"] and not seen["called"], (seen["wrote"], seen["called"])
    assert not {"nbdev", "fastcore", "execnb", "IPython", "papermill", "pytest", "matplotlib", "plotly", "jupyterlab"} & set(seen["loaded"])


def test_networks_need_no_pictures_or_files(watched):
    "Chapters of networks and objectives know tensors: importing them loads nothing that draws or reads scans."
    there = [m for m in ("vqvae", "unet", "flow", "ddpm") if m in {module_of(p) for p in LIBRARY}]
    loaded = set(watched(*there)["loaded"])
    assert not {"matplotlib", "SimpleITK", "plotly", "trimesh", "skimage", "pandas"} & loaded, sorted(loaded)


def test_every_import_is_a_requirement():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    pypi = {"skimage": "scikit-image", "PIL": "pillow", "yaml": "pyyaml"}
    required = {re.split(r"[<>=!~\[]", w)[0].lower() for w in ini["DEFAULT"]["requirements"].split()}
    optional = {"ipywidgets", "IPython", "lpips", "papermill", "traitlets"}   # only where a widget is made or papermill asks, and asked for by name when absent
    for path in (ROOT / "skeletal_fm").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"skeletal_fm"} - (set() if node in tree.body else optional):
                assert pypi.get(name, name).lower() in required, f"{path.name} imports {name}, which settings.ini does not require"


def test_requirements_are_locked():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    locked = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()}
    wanted = {re.split(r"[<>=!~\[]", w)[0].lower() for key in ("requirements", "dev_requirements") for w in ini["DEFAULT"][key].split()}
    assert wanted - locked <= {"setuptools"}


def test_pickles_are_read_in_one_place_by_a_safe_reader():
    "torch.load stands in `weights.read_numbers` only, and the oldest torch allowed is one without known holes in it."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    oldest = re.search(r"torch>=(\d+)\.(\d+) ", ini["DEFAULT"]["requirements"])
    assert tuple(map(int, oldest.groups())) >= (2, 10)
    calls = [(p.name, node) for p in (ROOT / "skeletal_fm").glob("*.py") for node in ast.walk(ast.parse(p.read_text(encoding="utf-8"))) if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads")]
    assert [name for name, _ in calls] == ["weights.py"] and "weights_only=True" in ast.unparse(calls[0][1])


def test_ci_and_makefile():
    "The two commands exist and need nothing else."
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "make test" in ci and (ROOT / ".ci/run").stat().st_mode & 0o111
    for target in ("run", "test", "export"):
        done = subprocess.run(["make", "-n", target, f"PYTHON={sys.executable}"], cwd=ROOT, env=clean_env(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    old = subprocess.run(["make", "test", "PYTHON=false", "VENV=does-not-exist"], cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert old.returncode != 0 and "3.11 or newer" in old.stderr and not (ROOT / "does-not-exist").exists()
