"""The selection rule, one case for every branch.

With step 0 at CLIP-T 0.30 and PRES 0.40, a text range of 0.10 and DINO(real) 0.90, the limits of
the default settings are CLIP-T >= 0.30 - 0.1 x 0.10 = 0.29 and PRES <= 0.40 + 0.25 x 0.50 = 0.525.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from dreambooth_core.errors import StageError
from dreambooth_core.evaluation.selection import (
    flat_metrics,
    further_steps_are_futile,
    limits_of,
    merit,
    merit_so_far,
    next_round,
    select_best,
)
from dreambooth_core.records import CheckpointScore
from tests.unit.evaluation.made_up import SELECT, real_row, score_row, scores

BASE = score_row("step 0", 0, clip_t=0.30, dino=0.50, pres=0.40)


def checkpoint(step: int, *, clip_t: float, dino: float, pres: float = 0.45) -> CheckpointScore:
    return score_row(f"checkpoint-{step}", step, clip_t=clip_t, dino=dino, pres=pres)


def raced(
    step: int,
    *dino_of_images: float,
    clip_t: float = 0.3,
    pres: float = 0.45,
    spread: float = 0.0,
) -> CheckpointScore:
    """A qualified checkpoint whose images have these DINO scores."""
    dino = sum(dino_of_images) / len(dino_of_images)
    return score_row(
        f"checkpoint-{step}",
        step,
        clip_t=clip_t,
        dino=dino,
        pres=pres,
        dino_of_images=dino_of_images,
        spread=spread,
    )


def select(*rows: CheckpointScore, text_range: float = 0.1):
    return select_best(scores([BASE, *rows, real_row()], text_range=text_range), SELECT)


def test_limits_are_those_worked_out_by_hand() -> None:
    limits = limits_of([BASE, real_row()], SELECT, text_range=0.1)
    assert limits.over_all_images == pytest.approx({"clip_t": 0.29, "pres": 0.525})
    assert (limits.min_clip_t(BASE), limits.max_pres(BASE)) == pytest.approx((0.29, 0.525))


def test_limits_compare_with_step_0_on_the_same_images() -> None:
    # Step 0's first two images have CLIP-T 0.36 and PRES 0.30; over all four, 0.30 and 0.40.
    base = BASE.model_copy(
        update={
            "images": tuple(
                image.model_copy(update={"clip_t": clip_t})
                for image, clip_t in zip(BASE.images, (0.36, 0.36, 0.24, 0.24), strict=False)
            ),
            "class_dino": (0.3, 0.3, 0.5, 0.5),
        }
    )
    limits = limits_of([base, real_row()], SELECT, text_range=0.1)
    assert limits.min_clip_t(raced(100, 0.7, 0.7)) == pytest.approx(0.35)
    assert limits.max_pres(raced(100, 0.7, 0.7)) == pytest.approx(0.425)
    chosen = select_best(scores([base, raced(100, 0.7, 0.7, clip_t=0.34), real_row()]), SELECT)
    assert not chosen.qualified
    assert chosen.ranked[0].why == "CLIP-T 0.3400 is below 0.3500 and PRES 0.4500 is above 0.4250"


def test_the_highest_dino_wins_among_those_that_qualify() -> None:
    chosen = select(
        checkpoint(100, clip_t=0.31, dino=0.60),
        checkpoint(200, clip_t=0.295, dino=0.75),
        checkpoint(300, clip_t=0.292, dino=0.70),
    )
    assert (chosen.best, chosen.qualified) == ("checkpoint-200", True)
    assert [r.name for r in chosen.ranked] == ["checkpoint-200", "checkpoint-300", "checkpoint-100"]


def test_clip_t_below_its_limit_disqualifies_the_highest_dino() -> None:
    chosen = select(
        checkpoint(100, clip_t=0.30, dino=0.60), checkpoint(200, clip_t=0.2899, dino=0.85)
    )
    assert chosen.best == "checkpoint-100"
    assert chosen.ranked[1].why == "CLIP-T 0.2899 is below 0.2900"


def test_pres_above_its_limit_disqualifies_the_highest_dino() -> None:
    chosen = select(
        checkpoint(100, clip_t=0.30, dino=0.60),
        checkpoint(200, clip_t=0.30, dino=0.85, pres=0.53),
    )
    assert chosen.best == "checkpoint-100"
    assert chosen.ranked[1].why == "PRES 0.5300 is above 0.5250"


def test_a_checkpoint_exactly_on_both_limits_qualifies() -> None:
    limits = limits_of([BASE, real_row()], SELECT, text_range=0.1)
    limit = limits.over_all_images
    row = checkpoint(100, clip_t=limit["clip_t"], dino=0.6, pres=limit["pres"])
    assert select(row).qualified


def test_a_tie_goes_to_the_earlier_step() -> None:
    chosen = select(
        checkpoint(100, clip_t=0.30, dino=0.70), checkpoint(300, clip_t=0.30, dino=0.70)
    )
    assert chosen.best == "checkpoint-100"


def test_earliest_within_one_standard_error_of_the_highest_dino_wins() -> None:
    # Differences to checkpoint-300: mean -0.02, standard deviation 0.0327, 4 images, error 0.0163;
    # for checkpoint-200: mean -0.01, standard deviation 0.0258, error 0.0129.
    chosen = select(
        raced(100, 0.70, 0.72, 0.68, 0.70),
        raced(200, 0.70, 0.74, 0.72, 0.68),
        raced(300, 0.70, 0.72, 0.72, 0.74),
    )
    assert chosen.best == "checkpoint-200"
    assert "within one standard error (0.0173) of the highest, 0.7200 of checkpoint-300," in (
        chosen.rule
    )


def test_only_checkpoints_that_stayed_in_the_race_can_win() -> None:
    chosen = select(raced(100, 0.9, 0.9), raced(200, 0.8, 0.8, 0.8, 0.8))
    assert chosen.best == "checkpoint-200"


LIMITS = limits_of([BASE, real_row()], SELECT, text_range=0.1)


def names(*rows: CheckpointScore) -> list[str]:
    return [row.name for row in next_round(rows, LIMITS)]


def test_race_drops_checkpoints_worse_than_the_leader_beyond_the_noise() -> None:
    worse, leader = raced(100, 0.50, 0.51, 0.52, 0.53), raced(200, 0.70, 0.72, 0.74, 0.70)
    near = raced(300, 0.71, 0.71, 0.73, 0.70)
    assert names(worse, near.model_copy(update={"step": 150}), leader) == [near.name, leader.name]


def test_race_keeps_the_better_half_and_the_earliest_within_the_noise() -> None:
    rows = [
        raced(100, 0.68, 0.76, 0.66, 0.72),
        raced(200, 0.66, 0.76, 0.68, 0.71),
        raced(300, 0.70, 0.70, 0.70, 0.75),
        raced(400, 0.72, 0.71, 0.69, 0.75),
    ]
    assert names(*rows) == ["checkpoint-100", "checkpoint-300", "checkpoint-400"]


def test_race_keeps_the_rows_nearest_to_the_limits_before_any_qualifies() -> None:
    """Overfitted rows lead by DINO; with few images the noise hides that they break a limit."""
    noise = {"clip_t": 0.288, "spread": 0.03}
    near = raced(120, 0.60, 0.62, 0.61, 0.63, pres=0.53, spread=0.03)
    overfitted = [raced(step, 0.75, 0.77, 0.76, 0.75, **noise) for step in (180, 240, 300)]
    kept = names(near, *overfitted)
    assert near.name in kept
    assert len(kept) == 2


def test_race_goes_on_after_a_single_image() -> None:
    """Its standard error is infinite, so no difference is beyond the noise."""
    assert names(raced(100, 0.5), raced(200, 0.9)) == ["checkpoint-100", "checkpoint-200"]


def test_race_halves_the_number_that_it_began_the_round_with() -> None:
    """Of three the better two stay, and of four, one of which breaks a limit, two as well."""
    lost = raced(200, 0.9, 0.9, 0.9, 0.9, clip_t=0.2)
    rows = [
        raced(100, 0.68, 0.76, 0.66, 0.72),
        raced(300, 0.70, 0.70, 0.70, 0.75),
        raced(400, 0.72, 0.71, 0.69, 0.75),
    ]
    kept = ["checkpoint-100", "checkpoint-300", "checkpoint-400"]
    assert names(*rows) == kept  # the first is the earliest within the noise
    assert names(rows[0], lost, *rows[1:]) == kept


def test_race_keeps_a_checkpoint_equal_to_the_leader() -> None:
    near, leader = raced(100, 0.70, 0.68), raced(200, 0.69, 0.70)
    equal = raced(300, 0.69, 0.70)
    assert names(near, leader, equal) == [near.name, leader.name, equal.name]


def test_race_drops_checkpoints_beyond_a_limit_by_more_than_the_noise() -> None:
    # The limit is 0.29. Two images 0.01 above and below their mean: the interval reaches 0.0196.
    lost = raced(100, 0.9, 0.9, clip_t=0.27, spread=0.01)
    near = raced(200, 0.7, 0.72, clip_t=0.271, spread=0.01)
    assert names(lost, near, raced(300, 0.72, 0.71)) == ["checkpoint-200", "checkpoint-300"]


def test_race_keeps_checkpoints_beyond_the_limit_of_pres_within_the_noise() -> None:
    # The limit is 0.525, and the interval reaches 0.0196 to each side.
    near = raced(100, 0.7, 0.72, pres=0.544, spread=0.01)
    lost = raced(200, 0.9, 0.9, pres=0.545, spread=0.01)
    leader = raced(300, 0.72, 0.71)
    assert names(near, lost, leader) == [near.name, leader.name]


def test_race_ends_if_the_earliest_checkpoint_leads() -> None:
    assert names(raced(100, 0.72, 0.74), raced(200, 0.72, 0.73), raced(300, 0.73, 0.72)) == []


def test_race_ends_if_halving_leaves_one_checkpoint() -> None:
    # The difference is between one and 1.96 standard errors: not out, and not a tie.
    assert names(raced(100, 0.68, 0.70), raced(200, 0.70, 0.705)) == []


def test_race_ends_if_all_others_are_worse_beyond_the_noise() -> None:
    rows = [raced(100 * i, dino, dino + 0.01) for i, dino in enumerate((0.5, 0.55, 0.6, 0.72), 1)]
    assert names(*rows) == []


NEAR = 0.5 + 0.9 * 0.4
"""90 % of the way from step 0's DINO of 0.5 to that of the photos, 0.9."""


def is_futile(*rows: CheckpointScore, patience: int = 2) -> bool:
    return further_steps_are_futile(rows, LIMITS, patience=patience)


def test_plateau_near_the_photos_ends_the_training() -> None:
    rows = [raced(100, NEAR, NEAR + 0.02), raced(200, NEAR + 0.03, NEAR), raced(300, NEAR, NEAR)]
    assert not is_futile(*rows[:2])
    assert is_futile(*rows)


def test_equal_checkpoints_exactly_near_the_photos_end_the_training() -> None:
    near = LIMITS.near_dino
    assert is_futile(*(raced(100 * i, near, near) for i in (1, 2, 3)))


def test_near_is_a_part_of_the_way_from_step_0_to_the_photos() -> None:
    assert LIMITS.near_dino == pytest.approx(NEAR)


def test_plateau_far_from_the_photos_does_not_end_the_training() -> None:
    assert not is_futile(*(raced(100 * i, 0.7, 0.72) for i in range(1, 6)))


def test_gain_beyond_the_noise_starts_the_patience_again() -> None:
    flat, gain = raced(200, NEAR, NEAR), raced(300, NEAR + 0.05, NEAR + 0.06)
    assert not is_futile(raced(100, NEAR, NEAR), flat, gain, raced(400, NEAR, NEAR))


def test_checkpoints_beyond_a_limit_near_the_photos_end_the_training() -> None:
    lost = [raced(100 * i, NEAR, NEAR, clip_t=0.2) for i in (1, 2)]
    assert not is_futile(*lost[:1])
    assert is_futile(*lost)


def test_checkpoints_beyond_a_limit_far_from_the_photos_do_not() -> None:
    # Early in a training the class often looks like the subject, and recovers.
    assert not is_futile(*(raced(100 * i, 0.8, 0.8, pres=0.7) for i in (1, 2, 3)))


def test_checkpoint_near_a_limit_starts_the_patience_again() -> None:
    lost = raced(100, NEAR, NEAR, clip_t=0.2)
    near = raced(200, NEAR, NEAR, clip_t=0.275, spread=0.01)
    assert not is_futile(lost, near, raced(300, NEAR, NEAR, clip_t=0.2))


def test_race_ends_if_no_checkpoint_can_qualify() -> None:
    assert names(raced(100, 0.7, 0.7, clip_t=0.2), raced(200, 0.7, 0.8, clip_t=0.2)) == []


def test_unqualified_fallback_has_the_highest_clip_t() -> None:
    chosen = select(
        checkpoint(100, clip_t=0.28, dino=0.60), checkpoint(200, clip_t=0.20, dino=0.85)
    )
    assert (chosen.best, chosen.qualified) == ("checkpoint-100", False)
    assert chosen.rule.startswith("None of the 2 checkpoints qualifies")
    assert "never promoted" in chosen.rule


def test_a_disqualified_checkpoint_ranks_below_every_qualified_one() -> None:
    chosen = select(
        checkpoint(100, clip_t=0.40, dino=0.95, pres=0.9), checkpoint(200, clip_t=0.29, dino=0.51)
    )
    assert [judged.qualified for judged in chosen.ranked] == [True, False]


def test_the_rule_is_a_sentence_with_the_numbers_that_decided() -> None:
    rule = select(checkpoint(100, clip_t=0.31, dino=0.60)).rule
    assert rule == (
        "checkpoint-100 has the highest DINO, 0.6000, among the 1 of 1 checkpoints that qualify: "
        "its CLIP-T of 0.3100 is at least 0.2900 (step 0's 0.3000 on the same images "
        "minus 0.1 x the text range of 0.1000), and its PRES of 0.4500 is at most 0.5250 (step 0's "
        "0.4000 plus 0.25 x the way to DINO of the real photos, 0.9000)."
    )


def test_negative_text_range_does_not_raise_the_clip_t_limit() -> None:
    assert select(checkpoint(100, clip_t=0.30, dino=0.6), text_range=-0.5).qualified


def test_photos_less_alike_than_step_0_do_not_lower_the_pres_limit() -> None:
    rows = [BASE, checkpoint(100, clip_t=0.3, dino=0.6, pres=0.40), real_row(0.2)]
    assert select_best(scores(rows), SELECT).qualified


def test_with_a_single_photo_pres_is_measured_against_1() -> None:
    limits = limits_of([BASE, real_row(None)], SELECT, text_range=0.1)
    assert limits.max_pres(BASE) == pytest.approx(0.40 + 0.25 * 0.60)
    assert "a single photo has no pairs" in limits.gain_because


def test_no_checkpoint_is_an_error() -> None:
    with pytest.raises(StageError, match="the scores lack a checkpoint"):
        select()


def test_missing_row_step_0_raises_with_the_existing_rows() -> None:
    rows = [checkpoint(100, clip_t=0.3, dino=0.6), real_row()]
    with pytest.raises(StageError, match="lack the row 'step 0'; found: checkpoint-100, real"):
        select_best(scores(rows), SELECT)


def test_flat_metrics_hold_the_best_row_and_its_gains_over_step_0() -> None:
    table = scores([BASE, checkpoint(100, clip_t=0.31, dino=0.62), real_row()])
    metrics = flat_metrics(table, select_best(table, SELECT))
    assert (metrics["best_step"], metrics["qualified"], metrics["text_range"]) == (100, 1, 0.1)
    assert metrics["dino"] == 0.62
    assert metrics["dino_minus_step_0"] == pytest.approx(0.12)


@pytest.mark.parametrize("module", ["selection", "comparison"])
def test_the_rules_are_imported_without_torch(module: str) -> None:
    code = (
        f"import sys, dreambooth_core.evaluation.{module}; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_merit_orders_checkpoints_as_the_rule_does() -> None:
    rows = [
        checkpoint(1, clip_t=0.30, dino=0.60),
        checkpoint(2, clip_t=0.30, dino=0.80),
        checkpoint(3, clip_t=0.20, dino=0.95),
        checkpoint(4, clip_t=0.10, dino=0.99),
    ]
    ranked = sorted(select(*rows).ranked, key=merit, reverse=True)
    assert [one.step for one in ranked] == [2, 1, 3, 4]
    assert merit(ranked[0]) == 0.8
    assert merit(ranked[2]) == pytest.approx(0.2 - 3)


def test_merit_so_far_forgives_what_may_be_noise() -> None:
    limits = limits_of([BASE, real_row()], SELECT, text_range=0.1)
    near = raced(60, 0.7, 0.8, 0.75, clip_t=0.285, spread=0.1)
    assert not select(near).qualified
    assert merit_so_far(near, limits) == pytest.approx(0.75)
    far = raced(60, 0.7, 0.8, 0.75, clip_t=0.1)
    assert merit_so_far(far, limits) == pytest.approx(0.1 - 3)
