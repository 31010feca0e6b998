"""The tilted, unevenly spaced head of ../shared/data through `dicom`; skipped where the files are not (see test_real_data.py)."""
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from skeletal_fm.core import InputError
from skeletal_fm.dicom import choose_series, is_dicom, list_series, pixels, read_dicom, set_elements, stack

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SKELETAL_FM_DATA", ROOT.parent/"shared"/"data"))
GE = DATA/"ct"/"ge_head_tilt_dicom.zip"
pytestmark = pytest.mark.skipif(not GE.is_file(), reason=f"no real files in {DATA.name}")


def extents(points):
    "Length and width in mm that hold all but the outermost thousandth of points."
    return np.ptp(np.quantile(points, [.0005, .9995], axis=0), axis=0)


@pytest.fixture(scope="module")
def straight():
    return read_dicom(GE)


def vault(image):
    "Points of the braincase's bone in patient coordinates: the largest piece above the eyes."
    bone = sitk.GetArrayFromImage(image) > 300
    pieces, _ = ndimage.label(bone)
    bone = pieces == np.bincount(pieces[pieces > 0]).argmax()
    k = np.argwhere(bone)[:, ::-1].astype(float)
    D = np.array(image.GetDirection()).reshape(3, 3)
    return (k*image.GetSpacing())@D.T + image.GetOrigin()


def test_geometry(straight):
    image, info = straight
    assert abs(info["tilt"] - 18.5) < .01 and info["slices"] == 28
    assert "13 of 4 mm, 13 of 7 mm, 1 of 1.08 mm" in info["notes"][0] and "tilted" in info["notes"][1]
    D = np.array(image.GetDirection()).reshape(3, 3)
    assert np.allclose(D.T@D, np.eye(3), atol=1e-6) and np.linalg.det(D) > 0
    v = sitk.GetArrayViewFromImage(image)
    assert v.min() == -1024 and v.max() > 1500 and v.dtype == np.int16     # -1500 outside the circle is gone


def test_every_slice_lies_where_its_header_says(straight):
    "Bone of each stored slice, placed by its own position and directions alone, is bone of the volume."
    image, _ = straight
    x = choose_series(list_series(GE))
    for s, hu in list(zip(x.slices, pixels(x.slices)))[1:-1:3]:
        p, u, v = s.where
        px = s.header["PixelSpacing"]
        rows, columns = np.nonzero(ndimage.binary_opening(hu > 400, iterations=2))
        points = p + columns[:, None]*px[1]*u + rows[:, None]*px[0]*v
        pick = np.random.default_rng(0).permutation(len(points))[:400]
        k = np.array([image.TransformPhysicalPointToContinuousIndex(points[i].tolist()) for i in pick])
        there = ndimage.map_coordinates(sitk.GetArrayViewFromImage(image), k[:, ::-1].T, order=1)
        assert len(pick) > 30 and np.mean(there > 300) > .97


def test_braincase_is_straight(straight):
    image, _ = straight
    x = choose_series(list_series(GE)); g = stack(x.slices)
    def ring(hu):                                                                           # the slice planes, untouched; without the head holder
        pieces, _ = ndimage.label(hu > 300)
        return np.argwhere(pieces == np.bincount(pieces[pieces > 0], minlength=2).argmax())
    bone = [ring(hu) for hu in pixels(x.slices)]
    upper = slice(12, 28)                                                                   # the vault: above the orbits
    px = x.spacing[0]
    plane = np.array([extents(b) for b in bone[upper] if len(b) > 500])*px
    length, width = plane.max(0)
    points = vault(image)@g.axes.T                                                          # the volume, seen along the same axes
    ours = np.array([extents(points[np.abs(points[:, 2] - s) < 1.1][:, :2]) for s in g.s[upper]])
    assert abs(ours[:, 1].max()/length - 1) < .03 and abs(ours[:, 0].max()/width - 1) < .03, (ours.max(0), length, width)
    assert .72 < width/length < .90                                                         # cephalic index of man
    # skewed, the volume would lean: centres of the slices' outlines against a straight line in patient axes
    p = vault(image); top, low = p[p[:, 2] > np.quantile(p[:, 2], .9)], p[(p[:, 2] > 60) & (p[:, 2] < 80)]
    assert abs(np.ptp(p[(p[:, 2] > 60)][:, 0])/width - 1) < .03 and abs(top[:, 0].mean() - low[:, 0].mean()) < 6


def test_dicom_folder_zip_file_and_list_agree(tmp_path):
    with zipfile.ZipFile(GE) as z: z.extractall(tmp_path)
    files = sorted(p for p in tmp_path.rglob("*.dcm"))
    want = sitk.GetArrayFromImage(read_dicom(GE)[0])
    for source in (tmp_path, files[5], files[::-1]):
        image, info = read_dicom(source)
        assert np.array_equal(sitk.GetArrayFromImage(image), want) and info["patient"] == read_dicom(GE)[1]["patient"]
    assert all(map(is_dicom, files))
    files[13].write_bytes(files[13].read_bytes()[:300_000])
    with pytest.raises(InputError, match="cut off"): read_dicom(tmp_path)
    files[13].unlink()
    image, info = read_dicom(tmp_path)                       # one slice less is a wider step, well within the limit
    assert abs(np.array(image.GetOrigin()) - np.array(read_dicom(GE)[0].GetOrigin())).max() < 25
    set_elements(files[3], {"0010|0020": "somebody else"})
    with pytest.raises(InputError, match="2 patients"): read_dicom(tmp_path)
