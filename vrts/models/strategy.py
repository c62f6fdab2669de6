"""The strategy of fully sharded training, FSDP2. Plug-in point ``trainer.strategy``."""

from __future__ import annotations

from datetime import timedelta

from jsonargparse.typing import PositiveInt
from lightning.pytorch.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all processes for FSDP2, however many there are.

    Args:
        save_distributed_checkpoint: each process writes its own part of a checkpoint, which is a
            folder then; false gathers everything into one file.
        timeout_s: processes that wait so long for one another end with an error.
    """

    def __init__(
        self, save_distributed_checkpoint: bool = True, timeout_s: PositiveInt = 1800
    ) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=timedelta(seconds=int(timeout_s)),
        )

    def setup_environment(self) -> None:
        """Take all processes; Lightning's ``auto`` would take one a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
