import pytest
import torch

from adbooster.contracts.errors import ConfigError
from adbooster.finetune.checkpoints import Checkpoints, Mark, check_fits, open_at
from adbooster.storage.objects import Root

SHAPE = {"block_out_channels": [32, 64], "lora_rank": 0}


def mark(step: int) -> Mark:
    return Mark(step=step, architecture=SHAPE, name="n")


def test_the_newest_two_stay_and_come_back(root):
    kept = Checkpoints(root, "runs/x/checkpoints")
    assert kept.latest() is None
    for step in (5, 10, 100):
        kept.save(mark(step), {"weights": {"a": torch.full((3,), float(step))}, "average": None, "curve": "[]"})
    assert kept.latest() == mark(100)
    assert kept.load(mark(100))["weights"]["a"].tolist() == [100] * 3
    assert root.names("runs/x/checkpoints") == [f"step-{s:09d}.{k}" for s in (10, 100) for k in ("json", "pt")]
    assert open_at(f"{root.uri}/runs/x/checkpoints/").latest() == mark(100)


def test_one_without_its_mark_is_not_whole(root):
    kept = Checkpoints(root, "c")
    kept.save(mark(5), {"a": 1})
    root.write("c/step-000000010.pt", b"cut sho")
    assert kept.latest() == mark(5)
    assert kept.load(kept.latest()) == {"a": 1}


def test_object_storage(s3_root):
    kept = Checkpoints(Root(s3_root), "c")
    kept.save(mark(1), {"a": torch.arange(3)})
    kept.save(mark(2), {"a": torch.arange(4)})
    assert kept.load(kept.latest())["a"].tolist() == [0, 1, 2, 3]
    assert open_at(f"{s3_root}/c").latest() == mark(2)


def test_it_can_run_no_code(root):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    kept = Checkpoints(root, "c")
    kept.save(mark(1), {"a": Evil()})
    with pytest.raises(Exception, match="[Ww]eights.only"):
        kept.load(mark(1))


def test_another_architecture_is_named_by_what_differs():
    check_fits(mark(1), {"block_out_channels": (32, 64), "lora_rank": 0}, "c")
    with pytest.raises(ConfigError, match=r"its block_out_channels is \[32, 64\] and the base's is \[32\]"):
        check_fits(mark(1), SHAPE | {"block_out_channels": [32]}, "c")
