"""What is trained, how, and on what work: a row of the tables."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scaling.sizes import Grid, Model, num_video_tokens

GPUS_A_NODE = 8
RANK = 64
"""Of ``configs/lora.yaml``."""


@dataclass(frozen=True, slots=True)
class Work:
    """One question."""

    grid: Grid
    num_text_tokens: int
    """An assumption: template, preamble, question and options."""
    G: int
    """Completions, or answers of a round in prediction."""
    L: int
    """Tokens of a completion at most."""

    @property
    def P(self) -> int:  # noqa: N802 notation of vrts.types
        """Tokens of the prompt."""
        return num_video_tokens(self.grid) + self.num_text_tokens


TRAINING = Work((16, 16, 28), 200, 8, 768)
"""32 frames of 224x392 pixels: 1,792 video tokens."""
EVALUATION = Work((16, 22, 42), 200, 5, 1024)
"""32 frames of 308x588 pixels: 3,696 video tokens."""
DENSE = Work((64, 22, 42), 200, 5, 1024)
"""128 of these frames."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is kept on a number of GPUs, and what a step is."""

    model: Model
    is_lora: bool
    is_sharded: bool = False
    batch_size: int = 1
    """Questions of a step, on each GPU; `data.batch_size`."""
    micro_batch_size: int = 1
    """`VideoQAModule.micro_batch_size`."""
    keep_gathered: bool = True
    """`Sharding.keep_gathered`."""
    sync_every_micro_batch: bool = False
    """`Sharding.sync_every_micro_batch`."""
    offload: bool = False
    """`Sharding.cpu_offload`."""

    @property
    def num_micro_batches(self) -> int:
        """Of a step, on each GPU."""
        return -(-self.batch_size // self.micro_batch_size)

    @property
    def rank(self) -> int | None:
        """Of the adapter, where there is one."""
        return RANK if self.is_lora else None

    @property
    def trained(self) -> int:
        """Parameters with a gradient."""
        return self.model.adapter(RANK) if self.is_lora else self.model.language

    @property
    def trained_layer(self) -> int:
        """The same of a decoder layer."""
        return self.model.adapter_layer(RANK) if self.is_lora else self.model.layer

    @property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        return self.model.adapter(RANK) if self.is_lora else 0

    @property
    def tuning(self) -> str:
        """Name of the tuning's overlay."""
        return "lora" if self.is_lora else "full"

    @property
    def devices(self) -> str:
        """Overlay of the devices, and what is set otherwise than there."""
        name = "fsdp" if self.is_sharded else "ddp"
        name += "" if self.keep_gathered else ", not gathered"
        name += ", summed often" if self.sync_every_micro_batch else ""
        return name + (", offload" if self.offload else "")


def num_nodes(num_gpus: int) -> int:
    """Machines that so many GPUs stand in."""
    return -(-num_gpus // GPUS_A_NODE)
