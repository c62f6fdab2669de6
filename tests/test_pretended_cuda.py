"""The pretended device itself: each fault that it is there to find is planted, and found."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from tests.pretended_cuda import FLOAT32, LOWER, DeviceTensor, pretended_cuda
from vrts.models.engines.graphs import StepGraphs

HOST = torch.arange(4.0)


@pytest.fixture
def device():
    with pretended_cuda() as found:
        yield found


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device="cuda")


class TestDevices:
    @pytest.mark.parametrize(
        "mix",
        [
            lambda x: x + HOST,
            lambda x: HOST * x,
            lambda x: torch.isin(x, HOST),
            lambda x: torch.cat([x, HOST]),
            lambda x: x.add_(HOST),
            lambda x: F.linear(x, torch.ones(2, 4)),
            lambda x: torch.where(x > 0, HOST, x),
        ],
    )
    def test_operands_on_two_devices(self, device, mix):
        with pytest.raises(RuntimeError, match="at least two devices"):
            mix(on_device(4))
        assert len(device.violations) == 1

    def test_what_cuda_takes_from_the_host(self, device):
        x = on_device(4)
        assert (x * torch.tensor(2.0)).tolist() == [2.0] * 4
        assert x[torch.tensor([1, 2])].device.type == "cuda"
        assert x.copy_(HOST).tolist() == HOST.tolist()
        assert x.cpu().device.type == "cpu"
        assert device.violations == []

    def test_the_default_device_counts(self, device):
        with torch.device("cuda"):
            assert torch.tensor([1.0, 2.0]).is_cuda
            assert not torch.tensor([1.0], device="cpu").is_cuda
            with pytest.raises(RuntimeError, match="at least two devices"):
                torch.tensor([1.0, 2.0]) + torch.ones(2, device="cpu")

    @pytest.mark.parametrize(
        "draw",
        [
            lambda g: torch.rand(3, device="cuda", generator=g),
            lambda g: on_device(3).uniform_(generator=g),
            lambda g: torch.multinomial(on_device(3), 1, generator=g),
        ],
    )
    def test_a_generator_of_the_host(self, device, draw):
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            draw(torch.Generator())

    def test_no_numpy(self, device):
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            on_device(2).numpy()


class TestGraphs:
    @pytest.mark.parametrize(
        "wait",
        [
            lambda x: x.sum().item(),
            lambda x: bool((x > 0).any()),
            lambda x: x.tolist(),
            lambda x: x.cpu(),
            lambda x: torch.equal(x, x),
            lambda x: x.nonzero(),
            lambda x: x[x > 0],
            lambda x: x.__setitem__(x > 0, 0.0),
            lambda x: x[torch.tensor([0])],
            lambda x: x.masked_select(x > 0),
            lambda x: x.copy_(HOST),
            lambda x: HOST.to("cuda"),
            lambda x: torch.tensor([1.0], device="cuda"),
            lambda x: x.new_tensor([1.0]),
            lambda x: x.repeat_interleave(torch.ones_like(x).long()),
        ],
    )
    def test_what_a_recorded_step_must_not_do(self, device, wait):
        x = on_device(4)
        wait(x)  # elsewhere it may
        assert device.violations == []
        graph = torch.cuda.CUDAGraph()
        with (
            pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
            torch.cuda.graph(graph, pool="pool"),
        ):
            wait(x)
        assert device.violations
        assert device.graphs == []

    def test_steps_go_on_without_a_graph_and_lose_nothing(self, device, caplog):
        total, steps = on_device(1), StepGraphs(True)

        def advance() -> None:
            total.add_(1)
            total.mul_(total.item())

        for _ in range(3):
            steps.run("key", advance)
        assert total.item() == ((2**2 + 1) ** 2 + 1) ** 2
        assert not steps.enabled
        assert "_local_scalar_dense" in caplog.text
        assert len(device.violations) == 1, "tried once"

    def test_a_graph_knows_no_python_and_runs_when_it_is_replayed(self, device):
        total, count = on_device(1), [0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool="pool"):
            count[0] += 1
            doubled = total * 2
            total.add_(doubled + count[0])
        assert total.item() == 1
        for want in (4, 13, 40):
            graph.replay()
            assert total.item() == want
        assert doubled.item() == 26
        assert [g.num_replays for g in device.graphs] == [3]
        assert device.graphs[0].kernels == ["mul", "add", "add_"]


class TestFlash:
    @staticmethod
    def attend(query: torch.Tensor, key: torch.Tensor | None = None) -> torch.Tensor:
        key = query if key is None else key
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, key)[0]

    @pytest.mark.parametrize(
        ("query", "key", "problem"),
        [
            (lambda: on_device(1, 2, 3, 8), None, "dtype"),
            (lambda: on_device(1, 2, 3, 20, dtype=torch.bfloat16), None, "head dim 20"),
            (lambda: on_device(1, 2, 3, 264, dtype=torch.bfloat16), None, "head dim 264"),
            (lambda: on_device(1, 2, 8, 8, dtype=torch.bfloat16).mT, None, "last stride"),
            (lambda: on_device(1, 2, 3, 12, dtype=torch.bfloat16)[..., :8], None, "strides"),
            (lambda: on_device(1, 2, 3, 16, dtype=torch.bfloat16)[..., 4:12], None, "strides"),
            (lambda: on_device(1, 2, 0, 8, dtype=torch.bfloat16), None, "no tokens"),
            (
                lambda: on_device(1, 3, 3, 8, dtype=torch.bfloat16),
                lambda: on_device(1, 2, 3, 8, dtype=torch.bfloat16),
                "2 heads",
            ),
        ],
    )
    def test_what_the_kernels_refuse(self, device, query, key, problem):
        with pytest.raises(RuntimeError, match=problem):
            self.attend(query(), key and key())
        assert len(device.violations) == 1

    def test_results_and_gradients_are_those_of_the_host(self, device):
        generator = torch.Generator().manual_seed(0)
        host = [
            torch.randn(1, h, 5, 8, generator=generator).bfloat16().requires_grad_()
            for h in (4, 2, 2)
        ]
        ours = [x.detach().to("cuda").requires_grad_() for x in host]
        want = F.scaled_dot_product_attention(*host, is_causal=True, enable_gqa=True)
        got = F.scaled_dot_product_attention(*ours, is_causal=True, enable_gqa=True)
        want.float().square().sum().backward()
        got.float().square().sum().backward()
        torch.testing.assert_close(got.cpu(), want, rtol=0.02, atol=0.02)
        for a, b in zip(ours, host, strict=True):
            torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=0.05, atol=0.05)
        assert device.flash == {"forward": 1, "backward": 1}


class TestAutocast:
    def test_lists_are_torchs(self):
        assert {"linear", "matmul", "addmm", "bmm", "baddbmm"} <= LOWER
        assert {"rms_norm", "layer_norm", "exp", "pow", "logsumexp"} <= FLOAT32
        assert not LOWER & FLOAT32

    @pytest.mark.parametrize(
        ("run", "dtype"),
        [
            (lambda x: x @ x, torch.bfloat16),
            (lambda x: F.linear(x, x), torch.bfloat16),
            (lambda x: torch.bmm(x[None], x[None]), torch.bfloat16),
            (lambda x: F.rms_norm(x.bfloat16(), (4,), x[0].bfloat16()), torch.float32),
            (lambda x: x.bfloat16().exp(), torch.float32),
            (lambda x: x.bfloat16() ** 2, torch.float32),
            (lambda x: x.bfloat16().softmax(-1), torch.float32),
            (lambda x: x.bfloat16().sum(), torch.float32),
            (lambda x: x.bfloat16() + x.bfloat16(), torch.bfloat16),
            (lambda x: x + x, torch.float32),
        ],
    )
    def test_dtypes(self, device, run, dtype):
        x = on_device(4, 4)
        with torch.autocast("cuda", torch.bfloat16):
            assert run(x).dtype == dtype
        with torch.autocast("cuda", torch.bfloat16, enabled=False):
            assert (x @ x).dtype == torch.float32

    def test_gradients_come_back_in_the_weights_dtype(self, device):
        layer = torch.nn.Linear(4, 4).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(on_device(2, 4))
        out.float().sum().backward()
        assert out.dtype == torch.bfloat16
        assert layer.weight.grad.dtype == torch.float32
        assert layer.weight.grad.is_cuda


class TestModules:
    def test_moving_keeps_ties(self, device):
        model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        model[1].weight = model[0].weight
        model.to("cuda")
        assert model[0].weight is model[1].weight
        assert isinstance(model[0].weight, torch.nn.Parameter)
        assert isinstance(model[0].weight, DeviceTensor)
        again = copy.deepcopy(model)
        assert again[0].weight is again[1].weight
        assert again[0].weight is not model[0].weight
        assert type(pickle.loads(pickle.dumps(model[0].weight.data))) is torch.Tensor  # noqa: S301

    def test_adamw_takes_the_way_that_it_takes_on_cuda(self, device):
        layer = torch.nn.Linear(4, 4).to("cuda")
        layer(on_device(2, 4)).sum().backward()
        torch.optim.AdamW(layer.parameters()).step()
        assert device.operators["_foreach_sqrt"] == 1

    def test_torch_is_as_before_afterwards(self):
        before = torch.cuda.is_available(), torch.cuda.CUDAGraph
        with pretended_cuda():
            assert torch.cuda.is_available()
        assert (torch.cuda.is_available(), torch.cuda.CUDAGraph) == before
        assert type(torch.ones(2) + 1) is torch.Tensor
