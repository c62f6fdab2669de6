"""How fast training is: what an interval of steps took, and its rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vrts.models.grpo.rollouts import StepWork


@dataclass(slots=True)
class Interval:
    """Sums over the batches of some optimizer steps on one process."""

    step_s: float = 0.0
    """The sum of the four below; without validation and saving."""
    data_s: float = 0.0
    """Waiting for batches to be decoded."""
    rollout_s: float = 0.0
    """Encoding, sampling, rewarding."""
    waiting_s: float = 0.0
    """Waiting for other ranks, in the rollout or after it."""
    update_s: float = 0.0
    """Reference, log-probs, backward and optimizer step."""
    questions: float = 0.0
    frames: float = 0.0
    completion_tokens: float = 0.0
    """Sampled."""
    update_tokens: float = 0.0
    """Of prompts (once for G completions) and completions."""
    update_flops: float = 0.0
    step_flops: float = 0.0
    memory_gb: float = 0.0
    """Peak so far: allocated on the GPU, or resident on a CPU."""
    reserved_gb: float = 0.0
    """Peak that torch reserved on the GPU; 0 on a CPU."""

    def add(self, work: StepWork, data_s: float, batch_s: float) -> None:
        """Add a batch, which was waited for and then trained on for these times."""
        self.step_s += data_s + batch_s
        self.data_s += data_s
        self.rollout_s += work.rollout_s
        self.update_s += batch_s - work.rollout_s
        self.questions += work.num_questions
        self.frames += work.num_frames
        self.completion_tokens += work.sampled.num_tokens
        self.update_tokens += sum(
            part.num_prompt_tokens + part.num_completion_tokens for part in work.update
        )
        self.update_flops += work.update_flops
        self.step_flops += work.update_flops + work.sampled.flops


def split_waiting(ranks: Sequence[Interval]) -> list[Interval]:
    """Subtract from each rank's update the time spent waiting for the slowest rank.

    A rank that has finished its rollout waits in the first collective of the update, where clocks
    cannot separate waiting from computing. How long follows from the slowest rank's time until
    then. Over several batches this is a lower bound.

    Args:
        ranks: of the same steps; `waiting_s` is that in rollouts.
    """
    until = [r.data_s + r.rollout_s + r.waiting_s for r in ranks]
    waits = [min(max(until) - own, r.update_s) for own, r in zip(until, ranks, strict=True)]
    return [
        replace(r, waiting_s=r.waiting_s + wait, update_s=r.update_s - wait)
        for r, wait in zip(ranks, waits, strict=True)
    ]


def rates(interval: Interval, peak_flops: float | None) -> dict[str, float]:
    """What is logged of one rank's interval; NaN where nothing was done.

    Args:
        interval: is not changed.
        peak_flops: operations a second that the device can do; None leaves MFU out.
    """
    i = interval
    found = {
        "step_s": i.step_s,
        "data_s": i.data_s,
        "rollout_s": i.rollout_s,
        "waiting_s": i.waiting_s,
        "update_s": i.update_s,
        "data_share": _ratio(i.data_s, i.step_s),
        "rollout_share": _ratio(i.rollout_s, i.step_s),
        "rollout_tokens_per_s": _ratio(i.completion_tokens, i.rollout_s),
        "frames_per_s": _ratio(i.frames, i.step_s),
        "questions_per_s": _ratio(i.questions, i.step_s),
        "memory_gb": i.memory_gb,
    }
    if i.update_tokens:  # unknown for some policies; 0 if nothing was trained on
        found["update_tokens_per_s"] = _ratio(i.update_tokens, i.update_s)
    if i.reserved_gb:
        found["reserved_gb"] = i.reserved_gb
    if peak_flops is not None and i.update_flops:
        found["mfu_update"] = _ratio(i.update_flops, i.update_s) / peak_flops
        found["mfu_step"] = _ratio(i.step_flops, i.step_s) / peak_flops
    return found


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else math.nan


def over_ranks(found: Sequence[Mapping[str, float]], num_shown: int) -> dict[str, float]:
    """Metrics by name: the mean over ranks, the worst rank's value and that of each rank.

    Args:
        found: rates of each rank; NaN does not count.
        num_shown: with more ranks than that, the values of single ranks are left out.
    """
    logged: dict[str, float] = {}
    for name in dict.fromkeys(name for rank in found for name in rank):
        values = {
            r: v for r, rank in enumerate(found) if math.isfinite(v := rank.get(name, math.nan))
        }
        if not values:
            continue
        logged[name] = sum(values.values()) / len(values)
        if len(found) == 1:
            continue
        worst = "min" if name.endswith("_per_s") or name.startswith("mfu") else "max"
        logged[f"{name}/{worst}"] = (max if worst == "max" else min)(values.values())
        if len(found) <= num_shown:
            logged |= {f"{name}/rank{r}": value for r, value in values.items()}
    return logged
