import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from vrts.models.vlm.layers import fuse_norms


def pair(dtype):
    """A norm of transformers', the same one fused, and the exact result's inputs."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(Qwen2_5_VLRMSNorm(48, eps=1e-4)).to(dtype)
    theirs[0].weight.data.uniform_(0.5, 2.0)
    ours = torch.nn.Sequential(Qwen2_5_VLRMSNorm(48, eps=1e-4)).to(dtype)
    ours[0].weight.data.copy_(theirs[0].weight)
    weight = ours[0].weight
    fuse_norms(ours)
    assert ours[0].weight is weight
    x = torch.randn(3, 7, 48, dtype=dtype) * 0.02  # small, so that eps counts
    exact = x.double()
    exact = weight.double() * exact * (exact.square().mean(-1, keepdim=True) + 1e-4).rsqrt()
    return theirs, ours, x, exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_norm_is_no_worse(dtype):
    theirs, ours, x, exact = pair(dtype)
    got = ours(x)
    assert got.dtype == dtype
    assert (got - exact).abs().max() <= (theirs(x) - exact).abs().max()
    if dtype == torch.float64:
        assert (got - exact).abs().max() <= 1e-14


def test_gradients_are_the_same():
    theirs, ours, x, _ = pair(torch.float32)
    weights = torch.randn(x.shape)
    (theirs(x) * weights).sum().backward()
    (ours(x) * weights).sum().backward()
    torch.testing.assert_close(ours[0].weight.grad, theirs[0].weight.grad)


def test_all_of_a_policys_language_model(load_policy):
    language_model = load_policy().base.model.language_model
    norms = [m for m in language_model.modules() if "RMSNorm" in type(m).__name__]
    assert len(norms) > 4
    assert all(isinstance(m, torch.nn.RMSNorm) for m in norms)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_nothing_where_dtypes_agree(weight_dtype):
    """Within autocast CUDA would run the norm in float32, with a cast on each side."""
    _, ours, *_ = pair(weight_dtype)
    seen = []
    kernel = torch.nn.functional.rms_norm

    def spy(x, *args):
        seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return kernel(x, *args)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr("vrts.models.vlm.layers.F.rms_norm", spy)
        ours(torch.randn(2, 48, dtype=torch.bfloat16))
        ours(torch.randn(2, 48))
        assert torch.is_autocast_enabled("cpu")
    mixed = weight_dtype == torch.float32
    assert seen == [(torch.bfloat16, mixed), (torch.float32, not mixed)]
