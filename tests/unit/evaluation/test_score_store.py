"""The store of evaluation images and scores."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dreambooth_core.evaluation.store import ScoreStore
from tests.unit.evaluation.made_up import score_row
from tests.unit.evaluation.test_suites import plan

ROW = score_row("checkpoint-100", 100, clip_t=0.3, dino=0.6, pres=0.4)


def test_saved_row_is_found_by_its_key_alone(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.save_scores("a" * 64, ROW)
    assert (tmp_path / "scores" / ("a" * 64) / "record.json").is_file()
    assert store.load_scores("a" * 64) == ROW
    assert store.load_scores("b" * 64) is None


def test_every_round_is_reported(tmp_path: Path) -> None:
    told: list[tuple[object, ...]] = []
    ScoreStore(tmp_path).images(
        plan(), model_sha256="a" * 64, rounds=2,
        sampler=lambda prompts, seeds: [Image.new("RGB", (8, 8)) for _ in seeds],
        progress=lambda *counts: told.append(counts),
    )  # fmt: skip
    what = "rounds of evaluation images"
    assert told == [(1, 2, what), (2, 2, what)]
