"""The quick count of operations is torch's."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import engine_of
from benchmarks.operations import operations
from benchmarks.s2d_model import load_policy
from tests.models.conftest import make_sample
from vrts.models.engines.engine import Request
from vrts.types import SamplingParams


def test_it_counts_what_torch_counts():
    policy = load_policy()
    samples = [make_sample(i, 2 * i + 2, (56, 56), "What colour?") for i in range(3)]

    engine = engine_of(policy, torch.device("cpu"))

    def ask():
        sampling = (SamplingParams(), SamplingParams(0.5, 0.9))
        engine.generate([Request(p, sampling, (0, 1), 12) for p in engine.encode(samples)])

    def ask_in_inference_mode():
        with torch.inference_mode():
            ask()

    for run in (ask, ask_in_inference_mode):
        with FlopCounterMode(display=False) as counter:
            run()
        assert operations(run) == counter.get_total_flops() > 10**7
