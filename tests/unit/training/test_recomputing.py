"""Gradient checkpointing: blocks are run again in the backward pass, in each kind of network."""

import pytest
import torch
from accelerate import Accelerator
from diffusers.models.resnet import ResnetBlock2D
from transformers.models.clip.modeling_clip import CLIPMLP

from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import Trainer
from tests.unit.training import tiny


@pytest.mark.parametrize(("recomputes", "runs"), [(False, 1), (True, 2)])
def test_every_block_runs_once_and_with_gradient_checkpointing_twice(
    recomputes, runs, tmp_path, tiny_sd
):
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, gradient_checkpointing=recomputes
    )
    model, accelerator = (
        load_trainable_model(job, device=torch.device("cpu")),
        Accelerator(cpu=True),
    )
    counts: dict[str, int] = {}

    def count(name: str) -> None:
        counts[name] = counts.get(name, 0) + 1

    for name, module in model.denoiser.named_modules():
        in_the_middle = "mid_block" in name  # whose first block diffusers keeps as it is
        if isinstance(module, ResnetBlock2D | CLIPMLP) and not in_the_middle:
            module.register_forward_pre_hook(lambda *_, name=name: count(name))
    updates = DdpStrategy(model, accelerator=accelerator, settings=job.train, state=None)
    trainer = Trainer(updates, rows_at=tiny.open_rows(job))
    trainer.accumulate(0, stop=False)
    assert {name.partition(".")[0] for name in counts} == {"unet", "text_encoder"}
    assert dict.fromkeys(counts, runs) == counts
