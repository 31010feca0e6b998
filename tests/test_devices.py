"""Apple's GPU has no numbers in double precision, and no machine of ours has such a GPU. So one is played: tensors on a device
"apple" are computed on the CPU, and refuse float64. All that trains or draws runs there once, in a process of its own."""
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

register = getattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend", None)


class OnApple(torch.Tensor):
    "A tensor that says it lies on the GPU; its numbers, `.inner`, lie on the CPU."
    @staticmethod
    def __new__(cls, inner):
        if inner.dtype == torch.float64: raise TypeError("the device has no float64")
        out = torch.Tensor._make_wrapper_subclass(cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=torch.device("apple", 0))
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None): return run(op, args, kwargs or {})
    def __repr__(self): return f"OnApple({self.inner})"


def run(op, args, kwargs):
    "One operation; its result lies where it was asked for, else where its tensors lie."
    flat = []
    tree_map(flat.append, (args, kwargs))
    there = any(isinstance(x, OnApple) for x in flat)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "apple"
        kwargs = dict(kwargs, device=torch.device("cpu"))
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, OnApple) else x, (args, kwargs))
    out = op(*inner_args, **inner_kwargs)
    if op._schema.name.endswith("_"): return args[0]
    return tree_map(lambda x: OnApple(x) if there and isinstance(x, torch.Tensor) else x, out)


class Apple(TorchDispatchMode):
    "Within it, tensors can be made on the device."
    def __torch_dispatch__(self, op, types, args=(), kwargs=None): return run(op, args, kwargs or {})


def try_the_device():
    "It computes, and refuses what it should."
    x = torch.arange(4., device="apple")
    assert (x*2).device.type == "apple" and float((x*2).sum()) == 12 and torch.ones(2).to("apple").device.type == "apple"
    assert x.cpu().double().dtype == torch.float64
    for wrong in (lambda: x.double(), lambda: torch.zeros(2, dtype=torch.float64, device="apple"), lambda: torch.zeros(2, dtype=torch.float64).to("apple"), lambda: x.sum(dtype=torch.float64)):
        try: wrong()
        except TypeError: continue
        raise AssertionError("float64 was taken")


def train_and_draw():
    "Both networks, both objectives, every sampler: two steps of training, and samples; the numbers are those of the CPU."
    from skeletal_fm.ddpm import DDPM
    from skeletal_fm.flow import OTFM
    from skeletal_fm.unet import UNet
    from skeletal_fm.vqvae import VQVAE, reconstruction_loss
    torch.__future__.set_swap_module_params_on_conversion(True)
    draw = lambda seed, *shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = {}
    for where in ("cpu", "apple"):
        got = found[where] = []
        torch.manual_seed(0)
        ae, unet = VQVAE((8, 8, 12), (10, 10, 14), n_hiddens=4, n_codes=12, code_dim=4, restart_from="foreground", restart_below=30.), UNet(4, base=8, mults=(1, 2), heads=2)
        ae, unet = ae.to(where), unet.to(where)
        for step in range(2):
            volume = draw(step, 2, 1, 10, 10, 14).sign().to(where)
            ae.train()
            loss = reconstruction_loss(ae(volume[..., :8, :8, :12], torch.Generator().manual_seed(step)), volume)
            loss.backward(); got.append(loss)
        latent = ae.eval().to_latent(volume[..., :8, :8, :12])
        got += [latent, ae.codebook.codes, ae.from_latent(latent)]
        for objective, methods in ((OTFM(20), ("euler", "heun", "adaptive", "fast")), (OTFM(20, coupling="minibatch"), ()), (DDPM(20), ("ancestral", "ddim"))):
            loss = objective.loss(unet.train(), latent, torch.tensor([2, 5]), torch.Generator().manual_seed(3))
            loss.backward(); got.append(loss)
            for method in methods:
                got.append(objective.sample(unet.eval(), latent.shape, torch.tensor([2, 5]), 4, method, generator=torch.Generator().manual_seed(4)))
    assert all(x.device.type == "apple" for x in found["apple"])
    for a, b in zip(found["cpu"], found["apple"]): torch.testing.assert_close(b.detach().cpu(), a.detach(), rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    register("apple")
    torch.apple.get_amp_supported_dtype = lambda: [torch.bfloat16]
    aten = torch.library.Library("aten", "IMPL")                      # what torch.tensor(..., device=) calls, where no mode looks
    aten.impl("_copy_from", lambda source, to, *_: (to.inner.copy_(source), to)[1], "PrivateUse1")
    aten.impl("empty_strided", lambda size, stride, dtype=None, **_: OnApple(torch.empty_strided(size, stride, dtype=dtype)), "PrivateUse1")
    with Apple(): try_the_device(); train_and_draw()
    print("done")


@pytest.mark.skipif(register is None, reason="this torch plays no devices")
def test_nothing_needs_float64_on_the_device():
    from conftest import python
    done = python(__file__)
    assert done.returncode == 0 and "done" in done.stdout, (done.stdout + done.stderr)[-3000:]
