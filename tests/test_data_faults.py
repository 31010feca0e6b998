"""A data set survives what befalls a machine, and notices what befalls a data set.

Tiny meshes, centred only and drawn as grey squares, so that a whole preparation takes a fraction of a second.
"""
import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import trimesh
from conftest import python

from skeletal_fm import dataset
from skeletal_fm.catalog import read_csv, write_csv
from skeletal_fm.core import InputError, MachineFault, preset, read_json, write_json
from skeletal_fm.dataset import SkullDataset, prepare, relabel
from skeletal_fm.scan import write_mesh

SMOKE = preset("smoke")


def egg(size, turn=0.):
    mesh = trimesh.creation.icosphere(subdivisions=3).apply_scale(size)
    mesh.vertices[:, 2] *= 1 + .2*mesh.vertices[:, 0]/size[0]
    return mesh.apply_transform(trimesh.transformations.rotation_matrix(turn, [0, 0, 1]))


def scans(folder, n=4, seed=0):
    for i, size in enumerate(np.random.default_rng(seed).uniform([85, 65, 70], [100, 75, 80], (n, 3))):
        write_mesh(folder/f"egg{i}.ply", egg(size))
    return folder


def make(source, out, **more):
    return prepare(source, out, SMOKE, **dict(dict(reference="center", test=.3, workers=1), **more))


def grey(*_, **__):
    "Instead of a picture."
    return np.full((20, 20, 3), 128, np.uint8)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "render", grey)
        patch.setattr(dataset, "mesh_doubts", lambda *_, **__: [])           # eggs are solid
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    return make(source, tmp_path_factory.mktemp("made")/"data")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path/"data")


def same(a, b):
    "Two data sets hold the same skulls, scores, splits and volumes."
    one, two = SkullDataset(a, "all"), SkullDataset(b, "all")
    one.bits(0), two.bits(0)
    return one.fingerprint == two.fingerprint and (a/"manifest.csv").read_bytes() == (b/"manifest.csv").read_bytes() and sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


# ---- the machine

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("job,fault", [("_read", FULL), ("_place", FULL), ("_fill", FULL), ("_place", OSError("4096 requested and 512 written")), ("_read", OSError(errno.EIO, "")), ("_place", MemoryError("Unable to allocate"))])
def test_a_fault_of_the_machine_is_no_verdict(job, fault, source, finished, tmp_path, monkeypatch):
    real, calls = dataset.atomic, []

    def atomic(path):
        "The third file that this kind of job writes does not fit."
        calls.append(path)
        if len(calls) >= 3 and (suffix := dict(_read=".npz", _place=".png", _fill=".npy")[job]) and str(path).endswith(suffix): raise fault
        return real(path)
    monkeypatch.setattr(dataset, "atomic", atomic)
    monkeypatch.setattr("skeletal_fm.viz.atomic", atomic)
    monkeypatch.setattr(dataset, "_alone", lambda work, job, crashed: work(job))         # in this process, where the patch is
    with pytest.raises(MachineFault, match="What was finished is kept"): make(source, tmp_path/"data")
    monkeypatch.undo()
    kept = [read_json(p) for p in (tmp_path/"data/.partial").rglob("egg*.json")]
    assert kept and not [r for r in kept if "reason" in r]
    assert same(make(source, tmp_path/"data"), finished)


def test_memory_that_was_short_once(source, finished, tmp_path, monkeypatch):
    real, short = dataset.voxelize, []

    def voxelize(*args):
        if not short: short.append(1); raise MemoryError
        return real(*args)
    monkeypatch.setattr(dataset, "voxelize", voxelize)
    monkeypatch.setattr(dataset, "_alone", lambda work, job, crashed: work(job))         # in this process, where the patch is
    assert same(make(source, tmp_path/"data"), finished) and short


LIMITED = """
import resource, sys
from pathlib import Path
from skeletal_fm.core import MachineFault, preset
from skeletal_fm.dataset import prepare
source, out, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try: prepare(source, out, preset("smoke"), reference="center", test=.3, workers=1)
except MachineFault as e: print("refused:", e)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_files_that_may_not_grow(source, finished, tmp_path):
    "A real fault of the system, not a played one: the meshes do not fit, then they do."
    script = tmp_path/"full.py"
    script.write_text(LIMITED)
    done = python(script, source, tmp_path/"data", 9000)
    assert "refused: egg0.ply could not be read: Files may not grow that large here" in done.stdout, (done.stdout + done.stderr)[-2000:]
    assert not (tmp_path/"data/dataset.json").exists()
    assert same(make(source, tmp_path/"data"), finished)


KILLS = """
import os, signal, sys
from pathlib import Path
from skeletal_fm.core import preset
from skeletal_fm.dataset import prepare
import numpy as np
from skeletal_fm import dataset
dataset.render, dataset.mesh_doubts = lambda *_, **__: np.full((20, 20, 3), 128, np.uint8), lambda *_, **__: []
source, out = map(Path, sys.argv[1:])
real = os.replace

def child(folder, at=None):
    "A preparation; with `at` it is killed at its renaming number `at`: an odd one before, an even one after it."
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)[1]
    calls = []
    def replace(a, b):
        calls.append(b)
        if len(calls) == at and at % 2: os.kill(os.getpid(), signal.SIGKILL)
        real(a, b)
        if len(calls) == at: os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace
    try: prepare(source, folder, preset("smoke"), reference="center", test=.3, workers=1)
    except BaseException as e: print(repr(e), flush=True); os._exit(1)
    (folder.parent/"renamings").write_text(str(len(calls)))
    os._exit(0)

assert child(out/"whole") == 0
n = int((out/"renamings").read_text())
moments = [3, 8, n//2, *range(n - 6, n + 1, 2)]           # reading, drawing, filling, and the last steps
for at in moments:                                        # each in a folder of its own, then all the rest of the way
    assert os.WIFSIGNALED(child(out/f"killed{at}", at)), at
    assert child(out/f"killed{at}") == 0, at
part, k = out/"often", 0
while os.WIFSIGNALED(child(part, 4 + 3*k)): k += 1        # killed again and again, until one comes through
print("killed", len(moments), "and", k, "times; of", n)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment(source, finished, tmp_path):
    script = tmp_path/"kill.py"
    script.write_text(KILLS)
    done = python(script, source, tmp_path, timeout=600)
    assert done.returncode == 0 and "killed" in done.stdout, (done.stdout + done.stderr)[-3000:]
    made = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(made) > 7 and all(same(p, finished) for p in made), [p.name for p in made if not same(p, finished)]


# ---- verdicts

def test_nothing_can_be_aligned(source, tmp_path, monkeypatch):
    cloud = tmp_path/"cloud.ply"
    trimesh.PointCloud(np.random.default_rng(0).normal(size=(100, 3))).export(cloud)
    for _ in range(2):
        with pytest.raises(InputError, match="The reference .*cloud.ply cannot be used"): make(source, tmp_path/"a", reference=str(cloud))

    def no(*_): raise InputError("no pose fits")
    monkeypatch.setattr(dataset, "align", no)
    monkeypatch.setattr(dataset, "_reference", no)
    for _ in range(2):
        with pytest.raises(InputError, match="gave no skull that could be aligned. Refused: egg0.ply: no pose fits"): make(source, tmp_path/"b", reference=str(source/"egg0.ply"))
    assert read_csv(tmp_path/"b/report.csv").status.tolist() == ["refused"]*4
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "voxelize", lambda mesh, grid: np.zeros(grid.shape, bool))
    for _ in range(2):
        with pytest.raises(InputError, match="gave no skull with bone on the grid"): make(source, tmp_path/"c")


def test_the_reference_is_known_by_its_content(source, tmp_path, monkeypatch):
    "Replaced between two starts: nothing of the old one is used."
    def to_first_point(mesh, ref): return SimpleNamespace(rotation=np.eye(3), translation=ref.vertices[0], verdict="accepted", reason="", residual=0.)   # fast, and shows which reference it was
    monkeypatch.setattr(dataset, "align", to_first_point)
    monkeypatch.setattr(dataset.Reference, "from_mesh", lambda mesh: mesh)
    reference, turned = tmp_path/"reference.ply", egg((92, 70, 75), np.radians(50))
    write_mesh(reference, egg((92, 70, 75)))
    few = tmp_path/"few"
    few.mkdir()
    for i in (0, 1): shutil.copy(source/f"egg{i}.ply", few)

    def stop(job): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "_fill", stop)
        make(few, tmp_path/"data", reference=str(reference))
    write_mesh(reference, turned)
    a, b = make(few, tmp_path/"data", reference=str(reference)), make(few, tmp_path/"fresh", reference=str(reference))
    assert SkullDataset(a).fingerprint == SkullDataset(b).fingerprint
    write_mesh(reference, egg((92, 70, 75)))
    with pytest.raises(InputError, match=r"\(reference differ\)"): make(few, tmp_path/"data", reference=str(reference))


def test_every_file_is_known_by_its_content(source, tmp_path):
    "As many bytes, the same beginning and end, even the same times: another file all the same."
    few = tmp_path/"few"
    few.mkdir()
    write_mesh(few/"a.ply", trimesh.creation.icosphere(subdivisions=5).apply_scale(80))
    out = make(few, tmp_path/"data")
    stat, data = (few/"a.ply").stat(), bytearray((few/"a.ply").read_bytes())
    data[len(data)//2] ^= 1
    (few/"a.ply").write_bytes(data)
    os.utime(few/"a.ply", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if os.name != "nt":
        with pytest.raises(InputError, match=r"\(source differ\)"): make(few, out)


def test_long_and_odd_names(tmp_path):
    for name in ("頭"*80 + ".ply", "=1+1.ply", "@x.ply", "NA.ply", "007.ply", "Nul.ply", "nul.stl"): write_mesh(tmp_path/"in"/name, egg(np.random.default_rng(len(os.listdir(tmp_path/"in")) if (tmp_path/"in").exists() else 0).uniform(70, 90, 3)))
    (tmp_path/"in/-broken.stl").write_bytes(b"no mesh")
    out = make(tmp_path/"in", tmp_path/"data")
    data = SkullDataset(out, "all")
    assert len(data) == 7 and {"NA", "007"} <= set(data.ids)
    for file in ("manifest.csv", "report.csv", "labels.csv"):
        cells = pd.read_csv(out/file, dtype=str, keep_default_na=False).to_numpy().ravel()
        assert not [c for c in cells if c[:1] in ("=", "+", "-", "@")]
    assert "=1+1.ply" in read_csv(out/"report.csv").file.tolist()
    labels = read_csv(out/"labels.csv")
    write_csv(out/"labels.csv", labels.assign(quality_score=["5" if f == "=1+1.ply" else q for f, q in zip(labels.file, labels.quality_score)]))
    relabel(out)
    data = SkullDataset(out, "all")
    assert data.manifest.set_index("source").quality_score["=1+1.ply"] == 5


# ---- what is read back

def edit(folder, change):
    table = pd.read_csv(folder/"manifest.csv", dtype=str, keep_default_na=False)
    change(table).to_csv(folder/"manifest.csv", index=False)


def moved(t): return t.assign(split=["train" if s == "test" else "test" for s in t.split])
def other_score(t): return t.assign(quality_score=["4"]*len(t))
def one_row_more(t): return pd.concat([t, t.iloc[:1].assign(id="new", patient="new", fingerprint="0"*12)])
def one_row_less(t): return t.iloc[1:]
def elsewhere(t): return t.assign(file=["../elsewhere.npy"] + t.file.tolist()[1:])
def absolute(t): return t.assign(file=["/etc/passwd"] + t.file.tolist()[1:])
def no_file(t): return t.drop(columns="file")
def another_volume(t): return t.assign(fingerprint=t.fingerprint.tolist()[1:] + t.fingerprint.tolist()[:1])


@pytest.mark.parametrize("change", [moved, other_score, one_row_more, one_row_less, elsewhere, absolute, no_file, another_volume], ids=lambda f: f.__name__)
def test_a_manifest_that_was_edited(change, copy):
    edit(copy, change)
    for opened in (lambda: SkullDataset(copy), lambda: relabel(copy)):
        with pytest.raises(InputError, match="manifest.csv"): opened()


def test_a_volume_that_was_changed(copy):
    data = SkullDataset(copy, "all")
    files = [copy/f for f in data.manifest.file]
    bits = np.load(files[0])
    bits[len(bits)//2] ^= 1
    np.save(files[0], bits)
    shutil.copy(files[2], files[1])
    files[2].write_bytes(files[2].read_bytes()[:-7])
    for i, says in enumerate(("not the volume that was stored", "not the volume that was stored", "damaged")):
        with pytest.raises(InputError, match=says): data[i]
    files[3].unlink()
    with pytest.raises(InputError, match=f"lacks volumes/{files[3].name}"): SkullDataset(copy, "all")


def test_a_description_that_was_changed(copy):
    about = read_json(copy/"dataset.json")
    for change in (dict(grid=dict(about["grid"], spacing=[9., 9., 9.])), dict(fingerprint="0"*12)):
        write_json(copy/"dataset.json", about | change)
        with pytest.raises(InputError, match="not the table that was written"): SkullDataset(copy)
    write_json(copy/"dataset.json", {k: v for k, v in about.items() if k != "grid"})
    with pytest.raises(InputError, match="has no grid"): SkullDataset(copy)


def test_labels_are_the_way_to_change_it(copy, source, monkeypatch):
    labels = read_csv(copy/"labels.csv")
    write_csv(copy/"labels.csv", labels.assign(quality_score="3"))
    before = SkullDataset(copy).fingerprint
    real = dataset.write_json
    for step in ("report", "json", "rename"):                            # killed between any two steps: the old set or the new one
        if step == "report": monkeypatch.setattr(dataset, "_write_report", lambda *_: 1/0)
        if step == "json": monkeypatch.setattr(dataset, "write_json", lambda *_: 1/0)
        if step == "rename": monkeypatch.setattr(dataset, "write_json", lambda *a: (real(*a), 1/0))
        with pytest.raises(ZeroDivisionError): relabel(copy)
        monkeypatch.undo()
        assert (SkullDataset(copy).fingerprint == before) == (step != "rename")
        write_csv(copy/"labels.csv", labels.assign(quality_score="3"))
    relabel(copy)
    data = SkullDataset(copy, "all")
    assert set(data.quality_scores) == {3} and data.fingerprint != before and not (copy/dataset._NEXT).exists()
    assert make(source, copy) == copy


def test_opening_writes_nothing(copy):
    look = lambda: {p: p.stat().st_mtime_ns for p in [copy, *copy.rglob("*")]}
    before = look()
    data = SkullDataset(copy, "all")
    assert data[0]["volume"].shape[1:] == data.grid.shape and look() == before


def test_an_empty_split(source, tmp_path):
    out = make(source, tmp_path/"data", test=0)
    assert len(SkullDataset(out, "test")) == 0 == len(SkullDataset(out, "review")) and len(SkullDataset(out, "all")) == 4


def test_not_into_the_folder_of_the_scans(source):
    with pytest.raises(InputError, match="lies inside"): make(source, source/"out")


def test_one_patient_on_both_sides(tmp_path):
    "The same head on another grid, moved, thicker or cut is found; another head is not."
    rng = np.random.default_rng(0)
    (tmp_path/"meshes").mkdir()

    def store(name, mesh):
        dataset._save_mesh(tmp_path/"meshes"/f"{name}.npz", mesh)
        return name

    def bumpy(seed, level=5):
        "A head of its own: an egg with bumps."
        mesh, r = trimesh.creation.icosphere(subdivisions=level), np.random.default_rng(seed)
        v = np.array(mesh.vertices)
        for at in r.normal(size=(30, 3)): v *= 1 + .08*r.normal()*np.exp(-((mesh.vertices - at/np.linalg.norm(at))**2).sum(1)/.1)[:, None]
        return trimesh.Trimesh(v*[95, 70, 75], mesh.faces)
    moved, thick, cut = bumpy(1), bumpy(2), bumpy(3)
    moved.apply_transform(trimesh.transformations.rotation_matrix(.03, rng.normal(size=3))).apply_translation([1, -1, 2])
    thick.vertices += .5*thick.vertex_normals
    cut = cut.submesh([np.flatnonzero((cut.vertices[:, 2] > -40)[cut.faces].all(1))], append=True)
    train = [store(f"head{i}", bumpy(i)) for i in range(8)]
    test = [store("grid", bumpy(0, 4)), store("moved", moved), store("thick", thick), store("cut", cut), store("another", bumpy(99)), store("one more", bumpy(98))]
    said = dataset._twins(pd.DataFrame(dict(id=train + test, split=["train"]*8 + ["test"]*6)), tmp_path/"meshes")
    assert sorted(" ".join(s.split(",")[0].split(" and ")) for s in said) == ["head0 grid", "head1 moved", "head2 thick", "head3 cut"], said
    assert dataset._twins(pd.DataFrame(dict(id=[], split=[])), tmp_path) == [] == dataset._twins(pd.DataFrame(dict(id=train, split="train")), tmp_path/"meshes")
