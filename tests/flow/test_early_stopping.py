"""Early stopping on tiny models: the decision depends on scores alone, and nothing trains twice.

The photos have less in common with each other than with the images, so even step 0 is near them,
and the training ends soon after its first checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_core import config, files
from dreambooth_core.evaluation.selection import Limits
from dreambooth_core.pipeline import StageContext, early_stopping, run_stage, train
from dreambooth_core.records import CheckpointScore, TrainingRun
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose latents are cached, for a training of 12 steps."""
    made = workspaces.build(tmp_path_factory.mktemp("early") / "checkout")
    workspaces.change(made.root, "train.max_train_steps", 12)
    workspaces.change(made.root, "train.learning_rate", 5e-3)
    for shade, path in zip(
        (0, 60, 128, 255),
        sorted((made.root / "data" / "instance" / SUBJECT).glob("*.png")),
        strict=True,
    ):
        noise = np.random.default_rng(shade).normal(shade, 60, (96, 96, 3)) * (1, 0.5, 2)
        Image.fromarray(noise.clip(0, 255).astype("uint8")).save(path)
    for stage in ("validate", "class-images", "cache"):
        run_stage(_context(made), stage)
    return made


def _context(workspace: Workspace) -> StageContext:
    view = config.load_view(workspace, SUBJECT)
    return StageContext(view, workspace.places(SUBJECT), env={"DVC_EXP_NAME": "no registry"})


def _train(workspace: Workspace, *, patience: int | None) -> tuple[list[int], dict[str, str]]:
    """Run the train stage; returns the steps of its checkpoints and the hashes of its files."""
    workspaces.change(workspace.root, "select.early_stopping_patience", patience)
    run_stage(_context(workspace), "train")
    out = workspace.stage_dir(SUBJECT, "train")
    steps = [checkpoint.step for checkpoint in TrainingRun.read(out).checkpoints]
    return steps, files.tree_hashes(out)


def _states(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.state.glob("train/*/resume/step-*"))


@pytest.fixture(scope="module")
def stopped(workspace: Workspace) -> tuple[list[int], dict[str, str]]:
    """The output of a training that was scored while it ran."""
    return _train(workspace, patience=2)


def test_training_ends_at_the_deciding_checkpoint(
    workspace: Workspace, stopped: tuple[list[int], dict[str, str]]
) -> None:
    assert stopped[0] in ([2, 4], [2, 4, 6], [2, 4, 6, 8])
    table = workspace.stage_dir(SUBJECT, "train") / "metrics.csv"
    assert len(table.read_text().splitlines()) == 1 + stopped[0][-1]


def test_rerun_after_an_early_stop_starts_no_training(
    workspace: Workspace, stopped: tuple[list[int], dict[str, str]]
) -> None:
    log = Path(workspace.places(SUBJECT).log_file("train"))
    before = log.read_bytes()
    assert _train(workspace, patience=2) == stopped
    assert log.read_bytes() == before


def test_without_patience_the_stopped_training_continues_to_the_end(
    workspace: Workspace, stopped: tuple[list[int], dict[str, str]]
) -> None:
    steps, hashes = _train(workspace, patience=None)
    assert steps == [2, 4, 6, 8, 10, 12]
    shared = {name: digest for name, digest in hashes.items() if name.startswith("checkpoint-4/")}
    assert shared
    assert shared.items() <= stopped[1].items()


def test_decision_after_the_whole_training_gives_the_same_bytes(
    workspace: Workspace, stopped: tuple[list[int], dict[str, str]]
) -> None:
    assert "step-00000012" in _states(workspace)  # the test before has trained to the end
    assert _train(workspace, patience=2) == stopped


def test_what_a_score_raises_ends_the_stage(
    workspace: Workspace, stopped: tuple[list[int], dict[str, str]]
) -> None:
    seen: list[int | None] = []

    def prune(row: CheckpointScore, _limits: Limits) -> None:
        seen.append(row.step)
        raise RuntimeError("pruned")

    workspaces.change(workspace.root, "select.early_stopping_patience", 2)
    context = dataclasses.replace(_context(workspace), on_score=prune)
    with pytest.raises(RuntimeError, match="pruned"):
        run_stage(context, "train")
    assert seen == [2]
    assert _train(workspace, patience=2) == stopped


@pytest.mark.slow
def test_pauses_and_a_damaged_checkpoint_change_no_byte(workspace: Workspace) -> None:
    workspaces.change(workspace.root, "train.seed", 7)
    beside = _train(workspace, patience=2)
    context = _context(workspace)
    job = train.make_job(context)
    weights = max((job.checkpoints_dir / "checkpoint-2").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for folder in (job.out_dir, *job.checkpoints_dir.glob("checkpoint-[4-9]*"), job.resume_dir):
        shutil.rmtree(folder)
    job = early_stopping.train_until_decided(
        context,
        job,
        patience=2,
        launch=functools.partial(train.launch, context),
        pauses_training=True,
    )
    assert job.last_step == beside[0][-1]
    assert _train(workspace, patience=2) == beside
