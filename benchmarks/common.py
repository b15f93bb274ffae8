"""Shared by the benchmarks: machine, result files, base model, held-out loss, image quality."""

from __future__ import annotations

import functools
import platform
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from dreambooth_core import files
from dreambooth_core.evaluation.extractors import ClipScorer, DinoScorer, load_clip, load_dino
from dreambooth_core.models import load, sampling
from dreambooth_core.models.tensors import eval_mode
from dreambooth_core.models.text import encode, token_ids
from dreambooth_core.numerics.diffusion import (
    add_noise,
    draw_noise,
    mse_per_example,
    prediction_target,
)
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.numerics.similarity import Floats, cosines, pair_mean

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT_SEED = 90_210
HELD_OUT_TIMESTEPS = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
REFERENCE_STEPS, REFERENCE_GUIDANCE = 50, 7.5  # PNDM, the default of Stable Diffusion's pipeline
SIDE = 64


def has_gpu() -> bool:
    """Whether the benchmarks use a GPU."""
    return torch.cuda.is_available()


def machine(threads: int = 1) -> dict[str, str]:
    """The device and the versions behind a result."""
    import accelerate
    import diffusers

    device = torch.cuda.get_device_name() if has_gpu() else _cpu_name(threads)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    python = platform.python_version()
    return {"device": device, "python": python, "accelerate": accelerate.__version__, **versions}


def _cpu_name(threads: int) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = "one thread" if threads == 1 else f"{threads} threads"
    return f"{names[0] if names else platform.processor()}, {count}"


def results_file(name: str, suffix: str = "") -> Path:
    """The result file of a benchmark for this device: the GPU's name, or "cpu"."""
    kind = torch.cuda.get_device_name().lower().replace(" ", "-") if has_gpu() else "cpu"
    return ROOT / "benchmarks" / "results" / f"{name}-{kind}{suffix}.json"


def wall_clock() -> float:
    """Monotonic seconds, after synchronizing with the GPU."""
    if has_gpu():
        torch.cuda.synchronize()
    return time.monotonic()


def base_model(workspace: Path) -> Path:
    """A copy of the pocket model in fp32, for both sides."""
    folder = workspace / "pocket-sd"
    if not (folder / "model_index.json").is_file():
        with files.atomic_dir(folder) as aside:
            pipe = StableDiffusionPipeline.from_pretrained(
                ROOT / "assets" / "pocket-sd", dtype=torch.float32
            )
            pipe.save_pretrained(aside)
    return folder


def class_images(workspace: Path, model: Path, num: int) -> Path:
    """A cached folder of class images (PNG) for both sides."""
    folder = workspace / f"class-images-{num}"
    if not folder.is_dir():
        images = _draw(pipeline(model), noun="mug", num=num, steps=25, guidance=3.0)
        with files.atomic_dir(folder) as aside:
            for index, image in enumerate(images):
                image.save(aside / f"{index:05d}.png")
    return folder


def _draw(
    pipe: load.Pipeline, *, noun: str, num: int, steps: int, guidance: float
) -> list[Image.Image]:
    seeds = [derive_seed(HELD_OUT_SEED, "class", index) for index in range(num)]
    return sampling.sample(
        pipe, prompts=[f"a photo of {noun}"] * num, seeds=seeds, steps=steps,
        guidance=guidance, resolution=SIDE, batch_size=16,
    )  # fmt: skip


@functools.cache
def pipeline(model: Path) -> StableDiffusionPipeline:
    """The base model's pipeline, cached."""
    torch.set_num_threads(1)
    pipe = load.load_pipeline_folder(model, device=torch.device("cpu"))
    assert isinstance(pipe, StableDiffusionPipeline)
    return pipe


# ---- learning -----------------------------------------------------------------------------------


def held_out_loss(unet_dir: Path, model: Path, *, subject: str, noun: str) -> float:
    """Mean loss of a U-Net on the photos at fixed timesteps, with noise unused in training."""
    pipe = pipeline(model)
    unet = UNet2DConditionModel.from_pretrained(unet_dir).eval()
    z_BCHW, text_BLD, eps_BCHW, timestep_B = _held_out_rows(pipe, subject=subject, noun=noun)
    alpha_bar_B = pipe.scheduler.alphas_cumprod[timestep_B]
    target = prediction_target(
        z_BCHW, eps_BCHW, alpha_bar_B, prediction_type=pipe.scheduler.config["prediction_type"]
    )
    noisy = add_noise(z_BCHW, eps_BCHW, alpha_bar_B)
    with torch.inference_mode():
        predicted = unet(noisy, timestep_B, encoder_hidden_states=text_BLD, return_dict=False)[0]
    return float(mse_per_example(predicted, target).mean())


def _held_out_rows(
    pipe: StableDiffusionPipeline, *, subject: str, noun: str
) -> tuple[torch.Tensor, ...]:
    prompt = f"a photo of sks {noun}"
    with eval_mode(pipe.text_encoder), torch.inference_mode():
        ids_E1L = token_ids(prompt, [pipe.tokenizer])[:, None]
        text_LD = encode([pipe.text_encoder], ids_E1L).text_BLD[0]
    latents = [_latents(pipe, path) for path in sorted((ROOT / "examples" / subject).glob("*.png"))]
    rows = [(z, t) for z in latents for t in HELD_OUT_TIMESTEPS]
    noises = [
        draw_noise(z.shape, seed=HELD_OUT_SEED, is_class=False, position=index)
        for index, (z, _) in enumerate(rows)
    ]
    return (
        torch.stack([z for z, _ in rows]),
        torch.stack([text_LD] * len(rows)),
        torch.stack(noises),
        torch.tensor([t for _, t in rows]),
    )


def _latents(pipe: StableDiffusionPipeline, path: Path) -> torch.Tensor:
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with eval_mode(pipe.vae), torch.inference_mode():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    return (mean * pipe.vae.config["scaling_factor"])[0]


# ---- class images -------------------------------------------------------------------------------


def class_image_quality(folder: Path, model: Path, *, noun: str) -> dict[str, float]:
    """Compare a folder of class images with samples of the model in 50 PNDM steps.

    Returns CLIP-T, DIV (mean pairwise DINO distance) and the energy distance of the DINO features
    to the reference samples. The distance between two sets of reference samples gives the scale.
    """
    clip, dino = _scorers()
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg"))
    images = [_open(path) for path in paths]
    one, other = _references(model, noun, len(images))
    features = dino.images(images)
    text = clip.texts([f"a photo of {noun}"])
    return {
        "n": len(images),
        "clip_t": round(float(cosines(clip.images(images), text).mean()), 4),
        "clip_t_reference": round(float(cosines(clip.images(list(one)), text).mean()), 4),
        "div": round(pair_mean(1 - cosines(features, features), [0] * len(features)), 4),
        "dino_distance": round(energy_distance(features, dino.images(list(one))), 4),
        "dino_distance_of_other_seeds": round(
            energy_distance(dino.images(list(other)), dino.images(list(one))), 4
        ),
    }


def energy_distance(a_ND: Floats, b_MD: Floats) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over pairs of two images; 0 for equal distributions."""
    across = _distances(a_ND, b_MD).mean()
    return float(2 * across - _within(a_ND) - _within(b_MD))


def _within(a_ND: Floats) -> float:
    count = len(a_ND)
    return float(_distances(a_ND, a_ND).sum() / (count * (count - 1)))


def _distances(a_ND: Floats, b_MD: Floats) -> Floats:
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosines(a_ND, b_MD)))


@functools.cache
def _scorers() -> tuple[ClipScorer, DinoScorer]:
    device = torch.device("cpu")
    clip = load_clip("assets/pocket-clip", root=ROOT, device=device)
    return clip, load_dino("assets/pocket-dino", root=ROOT, device=device)


@functools.cache
def _references(
    model: Path, noun: str, num: int
) -> tuple[tuple[Image.Image, ...], tuple[Image.Image, ...]]:
    """Two sets of `num` reference samples of the model, in 50 PNDM steps."""
    pipe = load.load_pipeline_folder(model, device=torch.device("cpu"))
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    drawn = _draw(pipe, noun=noun, num=2 * num, steps=REFERENCE_STEPS, guidance=REFERENCE_GUIDANCE)
    return tuple(drawn[:num]), tuple(drawn[num:])


def _open(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")
