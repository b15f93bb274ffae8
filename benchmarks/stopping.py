"""What early stopping and racing save, and what they cost, on subjects that tuned neither.

    python -m benchmarks.stopping [--subjects 12] [--json]

Trains drawn subjects to the last step with the shipped settings and scores every checkpoint in
full, with twice the images: the rules see the first half, the other half judges what they chose.
Then it replays the rules on these tables:

    steps saved       1 - deciding step / max_train_steps
    images            part of the full table's images that racing draws
    DINO way closed   (DINO - DINO(step 0)) / (DINO(real) - DINO(step 0)), on the judging images
    CLIP-T lost       as a part of the text range, on the judging images

for the checkpoint that the rules choose, for the choice from the full table, and for the last
checkpoint. Even subjects are easy (four photos, four places), odd ones hard (three photos, one
place). Subjects 0 to 4 tuned the rules. Runs in a workspace of its own and resumes there; `--json`
writes `benchmarks/results/stopping-cpu.json` with the subjects that are done.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, drawn_runs
from benchmarks.common import ROOT
from dreambooth_core import config
from dreambooth_core.config import SelectSettings
from dreambooth_core.evaluation import selection
from dreambooth_core.records import REAL, STEP_0, CheckpointScore, Evaluation, Interval
from dreambooth_core.workspace import Workspace
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, Scene, draw_individual, draw_pose, generator

STAGES = ("validate", "class-images", "cache", "train", "evaluate")
NOUNS = ("mug", "car", "cat", "robot", "backpack", "duck")
GROUPS = ("easy", "hard")
SEED, TUNED_ON = 101, 5


@dataclass(frozen=True)
class Outcome:
    """A chosen checkpoint, judged on images that chose nothing."""

    step: int
    dino_closed: float
    clip_t_lost: float


@dataclass(frozen=True)
class Replay:
    """One subject under the rules, from the full table, and at the last checkpoint."""

    subject: str
    steps_saved: float
    images: float
    chosen: Outcome
    full: Outcome
    last: Outcome


def draw(folder: Path, group: str, index: int) -> str:
    """Draw a subject's photos; returns its class noun."""
    rng = generator(SEED, stream=f"table-{group}", index=index)
    individual = draw_individual(rng, thing=NOUNS[index % len(NOUNS)])
    places = list(rng.permutation(list(PLACES)))
    folder.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(places[:4] if group == "easy" else places[:1] * 3):
        pose, backdrop = draw_pose(rng), int(rng.integers(2**31))
        scene = Scene(individual=individual, place=place, pose=pose, backdrop=backdrop)
        image, _ = render(scene, size=256)
        image.save(folder / f"{number:02d}.png")
    return individual.thing


def write_settings(root: Path, names: Sequence[str]) -> Workspace:
    """Write the shipped settings without stopping and racing, with twice the images."""
    settings = drawn_runs.shipped_settings()
    rounds = settings["evaluate"]["images_per_prompt"]
    settings["evaluate"] |= {"racing": False, "images_per_prompt": 2 * rounds}
    settings["select"]["early_stopping_patience"] = None
    subjects: dict[str, dict[str, Any]] = {}
    for name in names:
        group, index = name.split("_")
        folder = root / "photos" / name
        subjects[name] = drawn_runs.subject(folder, draw(folder, group, int(index)))
    return drawn_runs.write_workspace(root, settings, subjects)


def replay(name: str, table: Evaluation, settings: SelectSettings, *, rounds: int) -> Replay:
    """Apply the rules to the first `rounds` rounds of a table, and judge on the others."""
    num_prompts = len(table.harness.prompts)
    base, real = table.row(STEP_0), table.row(REAL)
    rows = [row for row in table.rows if row.step]
    limits = selection.limits_of(
        [_rounds(base, rounds, table), real], settings, text_range=table.text_range
    )
    trained = _trained(rows, limits, table, patience=settings.early_stopping_patience or len(rows))
    raced = _race(trained, limits, table, rounds=rounds)

    def choose(candidates: Sequence[CheckpointScore]) -> CheckpointScore:
        shown = (_rounds(base, rounds, table), *candidates, real)
        best = selection.select_best(table.model_copy(update={"rows": shown}), settings).best
        return next(row for row in rows if row.name == best)

    def judge(row: CheckpointScore) -> Outcome:
        unseen = slice(rounds * num_prompts, None)
        assert real.dino is not None
        dino, base_dino = (_mean([i.dino for i in r.images[unseen]]) for r in (row, base))
        clip_t, base_clip_t = (_mean([i.clip_t for i in r.images[unseen]]) for r in (row, base))
        return Outcome(
            step=row.step or 0,
            dino_closed=round((dino - base_dino) / (real.dino.mean - base_dino), 4),
            clip_t_lost=round((base_clip_t - clip_t) / table.text_range, 4),
        )

    drawn = rounds + sum(row.n // num_prompts for row in raced)
    return Replay(
        subject=name,
        steps_saved=round(1 - (trained[-1].step or 0) / (rows[-1].step or 1), 4),
        images=round(drawn / (rounds * (1 + len(rows))), 4),
        chosen=judge(choose(raced)),
        full=judge(choose([_rounds(row, rounds, table) for row in rows])),
        last=judge(rows[-1]),
    )


def _trained(
    rows: Sequence[CheckpointScore], limits: selection.Limits, table: Evaluation, *, patience: int
) -> Sequence[CheckpointScore]:
    """The checkpoints of a training that stops early."""
    for count in range(1, len(rows) + 1):
        seen = [_rounds(row, 1, table) for row in rows[:count]]
        if selection.further_steps_are_futile(seen, limits, patience=patience):
            return rows[:count]
    return rows


def _race(
    rows: Sequence[CheckpointScore], limits: selection.Limits, table: Evaluation, *, rounds: int
) -> list[CheckpointScore]:
    """The rows after the race, each with the rounds that it got."""
    raced: dict[str, CheckpointScore] = {}
    running = [row.name for row in rows]
    for number in range(1, rounds + 1):
        scored = [_rounds(row, number, table) for row in rows if row.name in running]
        raced |= {row.name: row for row in scored}
        running = [row.name for row in selection.next_round(scored, limits)]
    return list(raced.values())


def _rounds(row: CheckpointScore, rounds: int, table: Evaluation) -> CheckpointScore:
    """The row with its first rounds alone; the rules read means, not intervals."""
    all_rounds = len(table.harness.seeds) // len(table.harness.prompts)
    images = row.images[: rounds * len(table.harness.prompts)]
    class_dino = row.class_dino[: -(-len(row.class_dino) * rounds // all_rounds)]
    return row.model_copy(
        update={
            "images": images,
            "class_dino": class_dino,
            "n": len(images),
            "clip_t": _point([image.clip_t for image in images]),
            "dino": _point([image.dino for image in images]),
            "pres": _point(class_dino),
        }
    )


def _point(values: Sequence[float]) -> Interval:
    mean = _mean(values)
    return Interval(mean=mean, low=mean, high=mean)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def summary(replays: Sequence[Replay]) -> dict[str, dict[str, float]]:
    """The means of each group: savings, and what the chosen checkpoint lacks to the others."""
    found = {}
    for group in GROUPS:
        own = [one for one in replays if one.subject.startswith(group)]
        if own:
            found[group] = {
                "subjects": len(own),
                "steps_saved": _mean([one.steps_saved for one in own]),
                "images": _mean([one.images for one in own]),
                **{
                    f"{what}_{of}": _mean([getattr(getattr(one, of), what) for one in own])
                    for what in ("dino_closed", "clip_t_lost")
                    for of in ("chosen", "full", "last")
                },
            }
    return {g: {k: round(v, 4) for k, v in values.items()} for g, values in found.items()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=ROOT / ".state" / "stopping")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--replay-only", action="store_true", help="train nothing new")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    numbers = range(TUNED_ON, TUNED_ON + arguments.subjects)
    names = [f"{GROUPS[number % 2]}_{number // 2:02d}" for number in numbers]
    workspace = write_settings(arguments.workspace.resolve(), names)
    shipped = config.load_settings(ROOT / "params.yaml")
    replays: list[Replay] = []
    for name in names:
        if not arguments.replay_only:
            drawn_runs.run_stages(workspace, name, STAGES)
        table = Evaluation.read_if_there(workspace.stage_dir(name, "evaluate"))
        if table is not None:
            rounds = shipped.evaluate.images_per_prompt
            replays.append(replay(name, table, shipped.select, rounds=rounds))
            print(replays[-1], flush=True)
    result = {"machine": common.machine(), "summary": summary(replays)}
    print(json.dumps(result["summary"], indent=1))
    if arguments.json:
        own = [asdict(one) for one in replays]
        text = json.dumps({**result, "subjects": own}, indent=1) + "\n"
        common.results_file("stopping").write_text(text)


if __name__ == "__main__":
    main()
