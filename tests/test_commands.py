"""What a newcomer types: each command of the README and of the pages, as written, in a fresh clone.

Those of the README run from top to bottom, made small by parameters added at the end; where they name files of the user
(`path/to/...`), phantoms lie there. The others are started and stop where their page refuses a preset: test_experiments runs
each page whole. What trains for hours, or needs a file to be fetched, is only read.
"""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
from conftest import NOTEBOOKS, ROOT, cells, clean_env, python, tracked

WHOLE = {"10_train_otfm": "", "13_generate": "-p n_samples 2 -p method euler -p n_steps 2", "04_one_scan": ""}      # what makes each small, beside `-p preset smoke`


def texts():
    "What somebody reads: README, CONTRIBUTING, the text of each page, the cards of the models."
    for name in ("README.md", "CONTRIBUTING.md", *(str(p) for p in tracked() if p.match("skeletal_fm/pretrained/*/card.md"))):
        yield name, (ROOT / name).read_text(encoding="utf-8")
    for nb in NOTEBOOKS:
        yield nb.name, "\n".join(s for _, s, _ in cells(nb, "markdown")) if nb.stem != "index" else ""


def commands():
    "Command -> where it stands. Lines of blocks, and what stands between backticks."
    found = {}
    for where, text in texts():
        for command in re.findall(r"(?<![\w/])((?:\.venv/bin/)?papermill nbs/[^`\n]+|make [a-z]+(?: \w+=(?:\"[^\"]*\"|\S+))*)(?=`|\s*#|\n|$|\s{2})", text):
            if "/" in command or command.split()[1] in targets():
                found.setdefault(command.strip(), where)
    return found


def targets():
    return re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()


COMMANDS = commands()
PAPERMILL = {c: w for c, w in COMMANDS.items() if "papermill" in c}
READ = [c for c, where in PAPERMILL.items() if "card.md" in where or "weights" in c]
RUN = [c for c, where in PAPERMILL.items() if where == "README.md" and any(w in c for w in WHOLE)]
START = [c for c in PAPERMILL if c not in READ + RUN]


def parts(command):
    "Page, output, parameters of a papermill command."
    words = shlex.split(command)[1:]
    return words[0], words[1], {words[i + 1]: words[i + 2] for i, w in enumerate(words) if w == "-p"}


def test_there_are_commands():
    assert {"make run", "make test", "make lab", "make export", '.venv/bin/papermill nbs/10_train_otfm.ipynb out/10_train_otfm.ipynb'} <= set(COMMANDS) and len(PAPERMILL) > 12


@pytest.mark.parametrize("command", PAPERMILL)
def test_command_fits_its_page(command):
    "The page is there, so is the folder it writes to (papermill makes none), and it has these parameters."
    page, output, given = parts(command)
    assert (ROOT / page).is_file()
    assert any(p.parent.as_posix() == os.path.dirname(output) for p in tracked()), f"{os.path.dirname(output)} is not in a fresh clone"
    known = next(s for _, s, c in cells(ROOT / page, "code") if "parameters" in c["metadata"].get("tags", []))
    assert all(re.search(rf"^{name}:", known, re.M) for name in given), f"{page} has not all of {list(given)}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows(command):
    done = subprocess.run(f"{command} -n", shell=True, cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "The repository as git gives it, with this environment as its .venv, and phantoms where the user's files would be."
    import SimpleITK as sitk
    import trimesh
    from skeletal_fm.dicom import write_dicom
    from skeletal_fm.phantom import SkullParameters, ct, sample_parameters, skull
    clone = tmp_path_factory.mktemp("clone") / "skeletal-fm"
    for name in tracked():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(sys.prefix)
    rng, scans = np.random.default_rng(0), clone / "path/to/scans"
    scans.mkdir(parents=True)
    for i in range(6):
        mesh = skull(sample_parameters(3 + i % 3, rng), 3.)
        trimesh.Trimesh(mesh.vertices * [-1, 1, 1], mesh.faces[:, ::-1], process=False).export(scans / f"skull_{i}.stl")
    hu, h = ct(SkullParameters(), 4.08, noise=15, seed=0), 4.08
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu[::-1].transpose(2, 0, 1)))        # [AP,LR,SI] to [z,y,x], y backwards
    image.SetSpacing([h, h, h])
    write_dicom(clone / "path/to/study", image, positions=np.arange(0, h * hu.shape[2], 4.))
    shutil.copytree(clone / "path/to/study", clone / "path/to/scan")
    return clone


def type_in(clone, command, fails=False):
    "What a shell in the clone says; .venv/bin is where it looks first."
    env = clean_env(PYTHONPATH=str(clone), PATH=f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1")
    done = subprocess.run(command, shell=True, cwd=clone, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=900)
    assert (done.returncode != 0) == fails, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(clone):
    "The clone in which the README's commands have run, from its first to its last."
    for command in RUN:
        small = next(v for k, v in WHOLE.items() if k in command)
        assert type_in(clone, f"{command} -p preset smoke {small}") and (clone / parts(command)[1]).is_file()
    return clone


def test_commands_of_the_readme(trained):
    assert len(RUN) == 3 and (trained / "out/skulls/dataset.json").is_file(), "the set lies where one asked for it"


@pytest.mark.parametrize("command", START)
def test_command_starts(command, clone):
    said = type_in(clone, f"{command} -p preset nonsense", fails=True)
    assert "Unknown preset" in said, said[-2000:]


def test_make_run_on_own_scans(clone):
    "With the set-up taken as done, for it needs a network."
    command = next(c for c in COMMANDS if c.startswith("make run ARGS"))
    said = type_in(clone, command.replace('out/mine"', 'out/mine -p preset smoke"') + " -o .venv/.ready")
    assert "make run: done" in said and (clone / "out/mine/data/report.html").is_file()


def test_python_of_the_readme(clone):
    "Each block of Python, as written, from the folder of the notebooks."
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    for block in blocks:
        done = python("-c", block, cwd=clone / "nbs", PYTHONPATH=str(clone))
        assert done.returncode == 0, done.stderr[-3000:]


def test_paths_mean_the_same_everywhere(trained):
    "The lines for JupyterLab, which works in nbs/: the same folder as papermill wrote to from the root."
    code = "from skeletal_fm.label import Rating; from skeletal_fm.dataset import SkullDataset; from skeletal_fm.core import find\n" \
           "assert len(Rating('out/train_otfm').skulls) == len(SkullDataset('out/train_otfm', 'all')) > 0 and find('out').is_dir()"
    done = python("-c", code, cwd=trained / "nbs", PYTHONPATH=str(trained))
    assert done.returncode == 0, done.stderr[-3000:]


# kernels --------------------------------------------------------------------------------------------------------
def test_pages_that_start_together(tmp_path):
    "Kernels talk over files, not over network ports that two of them might grab; and the first line one reads is no warning."
    if sys.platform == "win32":
        pytest.skip("no sockets with names")
    assert [e for e in entry_points(group="papermill.engine") if e.value == "skeletal_fm.kernels:Engine"], "this environment is older than setup.py: install the package again"
    cell = dict(cell_type="code", id="a", metadata={}, source=["from ipykernel.kernelapp import IPKernelApp as app; print(app.instance().transport)"], outputs=[], execution_count=None)
    page = dict(cells=[cell], metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3")), nbformat=4, nbformat_minor=5)
    (tmp_path / "page.ipynb").write_text(json.dumps(page), encoding="utf-8")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-output", tmp_path / "page.ipynb"]
    together = [subprocess.Popen([*map(str, command), str(tmp_path / f"{i}.ipynb")], env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(8)]
    said = [p.communicate(timeout=600)[0] for p in together]
    assert not any(p.returncode for p in together), said
    assert all("ipc" in s and "eavesdropping" not in s and "arning" not in s for s in said), said[0]
