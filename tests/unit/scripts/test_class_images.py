"""The class images that a script samples."""

import json

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from tests.unit.scripts.command import prior, run


def test_class_images_equal_those_of_diffusers(tiny_sd, photos, tmp_path):
    """15 steps of DPM-Solver++ at guidance 7.5, as docs/guide.md promises."""
    folder = tmp_path / "class"
    assert run(tiny_sd, photos, tmp_path / "out", **prior(folder, 2), max_train_steps=1) == 0
    (made,) = json.loads((tmp_path / "class.manifest.json").read_text())["sets"]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )

    def drawn(steps: int, guidance: float) -> np.ndarray:
        seeds = [torch.Generator().manual_seed(each["seed"]) for each in made["images"]]
        call = {"num_inference_steps": steps, "guidance_scale": guidance}
        images = pipe([made["class_prompt"]] * 2, generator=seeds, height=64, width=64, **call)
        return np.stack([np.asarray(image, dtype=int) for image in images.images])

    found = np.stack(
        [np.asarray(Image.open(folder / each["file"]), dtype=int) for each in made["images"]]
    )
    assert np.abs(found - drawn(15, 7.5)).max() <= 1
    for steps, guidance in ((14, 7.5), (15, 7.0)):
        assert np.abs(found - drawn(steps, guidance)).max() > 1
