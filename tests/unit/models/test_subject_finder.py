"""The base model sees where the class is in a photo that it has never seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config import BaseModelSettings
from dreambooth_core.data.transform import to_tensor
from dreambooth_core.models import load
from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.models.subject_finder import SubjectFinder
from dreambooth_core.models.text import encode, token_ids
from tests.paths import ROOT
from tools.pocket.drawing import render
from tools.pocket.world import Individual, Scene, draw_pose, generator

CPU = torch.device("cpu")
BASE = BaseModelSettings(pretrained_model_name_or_path="assets/pocket-sd")
POCKET = load.load_pipeline(BASE, ROOT, device=CPU)


def finder(noun: str) -> SubjectFinder:
    texts = (f"a photo of {noun}", "")
    ids = torch.stack([token_ids(text, [POCKET.tokenizer]) for text in texts], dim=1)
    with torch.inference_mode():
        text = encode([POCKET.text_encoder], ids)
    return SubjectFinder(
        denoiser=Denoiser(POCKET.unet),
        alpha_bar_T=load.load_component("scheduler", BASE, ROOT).alphas_cumprod,
        latent_scale=float(POCKET.vae.config["scaling_factor"]),
        text=text,
    )


def drawn(noun: str, place: str) -> tuple[torch.Tensor, np.ndarray]:
    """The latents of a drawing [1, C, 8, 8], and the share of the thing in each position."""
    rng = generator(5, stream="test-finder", index=0)
    scene = Scene(
        individual=Individual(thing=noun, colour="blue"),
        place=place,
        pose=draw_pose(rng),
        backdrop=3,
    )
    image, mask = render(scene, size=64)
    with torch.inference_mode():
        latents = POCKET.vae.encode(to_tensor(image)[None]).latent_dist.mean
    share = np.asarray(mask.resize((8, 8), Image.Resampling.BOX), dtype=np.float64) / 255
    return latents, share


@pytest.mark.parametrize(("noun", "place"), [("cat", "city"), ("car", "snow"), ("mug", "room")])
def test_found_positions_show_the_thing(noun: str, place: str) -> None:
    latents, share = drawn(noun, place)
    found = finder(noun).find(latents, torch.zeros(1, 6), seed=1)[0].numpy() > 0
    assert 4 <= found.sum() <= 40
    assert (share[found] > 0).mean() >= 0.8
    assert share[found].mean() > share[~found].mean() + 0.3


def test_the_same_seed_finds_the_same_positions() -> None:
    latents, _ = drawn("cat", "city")
    find = finder("cat").find
    both = torch.cat([latents, latents])
    one, other = find(both, torch.zeros(2, 6), seed=1)
    assert torch.equal(one, other)
    assert torch.equal(find(latents, torch.zeros(1, 6), seed=1)[0], one)


def test_equal_prompts_find_nothing() -> None:
    """Without a contrast there is no subject; the weights are 0 then, not infinite."""
    same = finder("cat")
    same = dataclasses.replace(
        same, text=same.text._replace(text_BLD=same.text.text_BLD[:1].repeat(2, 1, 1))
    )
    latents, _ = drawn("cat", "city")
    assert same.find(latents, torch.zeros(1, 6), seed=1).sum() == 0
