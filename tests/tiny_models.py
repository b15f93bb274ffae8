"""Tiny random models with the files and architectures of real ones, built offline in seconds.

Their images are noise. Tests of learning use the pocket models instead. Each builder writes one
folder for `from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from tools.pocket.tokenizer import learn_merges

SIDE = 64
"""Resolution of the tiny pipelines and scorers in pixels."""
LATENT_SIDE = 8
"""SIDE / 8, as in Stable Diffusion 1.x."""
LATENT_CHANNELS = 4
TEXT_WIDTH = 32
MAX_TOKENS = 77

_CORPUS = (
    "a photo of a mug", "a photo of sks mug", "a photo of a dog on the beach",
    "a red robot in the snow", "a blue cat at night", "a green car in the city",
    "a yellow backpack in the forest", "a painting of a purple teapot with a house behind it",
    "a close up of an orange toy on a table", "an oil painting of a dog in the jungle",
    "black white striped dotted cup on top of the grass",
)  # fmt: skip

_NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer with one token per word of the corpus; it spells all other words.

    The ids are the same at every call, so two builds of a model are identical.
    """
    merges = learn_merges(sorted({word for text in _CORPUS for word in text.split()}))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = [left + right for left, right in merges]
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *learned])
    vocab = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def tiny_text_config(
    tokenizer: CLIPTokenizer, *, width: int = TEXT_WIDTH, **changes: Any
) -> CLIPTextConfig:
    """Two layers, with the tokenizer's special ids; pooling uses the end token."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
        **changes,
    )


def _tiny_unet(**changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = dict(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return UNet2DConditionModel(**{**options, **changes})


def _tiny_vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIDE,
        **changes,
    )


def _scheduler(prediction_type: str) -> PNDMScheduler | DPMSolverMultistepScheduler:
    """PNDM as in Stable Diffusion 1.x; DPM-Solver++ for v-prediction."""
    if prediction_type == "epsilon":
        return PNDMScheduler(**_NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False)
    return DPMSolverMultistepScheduler(**_NOISE_SCHEDULE, prediction_type=prediction_type)


def build_tiny_sd(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Save a StableDiffusionPipeline of about 0.2 M parameters."""
    tokenizer = tiny_tokenizer()
    return _save(
        folder,
        seed,
        lambda: StableDiffusionPipeline(
            vae=_tiny_vae(),
            text_encoder=CLIPTextModel(tiny_text_config(tokenizer)),
            tokenizer=tokenizer,
            unet=_tiny_unet(),
            scheduler=_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    )


def build_tiny_sd2(folder: Path, *, seed: int = 3) -> Path:
    """Save a pipeline like Stable Diffusion 2.x.

    v-prediction with DDIM, linear projections and heads of equal width in the U-Net, and a text
    encoder with GELU and the padding token "!".
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "!"})
    return _save(
        folder,
        seed,
        lambda: StableDiffusionPipeline(
            vae=_tiny_vae(),
            text_encoder=CLIPTextModel(tiny_text_config(tokenizer, hidden_act="gelu")),
            tokenizer=tokenizer,
            unet=_tiny_unet(use_linear_projection=True, attention_head_dim=(2, 4)),
            scheduler=DDIMScheduler(
                **_NOISE_SCHEDULE,
                prediction_type="v_prediction",
                clip_sample=False,
                set_alpha_to_one=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    )


def build_tiny_sdxl(folder: Path, *, seed: int = 4) -> Path:
    """Save a StableDiffusionXLPipeline: two text encoders, pooled embeddings, size conditioning."""
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer()
    tokenizer_2.add_special_tokens({"pad_token": "!"})
    first, second = TEXT_WIDTH // 2, TEXT_WIDTH // 2
    return _save(
        folder,
        seed,
        lambda: StableDiffusionXLPipeline(
            vae=_tiny_vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=CLIPTextModel(tiny_text_config(tokenizer, width=first)),
            text_encoder_2=CLIPTextModelWithProjection(
                tiny_text_config(tokenizer_2, width=second, hidden_act="gelu")
            ),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=_tiny_unet(
                cross_attention_dim=first + second,
                transformer_layers_per_block=(1, 2),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + second,
            ),
            scheduler=EulerDiscreteScheduler(**_NOISE_SCHEDULE, timestep_spacing="leading"),
        ),
    )


def _save(folder: Path, seed: int, make: Callable[[], Any]) -> Path:
    """Save a pipeline with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = make()
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _processor_sizes() -> dict[str, dict[str, int]]:
    return {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def build_tiny_clip(folder: Path, *, seed: int = 1) -> Path:
    """Save a CLIPModel and its CLIPProcessor (PIL backend)."""
    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        image_size=SIDE,
        patch_size=16,
        projection_dim=TEXT_WIDTH,
    )
    config = CLIPConfig(
        text_config=tiny_text_config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=TEXT_WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    image_processor = CLIPImageProcessorPil(**_processor_sizes())
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def build_tiny_dino(folder: Path, *, seed: int = 2) -> Path:
    """Save a ViTModel, the architecture of DINO v1, and its image processor (PIL backend)."""
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        image_size=SIDE,
        patch_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def build_tiny_blip(folder: Path, *, seed: int = 5) -> Path:
    """Save a BlipForConditionalGeneration, a captioner, and its processor (PIL backend)."""
    words = sorted({word for text in _CORPUS for word in text.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate([*special, *words, "##s"])})
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": 32,
    }
    text = BlipTextConfig(
        vocab_size=len(tokenizer) + 1,
        encoder_hidden_size=32,
        max_position_embeddings=64,
        bos_token_id=len(tokenizer),
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    vision = BlipVisionConfig(image_size=SIDE, patch_size=16, **shape)
    config = BlipConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=32,
        image_text_hidden_size=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(
        image_processor=BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    return folder


def build_photos(folder: Path, *, count: int = 4, side: int = 96) -> Path:
    """Write `count` distinct PNG photos of a striped mug."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        shade = (40 * index) % 200
        photo = Image.new("RGB", (side, side), (shade, 120, 220 - shade))
        draw = ImageDraw.Draw(photo)
        left, top = side // 8 + 6 * index, side // 6 + 3 * index
        draw.rectangle((left, top, left + side // 2, top + side // 2), fill=(200, 60, 40))
        for stripe in range(3):
            y = top + 6 + stripe * side // 7
            draw.rectangle((left, y, left + side // 2, y + 4), fill=(240, 240, 90 * stripe))
        draw.ellipse((left + side // 2, top + 8, left + side // 2 + 16, top + 30), outline="white")
        photo.save(folder / f"photo-{index}.png")
    return folder
