"""A training that is killed (SIGKILL, at random moments) and started again ends bit for bit where the undisturbed one ends.

The trainings run in children of one fresh process, so that torch is imported once. Autoencoder (with its codebook) and denoiser
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
