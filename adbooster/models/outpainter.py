"""Outpainting: everything but the product is painted anew, by whichever family of models the weights are.

Shapes: N pictures, C channels, H x W pixels, h x w latents.
"""

import copy
import inspect
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe
from adbooster.models.caching import cached_share
from adbooster.models.families import Condition, StableDiffusion, Words, family_of
from adbooster.models.files import check_recipe, check_weights
from adbooster.models.previews import Previews, clean

log = logging.getLogger(__name__)
TEXTS_KEPT_BYTES = 2**30
SHAPES_COMPILED = 256  # of one kind of block: its widths, times the placements, with and without guidance

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

Judge = Callable[[list[int], list[np.ndarray]], Sequence[float]]
"""Indices of paintings and their previews (uint8 [H,W,3]) to scores, higher is better."""


@dataclass(frozen=True)
class Painting:
    """One candidate to paint; those of one `group` compete where the recipe halves."""

    condition: Condition
    prompt: str
    negative_prompt: str
    seed: int
    group: int = 0


@dataclass(frozen=True)
class _Halfway:
    """A candidate between two steps: latents [C,h,w], its row in a scheduler's history, its generator's state."""

    x_Chw: torch.Tensor
    scheduler: Any
    row: int
    random: torch.Tensor
    step: int
    preview_u8: np.ndarray


@dataclass
class _Batch:
    """Candidates that take their steps together; `step` is how many they have taken."""

    x_NChw: torch.Tensor
    scheduler: Any
    generators: list[torch.Generator]
    step: int = 0

    @staticmethod
    def of(some: list[_Halfway]) -> "_Batch":
        """Candidates of other batches, each with its own past, which multistep schedulers look back on."""
        scheduler = copy.copy(some[0].scheduler)
        shape, rows = some[0].x_Chw.shape, [h.row for h in some]
        for name in vars(scheduler):
            setattr(scheduler, name, _gathered([vars(h.scheduler)[name] for h in some], rows, shape))
        generators = [torch.Generator().set_state(h.random) for h in some]
        return _Batch(torch.stack([h.x_Chw for h in some]), scheduler, generators, some[0].step)

    def apart(self, previews_u8: list[np.ndarray]) -> list[_Halfway]:
        each = zip(self.x_NChw, self.generators, previews_u8, strict=True)
        return [
            _Halfway(x_Chw, self.scheduler, i, g.get_state(), self.step, preview)
            for i, (x_Chw, g, preview) in enumerate(each)
        ]


def _gathered(values: list, rows: list[int], shape: torch.Size) -> Any:
    """An attribute of several schedulers as one batch's: of tensors [N,*shape] each one's row, of the rest the first."""
    first = values[0]
    if isinstance(first, torch.Tensor) and first.shape[1:] == shape:
        return torch.stack([v[row] for v, row in zip(values, rows, strict=True)])
    if isinstance(first, list | tuple):
        return [_gathered(list(parts), rows, shape) for parts in zip(*values, strict=True)]
    return first


class Outpainter:
    """Paints batches of unrelated candidates with one set of weights under one recipe.

    preview      folder of a small decoder for the previews of `paint`, see previews.py
    batch        paintings in one pass; halved for good when memory runs out
    evaluations  samples that the network has evaluated so far: two a guided step, a cached step counts as its share
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        device: str,
        dtype: str,
        batch: int,
        adapters: Iterable[tuple[Path, float]] = (),
        compiled: bool = False,
        preview: Path | None = None,
    ):
        check_weights(path)
        check_recipe(recipe, path)
        self.recipe, self.device, self.batch = recipe, device, batch
        # On the CPU weights stay float32 and autocast picks what gains from bfloat16.
        self.dtype = torch.float32 if device == "cpu" else getattr(torch, dtype)
        self.autocast = device == "cpu" and dtype == "bfloat16"
        self.family: StableDiffusion = family_of(path)(path, recipe, self.dtype, device)
        _fuse(self.family, adapters)
        self.family.prepare()
        if device == "cuda" or self.autocast:  # in float32 on a CPU it gains nothing
            for module in (self.family.network, self.family.vae):
                module.to(memory_format=torch.channels_last)
        if compiled:
            _compile(self.family.network)
        self.scheduler = self._scheduler()
        self.vae, self.cached_share = self.family.vae, 0.0
        if self.family.cache:
            self.cached_share = cached_share(cast("Any", self.family.network).config)
        self.previews = None
        if recipe.halving.at:
            with torch.inference_mode():
                self.previews = Previews(self.family, recipe.halving.preview, preview)
        self.words: OrderedDict[str, Words] = OrderedDict()
        self.evaluations = 0.0

    def _scheduler(self) -> Any:
        own: Any = self.family.pipe.scheduler
        wanted: Any = scheduler_class(self.recipe.scheduler) if self.recipe.scheduler else type(own)
        return wanted.from_config(own.config, **self.recipe.scheduler_options)

    @torch.inference_mode()
    def condition(self, image_u8: np.ndarray, product_mask_u8: np.ndarray) -> Condition:
        """The network's input for a product, shared by all its candidates and cohorts: one VAE pass.

        image_u8         uint8 [H,W,3], RGB; the product, anything elsewhere
        product_mask_u8  uint8 [H,W], 255 = product
        raises           ConfigError if H or W is not a multiple of the VAE's factor
        """
        high, wide = product_mask_u8.shape
        if high % self.family.factor or wide % self.family.factor:
            raise ConfigError(f"{wide} x {high} px cannot be painted: the VAE needs multiples of {self.family.factor}")
        paint_mask_11HW = torch.from_numpy(product_mask_u8 < 128).float()[None, None].to(self.device)
        pixels_1CHW = torch.from_numpy(image_u8.copy()).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            return Condition(self.family.condition(pixels_1CHW, paint_mask_11HW), (high, wide))

    @overload
    def paint(self, paintings: list[Painting]) -> list[np.ndarray]: ...

    @overload
    def paint(self, paintings: list[Painting], judge: Judge | None) -> list[np.ndarray | None]: ...

    def paint(self, paintings: list[Painting], judge: Judge | None = None) -> Any:
        """Paint every candidate; uint8 [H,W,3] each, in order; None for those that halving stopped.

        judge   scores previews of all candidates at the recipe's `halving.at`; the weaker of each group stop there, and
                the others go on in full batches. Without it, or where the recipe does not halve, all are painted
        raises  ConfigError for a negative prompt where the weights take none

        A picture depends on its own painting alone: each has its own generator, and every batch is filled up to the
        same size, so that the same kernels run whatever else is in it. When memory runs out the batch is halved for
        good, and painting goes on; `batch` is the current size.
        """
        self._check(paintings)
        going, halfway = list(range(len(paintings))), {}
        if judge and self.previews:
            halfway = dict(self._batches(paintings, going, self._first_steps))
            scores = judge(going, [halfway[i].preview_u8 for i in going])
            going = stronger(scores, [p.group for p in paintings], self.recipe.halving.keep)

        def to_the_end(some: list[Painting], indices: list[int]) -> list[np.ndarray]:
            batch = _Batch.of([halfway[i] for i in indices]) if halfway else self._begun(some)
            self._denoise(batch, some, len(batch.scheduler.timesteps))
            return self._pictures(batch.x_NChw, some[0].condition.size)

        out: list[np.ndarray | None] = [None] * len(paintings)
        for i, picture in self._batches(paintings, going, to_the_end):
            out[i] = picture
        return out

    def _check(self, paintings: list[Painting]) -> None:
        if not self.family.two_passes and (refused := [p for p in paintings if p.negative_prompt]):
            raise ConfigError(
                f"these weights take no negative prompt, and {refused[0].negative_prompt!r} was given; "
                "set prompts.negative_prompt to an empty text"
            )

    def _batches(
        self, paintings: list[Painting], todo: list[int], work: Callable[[list[Painting], list[int]], list]
    ) -> Iterator[tuple[int, Any]]:
        """(index, what `work` made of it), in batches of one shape that are always full."""
        shapes: dict[tuple, list[int]] = {}
        for i in todo:
            shapes.setdefault(paintings[i].condition.shape, []).append(i)
        for left in shapes.values():
            while left:
                some, before = left[: self.batch], self.evaluations
                full = some + [some[-1]] * (self.batch - len(some))
                try:
                    with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                        ready = work([paintings[i] for i in full], full)
                except (torch.OutOfMemoryError, RuntimeError) as e:
                    self.evaluations = before
                    self._halve(e)
                    continue
                self.evaluations = before + (self.evaluations - before) * len(some) / len(full)
                yield from zip(some, ready, strict=False)
                left = left[len(some) :]

    def _halve(self, e: Exception) -> None:
        lacking = isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)
        if not lacking or self.batch == 1:
            raise e
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.batch //= 2
        log.warning("out of memory: painting goes on in batches of %d", self.batch)

    def _begun(self, paintings: list[Painting]) -> _Batch:
        """Every candidate's own noise."""
        high, wide = paintings[0].condition.channels_Chw.shape[-2:]
        scheduler = copy.deepcopy(self.scheduler)
        self.family.begin(scheduler, (high, wide))
        # On the CPU: the device does not matter.
        generators = [torch.Generator().manual_seed(p.seed) for p in paintings]
        shape = (self.vae.config.latent_channels, high, wide)
        x_NChw = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)
        return _Batch(x_NChw * getattr(scheduler, "init_noise_sigma", 1.0), scheduler, generators)

    def _first_steps(self, paintings: list[Painting], _: list[int]) -> list[_Halfway]:
        assert self.previews
        batch = self._begun(paintings)
        n = len(batch.scheduler.timesteps)
        clean_NChw = self._denoise(batch, paintings, min(max(1, round(self.recipe.halving.at * n)), n - 1))
        return batch.apart(self.previews(clean_NChw, paintings[0].condition.size))

    def _denoise(self, batch: _Batch, paintings: list[Painting], until: int) -> torch.Tensor:
        """Take the batch's steps up to `until`; the clean latents [N,C,h,w] that the last prediction implies."""
        recipe, family, scheduler, x_NChw = self.recipe, self.family, batch.scheduler, batch.x_NChw
        towards = self._words([p.prompt for p in paintings])
        guides = recipe.guidance_scale > 1 and family.two_passes
        both = self._words([p.negative_prompt for p in paintings]).then(towards) if guides else towards
        condition = torch.stack([p.condition.channels_Chw for p in paintings])
        takes = inspect.signature(scheduler.step).parameters
        options = {"generator": batch.generators} if "generator" in takes else {}
        first, last = (share * len(scheduler.timesteps) for share in recipe.guidance_interval)
        begun, was_guided, implied_NChw = batch.step, False, x_NChw
        for i, t in enumerate(scheduler.timesteps[begun:until], start=begun):
            guided = guides and first <= i < last
            reuse = i > begun and i % recipe.cache_every > 0 and guided == was_guided
            scaled = scheduler.scale_model_input(x_NChw, t) if hasattr(scheduler, "scale_model_input") else x_NChw
            seen = torch.cat([scaled, condition], 1).to(self.dtype).repeat(2 if guided else 1, 1, 1, 1)
            step = family.predict(seen, t, both if guided else towards, reuse).float()
            if guided:
                without, to = step.chunk(2)
                step = without + recipe.guidance_scale * (to - without)
            if i == until - 1 and self.previews:
                implied_NChw = clean(scheduler, t, scaled, step)
            x_NChw = scheduler.step(step, t, x_NChw, return_dict=False, **options)[0]
            self.evaluations += len(seen) * (self.cached_share if reuse else 1)
            was_guided = guided
        batch.x_NChw, batch.step = x_NChw, until
        return implied_NChw

    def _pictures(self, x_NChw: torch.Tensor, size: tuple[int, int]) -> list[np.ndarray]:
        pixels = (self.family.decode(x_NChw).float() / 2 + 0.5).clamp(0, 1) * 255
        pixels = pixels.round().to(torch.uint8)[..., : size[0], : size[1]]
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _words(self, texts: list[str]) -> Words:
        """What the network takes of each text, [N,...]; each distinct one is encoded once while it is in use."""
        for text in dict.fromkeys(texts):
            if text not in self.words:
                self.words[text] = self.family.words(text)
            self.words.move_to_end(text)
        some = [self.words[t] for t in texts]
        while len(self.words) > max(1, TEXTS_KEPT_BYTES // some[0].size_bytes):
            self.words.popitem(last=False)
        return Words.stacked(some)


def stronger(scores: Sequence[float], groups: Sequence[int], keep: float) -> list[int]:
    """Indices, in order, of the better `keep` (share, rounded up) of each group; the earlier one of equals."""
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    best = (sorted(some, key=lambda i: (-scores[i], i))[: math.ceil(keep * len(some))] for some in members.values())
    return sorted(i for some in best for i in some)


def scheduler_class(name: str) -> type:
    scheduler = getattr(diffusers, name, None)
    if not (isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)):
        raise ConfigError(
            f"diffusers has no scheduler {name!r}; UniPCMultistepScheduler and LCMScheduler are two it has"
        )
    return scheduler


def _compile(network: Any) -> None:
    """Compile the blocks that repeat, not the whole: minutes become seconds, and all blocks of a kind share their kernels."""
    if cache := os.environ.get("ADBOOSTER_CACHE"):  # else torch's own folder, below the temporary one
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache) / "inductor"))
    limits: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
    limits.recompile_limit = max(limits.recompile_limit, SHAPES_COMPILED)
    network._repeated_blocks = [*network._repeated_blocks, "ResnetBlock2D"]
    network.compile_repeated_blocks(dynamic=False)


def _fuse(family: StableDiffusion, adapters: Iterable[tuple[Path, float]]) -> None:
    """Add LoRA adapters (safetensors files, with their strength) to the weights for good: they cost nothing to run.

    raises ConfigError for a file that adapts nothing of these weights: it must not be left out in silence
    """
    pipe: Any = family.pipe
    for i, (path, scale) in enumerate(adapters):
        before = _sums(family)
        try:
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"a{i}")
            pipe.fuse_lora(lora_scale=scale, adapter_names=[f"a{i}"])
            pipe.unload_lora_weights()
        except (ValueError, RuntimeError, LookupError, OSError) as e:
            raise ConfigError(f"the adapter {path} does not fit the weights: {e}") from e
        if scale and _sums(family) == before:
            raise ConfigError(
                f"the adapter {path} changes nothing in the network of these weights; is it for another model?"
            )


@torch.no_grad()
def _sums(family: StableDiffusion) -> dict[str, float]:
    return {name: p.double().sum().item() for name, p in family.network_of(family.pipe).named_parameters()}
