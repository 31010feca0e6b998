"""Two processes and the same global batch come to the same result as one, within rounding; started as a notebook starts them.

CPU processes with gloo; a GPU for each process takes the same path with NCCL, which no machine of ours could try.
"""
import os

import numpy as np
import pandas as pd
import pytest
import torch

from skeletal_fm.core import InputError, preset
from skeletal_fm.dataset import SkullDataset, prepare
from skeletal_fm.generator import encode_latents, train, train_autoencoder
from skeletal_fm.weights import read_meta, read_tensors

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Both sides on one thread: the order of sums inside an operation is then the same, and two processes fit on a small machine."
    before, os.environ["OMP_NUM_THREADS"] = (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")), "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    os.environ.pop("OMP_NUM_THREADS") if before[1] is None else os.environ.update(OMP_NUM_THREADS=before[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare("phantom", tmp_path_factory.mktemp("data") / "data", preset("smoke", n_train=8, n_test=2), seed=0)


def both(folder, name, **job):
    "The result of a job in one process and in two: tensors and log of each."
    out = []
    for n in (1, 2):
        place = folder / f"{n}_processes"
        train(n, folder=place, **job)
        assert not [p for p in place.iterdir() if p.name not in (f"{name}.safetensors", "log.csv", "job.json")]
        out.append((read_tensors(place / f"{name}.safetensors"), pd.read_csv(place / "log.csv"), read_meta(place / f"{name}.safetensors")))
    return out


def differ(a, b):
    "Difference of two sets of tensors, relative to their size: as one long vector, since Adam makes rounding large where a gradient is nearly zero."
    flat = lambda t: torch.cat([t[k].float().flatten() for k in sorted(t)])
    return ((flat(a) - flat(b)).norm() / flat(a).norm()).item()


def test_autoencoder(data, tmp_path):
    "With the codebook's start and restarts, which choose among the rows of the whole batch."
    p = preset("smoke", ae_steps=8, ae_batch=4, restart_from="foreground")
    (one, log1, about1), (two, log2, about2) = both(tmp_path, "autoencoder", train="autoencoder", data=data, preset=p)
    assert len(log1) == len(log2) == 8 and about1 == about2
    for column in ("loss", "error", "commitment", "grad_norm", "perplexity", "codes_used"):
        np.testing.assert_allclose(log1[column], log2[column], rtol=2e-3, err_msg=column)
    np.testing.assert_allclose(log1.loss[:2], log2.loss[:2], rtol=1e-5)
    assert differ(one, two) < 5e-3, differ(one, two)


def test_denoiser(data, tmp_path):
    "Also in micro-batches: two processes with two each."
    dataset = SkullDataset(data, "train")
    vqvae = train_autoencoder(dataset, preset("smoke", ae_steps=1), tmp_path / "ae", progress="")
    encode_latents(vqvae, dataset, tmp_path / "latents", progress="")
    p = preset("smoke", flow_steps=8, flow_batch=4)
    job = dict(train="denoiser", latents=tmp_path / "latents", objective="ddpm")
    (one, log1, _), (two, log2, _) = both(tmp_path, "denoiser", preset=p, **job)
    np.testing.assert_allclose(log1.loss, log2.loss, rtol=1e-3)
    assert differ(one, two) < 5e-3, differ(one, two)
    train(1, folder=tmp_path / "cut", preset=preset("smoke", flow_steps=8, flow_batch=4, flow_accumulate=4), **job)
    np.testing.assert_allclose(log1.loss, pd.read_csv(tmp_path / "cut" / "log.csv").loss, rtol=1e-3)


def test_what_cannot_be_cut_is_refused(data, tmp_path):
    "In words, from the processes themselves."
    with pytest.raises(InputError, match="cannot be cut into 1 micro-batches for 2 processes"):
        train(2, train="autoencoder", data=data, preset=preset("smoke", ae_batch=1), folder=tmp_path / "ae")
