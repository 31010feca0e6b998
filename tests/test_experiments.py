"""Every experiment from end to end with papermill, as a user runs it, on the smallest preset.

A run from the root of the repository, the same again from elsewhere (finished stages are reused), a folder of the user's own
meshes, and wrong inputs: each refused in words, with a non-zero exit, and nothing written.
"""
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from conftest import EXPERIMENTS, ROOT, cells, python

THREADS = str(max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))
each = pytest.mark.parametrize("nb", EXPERIMENTS, ids=lambda p: p.stem, scope="module")


def papermill(nb, output, cwd=ROOT, **parameters):
    words = [w for name, value in parameters.items() for w in ("-p", name, str(value))]
    return python("-m", "papermill", "--no-progress-bar", nb, output, *words, cwd=cwd, OMP_NUM_THREADS=THREADS)


def said(done):
    return done.stdout + done.stderr


def parameters_of(nb):
    return next(s for _, s, c in cells(nb, "code") if "parameters" in c["metadata"].get("tags", []))


def files(folder):
    "Every file below a folder with its time of change and size."
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()}


def stages(folder):
    return {p.parent for p in folder.rglob("stage.json")}


def status():
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "One finished run of each experiment, made when first asked for."
    done = {}

    def run(nb):
        if nb not in done:
            folder = tmp_path_factory.mktemp(nb.stem)
            before = status()
            result = papermill(nb.relative_to(ROOT), folder / "executed.ipynb", preset="smoke", out_dir=folder / "run")
            assert result.returncode == 0, said(result)[-4000:]
            assert status() == before, "the run left something in the repository"
            done[nb] = folder
        return done[nb]
    return run


@each
def test_runs_from_top_to_bottom(nb, runs):
    folder = runs(nb)
    executed = json.loads((folder / "executed.ipynb").read_text(encoding="utf-8"))
    assert not [o for c in executed["cells"] if c["cell_type"] == "code" for o in c["outputs"] if o["output_type"] == "error"]
    assert any("injected-parameters" in c["metadata"].get("tags", []) for c in executed["cells"])
    assert sum("image/png" in o.get("data", {}) for c in executed["cells"] if c["cell_type"] == "code" for o in c["outputs"]), "no figure"
    config = json.loads((folder / "run/config.json").read_text(encoding="utf-8"))
    assert "smoke" in json.dumps(config)
    assert stages(folder / "run") and not list((folder / "run").rglob("*.part*"))
    assert not (folder / "run/.lock").exists()


@each
def test_second_run_reuses_what_is_finished(nb, runs, tmp_path):
    "From another working folder, with an absolute path to the notebook."
    folder = runs(nb)
    before = {p: files(p) for p in stages(folder / "run")}
    result = papermill(nb, tmp_path / "again.ipynb", cwd=tmp_path, preset="smoke", out_dir=folder / "run")
    assert result.returncode == 0, said(result)[-4000:]
    assert {p: files(p) for p in stages(folder / "run")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["again.ipynb"], "something was written beside the user's shell"


WRONG = dict(
    unknown_preset=(dict(preset="smokey"), ["smokey", "smoke"]),
    unknown_parameter=(dict(preset="smoke", sead=3), ["sead", "seed"]),
    wrong_type=(dict(preset="smoke", seed="many"), ["seed", "many"]),
    no_folder=(dict(preset="smoke", data="no-such-folder-anywhere"), ["no-such-folder-anywhere"]),
)


@each
def test_parameters_are_checked_first(nb):
    "Before anything slow: names and types of parameters are checked by the same function on every page, the preset before anything is written."
    code = [s for _, s, c in cells(nb, "code")]
    start = next(i for i, s in enumerate(code) if s == parameters_of(nb))
    rest = [s for s in code[start + 1:] if "IN_TEST" not in s]
    assert rest[0].strip() == "from skeletal_fm.core import check_params" and "check_params(globals())" in rest[1] and len(rest[1].splitlines()) < 4
    text = "\n".join(rest)
    assert 0 < text.find("core.preset(preset") < text.index("Run(resolve(out_dir)")          # an unknown preset is refused before the folder is made


@each
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(nb, case, tmp_path):
    wrong, words = WRONG[case]
    if case != "no_folder" and nb.stem != "10_train_otfm":
        pytest.skip("refused by the same function as on page 10: see test_parameters_are_checked_first")
    if "data" in wrong and "\ndata" not in "\n" + parameters_of(nb):
        pytest.skip("reads no data")
    before = status()
    result = papermill(nb, tmp_path / "executed.ipynb", out_dir=tmp_path / "run", **wrong)
    assert result.returncode != 0
    assert "InputError" in said(result) and all(w in said(result) for w in words), said(result)[-2000:]
    assert not (tmp_path / "run").exists() and status() == before


@each
def test_another_configuration_overwrites_nothing(nb, runs, tmp_path):
    folder = runs(nb)
    before = files(folder / "run")
    result = papermill(nb, tmp_path / "executed.ipynb", preset="smoke", out_dir=folder / "run", seed=12345)
    assert result.returncode != 0 and "InputError" in said(result) and "seed" in said(result)
    assert files(folder / "run") == before


@each
def test_edited_results_are_refused(nb, runs, tmp_path):
    "One bit of a finished stage: the page names the file, and computes nothing from it."
    if nb.stem != "10_train_otfm":
        pytest.skip("every page opens its stages by the same method: see core")
    shutil.copytree(runs(nb) / "run", tmp_path / "run")
    file = tmp_path / "run/denoiser/denoiser.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    result = papermill(nb, tmp_path / "executed.ipynb", preset="smoke", out_dir=tmp_path / "run")
    assert result.returncode != 0 and "InputError" in said(result) and "denoiser.safetensors has changed" in said(result), said(result)[-2000:]


@each
def test_own_meshes(nb, tmp_path):
    "A folder of skulls in mm, LPS, in any pose, with labels, goes the whole way."
    if "\nflow_steps" not in parameters_of(nb):
        pytest.skip("trains nothing")
    import trimesh
    from skeletal_fm.core import canonical_to_lps
    from skeletal_fm.phantom import sample_parameters, skull
    scans = tmp_path / "scans"
    scans.mkdir()
    rng, rows = np.random.default_rng(0), ["file,quality_score"]
    for i in range(6):
        mesh = skull(sample_parameters(3 + i % 3, rng), 3.)
        turn = trimesh.transformations.rotation_matrix(rng.uniform(-.5, .5), rng.standard_normal(3))[:3, :3]
        own = trimesh.Trimesh(canonical_to_lps(mesh.vertices @ turn.T) + rng.uniform(-200, 200, 3), mesh.faces, process=False)
        if own.volume < 0:
            own.invert()
        own.export(scans / f"skull_{i}.stl")
        rows.append(f"skull_{i}.stl,{3 + i % 3}")
    (scans / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    result = papermill(nb, tmp_path / "executed.ipynb", cwd=tmp_path, preset="smoke", data=scans, out_dir=tmp_path / "run")
    assert result.returncode == 0, said(result)[-4000:]
    assert {p.name for p in scans.iterdir()} == {f"skull_{i}.stl" for i in range(6)} | {"labels.csv"}, "the user's folder was changed"
    generated = list((tmp_path / "run").rglob("*.ply"))
    assert generated and list((tmp_path / "run").rglob("*.nii.gz")), "no generated mesh or volume"
    sizes = [np.ptp(trimesh.load(p).vertices, axis=0).max() for p in generated if p.stat().st_size > 1000]
    assert all(20 < s < 300 for s in sizes), f"not mm: {sizes}"
