"""Reads the output of a subject's last run: checkpoints, their pictures and scores, the choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.site import Site
from dreambooth_core import config
from dreambooth_core.config import Choice
from dreambooth_core.evaluation import by_hand
from dreambooth_core.pipeline import choose
from dreambooth_core.pipeline.common import picture_name, row_pictures
from dreambooth_core.records import STEP_0, Evaluation, ImageScore, RankedCheckpoint
from dreambooth_core.report.png_metadata import PARAMETERS, RECORD

_LATEST = 24


@dataclass(frozen=True)
class Picture:
    """A scored picture of a checkpoint."""

    path: Path
    score: ImageScore


@dataclass(frozen=True)
class Result:
    """The last run of a subject."""

    options: choose.Options
    choice: Choice | None
    choice_holds: bool
    page: Path | None
    pictures: dict[str, list[Picture]]
    """By row, in order of steps; the first round of images first."""

    @property
    def prompts(self) -> list[str]:
        """The prompts of a round, in order."""
        first = self.pictures[STEP_0]
        return list(dict.fromkeys(picture.score.prompt for picture in first))

    @property
    def num_rounds(self) -> int:
        """The seeds of each prompt, for the checkpoint that has most of them."""
        return max(map(len, self.pictures.values())) // len(self.prompts)

    def picture(self, row: str, prompt: int, round_: int) -> Picture | None:
        """The picture of a row, by the indexes of prompt and seed."""
        index = round_ * len(self.prompts) + prompt
        own = self.pictures[row]
        return own[index] if index < len(own) and own[index].path.is_file() else None

    @property
    def ranked(self) -> list[RankedCheckpoint]:
        """The checkpoints in order of steps."""
        return sorted(self.options.selection.ranked, key=lambda one: one.step)


def read(site: Site, name: str) -> Result:
    """The result of the last run. Raises StageError before the first one."""
    places = site.workspace.places(name)
    options = choose.options(site.workspace, name)
    choice = config.load_view(site.workspace, name).subject.choice
    page = places.report_page
    return Result(
        options=options,
        choice=choice,
        choice_holds=choice is not None and by_hand.holds(choice, options.evaluation),
        page=page if page.is_file() else None,
        pictures=_pictures(places.stage_dir("evaluate"), options.evaluation),
    )


def suite_prompts(site: Site, name: str) -> list[str]:
    """The prompts that the checkpoints were scored on; none before the first run."""
    found = Evaluation.read_if_there(site.workspace.stage_dir(name, "evaluate"))
    return [] if found is None else list(found.harness.prompts)


def _pictures(folder: Path, evaluation: Evaluation) -> dict[str, list[Picture]]:
    return {
        row.name: [
            Picture(row_pictures(folder, row.name) / picture_name(index), image)
            for index, image in enumerate(row.images)
        ]
        for row in evaluation.rows
        if row.step is not None
    }


@dataclass(frozen=True)
class MadePicture:
    """A picture made in the app, with the settings in its file."""

    path: Path
    record: dict[str, Any]
    parameters: str


def pictures_folder(site: Site, name: str) -> Path:
    """The folder of the pictures that the app draws of a subject."""
    return site.workspace.places(name).outputs / "pictures"


undecided = set[Path]()
"""Pictures of pairs on any page that nobody has voted on yet."""


def made_pictures(site: Site, name: str) -> list[MadePicture]:
    """The latest pictures, newest first, without the undecided ones."""
    found = sorted(pictures_folder(site, name).glob("[0-9]*.png"), reverse=True)
    shown = [path for path in found if path not in undecided][:_LATEST]
    return [made for path in shown if (made := _read(path)) is not None]


def _read(path: Path) -> MadePicture | None:
    """The settings of a picture; None for a file without them, as one that is being written."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return MadePicture(path, json.loads(image.info[RECORD]), image.info[PARAMETERS])
    except (OSError, KeyError, ValueError):
        return None
