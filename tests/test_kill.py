"""What is killed (SIGKILL, at random moments) and started again ends bit for bit where the undisturbed one ends: the two trainings,
the encoding of latents, and samples.

All run in children of one fresh process, so that torch is imported once. Autoencoder (with its codebook) and denoiser
(with its averaged weights) are tiny; every third step writes a checkpoint, so that kills also fall into the writing of one.
"""
import os

import pytest
from conftest import python

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import pandas as pd, torch
from skeletal_fm.core import Grid, preset
from skeletal_fm.flow import OTFM
from skeletal_fm.generator import Latents, train_autoencoder, train_denoiser
from skeletal_fm.train import Checkpoint
from skeletal_fm.weights import read_tensors
torch.set_num_threads(1)
what, folder = sys.argv[1], Path(sys.argv[2])
random.seed(what)
p = preset('smoke', in_shape=(12, 12, 12), n_hiddens=4, n_codes=24, code_dim=4, ae_steps=45, ae_batch=2, base=8, mults=(1, 2), flow_steps=45, flow_batch=4)

class Boxes:
    grid, fingerprint, quality_scores = Grid.centred((16, 16, 16), 1.), 'boxes', [2, 5]*4
    ids = [f'box{i}' for i in range(8)]
    def __len__(self): return 8
    def __getitem__(self, i):
        v = torch.full((1, 16, 16, 16), -1.)
        v[:, 3:9 + i % 4, 4:12, 5:10 + i//4] = 1
        return dict(volume=v)

latents = Latents(torch.randn(8, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).half(), torch.tensor(Boxes.quality_scores), Boxes.ids)
def work(place):
    checkpoint = Checkpoint(place, every_steps=3)
    if what == 'autoencoder': train_autoencoder(Boxes(), p, place, checkpoint=checkpoint, progress='')
    else: train_denoiser(latents, OTFM(), p, place, checkpoint=checkpoint, progress='')

def lines(place):
    try: return len((place/'log.csv').read_text().splitlines()) - 1
    except FileNotFoundError: return 0

def child(place, kill=False):
    "Train in a child; kill it some steps on, at any moment of a step."
    start = time.time()
    pid = os.fork()
    if not pid:
        try: work(place)
        except BaseException as e: print(repr(e), flush=True); os._exit(1)
        os._exit(0)
    if kill:
        steps, log = random.randint(3, 11), place/'log.csv'
        fresh = lambda: log.exists() and log.stat().st_mtime > start        # a resumed run first cuts the log back to its checkpoint
        while not fresh(): time.sleep(.002)
        goal = lines(place) + steps
        while lines(place) < goal: time.sleep(.002)
        time.sleep(random.uniform(0, .05))
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

began = time.monotonic()
assert child(folder/'whole') == 0
steps = []
for k in range(3):
    assert os.WIFSIGNALED(child(folder/'killed', kill=True)), f'finished before kill {k + 1}'
    steps.append(lines(folder/'killed'))
assert child(folder/'killed') == 0
name = what + '.safetensors'
a, b = (read_tensors(folder/k/name) for k in ('whole', 'killed'))
assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]
logs = [pd.read_csv(folder/k/'log.csv').drop(columns='seconds') for k in ('whole', 'killed')]
assert logs[0].equals(logs[1]) and len(logs[0]) == 45
assert sorted(f.name for f in (folder/'killed').iterdir()) == sorted([name, 'log.csv']), list((folder/'killed').iterdir())
print('killed after steps', steps, f'{time.monotonic() - began:.1f} s')
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["autoencoder", "denoiser"])
def test_killed_and_resumed_equals_undisturbed(what, tmp_path):
    script = tmp_path / "kill.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = python(script, what, tmp_path, OMP_NUM_THREADS="1", timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "killed after steps" in done.stdout
    print(done.stdout)


STAGES = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from skeletal_fm.core import Grid, Run, preset
from skeletal_fm.flow import OTFM
from skeletal_fm.generator import encode_latents, generated, load_latents, unet_options, vqvae_options
from skeletal_fm.scan import write_volume
from skeletal_fm.synthesis import Generator, synthesise
from skeletal_fm.unet import UNet
from skeletal_fm.vqvae import VQVAE
torch.set_num_threads(1)
what, folder = sys.argv[1], Path(sys.argv[2])
random.seed(what); torch.manual_seed(0)
p, grid = preset('smoke', in_shape=(12, 12, 12), n_hiddens=4, n_codes=24, code_dim=4, base=8, mults=(1, 2)), Grid.centred((16, 16, 16), 8.)
vqvae, unet = VQVAE(p.in_shape, grid.shape, **vqvae_options(p)).eval(), UNet(4, **unet_options(p)).eval()
with torch.no_grad(): vqvae.decoder.last.bias.zero_()
asked = [2, 3, 4, 5, 6]*4

class Noise:
    fingerprint, quality_scores, ids = 'noise', asked, [f'noise{i}' for i in range(20)]
    def __len__(self): return 20
    def __getitem__(self, i):
        time.sleep(.1)
        return dict(volume=torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(i)).sign())

class Slow(Generator):
    def volumes(self, *args, **options):
        time.sleep(.1)
        return super().volumes(*args, **options)

def stage(f): # as the page does it
    for i, v in enumerate(generated(unet, vqvae, OTFM(), asked, 2, progress='')):
        time.sleep(.03)
        write_volume(f/f'{i:03d}.nii.gz', (v[0] > 0).numpy().astype(np.uint8), grid)
        np.save(f/f'{i:03d}.npy', v[0].half().numpy())

def work(place):
    if what == 'latents': Run(place, {}).stage('latents', {}, lambda f: encode_latents(vqvae, Noise(), f, progress=''))
    elif what == 'samples': Run(place, {}).stage('samples', {}, stage)
    else: synthesise(Slow(unet, vqvae, OTFM(), grid, dict(source='x', checkpoints=dict(autoencoder='x', denoiser='x'), training_data='x', in_shape=p.in_shape, reference='keep', quality_scores={}, preset={})), place/'set', asked, n_steps=2, progress='')

def child(place, kill=False):
    pid = os.fork()
    if not pid:
        sys.stdout = open(os.devnull, 'w')
        try: work(place)
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
        os._exit(0)
    if kill:
        time.sleep(random.uniform(.15, .5))
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

assert child(folder/'whole') == 0
for k in range(3): assert os.WIFSIGNALED(child(folder/'killed', kill=True)), f'finished before kill {k + 1}'
assert child(folder/'killed') == 0
when = {f: f.stat().st_mtime_ns for f in (folder/'killed').rglob('*')}
assert child(folder/'killed') == 0 and when == {f: f.stat().st_mtime_ns for f in (folder/'killed').rglob('*') if f in when}      # finished: only read
content = lambda d: {str(f.relative_to(d)): f.read_bytes() for f in sorted(d.rglob('*')) if f.is_file() and f.suffix != '.gz' and f.name not in ('stage.json', '.lock', '.claim')}
a, b = content(folder/'whole'), content(folder/'killed')
assert a == b, sorted(set(a) ^ set(b)) or [k for k in a if a[k] != b[k]]
if what == 'latents': assert torch.equal(load_latents(folder/'killed'/'latents').x0, load_latents(folder/'whole'/'latents').x0)
print('the same after three kills')
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["latents", "samples", "set"])
def test_killed_stages_equal_undisturbed(what, tmp_path):
    "Latents go on where they were, a set with the skull it was at; the samples of a page are drawn again."
    script = tmp_path / "kill.py"
    script.write_text(STAGES, encoding="utf-8")
    done = python(script, what, tmp_path, OMP_NUM_THREADS="1", timeout=300)
    assert done.returncode == 0 and "the same after three kills" in done.stdout, (done.stdout + done.stderr)[-3000:]
