"""Every family and method: what is meant to train moves, checkpoints hold it and load."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, weights
from dreambooth_core.models.families import text_encoders_of
from dreambooth_core.models.tensors import read_tensors
from dreambooth_core.records import TrainingRun
from dreambooth_core.training.optim.ddp import WEIGHTS
from dreambooth_core.training.trainable import load_trainable_model
from tests.unit.training import tiny

CPU = torch.device("cpu")
FAMILIES = {"tiny_sd": 1, "tiny_sd2": 1, "tiny_sdxl": 2}
LORA = {**tiny.LORA, "text_encoder_layers": ("q_proj", "v_proj", "fc1")}
METHODS = {
    "full": {"method": "full"},
    "full with text": {"method": "full", "train_text_encoder": True},
    "lora": {"method": "lora", "lora": LORA},
    "lora with text": {"method": "lora", "lora": LORA, "train_text_encoder": True},
    "dora with text": {
        "method": "lora",
        "lora": {**LORA, "use_dora": True},
        "train_text_encoder": True,
    },
}


def _predictions(model, rows) -> torch.Tensor:
    """What the model predicts for made-up rows, in evaluation mode."""
    denoiser = model.denoiser.eval()
    with torch.inference_mode():
        return denoiser(
            rows.latents_BCHW,
            torch.tensor([400] * len(rows.image_B)),
            text_BLD=rows.text_BLD,
            pooled_BP=rows.pooled_BP,
            ids_EBL=rows.ids_EBL,
            time_ids_B6=rows.time_ids_B6,
        )


def _state(job, *, step: int) -> dict[str, torch.Tensor]:
    return load_file(job.resume_dir / f"step-{step:08d}" / WEIGHTS)


def _trained(job):
    """The model with the weights of the job's newest state."""
    model = load_trainable_model(job, device=CPU)
    for name, value in _state(job, step=job.train.max_train_steps).items():
        model.trainable[name].data.copy_(value)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_in_the_pipeline_predicts_what_was_trained(family, method, tmp_path, request):
    folder: Path = request.getfixturevalue(family)
    job = tiny.make_job(
        tmp_path, folder, max_train_steps=2, checkpointing_steps=2, **METHODS[method]
    )
    assert tiny.train(job).how == "done"
    (checkpoint,) = TrainingRun.read(job.out_dir).checkpoints
    with_text = "text" in method
    parts = {name.split("/")[0] for name in checkpoint.files}
    expected = {"unet", *list(weights.TEXT_ENCODERS)[: FAMILIES[family] * with_text]}
    if job.train.method == "lora":
        names = read_tensors(job.out_dir / checkpoint.name / weights.lora.LORA_FILE)
        parts = {name.split(".")[0] for name in names}
    assert parts == expected

    rows = tiny.rows_at(range(2))
    trained = _trained(job)
    trained_out = _predictions(trained, rows)
    pipe = load.load_pipeline(job.base_model, tmp_path, device=CPU)
    base = {n: p.clone() for n, p in pipe.unet.state_dict().items()}
    base_text = [m.state_dict() for m in text_encoders_of(pipe).values()]
    base_text = [{n: p.clone() for n, p in state.items()} for state in base_text]
    with weights.applied(pipe, job.out_dir / checkpoint.name, checkpoint):
        trained.denoiser.unet = pipe.unet
        for name in trained.denoiser.text_encoder_names:
            setattr(trained.denoiser, name, getattr(pipe, name))
        loaded_out = _predictions(trained, rows)
    assert torch.allclose(loaded_out, trained_out, atol=2e-6)
    assert all(torch.equal(pipe.unet.state_dict()[n], p) for n, p in base.items())
    for model, state in zip(text_encoders_of(pipe).values(), base_text, strict=True):
        assert all(torch.equal(model.state_dict()[n], p) for n, p in state.items())


def test_text_encoder_has_its_own_rate_and_last_step(tmp_path, tiny_sd):
    job = tiny.make_job(
        tmp_path,
        tiny_sd,
        train_text_encoder=True,
        text_encoder_lr=1e-4,
        text_encoder_stop_step=2,
        max_train_steps=4,
        checkpointing_steps=1,
        checkpoints_total_limit=4,
    )
    tiny.train(job)
    states = [_state(job, step=step) for step in range(1, 5)]
    base = {n: p.detach() for n, p in load_trainable_model(job, device=CPU).trainable.items()}
    text, unet = "text_encoder.final_layer_norm.weight", "unet.conv_in.weight"
    # AdamW's first update moves a weight by its rate, plus the decay of 1 % of it
    assert (states[0][text] - base[text]).abs().max().item() == pytest.approx(1e-4, rel=0.05)
    assert (states[0][unet] - base[unet]).abs().max().item() == pytest.approx(1e-3, rel=0.05)
    assert not torch.equal(states[1][text], states[0][text])
    for name in base:
        moved = not torch.equal(states[3][name], states[1][name])
        assert moved == name.startswith("unet."), name


def test_adapters_are_fp32_and_frozen_weights_have_the_compute_type(tmp_path, tiny_sdxl):
    job = tiny.make_job(tmp_path, tiny_sdxl, mixed_precision="bf16", **METHODS["lora with text"])
    model = load_trainable_model(job, device=CPU)
    for name, parameter in model.denoiser.named_parameters():
        expected = torch.float32 if ".lora_" in name else torch.bfloat16
        assert parameter.dtype == expected, name
        assert not parameter.requires_grad or ".lora_" in name
    assert tiny.train(job).how == "done"
    assert {t.dtype for t in _trained(job).trainable.values()} == {torch.float32}


def test_unknown_layer_name_is_refused_next_to_a_known_one(tmp_path, tiny_sd):
    lora = {**tiny.LORA, "lora_layers": ("to_k", "to_xx")}
    job = tiny.make_job(tmp_path, tiny_sd, method="lora", lora=lora)
    with pytest.raises(SettingsError, match=r"train\.lora\.lora_layers: .*has the name: to_xx;"):
        load_trainable_model(job, device=CPU)
