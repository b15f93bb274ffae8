"""The space of a search: its defaults, `--param`, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.search.space import Choices, Range, make_space
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces


@pytest.fixture
def small(tmp_path: Path) -> Workspace:
    """Settings alone: 4 steps, a checkpoint every 2, learning rate 2e-4, prior weight 1."""
    workspaces.write_settings(tmp_path, ("mug",))
    return Workspace(tmp_path)


def space_of(workspace: Workspace, *params: str):
    return make_space(workspace, config.load_view(workspace, "mug"), params)


def test_defaults_surround_the_present_settings(small: Workspace) -> None:
    assert space_of(small) == {
        "train.learning_rate": Range(5e-5, 8e-4),
        "train.max_train_steps": Range(2, 8, 2),
        "prior.prior_loss_weight": Range(0.25, 2.0),
        "train.train_text_encoder": Choices((False, True)),
    }


def test_lora_searches_rank_and_the_rate_of_the_adapters(small: Workspace) -> None:
    workspaces.change(small.root, "train.method", "lora")
    space = space_of(small)
    assert space["train.lora.rank"] == Choices((4, 8, 16))
    assert space["train.lora.learning_rate"] == Range(5e-4, 8e-3)
    assert "train.learning_rate" not in space


def test_defaults_that_other_settings_exclude_are_left_out(small: Workspace) -> None:
    workspaces.change(small.root, "prior", None)
    workspaces.change(small.root, "train.train_text_encoder", value=True)
    workspaces.change(small.root, "train.text_encoder_lr", 1e-5)
    space = space_of(small)
    assert "prior.prior_loss_weight" not in space
    assert "train.train_text_encoder" not in space


def test_every_default_contains_the_present_steps(small: Workspace) -> None:
    for steps in (2, 3, 4, 7, 10, 600):
        workspaces.change(small.root, "train.max_train_steps", steps)
        found = space_of(small)["train.max_train_steps"]
        assert isinstance(found, Range)
        assert steps in found
        assert found.high in found


def test_param_replaces_fixes_and_adds(small: Workspace) -> None:
    space = space_of(
        small,
        "train.learning_rate=1e-5..1e-3",
        "train.train_text_encoder=false",
        "train.snr_gamma=null, 5",
        "train.max_train_steps=3..7",
    )
    assert space["train.learning_rate"] == Range(1e-5, 1e-3)
    assert space["train.train_text_encoder"] == Choices((False,))
    assert space["train.snr_gamma"] == Choices((None, 5))
    assert space["train.max_train_steps"] == Range(3, 7, 1)


def test_all_mistakes_are_reported_at_once(small: Workspace) -> None:
    with pytest.raises(SettingsError) as caught:
        space_of(
            small,
            "learning_rate",
            "train.learning_rat=1e-5..1e-3",
            "train.learning_rate=1e-3..1e-5",
            "train.seed=a..b",
            "evaluate.seed=1,2",
            "train.max_train_steps=-1..8",
            "train.lora.rank=8",
            "train.lora.rank=8",
        )
    text = str(caught.value)
    for part in (
        "KEY=LOW..HIGH",
        "train.learning_rat: unknown setting; did you mean learning_rate",
        "the range is empty",
        "a range needs two numbers",
        "cannot search evaluate.seed",
        "train.max_train_steps: Input should be greater than 0, found -1",
        "train.lora.rank twice",
    ):
        assert part in text
    assert caught.value.exit_code == 2


def test_fixing_everything_leaves_nothing_to_search(small: Workspace) -> None:
    fixed = ("train.learning_rate=1e-4", "train.max_train_steps=4", "train.train_text_encoder=true")
    with pytest.raises(SettingsError, match="nothing to vary"):
        space_of(small, *fixed, "prior.prior_loss_weight=1")
