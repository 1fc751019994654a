import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from adbooster.contracts.errors import ConfigError
from adbooster.finetune import examples
from adbooster.finetune.checkpoints import Checkpoints
from adbooster.finetune.checks import check as check_finetune
from adbooster.finetune.config import LatentCache, Lora
from adbooster.finetune.job import finetune, run_name
from adbooster.finetune.trainer import Trainer
from adbooster.models.files import check_weights
from adbooster.storage import tables
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root
from tests.conftest import MODELS, learning


def result(root: Root) -> dict:
    """What the only finished run left of itself."""
    names = [n for n in root.names("runs") if n.startswith("finetune-") and n.endswith(".json")]
    assert len(names) == 1
    return json.loads(root.read(f"runs/{names[0]}"))


def test_training_gives_weights_that_generate_can_use_and_gives_them_once(local_ray, scenes, monkeypatch):
    """In a Ray Train worker, which runs in another folder than the one that paths are relative to."""
    monkeypatch.chdir(scenes.base.rsplit("/", 1)[0])
    settings = {"root_uri": "root", "workers": 1}
    report = finetune(learning(scenes, **settings))
    folder = f"weights/{report.weights_revision}"
    card = json.loads(scenes.read(f"{folder}/card.json"))
    assert report.weights == f"{scenes.uri}/{folder}"
    assert card["revision"] == report.weights_revision
    assert card["samples_version"] == 0
    assert card["parent"]
    assert card["settings"]["learning_rate"] == 3e-4
    assert card["metrics"]["loss_after"] == pytest.approx(report.loss_after, abs=1e-4)
    assert report.samples + report.held_out == 6
    assert report.loss_before != report.loss_after
    check_weights(local_copy(report.weights))
    configs = [
        scenes.read(f"{folder}/{name}").decode() for name in ("model_index.json", "vae/config.json", "unet/config.json")
    ]
    assert not any("_name_or_path" in text for text in configs)  # the name of the weights says nothing of this machine
    check_what_there_is_to_look_at(scenes, report.run_uri.removeprefix(f"{scenes.uri}/"))

    again = finetune(learning(scenes, run_id="r2", **settings))
    assert again.reused
    assert again.weights_revision == report.weights_revision
    assert scenes.names("weights") == [report.weights_revision]


def check_what_there_is_to_look_at(root: Root, folder: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(root.path(f"{folder}/tensorboard"))
    curves.Reload()
    assert {"train/loss", "train/learning_rate", "speed/images_per_s", "memory/gib", "validation/loss"} <= set(
        curves.Tags()["scalars"]
    )
    assert [p.step for p in curves.Scalars("train/loss")] == [1, 2, 3, 4]
    assert root.names(f"{folder}/panel") == ["step-000000000.png", "step-000000004.png"]
    grids = [np.asarray(Image.open(root.path(f"{folder}/panel/{n}"))) for n in root.names(f"{folder}/panel")]
    assert grids[0].shape == grids[1].shape
    assert not np.array_equal(grids[0], grids[1])
    assert root.names(f"{folder}/checkpoints") == []


class Killed(BaseException):
    """What a driver's death looks like from inside."""


def killed_after(steps: int, monkeypatch):
    """Let the process of a run die once it has done that many steps."""
    step = Trainer.step

    def dying(self, batches):
        if self.steps_done == steps:
            raise Killed
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", dying)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_follows_the_undisturbed_curve(local_ray, scenes, tmp_path, monkeypatch):
    """Killed after 5 of 8 steps, with a checkpoint every 2: the second driver goes on from step 4 and ends the same."""
    settings = {"steps": 8, "checkpoint_every": 2, "lora": Lora(rank=4, dropout=0.1), "panel": {"paintings": 0}}
    with monkeypatch.context() as patch:
        killed_after(5, patch)
        with pytest.raises(Killed):
            finetune(learning(scenes, **settings))
    assert not [n for n in scenes.names("runs") if n.endswith(".json")]
    assert not scenes.names("weights")
    report = finetune(learning(scenes, run_id="r2", **settings))
    assert report.resumed_from_step == 4
    assert report.adapter == f"{report.weights}/adapter.safetensors"
    disturbed = result(scenes)

    other = Root(str(tmp_path / "other"))
    for name in scenes.stats("objects"):
        other.write(name, scenes.read(name))
    tables.merge(other, "samples", tables.read(scenes, "samples"), "sample_id", None, {})
    undisturbed = finetune(learning(other, **settings))
    assert undisturbed.resumed_from_step == 0
    assert [s for s, _ in disturbed["curve"]] == list(range(1, 9))
    assert np.array(disturbed["curve"]) == pytest.approx(np.array(result(other)["curve"]), rel=1e-4)
    assert report.loss_before == pytest.approx(undisturbed.loss_before, rel=1e-4)
    assert report.loss_after == pytest.approx(undisturbed.loss_after, rel=1e-4)


@pytest.mark.slow
def test_cached_latents_give_the_loss_that_pictures_give(local_ray, scenes):
    """The whole way through precompute_latents: the same placements, captions, noise and steps, at float16's precision."""
    settings = {"aspects": (1.0, 0.8), "empty_text_share": 0.3, "panel": {"paintings": 0}, "ema_decay": 0.0}
    curves = []
    for placements in (0, 50):  # 4 steps of 3 see far fewer epochs: the placements are those of a run without a cache
        cache = LatentCache(placements=placements, encode={"batch": 32})
        finetune(learning(scenes, latents=cache, **settings))
        names = sorted(n for n in scenes.names("runs") if n.endswith(".json"))
        curves.append({n: json.loads(scenes.read(f"runs/{n}"))["curve"] for n in names})
    first = curves[0].popitem()
    second = next(v for k, v in curves[1].items() if k != first[0])
    assert np.array(second) == pytest.approx(np.array(first[1]), rel=2e-3)
    assert len(scenes.names("latents")) == 1


def test_other_settings_and_other_data_are_another_run(scenes):
    rows = examples.scenic_samples(scenes)
    names = {
        run_name(learning(scenes), rows),
        run_name(learning(scenes, learning_rate=1e-4), rows),
        run_name(learning(scenes, steps=5), rows),
        run_name(learning(scenes, lora=Lora(rank=2)), rows),
        run_name(learning(scenes), rows.slice(1)),
        run_name(learning(scenes, base=str(MODELS / "caption")), rows),
    }
    assert len(names) == 6
    for same in ({"run_id": "other"}, {"threads": 1}, {"checkpoint_every": 7}, {"max_failures": 9}):
        assert run_name(learning(scenes, **same), rows) in names


def test_a_pinned_version_of_the_samples(scenes):
    tables.merge(scenes, "samples", tables.read(scenes, "samples").slice(0, 0), "sample_id", 0, {}, delete=["s0"])
    assert finetune(learning(scenes, dry_run=True)).samples_version == 1
    pinned = finetune(learning(scenes, dry_run=True, samples_version=0))
    assert (pinned.samples_version, pinned.samples + pinned.held_out) == (0, 6)


def test_nothing_to_train_on(root):
    with pytest.raises(ConfigError, match="0 pictures with a scene"):
        finetune(learning(root))


def test_a_base_without_inpainting_channels(root):
    with pytest.raises(ConfigError, match="diffusers layout"):
        check_finetune(learning(root, base=str(MODELS / "caption")))


def test_too_few_gpus(local_ray, scenes):
    with pytest.raises(ConfigError, match="ask for 8 GPUs .* and the cluster has 0"):
        finetune(learning(scenes, device="cuda", workers=8))
    with pytest.raises(ConfigError, match="has no GPU"):
        finetune(learning(scenes, device="cuda", workers=0))
    assert scenes.names("runs") == []


def test_a_resume_from_another_architecture(scenes):
    from adbooster.finetune.checkpoints import Mark
    from adbooster.models.files import architecture

    other = architecture(MODELS / "outpaint", 8, Lora().targets)
    Checkpoints(scenes, "runs/finetune-x/checkpoints").save(Mark(step=3, architecture=other, name="x"), {})
    uri = f"{scenes.uri}/runs/finetune-x/checkpoints"
    with pytest.raises(ConfigError, match="another architecture: its lora_rank is 8 and the base's is 4"):
        check_finetune(learning(scenes, resume_from=uri, lora=Lora(rank=4)))
    check_finetune(learning(scenes, resume_from=uri, lora=Lora(rank=8)))
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        check_finetune(learning(scenes, resume_from=f"{scenes.uri}/runs/none"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size_px": 100}, "multiple of 8"),
        ({"product_scale": (0.9, 0.4)}, "the lower first"),
        ({"device": "cuda", "latents": LatentCache(placements=2)}, "latents.encode.gpus is 0"),
    ],
)
def test_settings_that_cannot_work(scenes, settings, said):
    with pytest.raises(ConfigError, match=said):
        check_finetune(learning(scenes, **settings))


def test_mlflow_that_is_not_there(scenes):
    pytest.importorskip("tensorboard")
    from importlib.util import find_spec

    if find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    with pytest.raises(ConfigError, match="mlflow is not installed"):
        check_finetune(learning(scenes, mlflow_uri="http://127.0.0.1:1"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_started_again_from_the_last_checkpoint(local_ray, scenes, workers):
    """A real Ray Train worker is killed (SIGKILL) in the middle of a run."""
    config = learning(scenes, workers=workers, steps=14, checkpoint_every=2, batch=2, threads=1)
    killer = subprocess.Popen([sys.executable, "-c", KILLER, scenes.base])
    report = finetune(config)
    assert killer.wait(timeout=10) == 0, "no worker was killed"
    assert 2 <= report.resumed_from_step < 14
    assert [s for s, _ in result(scenes)["curve"]] == list(range(1, 15))


KILLER = """
import glob, os, signal, sys, time, psutil
for _ in range(2400):
    if glob.glob(sys.argv[1] + "/runs/finetune-*/checkpoints/*.json"):
        for p in psutil.process_iter(["cmdline"]):
            name = " ".join(p.info["cmdline"] or [])
            parents = " ".join(str(q.pid) for q in p.parents())
            if p.pid != os.getpid() and "RayTrainWorker" in name and str(os.getppid()) in parents.split():
                p.send_signal(signal.SIGKILL)
                sys.exit(0)
    time.sleep(0.05)
sys.exit(1)
"""
