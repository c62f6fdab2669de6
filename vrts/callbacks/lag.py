"""What holds training up, and what to do about it, from the times of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from vrts.callbacks.speed import Interval


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on something is said to hold training up."""

    data_share: float
    """Share of the time that is spent waiting for data."""
    rollout_share: float
    """Share of the time that is spent on the rollout."""
    lag: float
    """How many times as long as usual, the (lower) median, a rank takes."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How the run is set up, as far as it has to do with its speed."""

    num_workers: int | None
    """Of decoding on each rank; None where it is not known."""
    has_cache: bool
    max_new_tokens: int
    gathers_each_token: bool
    """Whether sharded weights are gathered for every token of a rollout."""
    ranks_per_node: int


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that holds training up."""

    kind: str
    """The same for what is the same cause at another time."""
    message: str


def find_causes(ranks: Sequence[Interval], limits: Limits, setup: Setup) -> list[Cause]:
    """Name what holds training up; nothing where all is well.

    Args:
        ranks: what the same steps took on each rank.
        limits: from when on.
        setup: of the run.
    """
    found = [_data(ranks, limits, setup), _rollout(ranks, limits, setup)]
    return [cause for cause in found if cause is not None] + _ranks(ranks, limits, setup)


def _data(ranks: Sequence[Interval], limits: Limits, setup: Setup) -> Cause | None:
    """Waiting for data, on the rank that waits longest: the others wait for it in turn."""
    shares = [r.data_s / r.step_s if r.step_s > 0 else 0.0 for r in ranks]
    worst = max(range(len(ranks)), key=shares.__getitem__)
    if shares[worst] <= limits.data_share:
        return None
    where = f" on {_name(worst, setup)}" if len(ranks) > 1 else ""
    remedies = []
    if setup.num_workers == 0:
        remedies.append("set data.num_workers above 0, so that videos are decoded meanwhile")
    elif setup.num_workers is not None:
        remedies.append(f"raise data.num_workers, {setup.num_workers} a rank now, if CPUs are idle")
    if not setup.has_cache:
        remedies.append("keep decoded frames with data.cache")
    remedies.append("see whether the disk or data.decoder is slow")
    return Cause(
        "data",
        f"waiting for data takes {shares[worst]:.0%} of the time{where}: videos are not decoded as "
        f"fast as they are trained on; {', '.join(remedies)}",
    )


def _rollout(ranks: Sequence[Interval], limits: Limits, setup: Setup) -> Cause | None:
    """The rollout takes nearly all of the time."""
    total = Interval.total(ranks)
    share = total.rollout_s / total.step_s if total.step_s > 0 else 0.0
    if share <= limits.rollout_share or not total.completions:
        return None
    begin = f"the rollout takes {share:.0%} of the time"
    mean = total.completion_tokens / total.completions
    cut = f"{total.truncated:.0f} of {total.completions:.0f} completions were cut off"
    if setup.gathers_each_token:
        return Cause(
            "rollout/gathers",
            f"{begin}: sharded weights are gathered for every token; where a GPU has room for all "
            "weights in 16 bits, set model.sharding.resident_rollout: true",
        )
    few = 0 < total.truncated < total.completions / 2
    if few and 2 * mean < setup.max_new_tokens:
        return Cause(
            "rollout/long",
            f"{begin}: a rollout lasts until its longest completion ends, and {cut} at "
            f"model.max_new_tokens = {setup.max_new_tokens} while the mean has {mean:.0f} tokens; "
            "lower max_new_tokens, or add the reward SoftOverlongPenalty",
        )
    return Cause(
        "rollout",
        f"{begin}: completions have {mean:.0f} tokens on average ({cut}), and decoding one token "
        "reads all weights whatever the number of rows; where memory allows, raise data.batch_size "
        "(and lower trainer.accumulate_grad_batches) so that more rows are decoded together",
    )


def _ranks(ranks: Sequence[Interval], limits: Limits, setup: Setup) -> list[Cause]:
    """Ranks whose own work takes longer than that of the others.

    Data and rollout are compared each by itself: where weights are sharded, the others' rollout
    has in it that they wait for a rank whose data is late, so sums would be equal.
    """
    if len(ranks) == 1:
        return []
    usual_s = median_low(r.data_s + r.rollout_s for r in ranks)
    found = []
    for part, text, remedy in (
        ("data_s", "waiting for data", "see to its disk and whether its CPUs are busy"),
        ("rollout_s", "the rollout", "see whether its device is throttled or shared (nvidia-smi)"),
    ):
        times = [getattr(r, part) for r in ranks]
        middle = median_low(times)
        for rank, seconds in enumerate(times):
            over = seconds - middle
            if over > (limits.lag - 1) * usual_s:
                name = _name(rank, setup)
                found.append(
                    Cause(
                        f"rank/{rank}/{part}",
                        f"{name} holds the others up: {text} takes it {seconds:.2f} s, the median "
                        f"rank {middle:.2f} s; {remedy}",
                    )
                )
    return found


def _name(rank: int, setup: Setup) -> str:
    return f"rank {rank} (node {rank // setup.ranks_per_node})"
