"""The embedded models' architectures, built fresh (random weights) and saved in the formats of the big ones."""

import json
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from open_clip import CLIP, CustomTextCLIP
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from adbooster.tiny.texts import CONTEXT_LENGTH, WRITER_LENGTH

SIDE_PX = 256
SCENE_PX = 96
TEXT_WIDTH = 128
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
CLIPS = {
    "rank": {
        "embed_dim": 128,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 80,
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 2},
    },
    "judge": {
        "embed_dim": 96,
        "vision_cfg": {"image_size": 96, "layers": [1, 1, 2, 1], "width": 24, "head_width": 24},
        "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 160, "heads": 5, "layers": 2},
    },
}


def new_vae() -> AutoencoderKL:
    """Factor 8, 4 latent channels, as Stable Diffusion's: 256 px <-> 32x32. Wide where it is cheap, at few pixels."""
    widths = (12, 24, 80, 160)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]  # of any length
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=widths,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE_PX,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL) -> None:
    """Make a sample of the latents their mode for all that matters (as with Stable Diffusion's VAE): log variance -12."""
    width = vae.config.latent_channels
    assert vae.quant_conv is not None
    assert vae.quant_conv.bias is not None
    vae.quant_conv.weight[width:] = 0
    vae.quant_conv.bias[width:] = -12


def new_unet() -> UNet2DConditionModel:
    """11.3 M parameters; cross-attention on the lower two levels only."""
    unet = UNet2DConditionModel(
        sample_size=SIDE_PX // 8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(64, 64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def new_text_encoder(tokenizer: CLIPTokenizer, clip: CLIP | CustomTextCLIP) -> CLIPTextModel:
    """A CLIP text model that starts from an open_clip text tower of the same shape, as Stable Diffusion's does."""
    tower = CLIPS["rank"]["text_cfg"]
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=tower["width"],
            intermediate_size=4 * tower["width"],
            num_hidden_layers=tower["layers"],
            num_attention_heads=tower["heads"],
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_act="gelu",
            bos_token_id=cast(int, tokenizer.bos_token_id),
            eos_token_id=cast(int, tokenizer.eos_token_id),
            pad_token_id=cast(int, tokenizer.pad_token_id),
        )
    )
    model.load_state_dict(_text_tower(clip), strict=False)
    return model


def _text_tower(clip: CLIP | CustomTextCLIP) -> dict[str, torch.Tensor]:
    """open_clip's names of the text tower's weights to those of transformers."""
    weights = {k.removeprefix("text."): v for k, v in clip.state_dict().items()}
    out = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"attn.out_proj": "self_attn.out_proj"}
    for kind in ("weight", "bias"):
        out[f"final_layer_norm.{kind}"] = weights[f"ln_final.{kind}"]
        for i in range(CLIPS["rank"]["text_cfg"]["layers"]):
            ours, theirs = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            out |= {f"{ours}.{new}.{kind}": weights[f"{theirs}.{old}.{kind}"] for old, new in names.items()}
            parts = weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            out |= {f"{ours}.self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", parts, strict=True)}
    return out


def new_scheduler() -> DPMSolverMultistepScheduler:
    """v-prediction with zero terminal SNR, sampled by DPM-Solver++."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_blip(tokenizer: BertTokenizerFast) -> BlipForConditionalGeneration:
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=160,
        encoder_hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=160, intermediate_size=480, num_hidden_layers=4, num_attention_heads=4, image_size=96, patch_size=12
    )
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=64))


def blip_processor(tokenizer: BertTokenizerFast) -> BlipProcessor:
    images = BlipImageProcessor(size={"height": 96, "width": 96}, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    return BlipProcessor(images, tokenizer)


def new_clip(name: str, tokenizer: CLIPTokenizer) -> CLIP | CustomTextCLIP:
    cfg = CLIPS[name]
    text = {**cfg["text_cfg"], "vocab_size": len(tokenizer)}
    kind = CustomTextCLIP if cfg.get("custom_text") else CLIP
    return kind(
        embed_dim=cfg["embed_dim"],
        vision_cfg=cfg["vision_cfg"],
        text_cfg=text,  # pyright: ignore[reportArgumentType]  # a dict will do
    )


def new_scene_classifier(scenes: int) -> nn.Sequential:
    """A small plain CNN, [B,3,S,S] in [-1,1] at SCENE_PX to scores [B,scenes]: it tells scenes, and nothing else here uses it."""
    layers, wide = [], (3, 24, 48, 96, 128)
    for i, o in pairwise(wide):
        layers += [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * wide[-1], scenes)
    )


def save_scene_classifier(folder: Path, model: nn.Sequential) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def load_scene_classifier(folder: Path, scenes: int) -> nn.Sequential:
    model = new_scene_classifier(scenes)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def new_writer(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """1.6 M parameters, in the layout of Llama (Touvron et al., 2023)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=WRITER_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=cast(int, tokenizer.eos_token_id),
            pad_token_id=cast(int, tokenizer.pad_token_id),
        )
    )


def save_writer(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A folder that transformers loads as a causal language model, its chat template in tokenizer_config.json."""
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """The whole outpainter as the stock pipeline class saves it, fp16 safetensors."""
    scale = vae.config.scaling_factor
    pipe = StableDiffusionInpaintPipeline(
        vae,
        text_encoder,
        tokenizer,
        unet,
        new_scheduler(),  # pyright: ignore[reportArgumentType]  # declared as an enum of names
        None,  # pyright: ignore[reportArgumentType]
        None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    assert pipe.vae.config.scaling_factor == scale
    pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)


def save_blip(folder: Path, model: BlipForConditionalGeneration, processor: BlipProcessor) -> None:
    model.half().save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


def save_clip(folder: Path, name: str, model: CLIP | CustomTextCLIP, tokenizer: CLIPTokenizer) -> None:
    """A folder that open_clip loads as `local-dir:<folder>`: config, tokenizer and fp16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    cfg = CLIPS[name]
    text = {**cfg["text_cfg"], "vocab_size": len(tokenizer), "hf_tokenizer_name": "local"}
    config = {
        "model_cfg": {**cfg, "text_cfg": text},
        "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    weights = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in model.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")
