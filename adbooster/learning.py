"""What decides how an outpainter learns: the settings that every training worker is given."""

from typing import Annotated, Literal

from pydantic import Field

from adbooster.pools import Pool
from adbooster.settings import Config, JobConfig, Uri


class Lora(Config):
    """A low-rank adapter in place of the whole UNet (Hu et al., 2021; by peft)."""

    rank: int = Field(0, ge=0)
    """Rank of the adapter; 0 trains the whole UNet."""
    alpha: float = Field(0.0, ge=0)
    """The adapter's output is scaled by alpha / rank; 0: as the rank, a scale of 1."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter, in training only."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers that get one, by the end of their name; conv1, conv2 and proj_in are others."""


class LatentCache(Config):
    """Encode every picture once, before training, instead of at every step."""

    placements: int = Field(0, ge=0)
    """Placements of each picture that are encoded and then taken in turn; 0: no cache, a new placement every epoch."""
    encode: Pool = Pool(batch=16)
    """Actors that hold the VAE and the text encoder while the cache is made; on cuda give them `gpus: 1`."""


class Panel(Config):
    """What is looked at while the model learns; always the same pictures, noise, timesteps and seeds."""

    every: int = Field(500, ge=0)
    """Steps between two looks; 0: only before the first step and after the last."""
    pictures: int = Field(64, ge=1)
    """Held-out pictures in the validation loss."""
    paintings: int = Field(4, ge=0)
    """Held-out pictures painted for the grid; 0: no grid."""
    num_inference_steps: int = Field(20, ge=1)
    """Sampler steps of these paintings."""
    guidance_scale: float = Field(5.0, ge=1)
    """Classifier-free guidance of these paintings."""


class Learning(JobConfig):
    """The part of `jobs.finetune` that its workers are given."""

    base: Uri
    """Weights to start from: an inpainting pipeline (SD 1.x, 2.x or SDXL) in diffusers layout."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where training runs; never chosen by what is there."""
    workers: int = Field(1, ge=0)
    """Ray Train workers (one GPU each on cuda); 0 trains in this process, for tests."""
    threads: int = Field(1, ge=1)
    """CPU threads a worker."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """fsdp shards weights, gradients and optimizer over the workers, for models that need it; ddp keeps a copy each."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the arithmetic; weights stay float32, and float16 brings a gradient scaler."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    size_px: int = Field(512, ge=32)
    """Side of the square whose area the training pictures have."""
    aspects: tuple[Annotated[float, Field(gt=0.2, lt=5)], ...] = Field((1.0, 1.91, 0.8, 0.5625), min_length=1)
    """Width over height of the training pictures, drawn for each; a batch holds one of them."""
    product_scale: tuple[float, float] = (0.4, 0.8)
    """The product's longer side as a share of the picture's shorter side, as near as the photo allows."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps."""
    batch: int = Field(4, ge=1)
    """Pictures a worker and pass."""
    accumulate: int = Field(1, ge=1)
    """Passes whose gradients make one step; a step sees workers x batch x accumulate pictures."""
    learning_rate: float = Field(5e-6, gt=0)
    """Of AdamW, at its highest; 5e-6 for a whole UNet, 1e-4 for LoRA of rank 16 are where to start."""
    weight_decay: float = Field(1e-2, ge=0)
    """Of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to zero over `steps` after the warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Linear from zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    min_snr_gamma: float = Field(0.0, ge=0)
    """Min-SNR weighting of the timesteps (Hang et al., 2023; 5 is theirs); 0: every timestep counts alike."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """The weights given out are this moving average, (1+n)/(10+n) at step n while that is less; 0: the last weights."""
    lora: Lora = Lora()
    """Train an adapter instead of the UNet."""
    empty_text_share: float = Field(0.1, ge=0, le=1)
    """Pictures trained without their caption, for classifier-free guidance."""
    latents: LatentCache = LatentCache()
    """Train from encoded pictures."""
    panel: Panel = Panel()
    """What is looked at."""
    seed: int = 0
    """Placements, noise and order: each follows from (seed, epoch, sample)."""
    place: Pool = Pool(batch=32)
    """Actors that decode and place (or read the cache), for each worker."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between two checkpoints; what a crash costs at most."""
    log_every: int = Field(10, ge=1)
    """Steps between two points of the curves."""
    mlflow_uri: str = ""
    """An MLflow tracking server that gets the curves too; needs mlflow installed."""

    @property
    def passes(self) -> int:
        """Batches of one step, of all workers together."""
        return max(1, self.workers) * self.accumulate


NOT_DECIDING = {
    *("root_uri", "run_id", "dry_run", "threads", "place", "checkpoint_every", "log_every", "mlflow_uri", "panel"),
    *("gradient_checkpointing", "max_failures", "samples_version", "keep_checkpoint"),
}
"""Settings that leave the weights as they are: another value is the same run."""
