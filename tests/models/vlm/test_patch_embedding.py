import copy

import torch
from torch import nn

from vrts.models.vlm.layers import PatchProduct, multiply_patches


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Module()
        size = (2, 4, 4)
        self.patch_embed.proj = nn.Conv3d(3, 5, size, stride=size, bias=False)


def test_the_product_is_the_convolution_with_the_same_parameters_and_gradient():
    torch.manual_seed(0)
    tower = Tower()
    multiplied = copy.deepcopy(tower)
    multiply_patches(multiplied.patch_embed.proj)
    assert isinstance(multiplied.patch_embed.proj, PatchProduct)
    assert multiplied.state_dict().keys() == tower.state_dict().keys()
    patches = torch.randn(7, 3, 2, 4, 4, requires_grad=True)
    results = []
    for one in (tower, multiplied):
        out = one.patch_embed.proj(patches)
        out.square().sum().backward()
        results.append((out, one.patch_embed.proj.weight.grad, patches.grad))
        patches.grad = None
    for want, got in zip(*results, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_policies_embed_by_it(load_policy):
    assert isinstance(load_policy().base.model.visual.patch_embed.proj, PatchProduct)
