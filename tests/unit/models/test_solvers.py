"""Samplers that stand in for a pipeline's own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dreambooth_core.models import load, sampling
from dreambooth_core.models.families import Pipeline
from tests.paths import ROOT

CPU = torch.device("cpu")


def draw(pipe: Pipeline, steps: int) -> np.ndarray:
    pictures = sampling.sample(
        pipe, prompts=["a photo of mug"] * 4, seeds=range(4), steps=steps, guidance=3.0,
        resolution=64, batch_size=4,
    )  # fmt: skip
    return np.stack([np.asarray(picture) for picture in pictures]).astype(float)


def test_ten_solver_steps_match_fifty() -> None:
    pipe = load.load_pipeline_folder(ROOT / "assets" / "pocket-sd", device=CPU)
    sampling.give_solver(pipe, "dpm++")
    ten, fifty = draw(pipe, 10), draw(pipe, 50)
    others = np.roll(fifty, 1, axis=0)
    assert np.abs(ten - fifty).mean() < 0.3 * np.abs(ten - others).mean()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_solver_keeps_the_models_noise_schedule_and_prediction(
    tiny_sd: Path, tiny_sd_v: Path, prediction_type: str
) -> None:
    folder = tiny_sd if prediction_type == "epsilon" else tiny_sd_v
    pipe = load.load_pipeline_folder(folder, device=CPU)
    own = pipe.scheduler
    sampling.give_solver(pipe, "dpm++")
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert pipe.scheduler.config["prediction_type"] == prediction_type
    assert torch.equal(pipe.scheduler.alphas_cumprod, own.alphas_cumprod)


def test_without_a_solver_the_pipeline_keeps_its_own(tiny_sd: Path) -> None:
    pipe = load.load_pipeline_folder(tiny_sd, device=CPU)
    own = pipe.scheduler
    sampling.give_solver(pipe, None)
    assert pipe.scheduler is own


def test_solver_name_differs_from_the_models_own_sampler() -> None:
    own = "DPMSolverMultistepScheduler"
    assert sampling.solver_name(None, own=own) != sampling.solver_name("dpm++", own=own)
