"""Lightning's side of feature sharding: the 2-D mesh, and checkpoints in the form that one process writes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from clt_lightning import compat
from clt_lightning.core.errors import UserError
from clt_lightning.parallel import state
from clt_lightning.parallel.shards import Shards
from clt_lightning.parallel.transcoder import ShardedTranscoder
from clt_lightning.runs.checkpoint_io import damage

#: The transcoder's name in the LightningModule, and with it in checkpoints
PREFIX = "transcoder."


class FeatureParallel(DDPStrategy):
    """Features over `feature` processes, batches over the groups of so many: a mesh of world / feature x feature.

    Neighbouring processes form a feature group, so that its traffic stays in a machine where it can. Gradients are
    averaged over the groups by DDP, whose own group holds one process of each. Lightning's `ModelParallelStrategy` is
    made for DTensors (FSDP2, tensor parallelism), and goes past CheckpointIO.

    Args:
        feature: R, processes that share the features of every layer.
        kwargs: passed on to `DDPStrategy`, which passes what it does not know to `DistributedDataParallel`.

    Raises:
        UserError: arguments that neither of these takes; R does not divide the number of processes, or fp16 (whose loss
            scaling looks at one process alone).
    """

    def __init__(self, feature: int, **kwargs: Any) -> None:
        signatures = (inspect.signature(cls) for cls in (DDPStrategy, DistributedDataParallel))
        known = {name for signature in signatures for name in signature.parameters} - {"kwargs", "module"}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise UserError(
                f"FeatureParallel takes no {', '.join(unknown)}: its arguments are those of Lightning's DDPStrategy "
                "and of torch's DistributedDataParallel"
            )
        super().__init__(**{"gradient_as_bucket_view": True, "broadcast_buffers": False, **kwargs})
        if feature < 1:
            raise UserError(f"model.parallel.feature must be at least 1, got {feature}")
        self.feature = feature
        self.mesh: DeviceMesh | None = None

    # -- the mesh ----------------------------------------------------------------------------------------------------
    def setup_environment(self) -> None:
        super().setup_environment()
        if self.world_size % self.feature:
            raise UserError(
                f"model.parallel.feature={self.feature} does not divide the {self.world_size} processes of this run "
                "(trainer.devices x trainer.num_nodes)"
            )
        if str(self.precision_plugin.precision).startswith("16"):
            raise UserError("feature sharding does not go with fp16: set trainer.precision to bf16-mixed or 32-true")
        if self.mesh is None:
            shape = (self.world_size // self.feature, self.feature)
            self.mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("data", "feature"))
            compat.set_process_group(self, self.mesh.get_group("data"))

    @property
    def shards(self) -> Shards:
        """This process's place in its feature group."""
        assert self.mesh is not None, "the mesh is there from setup_environment on"
        return Shards.of_group(self.mesh.get_group("feature"), self.global_rank // self.feature)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The number of different batches a step has, and which of them is this process's."""
        return {"num_replicas": self.world_size // self.feature, "rank": self.global_rank // self.feature}

    @property
    def clt(self) -> ShardedTranscoder:
        module: Any = self.lightning_module
        assert isinstance(module.transcoder, ShardedTranscoder), "made by configure_model"
        return module.transcoder

    def setup(self, trainer: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().setup(trainer)
            return
        # DDPStrategy would give every process the first one's weights
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.setup_precision_plugin()

    def configure_ddp(self) -> None:
        if self.world_size > self.feature:  # with a single group there is nothing to average
            super().configure_ddp()

    def teardown(self) -> None:
        module = self.lightning_module
        if module is not None and any(p.is_meta for p in module.parameters()):
            compat.forget_module(self)  # a start that failed: there is nothing yet that could be moved to the CPU
        super().teardown()

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole state on the process that writes it, nothing on the others; all must call it."""
        return state.gather_module(self.clt, super().lightning_module_state_dict(), PREFIX) or {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the process that writes it, nothing on the others; all must call it."""
        plain = getattr(optimizer, "_optimizer", optimizer)
        return state.gather_optimizer(self.clt, plain) or {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint; a local file is mapped, so that of the weights only this process's part is read.

        Raises:
            UserError: the file is damaged.
        """
        if not os.path.isfile(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        reason = damage(Path(checkpoint_path))
        if reason is not None:
            raise UserError(f"the checkpoint {checkpoint_path} is damaged: {reason}")
        content: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = state.cut_module(self.clt, checkpoint["state_dict"], PREFIX)
        super().load_model_state_dict({**checkpoint, "state_dict": own}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, content in zip(self.optimizers, checkpoint["optimizer_states"]):
            optimizer.load_state_dict(state.cut_optimizer(self.clt, optimizer, content))
            compat.optimizer_to_device(optimizer, self.root_device)
