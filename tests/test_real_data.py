"""Real files through reading, filling and preparing. They are not part of the repository: put them (or a link) into
../shared/data, or name their folder in SKELETAL_FM_DATA; without them these tests are skipped."""
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trimesh
from scipy import ndimage
from scipy.spatial.transform import Rotation

from skeletal_fm.align import align, grade, sample_points
from skeletal_fm.bone import bone_steps, read_skull
from skeletal_fm.core import Grid, InputError, paper_grid, preset, to_mesh
from skeletal_fm.dataset import SkullDataset, prepare, relabel
from skeletal_fm.features import quality_probabilities
from skeletal_fm.plausibility import judge
from skeletal_fm.scan import read_ct
from skeletal_fm.shape import mesh_doubts
from skeletal_fm.mesh import center, read_mesh
from skeletal_fm.volume import component_shares, dice, voxelize

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SKELETAL_FM_DATA", ROOT.parent/"shared"/"data"))
pytestmark = pytest.mark.skipif(not (DATA/"mandibles").is_dir(), reason=f"no real files in {DATA.name}")

JAWS = sorted(p.name for p in (DATA/"mandibles").glob("*.nrrd")) if DATA.is_dir() else []


def fill(mesh, spacing=2.):
    grid = Grid.centred([int(np.ceil(e/spacing)) + 4 for e in mesh.extents], spacing)
    return voxelize(mesh, grid), grid


@pytest.mark.parametrize("name", JAWS)
def test_jaw(name):
    mesh = center(read_skull(DATA/"mandibles"/name))
    depth, width, height = mesh.extents
    assert 105 < width < 135 and 70 < depth < 115 and 70 < height < 100
    assert 35e3 < mesh.volume < 85e3 and mesh.is_watertight
    condyles = mesh.vertices[mesh.vertices[:, 2] > .35*height]      # the highest points of a mandible lie at its back,
    assert condyles[:, 0].mean() < -.2*depth
    chin = mesh.vertices[mesh.vertices[:, 0] > .4*depth]            # the foremost in the middle, below
    assert abs(chin[:, 1].mean()) < .12*width and chin[:, 2].mean() < 0
    vox, grid = fill(mesh)
    assert component_shares(vox)[0] > .98
    assert abs(vox.sum()*8/mesh.volume - 1) < .02
    assert np.array_equal(voxelize(to_mesh(vox, grid), grid), vox)


@pytest.mark.parametrize("patient", ["0522c0017", "TCGA-CV-7236"])
def test_mask_and_mesh_of_one_patient_agree(patient):
    mask = read_skull(DATA/"mandibles"/f"test_oncologist_{patient}.nrrd")
    mesh = read_skull(DATA/"meshes"/f"mandible_{patient}.stl")
    assert abs(mask.volume/mesh.volume - 1) < .01
    assert np.abs(mask.bounds - mesh.bounds).max() < 2              # within a slice, in patient coordinates


def test_plastic_head():
    mesh = read_skull(DATA/"ct"/"phantom_bone_reduced.nii.gz")
    assert np.allclose(mesh.extents, (187, 139, 134), atol=2)       # no stand, no table, no test blocks
    vox, _ = fill(center(mesh), 1.)
    assert component_shares(vox)[0] > .98


def test_coarse_head():
    mesh = center(read_skull(DATA/"ct"/"headsq_quarter.nii.gz"))
    assert np.allclose(mesh.extents, (167, 148, 139), atol=4) and mesh.is_watertight
    vox, _ = fill(mesh)
    assert component_shares(vox)[0] > .97
    neck = mesh.vertices[mesh.vertices[:, 2] < -.42*mesh.extents[2]]
    assert neck[:, 0].mean() < -.1*mesh.extents[0]                   # the lowest bone is the neck, at the back


def test_plastic_head_steps():
    scan = read_ct(DATA/"ct"/"phantom_bone_reduced.nii.gz")
    steps = bone_steps(scan)
    assert "no soft tissue" in scan.notes[0]
    assert steps["bone"].sum() < .999*steps["dense"].sum()          # the support has gone
    box = np.argwhere(steps["bone"])
    assert np.allclose(np.ptp(box, axis=0)*scan.spacing, (187, 139, 134), atol=3)


def test_coarse_head_steps():
    scan = read_ct(DATA/"ct"/"headsq_quarter.nii.gz")
    steps = bone_steps(scan)
    assert steps["inside"].sum() > .998*steps["dense"].sum() and steps["bone"].sum() > .99*steps["dense"].sum()
    assert all("loose pieces in the head" in n for n in scan.notes)  # soft tissue, little noise, no metal above 3000 HU
    assert not (steps["cut"][skull_of(steps)] > 0).any()            # nothing of the skull's own connected bone


def skull_of(steps):
    "What is connected with the kept bone at the threshold, however thin."
    piece, _ = ndimage.label(steps["dense"], np.ones((3, 3, 3)))
    return piece == np.bincount(piece[steps["bone"]]).argmax()


def test_nothing_is_cut_from_the_tilted_head():
    scan = read_ct(DATA/"ct"/"ge_head_tilt_dicom.zip", straight=False)
    steps = bone_steps(scan)
    lost = steps["cut"][skull_of(steps)] > 0
    assert lost.sum()*np.prod(scan.spacing) < 50                    # mm3: the nose is whole
    holder = (steps["cut"] == 4).sum()*np.prod(scan.spacing)/1000
    assert 25 < holder < 35                                         # cm3 of the holder beside the head, which has gone


def test_tilted_dicom_is_straight():
    mesh = center(read_skull(DATA/"ct"/"ge_head_tilt_dicom.zip"))
    assert mesh.metadata["kind"] == "ct" and len(mesh.metadata["patient"]) == 12
    assert any("18.5 degrees" in n for n in mesh.metadata["notes"]) and any("unevenly" in n for n in mesh.metadata["notes"])
    depth, width, height = mesh.extents
    assert np.allclose((depth, width, height), (187, 155, 163), atol=3)   # the braincase and the nose, not the holder beside it (some 200 mm wide)
    top = mesh.vertices[mesh.vertices[:, 2] > .45*height]
    assert abs(top[:, 0].mean()) < .2*depth                          # upright: not skewed by the tilt


def test_sculpted_skull():
    file = DATA/"meshes"/"skull_makerbot_scaled.stl"
    with pytest.raises(InputError, match="factor of about 46"): read_skull(file)
    mesh = center(read_skull(file, units=46))
    assert any("crumbs" in n for n in mesh.metadata["notes"]) and not mesh.is_watertight   # open edges, and yet
    vox, _ = fill(mesh)
    assert component_shares(vox)[0] > .999
    foremost = mesh.vertices[mesh.vertices[:, 0] > .48*mesh.extents[0]]
    assert foremost[:, 2].mean() < -.2*mesh.extents[2]               # the teeth: in front, and low


def damaged(mesh, rng):
    F, at = mesh.faces, mesh.triangles_center
    soup, own = mesh.triangles.reshape(-1, 3), np.arange(3*len(F)).reshape(-1, 3)
    window = np.linalg.norm(at[:, None] - at[rng.choice(len(F), 20)], axis=2).min(1) < 2.5
    yield "a tenth of the triangles lost", mesh.vertices, F[rng.random(len(F)) > .1]
    yield "20 windows of 5 mm", mesh.vertices, F[~window]
    yield "a third turned over", mesh.vertices, np.where((rng.random(len(F)) < .3)[:, None], F[:, ::-1], F)
    yield "all turned over, some lost", mesh.vertices, F[rng.random(len(F)) > .03, ::-1]
    yield "some doubled", mesh.vertices, np.vstack([F, F[rng.random(len(F)) < .05, ::-1]])
    yield "soup of triangles, rounded to 0.1 mm", soup.round(1), own
    yield "soup in float32, 5 m away, some lost", (soup + 5000).astype(np.float32) - 5000., own[rng.random(len(F)) > .03]


@pytest.mark.parametrize("name,units", [("skull_makerbot_scaled.stl", 46), ("mandible_0522c0017.stl", None), ("mandible_TCGA-CV-7236.stl", None)])
def test_damaged_meshes_are_filled_all_the_same(name, units):
    mesh = read_mesh(DATA / "meshes" / name, units=units)
    mesh.vertices = np.asarray(mesh.vertices) - mesh.bounds.mean(0)
    grid = Grid.centred(np.ceil(mesh.extents/.8).astype(int) + 4, .8)
    whole = voxelize(mesh, grid)
    assert abs(whole.sum()*.8**3/abs(mesh.volume) - 1) < .01
    for what, vertices, faces in damaged(mesh, np.random.default_rng(0)):
        v = voxelize(trimesh.Trimesh(vertices, faces, process=False), grid)
        assert abs(v.sum()/whole.sum() - 1) < .02 and dice(v, whole) > .98, f"{name}, {what}: volume {v.sum()/whole.sum() - 1:+.1%}, overlap {dice(v, whole):.3f}"


def test_the_raw_open_skull_is_filled():
    "The file as it is, with its open edges and crumbs: within 2 % of the repaired one."
    raw = trimesh.load_mesh(DATA / "meshes/skull_makerbot_scaled.stl", process=False)
    raw = trimesh.Trimesh(np.asarray(raw.vertices)*46, raw.faces, process=False)
    raw.vertices = np.asarray(raw.vertices) - raw.bounds.mean(0)
    whole = trimesh.Trimesh(raw.vertices, raw.faces); whole.fill_holes(); whole.fix_normals()
    grid = Grid.centred(np.ceil(raw.extents/.8).astype(int) + 4, .8)
    assert abs(voxelize(raw, grid).sum()*.8**3/whole.volume - 1) < .02


def thrown(mesh, rotvec=(40, -30, 25), shift=(60, -50, 60)):
    M = np.eye(4)
    M[:3, :3], M[:3, 3] = Rotation.from_rotvec(rotvec, degrees=True).as_matrix(), shift
    return mesh.copy().apply_transform(M)


HEADS = {  # file: (units, Quality Score, lower end, upper end) of its skull, SI in mm
    "ct/headsq_quarter.nii.gz": (None, 6, -108, 33), "ct/phantom_bone_reduced.nii.gz": (None, 3, -45, 89), "meshes/skull_makerbot_scaled.stl": (46, 3, -54, 92)}


@pytest.mark.parametrize("name", HEADS)
def test_head_is_aligned(name):
    units, score, low, high = HEADS[name]
    mesh = read_skull(DATA/name, units=units)
    a = align(mesh)
    assert a.verdict == "accepted" and a.residual < 2
    # the same place from another start, and it is not mirrored
    b, x = align(thrown(mesh)), sample_points(mesh, 2000)[0]
    y = sample_points(thrown(mesh), 2000)[0]
    assert np.linalg.norm((x@a.rotation.T + a.translation) - (y@b.rotation.T + b.translation), axis=1).mean() < .3
    there = a.apply(mesh)
    g = grade(there)
    assert g.quality_score == score and abs(g.bottom - low) < 4 and abs(g.top - high) < 4
    v = there.vertices[there.vertices[:, 2] < 25]                    # the midplane is the middle: as much on the left as on the right
    near = v[(np.abs(v[:, 2] + 10) < 25)]
    assert abs(np.percentile(near[:, 1], 1) + np.percentile(near[:, 1], 99)) < 8
    # nothing to doubt of the heads; the sculpted skull has no inner wall
    doubts = mesh_doubts(there)
    assert "it is solid" in doubts[0] and "where the brain was" in doubts[1] if "makerbot" in name else not doubts, doubts
    # the domain network, which knows phantoms only, is at most one score off
    read = int(np.argmax(quality_probabilities(voxelize(there, paper_grid(2.04)), paper_grid(2.04)))) + 1
    assert abs(read - score) <= 1, read
    # the rules for failed skulls, made for generated ones, find the right score, no holes though a scan may end in a plane that leans, and that the sculpted skull is solid
    seen = judge(voxelize(there, paper_grid(2.04)), paper_grid(2.04), asked=score)
    assert not seen.wrong_score and seen.shape.holes < 5.8 and seen.shape.pieces <= 3, seen.shape
    assert [r.split(":")[0] for r in seen.reasons][:1] == (["bone where the brain was"] if "makerbot" in name else []), seen.reasons


@pytest.mark.parametrize("name", JAWS)
def test_jaw_lands_on_the_jaw(name):
    mesh = read_skull(DATA/"mandibles"/name)
    a = align(thrown(mesh))
    there = a.apply(thrown(mesh))
    assert a.verdict == "doubtful" or "lower jaw" in a.reason
    lo, hi = there.bounds
    assert -120 < lo[2] < -88 and -30 < hi[2] < 5                    # chin and condyles
    assert abs(lo[1] + hi[1]) < 12 and hi[0] > 65 and -15 < lo[0] < 20
    assert grade(there).quality_score == 0
    assert not mesh_doubts(there, head=False)


def test_prepare_jaws(tmp_path, capsys):
    p = preset("smoke")
    data = SkullDataset(prepare(DATA/"mandibles", tmp_path/"jaws", p, workers=1), "all")
    assert len(data) == 8 and data.manifest["split"].value_counts().to_dict() == dict(train=6, test=2)
    assert 2 < data.grid.spacing[0] < 2.8 and np.prod(data.grid.shape) <= np.prod(p.grid.shape)
    volumes = data.manifest.voxels*np.prod(data.grid.spacing)
    assert volumes.between(35e3, 85e3).all() and (data.manifest.clipped < .02).all()
    assert "8 skulls stored" in capsys.readouterr().out


def test_prepare_solid_skull(tmp_path, capsys):
    "It fits the reference well, and waits all the same."
    (tmp_path/"in").mkdir()
    shutil.copyfile(DATA/"meshes/skull_makerbot_scaled.stl", tmp_path/"in/sculpture.stl")
    out = prepare(tmp_path/"in", tmp_path/"out", preset("smoke"), units=46, workers=1)
    row = pd.read_csv(out/"manifest.csv").iloc[0]
    assert (row.alignment, row.verdict, row["split"]) == ("accepted", "doubtful", "review") and "it is solid" in row.doubts
    assert "doubtful sculpture.stl: it is solid" in capsys.readouterr().out
    (tmp_path/"said.csv").write_text("file,quality_score,verdict\nsculpture.stl,,accepted\n")
    relabel(out, tmp_path/"said.csv")
    assert pd.read_csv(out/"manifest.csv").verdict[0] == "accepted"


def test_prepare_mixture(tmp_path, capsys):
    for f in ["mandibles/" + JAWS[0], "README.md"] + [f"{d}/{p.name}" for d in ("ct", "meshes", "licenses") for p in (DATA/d).iterdir()]:
        (tmp_path/"in"/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DATA/f, tmp_path/"in"/f)
    out = prepare(tmp_path/"in", tmp_path/"all", preset("smoke"), workers=1)
    report = pd.read_csv(out/"report.csv").set_index("file")
    assert (report.status == "refused").sum() == 1 and "factor of about 46" in report.reason["meshes/skull_makerbot_scaled.stl"]
    assert len(report) == 7                                          # a mask, three CT, two meshes in mm, the one refused
    heads = report.loc[[f for f in report.index if f.startswith("ct/")]]
    assert (heads.status == "accepted").all() and (heads.residual < 2.5).all()
    assert len(report.patient["ct/ge_head_tilt_dicom.zip"]) == 12    # a hash, not the number in the file
    assert heads.quality_score["ct/headsq_quarter.nii.gz"] == 6 and heads.quality_score["ct/ge_head_tilt_dicom.zip"] == 3
    assert heads.quality_score["ct/phantom_bone_reduced.nii.gz"] in (0, 3, 4)   # cut through the upper jaw: between two scores
