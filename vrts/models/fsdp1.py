"""FSDP1, the older way to shard training. Plug-in point ``trainer.strategy``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    ShardingStrategy,
)
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.optim import Optimizer

from vrts.models.checkpoints import check_same_model, check_sharded, unwrapped
from vrts.models.policy import Policy, Scores
from vrts.models.reference import FrozenCopy
from vrts.types import InputError


class FSDP1(FSDPStrategy):
    """Lightning's FSDPStrategy for training a policy, sharded by vision block and decoder layer.

    A layer is gathered where a step first uses it and stays until the step's backward pass
    (``SHARD_GRAD_OP``), so that rollouts of different lengths never wait for one another. A
    checkpoint is one file, as that of a run that is not sharded.

    Args:
        process_group_backend: of torch; null takes NCCL on CUDA and gloo on CPUs.
        timeout_s: processes that wait so long for one another end with an error.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout_s: PositiveInt = 1800
    ) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=int(timeout_s)),
            sharding_strategy="SHARD_GRAD_OP",
            state_dict_type="full",
            use_orig_params=True,
        )

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        """In what weights are gathered and gradients summed.

        Lightning would sum gradients in bfloat16, and cast rotary frequencies.
        """
        mixed = self.precision_plugin.precision == "bf16-mixed"
        return MixedPrecision(
            param_dtype=torch.bfloat16 if mixed else None,
            reduce_dtype=torch.float32,
            buffer_dtype=None,
            cast_root_forward_inputs=False,
        )

    def setup_environment(self) -> None:
        """Connect the processes, where what they are to do can be done.

        Raises:
            InputError: there is no CUDA, or it is not training, or training with validation: FSDP1
                gathers the weights that stand outside of layers within a step only.
        """
        self._check_device()
        trainer: Any = cast(Any, self.lightning_module).trainer
        data = trainer.datamodule
        validates = data is not None and data.readers["val"] is not None
        if trainer.state.fn != TrainerFn.FITTING or validates:
            remedy = " or set data.val to null" if validates else ""
            raise InputError(
                "trainer.strategy: FSDP1 trains without validation, and cannot answer questions; "
                f"put --config configs/fsdp.yaml in place of configs/fsdp1.yaml{remedy}"
            )
        super().setup_environment()

    def _check_device(self) -> None:
        """Refuse CPUs, as torch does, but before anything is loaded."""
        if self.root_device.type == "cpu":
            raise InputError(
                "trainer.strategy: FSDP1 needs CUDA; put --config configs/cpu.yaml behind the "
                "others for one process, or configs/fsdp.yaml with --trainer.accelerator cpu"
            )

    def _setup_model(self, model: nn.Module) -> nn.Module:
        """Shard the module's policy, and a frozen reference by itself."""
        module: Any = model
        _check_checkpoint(module)
        if isinstance(module.reference, FrozenCopy):
            module.reference.shard_with(self._shard_frozen)
        root = self._wrap(module, module.policy)
        # Lightning's precision plugin does not know the module that can do it.
        plugin: Any = self.precision_plugin
        plugin.clip_grad_by_norm = lambda _, value: root.clip_grad_norm_(value)
        save = module.policy.save_pretrained

        def save_whole(folder: Path, merge: bool = False) -> None:
            with whole_weights(root):
                if self.global_rank == 0:
                    save(folder, merge)

        module.policy.save_pretrained = save_whole
        return root

    def teardown(self) -> None:
        """Finish what is being saved in the background, which Lightning's leaves."""
        try:
            self.checkpoint_io.teardown()
        finally:
            super().teardown()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole states of the optimizer by names of parameters, on the first process.

        Lightning's numbers count frozen parameters too, those of a run that is not sharded do not.
        torch may return parts of one tensor, which files keep together: whoever reads them would
        have two states in one memory.
        """
        state: dict[str, Any] = super().optimizer_state(optimizer)
        if self.global_rank > 0:
            return state
        assert self.model is not None
        names = [unwrapped(name) for name, _ in self.model.named_parameters()]
        state = {
            "state": {names[number]: found for number, found in state["state"].items()},
            "param_groups": [
                {**group, "params": [names[number] for number in group["params"]]}
                for group in state["param_groups"]
            ],
        }
        return cast(dict[str, Any], apply_to_collection(state, torch.Tensor, torch.clone))

    def _shard_frozen(self, policy: Policy) -> None:
        """Shard a policy that is only asked for scores, in place."""
        sharded = self._wrap(_Scorer(policy), policy)

        def score(*args: Any) -> Scores:
            return cast(Scores, sharded(*args))

        policy.score = score  # type: ignore[method-assign,assignment]

    def _wrap(self, module: nn.Module, policy: Policy) -> FullyShardedDataParallel:
        """Shard a module that has a policy in it.

        FSDP1 joins the weights of a layer, which have to be of one dtype: those that a LoRA adapter
        stands beside become float32 as it is.
        """
        if len({parameter.dtype for parameter in policy.parameters()}) > 1:
            policy.float()
        if self.world_size == 1:
            # nothing is sharded, and torch loses sight of frozen weights that it looks after alone
            policy.to(self.root_device)
            self.kwargs["ignored_states"] = [p for p in policy.parameters() if not p.requires_grad]
        vision, language = policy.layers()
        layers = {id(layer) for layer in (*vision, *language)}
        self.kwargs["auto_wrap_policy"] = CustomPolicy(lambda part: id(part) in layers)
        return cast(FullyShardedDataParallel, super()._setup_model(module))


@contextmanager
def whole_weights(root: FullyShardedDataParallel) -> Iterator[None]:
    """Context in which the first process has all weights by their own names.

    Of several processes, it has them in the host's memory.

    Every process has to enter it. Changes are lost.

    Args:
        root: what FSDP1 put around the module.
    """
    # one process has all weights where they are, and torch cannot move them
    several = root.sharding_strategy != ShardingStrategy.NO_SHARD
    with FullyShardedDataParallel.summon_full_params(
        root, writeback=False, rank0_only=several, offload_to_cpu=several
    ):
        wrapped = [
            (parent, name, child)
            for parent in root.module.modules()
            for name, child in parent.named_children()
            if isinstance(child, FullyShardedDataParallel)
        ]
        for parent, name, child in wrapped:
            parent._modules[name] = child.module
        try:
            yield
        finally:
            for parent, name, child in wrapped:
                parent._modules[name] = child


class _Scorer(nn.Module):
    """A policy whose forward is `Policy.score`: FSDP1 gathers weights for a forward only."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self._score: Callable[..., Any] = policy.score

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `Policy.score`."""
        return self._score(*args, **kwargs)


def _check_checkpoint(module: Any) -> None:
    """Check the checkpoint to go on from while weights have their own names and shapes."""
    path = module.trainer.ckpt_path
    if path is None:
        return
    if Path(path).is_dir():
        raise InputError(
            f"--ckpt_path: {path} is a folder, as configs/fsdp.yaml writes it; go on with that"
        )
    checkpoint = torch.load(path, "cpu", mmap=True, weights_only=True)
    check_same_model(module, checkpoint)
    check_sharded(Path(path), checkpoint, as_file=True)
