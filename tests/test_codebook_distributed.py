"Two processes that share a batch make the same codebook as one that has it all."
import os, subprocess, sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from skeletal_fm.vqvae import Codebook

CASES = (("any", 24), ("foreground", 24), ("any", 300))                     # 300 codes: more than vectors, repeated with noise


def codebooks(rank, world):
    "What one process of several finds in some steps of training."
    found = []
    for rule, n_codes in CASES:
        g = torch.Generator().manual_seed(1)
        book = Codebook(n_codes, 3, decay=.5, restart_from=rule, restart_below=40.)
        for step in range(4):
            z = torch.randn(4, 3, 3, 4, 3, generator=torch.Generator().manual_seed(10 + step)); z[..., 0] *= 5
            part = z.chunk(world)[rank]
            out = book(part, g)
            found.append([book.codes.clone(), book.counts.clone(), book.sums.clone(), out.perplexity, out.n_used.float(), out.codes.float(), out.commitment])
        book.eval()(part)                                                   # outside training no process waits for another
    return found


if __name__ == "__main__":                                                  # one process of two
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder/"meet").as_uri(), rank=rank, world_size=2)
    save_file({f"{i}.{j}": x.contiguous() for i, step in enumerate(codebooks(rank, 2)) for j, x in enumerate(step)}, folder/f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
def test_two_processes_make_the_codebook_of_one(tmp_path):
    root = str(Path(__file__).resolve().parent.parent)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    if sys.platform == "linux": env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    jobs = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    one = codebooks(0, 1)                                                   # here, meanwhile
    for job in jobs: assert job.wait(timeout=120) == 0, job.stderr.read()
    found = [load_file(tmp_path/f"{rank}.safetensors") for rank in range(2)]
    first, second = ([[f[f"{i}.{j}"] for j in range(7)] for i in range(len(one))] for f in found)
    for a, b, c in zip(one, first, second):
        for x, y, z in list(zip(a, b, c))[:5]:                             # codes, counts, sums, perplexity, codes in use
            assert torch.equal(y, z)                                        # both processes have the very same
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-5)
        assert torch.equal(a[5], torch.cat([b[5], c[5]]))                   # every vector got the same code
        assert torch.allclose(a[6], (b[6] + c[6])/2, rtol=1e-5)
