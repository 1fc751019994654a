import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from adbooster.contracts.errors import TrainingDiverged
from adbooster.finetune.config import Lora, TrainingConfig
from adbooster.finetune.inpainting import Encoded, InpaintingModel
from adbooster.finetune.trainer import Trainer
from tests import tiny_xl
from tests.conftest import MODELS


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random SDXL of toy width: a step takes a tenth of a second."""
    return tiny_xl.write_pipeline(tmp_path_factory.mktemp("xl") / "base", MODELS / "outpaint" / "tokenizer")


def settings(base, **changes) -> TrainingConfig:
    values = {"root_uri": "unused", "base": str(base), "device": "cpu", "workers": 0, "precision": "float32"}
    values |= {"batch": 2, "steps": 8, "learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9}
    return TrainingConfig(**values | changes)


def model_of(config: TrainingConfig) -> InpaintingModel:
    return InpaintingModel(Path(config.base), "cpu", 1, config.precision, config.lora)


def encoded(seed: int, n: int = 2) -> Encoded:
    g = torch.Generator().manual_seed(seed)
    tokens, width, pooled = 8, sum(tiny_xl.WIDTHS.values()), tiny_xl.POOLED
    return Encoded(
        x=torch.randn(n, 4, 8, 8, generator=g),
        masked=torch.randn(n, 4, 8, 8, generator=g),
        mask=(torch.rand(n, 1, 8, 8, generator=g) > 0.5).float(),
        states=torch.randn(n, tokens, width, generator=g),
        pooled=torch.randn(n, pooled, generator=g),
        weight=torch.ones(n),
        noise_seed=[seed * 100 + i for i in range(n)],
        prior=torch.zeros(n),
    )


def both(a: Encoded, b: Encoded) -> Encoded:
    return Encoded(*(x + y if isinstance(x, list) else torch.cat([x, y]) for x, y in zip(a, b, strict=True)))


def gradients(learner: Trainer) -> dict[str, torch.Tensor]:
    whole = {
        n: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for n, p in learner.parameters.items()
    }
    return {n: g.clone() for n, g in whole.items()}


def averages(learner: Trainer) -> list[torch.Tensor]:
    return learner.state()["average"]["shadow_params"]


def check_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def check_moved_alike(found: dict, wanted: dict, start: dict) -> None:
    """AdamW takes a whole step on the sign of a gradient that is all rounding, so single weights may differ."""
    apart = sum((found[n] - wanted[n]).square().sum() for n in start).sqrt()
    way = sum((wanted[n] - start[n]).square().sum() for n in start).sqrt()
    assert found.keys() == wanted.keys()
    assert apart < 0.02 * way


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=4, dropout=0.3)])
def test_a_restored_learner_goes_on_as_if_nothing_had_been(base, lora, tmp_path):
    """Weights, average, optimizer, schedule and dropout; through a file, as it is after a crash."""
    config = settings(base, lora=lora)
    learner = Trainer(model_of(config), config)
    for i in range(4):
        learner.step([encoded(i)])
    torch.save(learner.state(), tmp_path / "state")
    wanted = [learner.step([encoded(i)]) for i in range(4, 8)]
    other = Trainer(model_of(config), config)
    other.step([encoded(99)])
    other.restore(torch.load(tmp_path / "state", weights_only=True))
    assert other.schedule.get_last_lr() != learner.schedule.get_last_lr()
    found = [other.step([encoded(i)]) for i in range(4, 8)]
    assert [float(f["loss"]) for f in found] == [float(w["loss"]) for w in wanted]
    assert other.schedule.get_last_lr() == learner.schedule.get_last_lr()
    for a, b in zip(averages(other), averages(learner), strict=True):
        assert torch.equal(a, b)
    check_same(other.state()["weights"], learner.state()["weights"])


def test_passes_add_up_to_one_batch(base):
    config = settings(base, max_grad_norm=1e9)
    one, two = Trainer(model_of(config), config), Trainer(model_of(config), config)
    loss = one.step([both(encoded(1), encoded(2))])["loss"]
    assert float(two.step([encoded(1), encoded(2)])["loss"]) == pytest.approx(float(loss), rel=1e-4)
    check_same(gradients(two), gradients(one))


def _worker(rank: int, config: TrainingConfig, port: int, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=240))
    torch.set_num_threads(1)
    found = {s: _two_steps(rank, config.model_copy(update={"sharding": s}), path) for s in ("ddp", "fsdp")}
    if rank == 0:
        torch.save(found, path)
    torch.distributed.destroy_process_group()


def _two_steps(rank: int, config: TrainingConfig, path: str) -> dict:
    """As one of two workers: two steps, then a third both from here and from rank 0's state, which both read."""
    learner = Trainer(model_of(config), config, workers=2)
    learner.step([encoded(1 + rank)])
    found: dict = {"gradients": gradients(learner)}
    learner.step([encoded(3 + rank)])
    found["state"] = learner.state()
    if rank == 0:
        torch.save(found["state"], f"{path}.{config.sharding}")
    torch.distributed.barrier()
    other = Trainer(model_of(config), config, workers=2)
    other.restore(torch.load(f"{path}.{config.sharding}", weights_only=True))
    found["again"] = float(other.step([encoded(5 + rank)])["loss"])
    found["next"] = float(learner.step([encoded(5 + rank)])["loss"])
    with learner.averaged(), torch.no_grad():
        found["loss"] = float(learner.model.loss(learner.model.unet, encoded(9)))
    return found


@pytest.mark.slow
def test_two_workers_are_one_with_twice_the_batch(base, tmp_path):
    """The same gradients, weights, averages and optimizer states, whether copied or sharded; and the same after a restore."""
    config = settings(base, max_grad_norm=0.5)
    mp.spawn(_worker, (config, 20000 + os.getpid() % 20000, str(tmp_path / "found")), nprocs=2)
    one = Trainer(model_of(config), config)
    start = {n: p.detach().clone() for n, p in one.parameters.items()}
    one.step([both(encoded(1), encoded(2))])
    wanted_gradients = gradients(one)
    one.step([both(encoded(3), encoded(4))])
    wanted = one.state()
    one.step([both(encoded(5), encoded(6))])
    with one.averaged(), torch.no_grad():
        loss = float(one.model.loss(one.model.unet, encoded(9)))
    for found in torch.load(tmp_path / "found", weights_only=True).values():
        check_same(found["gradients"], wanted_gradients)
        check_moved_alike(found["state"]["weights"], wanted["weights"], start)
        averages = (dict(zip(start, s["average"]["shadow_params"], strict=True)) for s in (found["state"], wanted))
        check_moved_alike(*averages, start)
        assert set(found["state"]["optimizer"]["state"]) == set(wanted["optimizer"]["state"])
        assert found["again"] == pytest.approx(found["next"], rel=1e-6)
        assert found["loss"] == pytest.approx(loss, rel=1e-3)


def test_a_sharded_state_goes_into_one_worker(base):
    """What `state` gives has the same names and shapes however it was trained: whole tensors."""
    config = settings(base)
    learner = Trainer(model_of(config), config)
    learner.step([encoded(1)])
    state = learner.state()
    shapes = {n: p.shape for n, p in learner.model.unet.named_parameters()}
    assert {n: w.shape for n, w in state["weights"].items()} == shapes
    assert set(state["optimizer"]["state"]) == set(shapes)


def test_checkpointed_activations_change_nothing(base):
    plain, saving = settings(base, max_grad_norm=1e9), settings(base, max_grad_norm=1e9, gradient_checkpointing=True)
    a, b = Trainer(model_of(plain), plain), Trainer(model_of(saving), saving)
    assert b.model.unet.is_gradient_checkpointing
    a.step([encoded(1)])
    b.step([encoded(1)])
    check_same(gradients(b), gradients(a))


@pytest.mark.parametrize(("precision", "scaled"), [("float16", True), ("bfloat16", False)])
def test_float16_brings_a_scaler(base, precision, scaled):
    config = settings(base, precision=precision)
    learner = Trainer(model_of(config), config)
    losses = [float(learner.step([encoded(1)])["loss"]) for _ in range(6)]
    assert learner.scaler.is_enabled() == scaled
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in learner.parameters.values())


def test_the_average_is_given_out_and_the_weights_come_back(base):
    config = settings(base, learning_rate=1e-2)
    learner = Trainer(model_of(config), config)
    for i in range(4):
        learner.step([encoded(i)])
    name, p = next(iter(learner.parameters.items()))
    before = p.detach().clone()
    with learner.averaged():
        assert not torch.equal(p, before)
        assert torch.equal(p, averages(learner)[0]), name
        assert not learner.model.unet.training
    assert torch.equal(p, before)
    assert learner.model.unet.training


def test_a_loss_that_is_no_number_stops_the_run(base):
    config = settings(base)
    learner = Trainer(model_of(config), config)
    learner.check_finite(0.5)
    with pytest.raises(TrainingDiverged, match="lower learning_rate than 0.001"):
        learner.check_finite(float("nan"))
