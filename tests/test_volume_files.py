"What volume files and DICOM series say about where a head lies: agreement, contradiction, slant, attack. Inputs are made here."
import bz2
import gzip
import itertools
import os
import struct
import time
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from skeletal_fm.core import InputError, lps_to_canonical
from skeletal_fm.dicom import choose_series, find_studies, is_dicom, list_series, read_dicom, write_dicom
from skeletal_fm.readers import read_stored
from skeletal_fm.scan import read_ct, read_volume

SIZE = (30, 32, 28)
INDEX = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
RAS = np.diag([-1., -1, 1, 1])
PLAIN = np.array([[2., 0, 0, -20], [0, 2, 0, 30], [0, 0, 2.5, 400], [0, 0, 0, 1]])


def turn(degrees, axis=(1, 2, 3)):
    a = np.array(axis)/np.linalg.norm(axis); K = np.cross(np.eye(3), -a); r = np.radians(degrees)
    M = np.eye(4); M[:3, :3] = np.eye(3) + np.sin(r)*K + (1 - np.cos(r))*K@K
    return M


def shear(degrees): M = np.eye(4); M[1, 2] = -np.tan(np.radians(degrees)); return M


def field(points): return points@[1., 2, -3] + 1200     # HU that grow linearly through patient space: interpolation is exact


def values(affine): return field(INDEX@affine[:3, :3].T + affine[:3, 3]).astype("<f4")


def nifti(path, affine, qform=None, scode=1, qcode=1, v=None, cls=nib.Nifti1Image, **fields):
    image = cls(values(affine) if v is None else v, None)
    image.set_sform(RAS@affine, scode); image.set_qform(RAS@(affine if qform is None else qform), qcode)
    for k, x in fields.items(): image.header[k] = x
    start = image.header.sizeof_hdr + 4; image.header["vox_offset"] = start
    data = image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)
    return path


def nrrd(path, affine, body=None, **changes):
    number = lambda x: "(" + ",".join(f"{i:.17g}" for i in x) + ")"
    head = dict(type="float", dimension=3, sizes="30 32 28", encoding="raw", endian="little", space="left-posterior-superior") | {"space directions": " ".join(map(number, affine[:3, :3].T)), "space origin": number(affine[:3, 3])} | changes
    path.write_bytes(b"NRRD0004\n" + "".join(f"{k}: {x}\n" for k, x in head.items() if x is not None).encode() + b"\n" + (values(affine).tobytes(order="F") if body is None else body))
    return path


def meta(path, affine, body=None, **changes):
    step = np.linalg.norm(affine[:3, :3], axis=0); text = lambda x: " ".join(f"{i:.17g}" for i in np.ravel(x))
    head = dict(ObjectType="Image", NDims=3, BinaryData=True, TransformMatrix=text((affine[:3, :3]/step).T), Offset=text(affine[:3, 3]), ElementSpacing=text(step), DimSize="30 32 28", ElementType="MET_FLOAT") | changes
    head["ElementDataFile"] = head.pop("ElementDataFile", "LOCAL")
    path.write_bytes("".join(f"{k} = {x}\n" for k, x in head.items() if x is not None).encode() + (values(affine).tobytes(order="F") if body is None else body))
    return path


WRITERS = {"a.nii": nifti, "a.nii.gz": nifti, "a.nrrd": nrrd, "a.mha": meta}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("affine", [PLAIN, PLAIN@np.diag([-1, 1, -1, 1]), turn(25)@PLAIN, PLAIN@shear(15), turn(10)@PLAIN@shear(-18), PLAIN@shear(20)[[2, 0, 1, 3]][:, [2, 0, 1, 3]]], ids=["straight", "flipped", "oblique", "slanted", "both", "slanted otherwise"])
def test_every_voxel_lies_where_the_file_says(tmp_path, name, affine):
    path = WRITERS[name](tmp_path/name, affine)
    for straight in (True, False):
        s = read_volume(path, straight)
        x = s.grid.points()@s.turn.T                                       # canonical
        lps = np.stack([x[..., 1], -x[..., 0], x[..., 2]], -1)
        np.testing.assert_allclose(lps_to_canonical(lps), x)
        inside = ndimage.binary_erosion(s.volume > s.volume.min() + 1, iterations=1)   # within half a voxel of the rim the last value goes on
        assert inside.mean() > .2 and np.abs(s.volume - field(lps))[inside].max() < .1
        assert np.allclose(s.turn.T@s.turn, np.eye(3), atol=1e-6) and (not straight or np.array_equal(s.turn, np.eye(3)))
        assert not s.doubts and any("right angles" in n for n in s.notes) == (not np.allclose(affine[:3, :3].T@affine[:3, :3], np.diag(np.diag(affine[:3, :3].T@affine[:3, :3])), atol=1e-6))


def rounded(affine, digits): A = affine.copy(); A[:3, :3] = np.round(A[:3, :3], digits); return A


@pytest.mark.parametrize("sform,qform,how,note,doubt", [
    (PLAIN, PLAIN, {}, "", ""),
    (PLAIN, turn(.02)@PLAIN, {}, "", ""),
    (rounded(turn(12)@PLAIN, 3), turn(12)@PLAIN, {}, "", ""),
    (PLAIN, turn(.6)@PLAIN, {}, "turned against each other", ""),
    (PLAIN, turn(4)@PLAIN, {}, "The sform was taken", "by 4 degrees"),
    (PLAIN, PLAIN@np.diag([-1, 1, 1, 1]), {}, "The sform was taken", "mirror"),
    (PLAIN, PLAIN@np.diag([1, -1, 1, 1]), dict(scode=4, qcode=2), "The sform was taken", "mirror"),
    (PLAIN, PLAIN@np.diag([1, 1, 2, 1]), {}, "2 x 2 x 5", "2 x 2 x 5"),
    (PLAIN, PLAIN@np.diag([-1, 1, 1, 1]), dict(qcode=0), "", ""),                        # a qform without code says nothing
    (PLAIN@np.diag([3, 3, 3, 1]), PLAIN, dict(qcode=0, pixdim=[1, 2, 2, 2.5, 1, 1, 1, 1]), "pixdim", "pixdim"),
    (PLAIN@shear(15), PLAIN, {}, "right angles", ""),                                  # a quaternion cannot say a slant
    (PLAIN, PLAIN@np.diag([1, 1, 1, 1]), dict(sform=0), "", ""),
    (PLAIN*np.nan, PLAIN, {}, "makes no axes", ""),
    (PLAIN, PLAIN, dict(scode=0, qcode=0), "Left and right", "left and right"),
])
def test_nifti_compares_all_statements(tmp_path, sform, qform, how, note, doubt):
    how = dict(how); how.pop("sform", 0)
    s = read_stored(nifti(tmp_path/"a.nii.gz", sform, qform, v=values(PLAIN), **how))
    assert note in " ".join(s.notes) and bool(note) == bool(s.notes), s.notes
    assert doubt in " ".join(s.doubts) and bool(doubt) == bool(s.doubts), s.doubts
    if np.isfinite(sform).all() and how.get("scode", 1): np.testing.assert_allclose(s.affine, sform, atol=1e-3)


def test_nifti_values_and_units(tmp_path):
    v = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE)
    for cls, (slope, inter), want in itertools.product((nib.Nifti1Image, nib.Nifti2Image), ((0, 5), (np.nan, np.nan), (1, -1024), (.5, 3)), [None]):
        want = v if not slope > 0 else v*slope + inter
        np.testing.assert_allclose(read_stored(nifti(tmp_path/"a.nii", PLAIN, v=v, cls=cls, scl_slope=slope, scl_inter=inter)).values, want)
    np.testing.assert_array_equal(read_stored(nifti(tmp_path/"big.nii", PLAIN, v=v)).values, v)
    for units, factor, told in ((3, 1000, "converted"), (1, .001, "converted"), (1, 1, "taken for mm"), (3, 1, "taken for mm"), (2, 1, ""), (0, 1, "")):
        s = read_stored(nifti(tmp_path/"u.nii", np.diag([factor]*3 + [1.])@PLAIN, v=v, xyzt_units=units))
        np.testing.assert_allclose(s.affine, PLAIN, atol=1e-3); assert told in " ".join(s.notes) and bool(told) == bool(s.notes) and not s.doubts
    colours = np.zeros(SIZE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for data, says in ((colours, "colours"), (np.zeros((*SIZE, 3), np.int16), "4 dimensions"), (v.astype(np.complex64), "values of the kind")):
        nib.Nifti1Image(data, PLAIN).to_filename(tmp_path/"c.nii")
        with pytest.raises(InputError, match=says): read_stored(tmp_path/"c.nii")


@pytest.mark.parametrize("write,changes,note,doubt", [
    (nrrd, {"spacings": "2 2 2.5"}, "", ""), (nrrd, {"spacings": "2 2 5"}, "spacings", "2 x 2 x 5"), (nrrd, {"space": "scanner-xyz"}, "scanner-xyz", "left and right"), (nrrd, {"space": None, "space dimension": 3}, "no 'space'", "left and right"),
    (nrrd, {"space directions": None, "spacings": "2 2 2.5"}, "no 'space directions'", "left and right"), (nrrd, {"space directions": None}, "no spacing", "1 mm"), (nrrd, {"measurement frame": "(1,0,0) (0,1,0) (0,0,1)"}, "", ""),
    (meta, dict(AnatomicalOrientation="RAI"), "", ""), (meta, dict(AnatomicalOrientation="???"), "", ""), (meta, dict(AnatomicalOrientation="LAI"), "LAI", "LAI"), (meta, dict(AnatomicalOrientation="ASL"), "ASL", "ASL"),
    (meta, dict(ElementSpacing=None, ElementSize="2 2 2.5"), "ElementSize", ""), (meta, dict(ElementSpacing=None), "1 mm", "1 mm"), (meta, dict(ElementSize="2 2 4"), "ElementSize", "2 x 2 x 4"),
    (meta, dict(TransformMatrix="2 0 0 0 2 0 0 0 2"), "long", "long"), (meta, dict(TransformMatrix="0.9999 0 0 0 1.0001 0 0 0 1"), "", ""), (meta, dict(TransformMatrix=None), "no TransformMatrix", "left and right"),
])
def test_nrrd_and_metaimage_compare_all_statements(tmp_path, write, changes, note, doubt):
    s = read_stored(write(tmp_path/("a.nrrd" if write is nrrd else "a.mha"), PLAIN, **changes))
    assert note in " ".join(s.notes) and bool(note) == bool(s.notes), s.notes
    assert doubt in " ".join(s.doubts) and bool(doubt) == bool(s.doubts), s.doubts


BROKEN = [(nrrd, {"x"*1000 + "\nq": "1"}), (nrrd, {"data file": "%d%s 1 16 1"}), (nrrd, {"data file": "%n%n%n%n"}), (nrrd, {"data file": "LIST\n/etc/passwd"}), (nrrd, {"data file": "LIST 2"}), (nrrd, {"data file": "../a.raw"}), (nrrd, {"data file": "/dev/zero"}), (nrrd, {"data file": "link"}),
          (nrrd, {"sizes": "30 32 99999999999999999999"}), (nrrd, {"sizes": "1000 1000 1000"}), (nrrd, {"dimension": 10**9}), (nrrd, {"space directions": "(1e308,0,0) (0,1e308,0) (0,0,1e308)"}), (nrrd, {"space origin": "(nan,0,0)"}), (nrrd, {"space directions": "((((((("}),
          (nrrd, {"encoding": "hex"}), (nrrd, {"encoding": "gzip"}), (nrrd, {"encoding": "bzip2"}), (nrrd, {"encoding": "ascii"}), (nrrd, {"byte skip": "99999999"}), (nrrd, {"byte skip": "-7"}), (nrrd, {"line skip": "1e9"}), (nrrd, {"type": "block"}), (nrrd, {"endian": "middle", "type": "foo"}),
          (meta, dict(NDims=1000000)), (meta, dict(NDims=-1)), (meta, dict(NDims="1e308")), (meta, dict(TransformMatrix="1e308 0 0 0 1 0 0 0 1")), (meta, dict(TransformMatrix="0 0 0 0 0 0 0 0 0")), (meta, dict(TransformMatrix="1 0 0 1 0 0 0 0 1")), (meta, dict(ElementSpacing="1e-320 1 1")),
          (meta, dict(ElementSpacing="nan 1 1")), (meta, dict(DimSize="-1 -1 -1")), (meta, dict(ElementDataFile="LIST")), (meta, dict(ElementDataFile="a%03d.raw 1 28 1")), (meta, dict(ElementDataFile="../../etc/passwd")), (meta, dict(ElementDataFile="link")), (meta, dict(CompressedData=True)),
          (meta, dict(ElementNumberOfChannels=3)), (meta, dict(ElementType="MET_OTHER")), (meta, dict(HeaderSize="99999999")), (meta, dict(BinaryData=False)), (meta, dict(ElementType="MET_LONG_LONG"))]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_header_is_refused_at_once(tmp_path, number):
    "In this very process: nothing crashes, hangs, or leaves the folder."
    write, changes = BROKEN[number]
    (tmp_path/"in").mkdir(); (tmp_path/"a.raw").write_bytes(bytes(200_000)); (tmp_path/"in"/"link").symlink_to(tmp_path/"a.raw")
    start = time.time()
    with pytest.raises(InputError): read_ct(write(tmp_path/"in"/("a.nrrd" if write is nrrd else "a.mha"), PLAIN, **changes))
    assert time.time() - start < 5


def test_compressed_values(tmp_path):
    raw = values(PLAIN).tobytes(order="F")
    for write, name, body, changes in ((nrrd, "a.nrrd", gzip.compress(raw[:9000]) + gzip.compress(raw[9000:]), {"encoding": "gz"}), (nrrd, "b.nrrd", bz2.compress(raw), {"encoding": "bz2"}), (meta, "a.mha", zlib.compress(raw), dict(CompressedData=True)),
                                       (nrrd, "c.nrrd", b"\n\nx" + raw, {"line skip": 2, "byte skip": 1}), (nrrd, "d.nrrd", b"anything" + raw, {"byte skip": -1}), (meta, "b.mha", b"head" + raw, dict(HeaderSize=4)), (meta, "c.mha", b"head" + raw, dict(HeaderSize=-1))):
        np.testing.assert_array_equal(read_stored(write(tmp_path/name, PLAIN, body, **changes)).values, values(PLAIN))
        if body[:4] not in (b"\n\nx" + raw[:1], b"anyt", b"head"):
            with pytest.raises(InputError, match="damaged"): read_stored(write(tmp_path/name, PLAIN, body[:-30], **changes))
    bomb = gzip.compress(bytes(1 << 28), 1)                                 # unfolds far beyond what the header announces: read no further
    np.testing.assert_array_equal(read_stored(nrrd(tmp_path/"bomb.nrrd", PLAIN, bomb, encoding="gzip")).values, 0)


def test_names_that_are_no_text(tmp_path):
    path = tmp_path/os.fsdecode(b"odd \xff.nrrd")
    try: path.write_bytes(b"NRRD0004\nno field\n\n")
    except OSError: pytest.skip("this disk takes text only")
    with pytest.raises(InputError) as e: read_ct(path)
    str(e.value).encode()                                                 # can be printed and stored
    with pytest.raises(InputError): read_ct(tmp_path/("x"*300 + ".nrrd"))


# DICOM

def ball(radius=60., bone=700.):
    g = np.stack(np.meshgrid(*[np.arange(-80, 81, 4.)]*3, indexing="ij"), -1)
    r = np.linalg.norm(g*[1, 1, 1.2], axis=-1)
    image = sitk.GetImageFromArray(np.where(r < radius, np.where(r > radius - 12, bone, 40.), -1000.).astype(np.float32)); image.SetSpacing((4, 4, 4)); image.SetOrigin((-80, -80, -80))
    return image


@pytest.fixture(scope="module")
def heads(): return ball(), ball(48.)


def two(folder, heads, tags, step=4., **how):
    for i, image in enumerate(heads): write_dicom(folder/str(i), image, positions=np.arange(20 + i*step/2, 140, step), tags=lambda k: {"0008|0018": f"2.25.{i}.{k + 1}"} | tags(i, k), **how)


@pytest.mark.parametrize("element", ["0020|0052", "0018|1100", "0018|1210"])
def test_scans_between_each_other_are_told_apart(tmp_path, heads, element):
    two(tmp_path, heads, lambda i, k: {element: str(i + 1), "0020|0013": str(2*k + i + 1), "0008|0018": f"2.25.{2*k + i + 1}"})
    flat = tmp_path/"flat"; flat.mkdir()
    for f in list(tmp_path.rglob("*.dcm")): f.rename(flat/f"{f.parent.name}{f.name}")
    parts = list_series(flat)
    assert [x.n for x in parts] == [30, 30] and "between each other" in parts[0].notes[0]
    widths = sorted(float(np.ptp(np.nonzero((sitk.GetArrayFromImage(read_dicom(flat, x.uid)[0]) > 300).any((0, 1)))[0])) for x in parts)
    assert abs(widths[0]*4 - 76) < 9 and abs(widths[1]*4 - 96) < 9


def test_two_patients_under_one_number(tmp_path, heads):
    two(tmp_path, heads, lambda i, k: {})
    assert sorted(map(len, find_studies(tmp_path).values())) == [30, 30]    # two things in a set
    assert [x.n for x in list_series(tmp_path)] == [30, 30]                 # two series, if read as one
    flat = tmp_path/"flat"; flat.mkdir()
    for i, f in enumerate(sorted(tmp_path.rglob("*.dcm"))): f.rename(flat/f"{i}.dcm")
    assert [x.n for x in list_series(flat)] == [30, 30]                     # by the root of the slices' own numbers


def test_one_patient_above_the_other(tmp_path, heads):
    "Lower half of one head, upper half of another, under one number: by the numbers of the images, or else a doubt."
    for name, number in dict(again=lambda i, k: k, on=lambda i, k: 20*i + k).items():
        (tmp_path/name).mkdir()
        for i, image in enumerate(heads):
            for f in write_dicom(tmp_path/f"{name}{i}", image, positions=np.arange(20)*3.9 + 80*i, tags=lambda k: {"0008|0018": f"2.25.{i}.{k + 1}", "0020|0013": str(number(i, k) + 1)}): f.rename(tmp_path/name/f"{i}{f.name}")
        if name == "again": assert len([x for x in list_series(tmp_path/name) if not x.problem]) == 2
        else: assert "all at once" in " ".join(read_ct(tmp_path/name).doubts)


def test_every_slice_a_series(tmp_path, heads):
    for name, tags in dict(series=lambda k: {}, studies=lambda k: {"0020|000d": f"2.25.5.{k + 1}", "0020|0052": f"2.25.6.{k + 1}"}, numbers=lambda k: {"0020|0011": str(k + 1), "0020|0012": str(k + 1), "0020|0013": "1"}).items():
        write_dicom(tmp_path/name, heads[0], tags=lambda k: {"0020|000e": f"2.25.4.{k + 1}"} | tags(k))
        image, info = read_dicom(tmp_path/name)
        assert info["slices"] == 41 and "a series number (SeriesInstanceUID) of its own" in " ".join(info["notes"]) and not info["doubts"]


def test_table_of_contents_is_no_study(tmp_path, heads):
    files = write_dicom(tmp_path/"DICOM", heads[0])
    meta_ = struct.pack("<HH2sH", 2, 2, b"UI", 20) + b"1.2.840.10008.1.3.10"
    for name in ("DICOMDIR", "DIRFILE", "contents.dcm"):
        (tmp_path/name).write_bytes(b"\0"*128 + b"DICM" + meta_ + struct.pack("<HH2sH", 2, 16, b"UI", 20) + b"1.2.840.10008.1.2.1\0")
        assert not is_dicom(tmp_path/name)
    assert {n: len(f) for n, f in find_studies(tmp_path).items()} == {"DICOM": len(files)}


@pytest.mark.parametrize("tags,doubt", [({"0018|0088": "4"}, ""), ({"0018|0088": "2.2"}, "SpacingBetweenSlices"), ({"0018|1120": "15"}, "tilted by 15"), (lambda k: {"0020|1041": str(-4*k)}, ""), (lambda k: {"0020|1041": str(5*k)}, "SliceLocation"),
                                        ({"0018|1120": "15", "0008|0008": "DERIVED\\SECONDARY\\AXIAL"}, "")])
def test_headers_that_contradict_the_positions(tmp_path, heads, tags, doubt):
    write_dicom(tmp_path/"a", heads[0], tags=tags)
    scan = read_ct(tmp_path/"a")
    assert doubt in " ".join(scan.doubts) and bool(doubt) == bool(scan.doubts), scan.doubts


def test_tilted_headers_agree(tmp_path, heads):
    for tilt in (0, 17):
        write_dicom(tmp_path/str(tilt), heads[0], tilt=tilt, positions=np.arange(0, 160, 4.), tags=lambda k: {"0018|0088": "4", "0020|1041": str(4*k)})
        assert not read_ct(tmp_path/str(tilt)).doubts
