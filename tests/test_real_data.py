"""Real files through reading, filling and preparing. They are not part of the repository: put them (or a link) into
../shared/data, or name their folder in SKELETAL_FM_DATA; without them these tests are skipped."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from skeletal_fm.core import Grid, InputError, preset, to_mesh
from skeletal_fm.dataset import SkullDataset, prepare
from skeletal_fm.scan import center, read_skull
from skeletal_fm.volume import component_shares, voxelize

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


def test_sculpted_skull():
    file = DATA/"meshes"/"skull_makerbot_scaled.stl"
    with pytest.raises(InputError, match="factor of about 46"): read_skull(file)
    mesh = center(read_skull(file, units=46))
    assert not mesh.is_watertight                                   # open edges, and yet
    vox, _ = fill(mesh)
    assert component_shares(vox)[0] > .999 and abs(vox.sum()*8/mesh.volume - 1) < .005
    foremost = mesh.vertices[mesh.vertices[:, 0] > .48*mesh.extents[0]]
    assert foremost[:, 2].mean() < -.2*mesh.extents[2]               # the teeth: in front, and low


def test_dicom_is_refused():
    with pytest.raises(InputError, match="DICOM.*dcm2niix"): read_skull(DATA/"ct"/"ge_head_tilt_dicom.zip")


def test_prepare_jaws(tmp_path, capsys):
    p = preset("smoke")
    data = SkullDataset(prepare(DATA/"mandibles", tmp_path/"jaws", p, workers=1), "all")
    assert len(data) == 8 and data.manifest["split"].value_counts().to_dict() == dict(train=6, test=2)
    assert 2 < data.grid.spacing[0] < 2.8 and np.prod(data.grid.shape) <= np.prod(p.grid.shape)
    volumes = data.manifest.voxels*np.prod(data.grid.spacing)
    assert volumes.between(35e3, 85e3).all() and (data.manifest.clipped < .02).all()
    assert "8 skulls stored" in capsys.readouterr().out


def test_prepare_mixture(tmp_path):
    for f in ["mandibles/" + JAWS[0], "README.md"] + [f"{d}/{p.name}" for d in ("ct", "meshes", "licenses") for p in (DATA/d).iterdir()]:
        (tmp_path/"in"/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DATA/f, tmp_path/"in"/f)
    data = SkullDataset(prepare(tmp_path/"in", tmp_path/"all", preset("smoke"), workers=1), "all")
    assert len(data) == 5                                           # a mask, two CT, two meshes in mm
    refused = (data.folder/"refused.csv").read_text()
    assert "factor of about 46" in refused and "DICOM" in refused and "README" not in refused and "BSD" not in refused
