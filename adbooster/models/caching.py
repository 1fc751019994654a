"""Deep features of a UNet used again at the next steps: they change little from step to step, and cost most of its time.

Source: DeepCache (Ma, Fang & Wang, 2023, arXiv 2312.00858), its outermost branch: section 3.2 with m = 1.
"""

import copy
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

TOKENS = 77


class DeepCache:
    """A second view of a UNet, on the same parameters, that runs its first convolution and its last layer alone.

    shallow  takes what the UNet takes; what the layers in between gave at the UNet's own last run stands in for them
    """

    def __init__(self, unet: Any):
        last = unet.up_blocks[-1]
        kept = last.resnets[-1] = _Tap(last.resnets[-1], unet.conv_in.out_channels)
        outer = _view(last)
        outer.resnets = nn.ModuleList([kept.layer])
        if getattr(last, "attentions", None) is not None:
            outer.attentions = nn.ModuleList([last.attentions[-1]])
        self.shallow = _view(unet)
        self.shallow.down_blocks = nn.ModuleList()
        self.shallow.mid_block = _Kept(kept)
        self.shallow.up_blocks = nn.ModuleList([outer])


class _Tap(nn.Module):
    """The last residual layer; it keeps what it is given, without the skip connection's channels at the end."""

    def __init__(self, layer: nn.Module, skip_channels: int):
        super().__init__()
        self.layer, self.skip_channels = layer, skip_channels
        self.kept: torch.Tensor | None = None

    def forward(self, hidden_NChw: torch.Tensor, *args: Any) -> torch.Tensor:
        self.kept = hidden_NChw[:, : -self.skip_channels]
        return self.layer(hidden_NChw, *args)


class _Kept(nn.Module):
    """Stands in for all blocks that a cached step leaves out."""

    def __init__(self, tap: _Tap):
        super().__init__()
        self.taps = (tap,)  # in a tuple: its layer is no parameter of this module

    def forward(self, *_: Any) -> torch.Tensor:
        kept = self.taps[0].kept
        assert kept is not None, "a whole step comes first"
        return kept


def _view(module: Any) -> Any:
    """The same module, whose parts can be replaced without touching it."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


def cached_share(config: dict[str, Any]) -> float:
    """What a cached step costs of a whole one, 0-1: floating-point operations of a UNet with this config, counted
    on shapes alone."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
        cache, side = DeepCache(unet), unet.config.sample_size
        seen = torch.empty(1, unet.config.in_channels, side, side)
        states = torch.empty(1, TOKENS, unet.config.cross_attention_dim)
        more = {}
        if unet.config.addition_embed_type:
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            more = {"added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}}
        costs = []
        for network in (unet, cache.shallow):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(seen, torch.empty(1), states, **more)
            costs.append(counter.get_total_flops())
    return costs[1] / costs[0]
