"""Good files of every kind that is read, damaged at random. What comes back must be a result or an `InputError`: no other error, no crash, no hang,
no memory without end, no file written (or read, where it is planted) outside the folder of the case.

    python tests/fuzz.py --n 5000 --seed 1                     all kinds in turn
    python tests/fuzz.py --n 500 --seed 1 --kind ply --kind obj
    python tests/fuzz.py --seed 1 --kind ply --case 17 --keep out/case   one case, here, with its error; its files stay in out/case

Case and seed determine the damage. Many cases run in one limited child process; when it dies, the case it had begun is the culprit, and a new child goes on behind it.
"""
import argparse
import gzip
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from pathlib import Path

CPU_SECONDS, SILENT_SECONDS, MEMORY = 20, 300, 2 << 30     # for one case; by the clock, on the busiest of machines; beyond what the package itself takes


# good files -------------------------------------------------------------------------------------------------------

def head(shape=(46, 38, 40), spacing=4.):
    "HU of a toy head, and its grid."
    import numpy as np
    from skeletal_fm.core import Grid
    grid = Grid.centred(shape, spacing)
    r = np.linalg.norm(grid.points()/[80, 65, 70], axis=-1)
    return np.select([r < .9, r < 1, r < 1.1], [40, 900, 40], -1000).astype(np.int16), grid


def ball():
    import trimesh
    return trimesh.creation.icosphere(2).apply_scale([70, 90, 80])


def points_and_faces():
    return ["%.4f %.4f %.4f" % tuple(p) for p in ball().vertices], ball().faces.tolist()


def text_of(suffix):
    "A mesh as text, as other programs write it."
    p, f = points_and_faces()
    row = lambda i, n="3 ": n + " ".join(map(str, i))
    if suffix == ".obj": return "\n".join(["# units = mm", "o ball", *["v " + x for x in p], *["f " + " ".join(f"{k - len(p)}//1" for k in i) for i in f]])
    if suffix == ".off": return "\n".join([f"OFF\n{len(p)} {len(f)} 0", *p, *map(row, f)])
    if suffix == ".ply": return "\n".join([f"ply\nformat ascii 1.0\ncomment SPACE=RAS\nelement vertex {len(p)}\nproperty float x\nproperty float y\nproperty float z\nelement face {len(f)}\nproperty list uchar int vertex_indices\nend_header", *p, *map(row, f)])
    if suffix == ".vtk": return "\n".join([f"# vtk DataFile Version 4.2\nSPACE=LPS\nASCII\nDATASET POLYDATA\nPOINTS {len(p)} double", *p, f"POLYGONS {len(f)} {4*len(f)}", *map(row, f), ""])
    return "solid ball\n" + "".join("facet normal 0 0 0\nouter loop\n" + "".join(f"vertex {p[k]}\n" for k in i) + "endloop\nendfacet\n" for i in f) + "endsolid ball\n"


def binary_vtk():
    import numpy as np
    m = ball()
    cells = np.column_stack([np.full(len(m.faces), 3), m.faces])
    return f"# vtk DataFile Version 3.0\nx\nBINARY\nDATASET POLYDATA\nPOINTS {len(m.vertices)} float\n".encode() + m.vertices.astype(">f4").tobytes() + f"\nPOLYGONS {len(cells)} {cells.size}\n".encode() + cells.astype(">i4").tobytes()


def strips():
    import numpy as np
    m = ball()
    strip = np.column_stack([m.faces, np.full(len(m.faces), -1)]).astype("<i4")
    return f"ply\nformat binary_little_endian 1.0\nelement vertex {len(m.vertices)}\nproperty float x\nproperty float y\nproperty float z\nelement tristrips 1\nproperty list int int vertex_indices\nend_header\n".encode() + m.vertices.astype("<f4").tobytes() + struct.pack("<i", strip.size) + strip.tobytes()


def frames(files, path):
    "One enhanced (multi-frame) DICOM file from single ones."
    from skeletal_fm.dicom import read_header
    slices = [read_header(f) for f in files]
    first = slices[0]

    def e(tag, kind, v):
        v = v.encode() if isinstance(v, str) else struct.pack("<H", v) if isinstance(v, int) else v
        v += b" "*(len(v) % 2)
        return struct.pack("<HH2s", tag >> 16, tag & 0xffff, kind) + (struct.pack("<HI", 0, len(v)) if kind in (b"SQ", b"OW") else struct.pack("<H", len(v))) + v
    sequence = lambda tag, *items: e(tag, b"SQ", b"".join(struct.pack("<HHI", 0xfffe, 0xe000, len(i)) + i for i in items))
    numbers = lambda x: "\\".join(f"{i:.10g}" for i in x)
    shared = sequence(0x00209116, e(0x00200037, b"DS", numbers(first["Orientation"]))) + sequence(0x00289110, e(0x00280030, b"DS", numbers(first["PixelSpacing"]))) + sequence(0x00289145, e(0x00281052, b"DS", "-1024") + e(0x00281053, b"DS", "1"))
    own = [sequence(0x00209113, e(0x00200032, b"DS", numbers(s["Position"]))) for s in slices]
    size = 2*int(first["Rows"])*int(first["Columns"])
    body = (e(0x00080008, b"CS", "ORIGINAL\\PRIMARY\\VOLUME") + e(0x00080016, b"UI", "1.2.840.10008.5.1.4.1.1.2.1") + e(0x00080060, b"CS", "CT") + e(0x00100020, b"LO", "phantom") + e(0x0020000d, b"UI", "1.2.3") + e(0x0020000e, b"UI", "1.2.4")
            + e(0x00280002, b"US", 1) + e(0x00280008, b"IS", str(len(slices))) + b"".join(e(0x00280000 + k, b"US", v) for k, v in [(0x10, int(first["Rows"])), (0x11, int(first["Columns"])), (0x100, 16), (0x101, 16), (0x102, 15), (0x103, 0)])
            + sequence(0x52009229, shared) + sequence(0x52009230, *own) + e(0x7fe00010, b"OW", b"".join(Path(f).read_bytes()[-size:] for f in files)))
    path.write_bytes(b"\0"*128 + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0" + body)


def dicom(folder, compress=None):
    import SimpleITK as sitk
    from skeletal_fm.dicom import write_dicom
    from skeletal_fm.scan import write_volume
    file = folder.parent/"dicom.nii.gz"
    if not file.exists(): write_volume(file, *head())
    return write_dicom(folder, sitk.ReadImage(str(file)), compress=compress)


def volume(name, packed=True):
    def make(folder):
        import SimpleITK as sitk
        from skeletal_fm.scan import write_volume
        write_volume(folder/"volume.nii.gz", *head())
        image = sitk.ReadImage(str(folder/"volume.nii.gz"))
        (folder/"volume.nii.gz").unlink()
        sitk.WriteImage(image, str(folder/name), useCompression=packed)
    return make


def mesh(name, data):
    def make(folder):
        content = data() if callable(data) else data
        (folder/name).write_bytes(content.encode() if isinstance(content, str) else content)
    return make


def dataset(folder):
    "A data set of two skulls, as `prepare` leaves it."
    from skeletal_fm.core import preset
    from skeletal_fm.dataset import prepare
    prepare("phantom", folder/"set", preset("smoke", n_train=2, n_test=1), workers=1)
    for p in ("views", "meshes", "report.html"):
        if (folder/"set"/p).exists(): shutil.rmtree(folder/"set"/p) if (folder/"set"/p).is_dir() else (folder/"set"/p).unlink()


def model(folder):
    from skeletal_fm.unet import UNet
    from skeletal_fm.weights import save_model
    save_model(folder/"denoiser.safetensors", UNet(channels=2, base=8, mults=(1,), heads=1, head_dim=4), steps=3)


def run(folder):
    "A run with one finished stage."
    from skeletal_fm.core import Run
    Run(folder/"run", dict(seed=0, preset=dict(name="smoke", mults=[1, 2]))).stage("latents", dict(data="abc"), lambda f: (f/"numbers.csv").write_text("step,loss\n1,2.5\n2,1.5\n"))


def latents(folder):
    import torch
    from skeletal_fm.weights import write_tensors
    write_tensors(folder/"latents.safetensors", dict(x0=torch.zeros(3, 2, 2, 2, 2).half(), quality_scores=torch.tensor([2, 3, 4])), dict(ids=["a", "b", "c"], bound=1.))


# readers ----------------------------------------------------------------------------------------------------------

def one(folder): return next((p for p in sorted(folder.iterdir()) if p.name.startswith(("m.", "v.")) and p.suffix not in (".raw", ".zraw")), folder/"gone.nhdr")


def reads_mesh(folder):
    from skeletal_fm.mesh import read_mesh
    read_mesh(one(folder))


def reads_volume(folder):
    from skeletal_fm.scan import read_ct
    read_ct(one(folder), straight=False)


def reads_dicom(folder):
    from skeletal_fm.scan import read_ct
    read_ct(folder, straight=False)


def reads_one_dicom(folder):
    from skeletal_fm.scan import read_ct
    read_ct(next(folder.iterdir()), straight=False)


def reads_labels(folder):
    from types import SimpleNamespace
    from skeletal_fm.catalog import read_labels
    read_labels(folder/"labels.csv", folder, [SimpleNamespace(id=k, name=f"{k}.stl") for k in "abc"])


def reads_dataset(folder):
    from skeletal_fm.dataset import SkullDataset
    for item in (data := SkullDataset(folder/"set", "all")): assert tuple(item["volume"].shape[1:]) == data.grid.shape


def reads_model(folder):
    from skeletal_fm.unet import UNet
    from skeletal_fm.weights import load_model
    load_model(folder/"denoiser.safetensors", UNet)


def reads_weights(folder):
    from skeletal_fm.weights import read_numbers
    read_numbers(folder/"weights.pth", "Fetch them again.")


def pth(folder):
    import torch
    torch.save(dict(a=torch.zeros(3, 4), b=torch.ones(2)), folder/"weights.pth")


def reads_run(folder):
    from skeletal_fm.core import Run
    Run(folder/"run", dict(seed=0, preset=dict(name="smoke", mults=[1, 2]))).stage("latents", dict(data="abc"), lambda f: (f/"numbers.csv").write_text("step,loss\n"))


def reads_latents(folder):
    from skeletal_fm.generator import load_latents
    load_latents(folder).outside


def zipped(folder):
    with zipfile.ZipFile(folder.parent/"packed.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for p in sorted(folder.iterdir()): z.write(p, p.name)
    for p in folder.iterdir(): p.unlink()
    shutil.move(folder.parent/"packed.zip", folder/"study.zip")


def gzipped(folder):
    for p in sorted(folder.glob("*.nii")): (folder/f"{p.name}.gz").write_bytes(gzip.compress(p.read_bytes(), 1)); p.unlink()


KINDS = {   # name: what makes good files, what reads them, what packs them after they were damaged
    "stl": (mesh("m.stl", lambda: ball().export(file_type="stl")), reads_mesh), "stl_text": (mesh("m.stl", lambda: text_of(".stl")), reads_mesh),
    "ply": (mesh("m.ply", lambda: ball().export(file_type="ply")), reads_mesh), "ply_text": (mesh("m.ply", lambda: text_of(".ply")), reads_mesh), "ply_strips": (mesh("m.ply", strips), reads_mesh),
    "obj": (mesh("m.obj", lambda: text_of(".obj")), reads_mesh), "off": (mesh("m.off", lambda: text_of(".off")), reads_mesh),
    "vtk": (mesh("m.vtk", binary_vtk), reads_mesh), "vtk_text": (mesh("m.vtk", lambda: text_of(".vtk")), reads_mesh),
    "nii": (volume("v.nii"), reads_volume), "nii_gz": (volume("v.nii"), reads_volume, gzipped), "nii_gz_bytes": (volume("v.nii.gz"), reads_volume),
    "nrrd": (volume("v.nrrd"), reads_volume), "nrrd_raw": (volume("v.nrrd", False), reads_volume), "nhdr": (volume("v.nhdr", False), reads_volume),
    "mha": (volume("v.mha"), reads_volume), "mhd": (volume("v.mhd", False), reads_volume),
    "dicom": (dicom, reads_dicom), "dicom_jpeg": (lambda folder: dicom(folder, "JPEG"), reads_dicom), "dicom_zip": (dicom, reads_one_dicom, zipped),
    "dicom_frames": (lambda folder: [frames(files := dicom(folder), folder/"many.dcm"), *map(Path.unlink, files)], reads_one_dicom),
    "labels": (mesh("labels.csv", "file,quality_score,patient,verdict\na.stl,2,p1,accepted\nb.stl,5,\"p,2\",\nc,0,,unsuitable\n"), reads_labels),
    "dataset": (dataset, reads_dataset), "model": (model, reads_model), "weights": (pth, reads_weights), "run": (run, reads_run), "latents": (latents, reads_latents),
}


# damage -----------------------------------------------------------------------------------------------------------

ODD = [b"-1", b"0", b"1", b"nan", b"inf", b"-inf", b"1e308", b"-1e308", b"1e-308", b"2147483647", b"4294967296", b"9"*25, b"9"*5000, b"1.5", b"0x10", b"", b" ", b"\0", b"%s%n%d%x", b"../elsewhere/secret.raw", b"LIST",
       b"'\"", b"=1+1", b"\xff\xfe", b"A"*1000, b"A"*70000, b"[]", b"{}", b"null", b"true", b"\n\n", b"\r", b"\\"]
EXTREME = [struct.pack(f, v) for f, v in [("<h", -1), ("<h", 0), ("<H", 32768), ("<i", -1), ("<i", 2**31 - 1), ("<i", -2**31), (">i", 2**31 - 1), ("<I", 2**32 - 1), ("<q", 2**62), ("<f", float("nan")), ("<f", float("inf")), ("<f", 1e38), ("<f", -1.), ("<f", 0.), ("<d", 1e308), ("<d", float("nan"))]]


def flip(rng, d):
    for _ in range(rng.choice([1, 1, 4, 30])): d[rng.randrange(len(d))] ^= 1 << rng.randrange(8)
    return d


def overwrite(rng, d):
    x, at = rng.choice(EXTREME), rng.randrange(min(len(d), rng.choice([400, len(d)])))
    d[at:at + len(x)] = x
    return d


def cut(rng, d): return d[:rng.randrange(len(d))] if rng.random() < .8 else d[rng.randrange(len(d)):]


def insert(rng, d):
    at = rng.randrange(min(len(d), rng.choice([300, len(d)])))
    d[at:at] = rng.choice([*ODD, rng.randbytes(rng.choice([1, 9, 500])), bytes(rng.choice([1, 300]))])
    return d


def move(rng, d):
    "A block is lost, doubled, or put elsewhere."
    a, n, b = rng.randrange(len(d)), rng.choice([1, 4, 50, 2000]), rng.randrange(len(d))
    block, how = d[a:a + n], rng.randrange(3)
    if how != 1: del d[a:a + n]
    if how: d[b:b] = block
    return d


def lines(rng, d):
    "A line among the first, or anywhere, is lost, doubled, moved, or another."
    rows = d.split(b"\n")
    k = rng.randrange(min(len(rows), rng.choice([15, len(rows)])))
    how = rng.randrange(4)
    row = rows[k] if how == 1 else rows.pop(k)
    if how in (1, 2): rows.insert(rng.randrange(len(rows) + 1), row)
    if how == 3: rows.insert(k, rng.choice(ODD))
    return bytearray(b"\n".join(rows))


def word(rng, d):
    "A number or a word of text becomes something odd."
    start = 0 if rng.random() < .7 else rng.randrange(len(d))
    found = list(re.finditer(rng.choice([rb"[-+]?\d[\d.]*(?:e[-+]?\d+)?", rb"[\w./%-]+"]), bytes(d[start:start + 1500])))
    if not found: return flip(rng, d)
    a, b = rng.choice(found).span()
    d[start + a:start + b] = rng.choice(ODD)
    return d


def damage(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if data: data = rng.choice([flip, overwrite, cut, insert, move, lines, lines, word, word, word])(rng, bytearray(data))
    return bytes(data)


def damage_folder(rng, folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    for p in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2, 5]))):
        how = rng.random() if len(files) > 1 else 1
        if how < .05: p.unlink()
        elif how < .1: shutil.copy(rng.choice([f for f in files if f.exists()]), p.with_name(f"{p.stem}x{p.suffix}"))
        else: p.write_bytes(damage(rng, p.read_bytes()))


# cases, in a child ------------------------------------------------------------------------------------------------

class TooLong(BaseException): pass


def guard(home):
    "Limits of this process; gives the list of what was touched outside `home`."
    outside = []
    home = str(home.resolve()) + os.sep
    planted = str(Path(home)/"elsewhere") + os.sep

    def watch(event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) or event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate")
        if (writes or event == "open") and isinstance(args[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(args[0]))
            if event in ("os.remove", "os.rmdir") and args[1] not in (-1, None): return       # relative to a folder that is open: `rmtree`, which named that folder before
            if writes and not path.startswith((home, "/dev/", "/proc/")) or path.startswith(planted): outside.append(f"{event} {path}")
    sys.addaudithook(watch)
    try:
        import resource
        taken = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])*1024
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, taken + MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
    except (ImportError, OSError, ValueError): pass                                # not on this system
    return outside


def try_case(kind, seed, case, home, keep=None):
    "Damage, read, and say what came of it: 'read', 'refused: ...', or 'FAULT ...'."
    from skeletal_fm.core import InputError, MachineFault
    make, read, *pack = KINDS[kind]
    good, folder = home/"good"/kind, home/"case"
    if not good.exists(): good.mkdir(parents=True); make(good)
    shutil.rmtree(folder, ignore_errors=True); shutil.copytree(good, folder)
    rng = random.Random(f"{kind} {seed} {case}")
    if case >= 0 and (not pack or rng.random() < .8): damage_folder(rng, folder)
    for f in pack: f(folder)
    if case >= 0 and pack and rng.random() < .25: damage_folder(rng, folder)
    if keep: shutil.copytree(folder, keep, dirs_exist_ok=True)
    os.chdir(folder)
    if hasattr(signal, "setitimer"): signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try: read(folder); return "read"
    except MachineFault as e: return f"FAULT the file's fault became the machine's: {e}"
    except InputError as e: return f"refused: {e}" if str(e).strip() else "FAULT a refusal without words"
    except TooLong: return f"FAULT hang: more than {CPU_SECONDS} s of processor time at {where(sys.exc_info()[2])}"
    except Exception as e: return f"FAULT {type(e).__name__}: {str(e)[:200]} at {where(e.__traceback__)}"
    finally:
        if hasattr(signal, "setitimer"): signal.setitimer(signal.ITIMER_PROF, 0)
        os.chdir(home)


def where(tb):
    "The last line of the package on the way to an error."
    own = [f for f in traceback.extract_tb(tb) if "skeletal_fm" in Path(f.filename).parts] or traceback.extract_tb(tb)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}"[:160]


def child(jobs, home):
    "Cases one after the other; each line on the standard output begins or ends one."
    warnings.simplefilter("ignore")
    say, sys.stdout = sys.stdout, open(os.devnull, "w")
    os.environ["TMPDIR"] = tempfile.tempdir = str(home/"tmp")
    (home/"tmp").mkdir(exist_ok=True); (home/"elsewhere").mkdir(exist_ok=True); (home/"elsewhere"/"secret.raw").write_bytes(bytes(200_000))
    import skeletal_fm.dataset, skeletal_fm.generator, skeletal_fm.scan, skeletal_fm.unet, skeletal_fm.weights  # noqa: E401, F401  imported before the guard looks
    import torch
    torch.set_num_threads(1)
    os.chdir(home)
    outside = guard(home)

    def too_long(*_): raise TooLong
    if hasattr(signal, "SIGPROF"): signal.signal(signal.SIGPROF, too_long)
    for kind, seed, case in jobs:
        print(json.dumps(["begin", kind, seed, case]), file=say, flush=True)
        said = try_case(kind, seed, case, home)
        if outside: said = f"FAULT outside its folder: {outside[0]}"; outside.clear()
        if case < 0 and said != "read": said = f"FAULT the good file: {said}"
        print(json.dumps(["end", kind, seed, case, said]), file=say, flush=True)


# all cases --------------------------------------------------------------------------------------------------------

def one_child(jobs, home, results):
    "Run jobs until one kills the child; gives how many are through."
    process = subprocess.Popen([sys.executable, __file__, "--child", str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env=os.environ | dict(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", MPLBACKEND="agg", PYTHONPATH=os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])))
    last = [time.monotonic()]

    def feed():
        try: process.stdin.write(json.dumps(jobs)); process.stdin.close()
        except OSError: pass                                                         # it died

    def watch():
        while process.poll() is None:
            time.sleep(1)
            if time.monotonic() - last[0] > SILENT_SECONDS: process.kill()
    for f in (feed, watch): threading.Thread(target=f, daemon=True).start()
    begun = done = 0
    for line in process.stdout:
        last[0] = time.monotonic()
        kind, *rest = json.loads(line)
        if kind == "begin": begun += 1
        else: done += 1; results.append(rest)
    process.wait()
    if done < len(jobs):
        what = signal.Signals(-process.returncode).name if process.returncode < 0 else f"code {process.returncode}"
        results.append([*jobs[done], f"FAULT the process died ({what})" if begun > done else f"FAULT the process did not begin ({what})"])
        done += 1
    return done


def fuzz(n, seed, kinds=None):
    "`n` damaged cases in turn over the kinds, and each good file once; gives `[kind, seed, case, what came]`."
    kinds, results = list(kinds or KINDS), []
    jobs = [(k, seed, -1) for k in kinds] + [(kinds[i % len(kinds)], seed, i//len(kinds)) for i in range(n)]
    with tempfile.TemporaryDirectory(prefix="fuzz_") as home:
        while jobs: jobs = jobs[one_child(jobs, Path(home).resolve(), results):]
    return results


def report(results):
    "Counts for each kind, and each fault once; gives the number of faults."
    faults, seen = [r for r in results if r[3].startswith("FAULT")], {}
    print(f"{'kind':14}{'cases':>7}{'read':>7}{'refused':>9}{'faults':>8}")
    for kind in dict.fromkeys(r[0] for r in results):
        mine = [r[3].split(":")[0].split()[0] for r in results if r[0] == kind and r[2] >= 0]
        print(f"{kind:14}{len(mine):7}{mine.count('read'):7}{mine.count('refused'):9}{mine.count('FAULT'):8}")
    for kind, seed, case, said in faults: seen.setdefault((kind, re.sub(r"\d+|'[^']*'", "#", said)[:120]), []).append((case, seed, said))
    for (kind, _), cases in seen.items():
        case, seed, said = cases[0]
        print(f"\n{len(cases)} x {kind}: {said}\n    python tests/fuzz.py --seed {seed} --kind {kind} --case {case} --keep out/case")
    return len(faults)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="damaged cases, all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="again for several; default all")
    parser.add_argument("--case", type=int, help="one case, in this process")
    parser.add_argument("--keep", type=Path, help="folder for the files of that case")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child: return child(json.load(sys.stdin), a.child)
    if a.case is None: sys.exit(report(fuzz(a.n, a.seed, a.kind)) > 0)
    if not a.kind: parser.error("--case needs --kind")
    keep = a.keep and a.keep.resolve()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory(prefix="fuzz_") as home:
        (home := Path(home).resolve()).joinpath("elsewhere").mkdir(); (home/"elsewhere"/"secret.raw").write_bytes(bytes(200_000))
        if hasattr(signal, "SIGPROF"): signal.signal(signal.SIGPROF, lambda *_: traceback.print_stack() or sys.exit(1))
        print(try_case(a.kind[0], a.seed, a.case, home, keep))


if __name__ == "__main__":
    main()
