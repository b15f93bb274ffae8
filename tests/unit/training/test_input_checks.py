"""What the settings name is checked before any stage runs, all of it at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.pipeline import StageContext, input_checks, preflight, run_stage
from dreambooth_core.workspace import STAGES, Workspace
from tests.unit.base.test_config import ROOT, changed, subject_of_shipped

SUBJECT = subject_of_shipped()
OWN = f"subjects.{SUBJECT}"
NAME = "base_model__pretrained_model_name_or_path"


def workspace_of(folder: Path, **changes: Any) -> Workspace:
    """The shipped settings with changes, and what they name."""
    for name in ("infra", "assets", "data"):
        (folder / name).symlink_to(ROOT / name)
    changed(folder, **changes)
    return Workspace(folder)


def problems(workspace: Workspace, stages: tuple[str, ...] = STAGES) -> str:
    view = config.load_view(workspace, SUBJECT)
    found = preflight.findings(workspace.root, view, {}, on_this_machine=False)
    with pytest.raises(SettingsError) as caught:
        preflight.refuse(found, stages)
    return str(caught.value)


WRONG: list[tuple[str, Any, str]] = [
    (NAME, "assets/pocket-sdd", "base_model.pretrained_model_name_or_path: the model assets/pock"),
    (NAME, "assets/pocket-clip", "base_model.pretrained_model_name_or_path: "),
    ("data__resolution", 65, "data.resolution: 65, but this base model needs a multiple of 8; "
     "nearest: 64 or 72"),
    ("data__resolution", 100, "data.resolution: 100, but this base model needs a multiple of 8; "
     "nearest: 96 or 104"),
    ("data__resolution", 4, "nearest: 8"),
    ("train__checkpointing_steps", 10000, "train.checkpointing_steps: 10000, but the training has "
     "600 steps"),
    ("evaluate__images_per_prompt", 1, "evaluate.images_per_prompt: too few images in a row of "
     "scores; found: 8 prompts x 1 images = 8; allowed: at least 32; what to do: raise it to 4"),
    ("evaluate__suite", "pockett", "evaluate.suite: unknown prompt suite; found: 'pockett'"),
    ("evaluate__clip", "assets/pocket-clop", "evaluate.clip: the scorer's folder does not exist"),
    ("evaluate__clip", "assets/pocket-dino", "evaluate.clip: the scorer's folder lacks tokenizer"),
    ("evaluate__dino", "assets/pocket-clip", "evaluate.dino: this model has no features for DINO"),
    ("evaluate__dino", "/nowhere", "evaluate.dino: the scorer's folder does not exist"),
    (f"subjects__{SUBJECT}__prompts", "my.txt", f"{OWN}.prompts: unknown prompt suite"),
    (f"subjects__{SUBJECT}__instance_dir", "photos", f"{OWN}.instance_dir: this folder does not "),
    (f"subjects__{SUBJECT}__instance_dir", "params.yaml", f"{OWN}.instance_dir: not a folder"),
    (f"subjects__{SUBJECT}__instance_dir", "infra", f"{OWN}.instance_dir: no photo in this folder"),
    (f"subjects__{SUBJECT}__overrides", {"data": {"resolution": 65}},
     f"{OWN}.overrides.data.resolution: 65, but"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_wrong_value_is_refused_with_its_key(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    assert message in problems(workspace_of(tmp_path, **{key: value}))


def test_all_wrong_values_are_reported_at_once(tmp_path: Path) -> None:
    several = {key: (value, message) for key, value, message in WRONG if key != NAME}
    workspace = workspace_of(tmp_path, **{key: value for key, (value, _) in several.items()})
    lines = problems(workspace).splitlines()
    keys = {line.partition(": ")[0] for line in lines}
    assert keys >= {f"{OWN}.overrides.data.resolution", "evaluate.clip", "evaluate.dino"}
    assert len(lines) == len(keys) == 6


def test_missing_lora_layers_are_refused_before_the_training(tmp_path: Path) -> None:
    workspace = workspace_of(
        tmp_path, train__method="lora", train__lora__lora_layers=["to_q", "to_nowhere"]
    )
    assert (
        "train.lora.lora_layers: no layer of the base model has this name; found: to_nowhere"
        in (problems(workspace))
    )


def test_side_follows_the_vae_of_the_base_model(tmp_path: Path) -> None:
    """A VAE with five levels encodes 16 pixels to one latent."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "assets" / "pocket-sd", model)
    vae = model / "vae" / "config.json"
    levels = '"block_out_channels": [\n    8,'
    vae.write_text(vae.read_text().replace('"block_out_channels": [', levels))
    workspace = workspace_of(tmp_path, **{NAME: "model", "data__resolution": 72})
    assert "needs a multiple of 16; nearest: 64 or 80" in problems(workspace)


def test_only_stages_ahead_are_checked(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, evaluate__images_per_prompt=1, data__resolution=65)
    assert "evaluate.images_per_prompt" in problems(workspace, ("evaluate", "select"))
    view = config.load_view(workspace, SUBJECT)
    found = preflight.findings(workspace.root, view, {}, on_this_machine=False)
    preflight.refuse(found, ("select", "register", "report"))


@pytest.mark.parametrize("stage", ["validate", "class-images", "cache", "train", "evaluate"])
def test_stage_refuses_what_a_later_stage_would_refuse(tmp_path: Path, stage: str) -> None:
    nowhere = {"evaluate__images_per_prompt": 1, "evaluate__clip": "assets/nothing", NAME: "a/b/c"}
    workspace = workspace_of(tmp_path, **nowhere)
    before = sorted(tmp_path.rglob("*"))
    context = StageContext(config.load_view(workspace, SUBJECT), workspace.places(SUBJECT))
    with pytest.raises(SettingsError) as caught:
        run_stage(context, stage)
    keys = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert keys == [
        "base_model.pretrained_model_name_or_path",
        "evaluate.images_per_prompt",
        "evaluate.clip",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_every_check_names_stages() -> None:
    view = config.load_view(Workspace(ROOT), SUBJECT)
    for check in input_checks.checks(ROOT, view):
        assert check.stages
        assert set(check.stages) <= set(STAGES)


def test_shipped_settings_have_neither_mistakes_nor_warnings(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    view = config.load_view(workspace, SUBJECT)
    assert preflight.findings(tmp_path, view, {}, on_this_machine=False) == []
    assert input_checks.warnings(tmp_path, view) == []


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"train__checkpointing_steps": 600}, "train.checkpointing_steps: 600, as many as the"),
        (
            {"train__lr_scheduler": "cosine", "train__lr_warmup_steps": 700},
            "train.lr_warmup_steps: 700 of 600 steps: the learning rate never reaches its peak",
        ),
        (
            {"train__train_text_encoder": True, "train__text_encoder_stop_step": 600},
            "train.text_encoder_stop_step: 600 of 600 steps: no effect",
        ),
        ({NAME: "CompVis/stable-diffusion-v1-4"}, "evaluate.clip: assets/pocket-clip knows only"),
        (
            {NAME: "CompVis/stable-diffusion-v1-4"},
            "data.resolution: 64, but the base model was trained at 512",
        ),
        ({"data__resolution": 512}, "data.resolution: 512, but the base model was trained at 64"),
        ({"evaluate__bootstrap_samples": 1}, "evaluate.bootstrap_samples: 1: too few"),
        ({"evaluate__num_class_prompt_images": 1}, "evaluate.num_class_prompt_images: 1: too few"),
        (
            {f"subjects__{SUBJECT}__overrides": {"data": {"resolution": 256}}},
            f"{OWN}.overrides.data.resolution: 256, but",
        ),
    ],
)
def test_unexpected_consequences_are_warned_about(
    tmp_path: Path, changes: dict[str, Any], warning: str
) -> None:
    workspace = workspace_of(tmp_path, **changes)
    found = input_checks.warnings(tmp_path, config.load_view(workspace, SUBJECT))
    assert any(line.startswith(warning) for line in found), found


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_learning_rate_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(SettingsError, match=r"train\.learning_rate: Input should be"):
        config.load_settings(changed(tmp_path, train__learning_rate=value))
