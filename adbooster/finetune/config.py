"""Settings and report of `jobs.finetune`, and what each training worker is given."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from adbooster.contracts.recipe import Recipe
from adbooster.contracts.settings import Config, JobConfig, Pool, Uri
from adbooster.measure.config import ComparisonPanel
from adbooster.prompts.config import Prompting

ADAPTER_FILE = "adapter.safetensors"  # of a LoRA run, beside the merged weights


class Lora(Config):
    """A low-rank adapter in place of the whole UNet (Hu et al., 2021; by peft)."""

    rank: int = Field(default=0, ge=0)
    """Rank of the adapter; 0 trains the whole UNet."""
    alpha: float = Field(default=0.0, ge=0)
    """The adapter's output is scaled by alpha / rank; 0: as the rank, a scale of 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter, in training only."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers that get one, by the end of their name; conv1, conv2 and proj_in are others."""


class LatentCache(Config):
    """Encode every picture once, before training, instead of at every step."""

    placements: int = Field(default=0, ge=0)
    """Placements of each picture that are encoded and then taken in turn; 0: no cache, a new placement every epoch."""
    encode: Pool = Pool(batch=16)
    """Actors that hold the VAE and the text encoder while the cache is made; on cuda give them `gpus: 1`."""


class Panel(Config):
    """Validation while the model trains; always the same pictures, noise, timesteps and seeds."""

    every: int = Field(default=500, ge=0)
    """Steps between two validations; 0: only before the first step and after the last."""
    pictures: int = Field(default=64, ge=1)
    """Held-out pictures in the validation loss."""
    paintings: int = Field(default=4, ge=0)
    """Held-out pictures painted for the grid; 0: no grid."""
    num_inference_steps: int = Field(default=20, ge=1)
    """Sampler steps of these paintings."""
    guidance_scale: float = Field(default=5.0, ge=1)
    """Classifier-free guidance of these paintings."""


class ColdStart(Config):
    """Pairs from paintings of the base itself, for a shop that has neither marks nor outcomes yet: a CLIP orders them."""

    inherits: ClassVar = {
        "generate": {n: n for n in ("rank_model", "recipe", "prompts", "dtype", "paint", "paint_batch")},
        "evaluate": {"judge_model": "judge_model"},
    }
    by: Literal["", "rank", "judge"] = ""
    """Whose scores order the candidates of a request. The judge is no independent measure any more of weights that were
    tuned on its own choices. Empty: no cold start."""
    rank_model: Uri = ""
    """The CLIP that ranks, a folder that open_clip saved; for `by: rank`."""
    judge_model: Uri = ""
    """The CLIP that judges; for `by: judge`."""
    panel: ComparisonPanel = ComparisonPanel()
    """The products and cohorts that are painted."""
    recipe: Recipe = Recipe()
    """How they are painted; all candidates of a request stand in one place, so that the scene is what differs."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text."""
    dtype: str = Field(default="float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    paint: Pool = Pool(batch=8)
    """Actors that paint and score."""
    paint_batch: int = Field(default=16, ge=1)
    """Paintings in one pass of the network."""


class Preference(Config):
    """Learn from pairs of pictures of which one is preferred, in place of the catalog's scenes (Diffusion-DPO)."""

    beta: float = Field(default=0.0, ge=0)
    """How dear it is to leave the base's predictions, which the loss is against; 2000 to 5000 are usual. 0: learn from scenes."""
    pairs_uri: Uri = ""
    """A Parquet file of pairs (schema.PREFERENCES); empty: approved over rejected creatives and surely higher over lower
    click rates, as the root's tables have them."""
    sure: float = Field(default=0.95, gt=0.5, lt=1)
    """Probability that one click rate is above the other, from which on two creatives are a pair."""
    min_pairs: int = Field(default=50, ge=2)
    """Fewer pairs are not learned from."""
    min_margin: float = Field(default=0.01, ge=0)
    """Least difference between the scores of two candidates of the cold start that are a pair."""
    cold_start: ColdStart = ColdStart()
    """Pairs from paintings of the base, besides those of the tables."""


class TrainingConfig(JobConfig):
    """The part of `jobs.finetune` that its workers are given."""

    base: Uri
    """Weights to start from: an inpainting pipeline (SD 1.x, 2.x or SDXL) in diffusers layout."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where training runs; never chosen by what is there."""
    workers: int = Field(default=1, ge=0)
    """Ray Train workers (one GPU each on cuda); 0 trains in this process, for tests."""
    threads: int = Field(default=1, ge=1)
    """CPU threads a worker."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """fsdp shards weights, gradients and optimizer over the workers, for models that need it; ddp keeps a copy each."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the arithmetic; weights stay float32, and float16 brings a gradient scaler."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    size_px: int = Field(default=512, ge=32)
    """Side of the square whose area the training pictures have."""
    aspects: tuple[Annotated[float, Field(gt=0.2, lt=5)], ...] = Field(default=(1.0, 1.91, 0.8, 0.5625), min_length=1)
    """Width over height of the training pictures, drawn for each; a batch holds one of them."""
    product_scale: tuple[float, float] = (0.4, 0.8)
    """The product's longer side as a share of the picture's shorter side, as near as the photo allows."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    batch: int = Field(default=4, ge=1)
    """Pictures a worker and pass."""
    accumulate: int = Field(default=1, ge=1)
    """Passes whose gradients make one step; a step sees workers x batch x accumulate pictures."""
    learning_rate: float = Field(default=5e-6, gt=0)
    """Of AdamW, at its highest; 5e-6 for a whole UNet, 1e-4 for LoRA of rank 16 are where to start."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to zero over `steps` after the warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Linear from zero."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    min_snr_gamma: float = Field(default=0.0, ge=0)
    """Min-SNR weighting of the timesteps (Hang et al., 2023; 5 is theirs); 0: every timestep counts alike."""
    border_weight: float = Field(default=1.0, gt=0)
    """Weight of the loss near the product's edge, where a scene is tempted to grow the product; elsewhere 1."""
    border_share: float = Field(default=0.1, gt=0, le=1)
    """How far `near` reaches from the edge, as a share of the picture's shorter side."""
    product_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on the product itself, which painting is given and does not keep."""
    keep_base: float = Field(default=0.0, ge=0)
    """Weight of the squared difference to the base's own prediction away from the product's edge: scenes stay the base's."""
    prior: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pictures shown with a text of the cohorts, on which the weights should predict what the base does."""
    prior_texts: tuple[str, ...] = ()
    """Those texts, put after the product's words; empty: query and context of the cohorts in the tables, 256 at most."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """The published weights are this moving average, (1+n)/(10+n) at step n while that is less; 0: the last weights."""
    preference: Preference = Preference()
    """Learn from preferred pictures."""
    lora: Lora = Lora()
    """Train an adapter instead of the UNet."""
    empty_text_share: float = Field(default=0.1, ge=0, le=1)
    """Pictures trained without their caption, for classifier-free guidance."""
    latents: LatentCache = LatentCache()
    """Train from encoded pictures."""
    panel: Panel = Panel()
    """Validation on held-out pictures."""
    seed: int = 0
    """Placements, noise and order: each follows from (seed, epoch, sample)."""
    place: Pool = Pool(batch=32)
    """Actors that decode and place (or read the cache), for each worker."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints; what a crash costs at most."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two points of the curves."""
    mlflow_uri: str = ""
    """An MLflow tracking server that gets the curves too; needs mlflow installed."""

    @property
    def passes(self) -> int:
        """Batches of one step, of all workers together."""
        return max(1, self.workers) * self.accumulate


NOT_DECIDING = {
    *(
        "root_uri",
        "catalog",
        "run_id",
        "dry_run",
        "threads",
        "place",
        "checkpoint_every",
        "log_every",
        "mlflow_uri",
        "panel",
    ),
    *("gradient_checkpointing", "max_failures", "samples_version", "keep_checkpoint"),
}
"""Settings that leave the weights as they are: another value is the same run."""
OF_THE_LOSS = ("border_weight", "border_share", "product_weight", "keep_base", "prior", "prior_texts", "preference")
"""Settings that came later: at their defaults a run has the name that it had without them."""


class FinetuneConfig(TrainingConfig):
    """Settings of `jobs.finetune`."""

    samples_version: int | None = Field(default=None, ge=0)
    """Version of tables/samples to learn from; null: the newest."""
    held_out_share: float = Field(default=0.15, gt=0, lt=1)
    """Products kept for validation, chosen by a hash of their id."""
    max_failures: int = Field(default=3, ge=0)
    """Times that Ray Train starts the workers again, from the last checkpoint; preempted nodes do not count."""
    resume_from: Uri = ""
    """Checkpoints of another run (runs/finetune-<name>/checkpoints) to go on from, to train it longer or on more data."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint of a finished run, for a run that goes on from it."""


@dataclass(frozen=True)
class TrainingRun:
    """One run as its workers get it.

    name          hash of settings and data (finetune.job.run_name)
    folder        runs/finetune-<name>, relative to the root: data, checkpoints, curves, paintings
    result        the file that says that the run is complete, relative to the root
    resume_from   checkpoints of another run to start from; "": the base
    architecture  of the trained weights, so that a checkpoint of another one is refused
    card          what the weights' card.json says besides the figures
    latents       folder of the latent cache; "": none
    """

    config: TrainingConfig
    name: str
    folder: str
    result: str
    resume_from: str
    keep_checkpoint: bool
    architecture: dict[str, Any]
    card: dict[str, Any]
    latents: str = ""


class FinetuneReport(BaseModel):
    """What `jobs.finetune` did."""

    job: str = "finetune"
    run_id: str
    weights: str | None
    weights_revision: str | None
    adapter: str | None = None
    """The LoRA alone, as `generate.adapters` takes it; the weights have it merged."""
    reused: bool
    """These settings and data were trained before: the weights are those."""
    samples: int
    """Pictures to learn from, or pairs of them."""
    held_out: int
    pairs: dict[str, int] = {}
    """Pairs by where they come from, held-out ones too; empty: scenes are learned from."""
    unreadable: int = 0
    """Pictures left out because their photo or mask could not be read."""
    samples_version: int | None = None
    steps: int
    resumed_from_step: int = 0
    loss_before: float | None
    """On held-out pictures, with the same noise and timesteps as `loss_after`."""
    loss_after: float | None
    accuracy_before: float | None = None
    """Of preference tuning: share of held-out pairs whose winner the weights prefer more than the base does; half of equals."""
    accuracy_after: float | None = None
    images_per_s: float | None = None
    """Pictures, or pairs, of all workers together, without start, validation and checkpoints."""
    run_uri: str | None = None
    """Where curves (tensorboard/), paintings (panel/) and checkpoints are."""
    seconds: float
