"""One optimizer step, on one worker or many: gradients, precision, schedule, averages; and all of it as one state."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from adbooster.contracts.errors import TrainingDiverged
from adbooster.finetune.config import TrainingConfig
from adbooster.finetune.inpainting import Aims, Encoded, InpaintingModel


class Trainer:
    """A model, wrapped for its workers, and what trains it."""

    def __init__(self, model: InpaintingModel, config: TrainingConfig, workers: int = 1):
        self.model, self.config, self.steps_done = model, config, 0
        shared = {name: getattr(config, name) for name in Aims._fields if name != "beta"}
        self.aims = Aims(**shared, beta=config.preference.beta)
        if self.aims.need_base:
            model.keep_base()
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        model.unet.train()
        self.sharded = workers > 1 and config.sharding == "fsdp"
        self.unet = self._wrapped(workers)
        self.parameters = model.trainable()
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        kind = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        self.schedule = get_scheduler(
            kind, self.optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps
        )
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "float16")
        self.ema = EMAModel(list(self.parameters.values()), config.ema_decay) if config.ema_decay else None

    def _wrapped(self, workers: int) -> torch.nn.Module:
        unet = self.model.unet
        if workers <= 1:
            return unet
        if not self.sharded:
            device = [torch.cuda.current_device()] if self.config.device == "cuda" else None
            return DistributedDataParallel(unet, device_ids=device)
        mesh = init_device_mesh(self.config.device, (workers,))
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            fully_shard(block, mesh=mesh)
        return fully_shard(unet, mesh=mesh)

    def step(self, batches: list[Encoded]) -> dict[str, torch.Tensor]:
        """One optimizer step on the mean gradient of the batches; its loss and gradient norm, not yet waited for.

        Dropout follows from the step, so that a resumed run goes on as an undisturbed one.
        """
        torch.manual_seed(self.config.seed * 2**32 + self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.config.device)
        for i, batch in enumerate(batches):
            with self._sync(i + 1 == len(batches)):
                loss = self.model.loss(self.unet, batch, self.aims) / len(batches)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.ema:
            self.ema.step(self.parameters.values())
        self.steps_done += 1
        return {"loss": total, "gradient_norm": _whole(norm)}

    def _sync(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged in the last pass of a step only."""
        if isinstance(self.unet, DistributedDataParallel) and not last:
            return self.unet.no_sync()
        if self.sharded:
            assert isinstance(self.unet, FSDPModule)
            self.unet.set_requires_gradient_sync(last)
        return nullcontext()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average in place of the weights, as they will be published; in eval mode."""
        if self.ema:
            self.ema.store(self.parameters.values())
            self.ema.copy_to(self.parameters.values())
        self.model.unet.eval()
        try:
            yield
        finally:
            self.model.unet.train()
            if self.ema:
                self.ema.restore(self.parameters.values())

    def check_finite(self, loss: float) -> None:
        """raises TrainingDiverged if the loss is no number any more"""
        if not torch.isfinite(torch.tensor(loss)):
            raise TrainingDiverged(
                f"the loss is {loss} at step {self.steps_done}; a lower learning_rate than "
                f"{self.config.learning_rate:g} or precision bfloat16 would be right"
            )

    def state(self) -> dict:
        """All that going on from here takes, on the CPU.

        With sharded weights every worker must ask, and rank 0 alone is given the optimizer's part.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        average = {k: v for k, v in self.ema.state_dict().items() if k != "shadow_params"} if self.ema else {}
        return {
            "weights": {n: _copied(p) for n, p in self.parameters.items()},
            "average": self.ema and average | {"shadow_params": [_copied(p) for p in self.ema.shadow_params]},
            "optimizer": get_optimizer_state_dict(self.model.unet, self.optimizer, options=options),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "steps_done": self.steps_done,
        }

    def restore(self, state: dict) -> None:
        """Go on from rank 0's `state`, the same on every worker; the schedule is this run's, at the state's step."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        with torch.no_grad():
            for name, p in self.parameters.items():
                _put(p, state["weights"][name])
            if self.ema and state["average"]:
                numbers = {k: v for k, v in state["average"].items() if k not in ("shadow_params", "decay")}
                for name, value in numbers.items():
                    setattr(self.ema, name, value)
                for p, value in zip(self.ema.shadow_params, state["average"]["shadow_params"], strict=True):
                    _put(p, value)
        set_optimizer_state_dict(self.model.unet, self.optimizer, state["optimizer"], options=options)
        self.schedule.load_state_dict({k: v for k, v in state["schedule"].items() if k != "base_lrs"})
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        self.steps_done = state["steps_done"]


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _copied(value: torch.Tensor) -> torch.Tensor:
    """Whole, on the CPU, and not changed by the next step."""
    return _whole(value.detach()).to("cpu", copy=True)


def _put(p: torch.Tensor, value: torch.Tensor) -> None:
    """A whole tensor into a parameter, or into this worker's shard of it."""
    if hasattr(p, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(p.device), p.device_mesh, p.placements)
    p.copy_(value)
