"""The models of the sd15 preset at their real sizes with random weights, in the files their publishers use.

Random weights know nothing, so three numbers are set by hand for a product to reach the end: U2-Net's skip connections
carry the darkness of the photo to its output (a product on white is dark), the text tower of CLIP ends in a direction
that prefers grey to white, and what is random is small enough not to overflow. All sizes, shapes and names are real.
"""

import gzip
import json
from pathlib import Path

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from adbooster.models.preprocessing import U2NET

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MILLIONS = {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1, "caption": 224.0, "rank": 151.3, "mask": 44.0}
"""Parameters as published; BLIP's 247.4 count the word embeddings, which its output layer shares, twice."""


def write_models(folder: Path) -> dict[str, float]:
    """All that the sd15 preset names below $ADBOOSTER_MODELS, about 3 GB; returns millions of parameters by part."""
    torch.manual_seed(0)
    pipeline = folder / "stable-diffusion-inpainting"
    return write_pipeline(pipeline) | {
        "caption": write_blip(folder / "blip-image-captioning-base"),
        "rank": write_clip(folder / "clip-vit-b-32"),
        "mask": write_u2net(folder / "u2net.onnx"),
    }


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def write_pipeline(folder: Path) -> dict[str, float]:
    """Stable Diffusion 1.5 inpainting; the model index names a safety checker whose folder is left out."""
    sizes = {"text_encoder": _write_text_encoder(folder / "text_encoder")}
    levels = 4
    parts = {
        "unet": lambda: UNet2DConditionModel(
            sample_size=64,
            in_channels=9,
            out_channels=4,
            layers_per_block=2,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        ),
        "vae": lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        ),
    }
    for name, build in parts.items():
        model = build()
        sizes[name] = millions(model)
        model.half().save_pretrained(folder / name, safe_serialization=True)
    _write_clip_tokenizer(folder / "tokenizer")
    clip_image = {"size": 224, "crop_size": 224, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    _json(folder / "feature_extractor" / "preprocessor_config.json", clip_image)
    _json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "clip_sample": False,
            "steps_offset": 1,
        },
    )
    _json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionInpaintPipeline",
            "_diffusers_version": "0.6.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return sizes


def write_xl(folder: Path, whole: bool = True) -> float:
    """SDXL inpainting, 3.5 billion parameters; returns millions of them.

    whole  False: one transformer layer a block instead of up to ten and two layers an encoder, for machines of 10 GiB;
           widths, blocks, text encoders, VAE and sizes are the real ones
    """
    unet = UNet2DConditionModel(
        sample_size=128,
        in_channels=9,
        out_channels=4,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10) if whole else (1, 1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    tokenizer = _clip_tokenizer(folder)
    pipe = StableDiffusionXLInpaintPipeline(
        vae=_vae(latent_channels=4, scaling_factor=0.13025, sample_size=1024),
        text_encoder=CLIPTextModel(_clip_text(768, 12, 12 if whole else 2, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_clip_text(1280, 20, 32 if whole else 2, "gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    return _save(pipe, folder)


def write_fill(folder: Path) -> float:
    """FLUX.1 Fill with one layer of each kind (of 19 and 38) and of each text encoder; widths, VAE and channels are real."""
    letters = [(c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyz,"]
    pipe = FluxFillPipeline(
        vae=_vae(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=1024,
        ),
        text_encoder=CLIPTextModel(_clip_text(768, 12, 1, "quick_gelu")),
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=1,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        ),
        tokenizer=_clip_tokenizer(folder),
        tokenizer_2=T5TokenizerFast(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0, model_max_length=512
        ),
        transformer=FluxTransformer2DModel(
            in_channels=384, out_channels=64, num_layers=1, num_single_layers=1, guidance_embeds=True
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    return _save(pipe, folder)


def _vae(**values) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        **values,
    )


def _clip_text(width: int, heads: int, layers: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    _write_clip_tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def _save(pipe, folder: Path) -> float:
    """As float16 safetensors; returns millions of parameters."""
    modules = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    for module in modules:
        module.half()
    pipe.save_pretrained(folder, safe_serialization=True)
    return sum(millions(m) for m in modules)


def _write_text_encoder(folder: Path) -> float:
    """CLIP ViT-L/14's text tower, its weights under the names of the published file (text_model...)."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=768,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        architectures=["CLIPTextModel"],
    )
    model = CLIPTextModel(config)
    config.save_pretrained(folder)
    weights = {f"text_model.{k.removeprefix('text_model.')}": v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return millions(model)


def _write_clip_tokenizer(folder: Path) -> None:
    """CLIP's 49,408 entries as vocab.json and merges.txt, from the byte-pair merges that open_clip brings along."""
    lines = gzip.open(default_bpe()).read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    _json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>"}
    _json(folder / "special_tokens_map.json", special)
    _json(
        folder / "tokenizer_config.json",
        special | {"model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"},
    )


def write_blip(folder: Path) -> float:
    """BLIP base with a WordPiece vocabulary of BERT's size: its special tokens at their ids, made-up words elsewhere."""
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={"vocab_size": 30524, "num_attention_heads": 12, "bos_token_id": 30522, "sep_token_id": 102},
            vision_config={"image_size": 384, "patch_size": 16},
        )
    )
    size = millions(model)
    model.half().save_pretrained(folder, safe_serialization=True)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    (folder / "vocab.txt").write_text("\n".join(special.get(i, f"w{i}") for i in range(30522)) + "\n")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]"}
    _json(folder / "special_tokens_map.json", names)
    _json(
        folder / "tokenizer_config.json",
        names | {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"},
    )
    _json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "BlipImageProcessor",
            "processor_class": "BlipProcessor",
            "size": {"height": 384, "width": 384},
            "resample": 3,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    return size


@torch.no_grad()
def write_clip(folder: Path) -> float:
    """open_clip's ViT-B-32 as it is published: config and weights, the tokenizer is open_clip's own."""
    clip = open_clip.create_model("ViT-B-32").eval()
    grey, white = (((torch.full((1, 3, 1, 1), v) - _row(CLIP_MEAN)) / _row(CLIP_STD)) for v in (0.5, 1.0))
    pictures = torch.cat([grey, white]).expand(2, 3, 224, 224)
    towards = F.normalize(clip.encode_image(pictures), dim=-1)
    towards = F.normalize(towards[0] - towards[1], dim=0)
    clip.ln_final.bias.copy_(torch.linalg.solve(clip.text_projection.T, 100 * towards))
    folder.mkdir(parents=True)
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD}
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": preprocess}
    _json(folder / "open_clip_config.json", config)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return millions(clip)


def _row(values) -> torch.Tensor:
    return torch.tensor([float(v) for v in values]).view(1, 3, 1, 1)


def write_u2net(path: Path) -> float:
    """U2-Net as ONNX: input.1 float [1,3,320,320], seven sigmoid maps [1,1,320,320], the fused one first."""
    model = U2Net().eval()
    model.see_darkness()
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 320, 320),),
        str(path),
        input_names=["input.1"],
        output_names=["fused", *(f"side{i}" for i in range(1, 7))],
        opset_version=17,
        dynamo=False,
    )
    return millions(model)


def _layer(wide_in: int, wide_out: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(wide_in, wide_out, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(wide_out), nn.ReLU())


def _down(x_BCHW: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x_BCHW, 2, 2, ceil_mode=True)


def _like(x_BCHW: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x_BCHW, size=other.shape[2:], mode="bilinear", align_corners=False)


class RSU(nn.Module):
    """Residual U-block (Qin et al., 2020, section 3.1): a small U-Net of `depth` layers round a skip connection.

    dilated  no pooling, dilations 1, 2, 4, 8 instead (RSU-4F)
    """

    def __init__(self, depth: int, wide_in: int, wide_mid: int, wide_out: int, dilated: bool = False):
        super().__init__()
        rates = [2**i if dilated else 1 for i in range(depth)]
        rates[-1] = rates[-1] if dilated else 2
        self.dilated = dilated
        self.entry = _layer(wide_in, wide_out)
        self.encode = nn.ModuleList(_layer(wide_mid if i else wide_out, wide_mid, r) for i, r in enumerate(rates))
        self.decode = nn.ModuleList(
            _layer(2 * wide_mid, wide_mid if i else wide_out, rates[i]) for i in reversed(range(depth - 1))
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        entry = x = self.entry(x_BCHW)
        kept = []
        for i, layer in enumerate(self.encode):
            pooled = not self.dilated and 0 < i < len(self.encode) - 1
            x = layer(_down(x) if pooled else x)
            kept.append(x)
        x = kept.pop()
        for layer in self.decode:
            skip = kept.pop()
            x = layer(torch.cat([_like(x, skip), skip], 1))
        return x + entry


class U2Net(nn.Module):
    """The full U2-Net (section 3.2, table 1): six encoders, five decoders, six side maps and their fusion."""

    def __init__(self):
        super().__init__()
        encoders = [(7, 3, 32, 64), (6, 64, 32, 128), (5, 128, 64, 256), (4, 256, 128, 512)]
        decoders = [(4, 1024, 128, 256), (5, 512, 64, 128), (6, 256, 32, 64), (7, 128, 16, 64)]
        flat = (4, 512, 256, 512)
        self.encode = nn.ModuleList([*(RSU(*e) for e in encoders), RSU(*flat, True), RSU(*flat, True)])
        self.decode = nn.ModuleList([RSU(4, 1024, 256, 512, True), *(RSU(*d) for d in decoders)])
        self.side = nn.ModuleList(nn.Conv2d(wide, 1, 3, padding=1) for wide in (64, 64, 128, 256, 512, 512))
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, kept = x_BCHW, []
        for i, stage in enumerate(self.encode):
            x = stage(_down(x) if i else x)
            kept.append(x)
        levels = [kept.pop()]
        for stage in self.decode:
            skip = kept.pop()
            levels.insert(0, stage(torch.cat([_like(levels[0], skip), skip], 1)))
        maps = [_like(side(level), x_BCHW) for side, level in zip(self.side, levels, strict=True)]
        return tuple(torch.sigmoid(m) for m in (self.fuse(torch.cat(maps, 1)), *maps))

    @torch.no_grad()
    def see_darkness(self) -> None:
        """Let channel 0 of the first encoder and of the last decoder be 1 - brightness, and the fused map its step."""
        first, last = self.encode[0], self.decode[-1]
        colours = first.entry[0]
        colours.weight[0] = 0
        colours.weight[0, :, 1, 1] = -torch.tensor(U2NET.std) / 3
        colours.bias[0] = 1 - sum(U2NET.mean) / 3
        onward = last.entry[0]
        onward.weight[0], onward.bias[0] = 0, 0
        onward.weight[0, 64, 1, 1] = 1  # after the 64 channels from below come the first encoder's
        for stage in (first, last):  # nothing random is added to it
            stage.decode[-1][1].weight[0], stage.decode[-1][1].bias[0] = 0, 0
        side = self.side[0]
        side.weight.zero_()
        side.weight[0, 0, 1, 1], side.bias[0] = 60, -60 * 0.08
        self.fuse.weight.zero_()
        self.fuse.weight[0, 0], self.fuse.bias[0] = 1, 0


def _json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
