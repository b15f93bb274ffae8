"""dvc.yaml agrees with the settings, the stages and the example photos."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dvc.repo import Repo

from dreambooth_core import config
from dreambooth_core.errors import StageError
from dreambooth_core.workspace import STAGES
from tasks.inputs import refuse_drift
from tasks.photos import dvc_md5

ROOT = Path(__file__).parents[2]
DVC_YAML = config.read_yaml(ROOT / "dvc.yaml")


def _body(stage: str) -> dict[str, list[str]]:
    return DVC_YAML["stages"][stage]["do"]


def test_dvc_yaml_has_every_stage_for_every_subject() -> None:
    assert tuple(DVC_YAML["stages"]) == STAGES
    assert all(stage["foreach"] == "${subjects}" for stage in DVC_YAML["stages"].values())


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_exactly_the_settings_that_a_stage_reads(stage: str) -> None:
    assert _body(stage)["params"] == config.dvc_params(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_no_user_text_reaches_the_shell(stage: str) -> None:
    assert _body(stage)["cmd"] == f"sh infra/stage.sh {stage} --subject ${{key}}"


def test_subject_names_reject_shell_syntax() -> None:
    settings = config.read_yaml(ROOT / "params.yaml")
    settings["subjects"]["mug; rm -rf x"] = settings["subjects"]["mug"]
    with pytest.raises(ValueError, match=r"mug; rm -rf x"):
        config.Settings.model_validate(settings)


# A setting, and the stages that DVC runs again when it changes (downstream ones follow from their
# outputs). Whoever moves a setting between stages has to change this table.
TABLE: dict[str, set[str]] = {
    "base_model.revision": {"class-images", "cache", "train", "evaluate", "confirm", "register"},
    "compute.num_threads": {"class-images", "cache", "train", "evaluate", "confirm"},
    "data.resolution": {"validate", "class-images", "cache", "train", "evaluate", "confirm"},
    "data.center_crop": {"validate", "cache"},
    "data.min_side": {"validate"},
    "data.captions": {"validate"},
    "data.caption_rate": {"validate", "cache"},
    "data.masks": {"validate", "cache"},
    "prior.num_class_images": {"class-images", "train"},
    "prior.prior_loss_weight": {"class-images", "train"},
    "train.learning_rate": {"train"},
    "train.train_text_encoder": {"train"},
    "train.init_from": {"train"},
    "train.checkpointing_steps": {"train"},
    "evaluate.seed": {"train", "evaluate", "confirm"},
    "select.max_pres_gain": {"train", "evaluate", "select"},
    "registry.model_name_prefix": {"register"},
    "runtime.log_every_steps": set(),
    "runtime.keep_store_days": set(),
    "runtime.keep_checkpoints": set(),
    "versions.train": {"train"},
    "versions.report": {"report"},
    "subjects.mug.identifier": {"cache", "train", "evaluate", "select", "confirm"},
    "subjects.mug.class_noun": set(STAGES[1:7]),
    "subjects.mug.prompts": {"train", "evaluate", "select", "confirm"},
    "subjects.mug.choice": {"select"},
    "compare.min_votes": set(),
}


@pytest.mark.parametrize(("setting", "stages"), TABLE.items())
def test_changed_setting_makes_exactly_these_stages_stale(setting: str, stages: set[str]) -> None:
    watching = {
        stage
        for stage in STAGES
        for key in _body(stage)["params"]
        if _is_under(setting, key.replace("${key}", "mug"))
    }
    assert watching == stages


def _is_under(setting: str, key: str) -> bool:
    return setting == key or setting.startswith(f"{key}.")


def test_stages_depend_only_on_outputs_of_earlier_stages() -> None:
    seen: set[str] = set()
    for stage in STAGES:
        upstream = {d.split("/")[2] for d in _body(stage)["deps"] if d.startswith("work/")}
        assert upstream <= seen, stage
        seen.add(stage)


def test_train_depends_on_every_file_that_launches_it() -> None:
    """A launch file may name a configuration of DeepSpeed, which the trainer reads."""
    launches = {path: path.read_text() for path in (ROOT / "infra" / "accelerate").iterdir()}
    named = {name for text in launches.values() for name in re.findall(r"infra/\S+\.json", text)}
    assert named
    deps = [ROOT / path for path in _body("train")["deps"]]
    for path in [*launches, *(ROOT / name for name in named)]:
        assert any(path.is_relative_to(folder) for folder in deps), path


def test_committed_dvc_file_matches_the_shipped_example() -> None:
    pointer = config.read_yaml(ROOT / "data" / "instance" / "mug.dvc")
    assert pointer["outs"][0]["md5"] == dvc_md5(ROOT / "examples" / "mug-stripes")


def test_every_subject_has_a_plot_of_its_training_loss() -> None:
    subjects = config.read_yaml(ROOT / "params.yaml")["subjects"]
    plots = {path for entry in DVC_YAML["plots"] for path in entry}
    assert plots == {f"work/{name}/train/metrics.csv" for name in subjects}


def test_drift_error_names_the_setting_with_both_values() -> None:
    with pytest.raises(StageError, match=r"train.learning_rate was 5e-06, is 9e-09"):
        refuse_drift("train", {"train.learning_rate": 5e-6}, {"train.learning_rate": 9e-9})


def test_dvc_tracks_the_photos_of_every_subject() -> None:
    """A rule of git's that also hides their folder from DVC leaves them out of every push."""
    with Repo(str(ROOT)) as repo:
        seen = {stage.addressing for stage in repo.index.stages}
    subjects = config.read_yaml(ROOT / "params.yaml")["subjects"].values()
    assert {f"{subject['instance_dir']}.dvc" for subject in subjects} <= seen
