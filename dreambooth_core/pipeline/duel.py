"""The pictures of challenger and champion on the same prompts and seeds.

`compare` writes them and the page shows them. They are no output of a stage, as they depend on the
champion.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.pipeline.common import picture_name
from dreambooth_core.records import Duel, ImageScore, Verdict
from dreambooth_core.report import sheets
from dreambooth_core.report.sheets import Column, Sample, Sheet
from dreambooth_core.workspace import Places

_CHALLENGER, _CHAMPION = "challenger", "champion"


def write(
    places: Places, duel: Duel, *, challenger: Sequence[Path], champion: Sequence[Path]
) -> None:
    """Replace the pictures of the last comparison."""
    places.duel.parent.mkdir(parents=True, exist_ok=True)
    files.remove_asides(places.duel.parent)
    with files.atomic_dir(places.duel) as out:
        for side, paths in ((_CHALLENGER, challenger), (_CHAMPION, champion)):
            (out / side).mkdir()
            for index, path in enumerate(paths):
                shutil.copyfile(path, out / side / picture_name(index))
        duel.write(out)


def sheet_of(places: Places, verdict: Verdict | None, *, prompts: Sequence[str]) -> Sheet | None:
    """The pictures behind a verdict; None if those of another comparison are there."""
    duel = Duel.read_if_there(places.duel)
    if duel is None or verdict is None:
        return None
    if (duel.challenger, duel.champion) != (verdict.challenger, verdict.champion):
        return None
    columns = [
        Column(name=duel.champion, note="champion"),
        Column(name=duel.challenger, note="this version", chosen=True),
    ]
    samples = {
        duel.champion: _samples(places.duel / _CHAMPION, duel.champion_images),
        duel.challenger: _samples(places.duel / _CHALLENGER, duel.challenger_images),
    }
    return sheets.by_prompt("duel", columns, samples, prompts=prompts)


def _samples(folder: Path, images: Sequence[ImageScore]) -> list[Sample]:
    return [
        Sample(path=folder / picture_name(index), seed=image.seed, score=image)
        for index, image in enumerate(images)
    ]
