"""Prompt suites as files, and the plan of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.config import EvaluateSettings, SubjectSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.evaluation.suites import (
    MIN_IMAGES,
    load_suite,
    make_plan,
    parse_suite,
    shipped_suites,
)
from dreambooth_core.numerics.seeding import derive_seed
from tests.unit.evaluation.made_up import SETTINGS, SUBJECT


def test_three_suites_are_shipped() -> None:
    assert shipped_suites() == ["live", "objects", "pocket"]


@pytest.mark.parametrize("name", ["objects", "live"])
def test_the_papers_suites_hold_25_prompts_each(name: str, tmp_path: Path) -> None:
    prompts = load_suite(name, root=tmp_path).prompts(identifier="sks", class_noun="dog")
    assert len(set(prompts)) == 25
    assert prompts[0] == "a sks dog in the jungle"
    assert prompts[-1] == "a cube shaped sks dog"


def test_only_the_live_suite_dresses_its_subjects(tmp_path: Path) -> None:
    objects = load_suite("objects", root=tmp_path).templates
    live = load_suite("live", root=tmp_path).templates
    assert "a {identifier} {class_noun} wearing a santa hat" in set(live) - set(objects)
    assert "a {identifier} {class_noun} floating in an ocean of milk" in set(objects) - set(live)
    assert objects[:10] == live[:10]


def test_scored_texts_are_the_prompts_without_the_identifier(tmp_path: Path) -> None:
    suite = load_suite("objects", root=tmp_path)
    assert suite.scored_texts(class_noun="dog")[0] == "a dog in the jungle"
    assert not any("  " in text for text in suite.scored_texts(class_noun="dog"))


def test_text_file_is_a_suite_and_its_comments_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(
        "# mine\n\na {identifier} {class_noun} on a plate\n  a {identifier}  {class_noun} at sea\n"
    )
    suite = load_suite("mine.txt", root=tmp_path)
    assert suite.name == "mine"
    assert suite.templates[1] == "a {identifier} {class_noun} at sea"


def test_an_unknown_suite_names_those_that_are_shipped(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'objcts'.*live, objects, pocket") as error:
        load_suite("objcts", root=tmp_path)
    assert error.value.exit_code == 2


def test_every_bad_line_is_named_at_once() -> None:
    text = (
        "a {identifier} {class_noun}\n"
        "a {identifier} {class_noun}\n"
        "a {name} {identifier} {class_noun}\n"
        "a dog\n"
        "a {identifier!r} {class_noun}\n"
        "a {identifier {class_noun}\n"
    )
    with pytest.raises(SettingsError) as error:
        parse_suite(text, name="bad")
    message = str(error.value)
    assert "line 1" not in message
    for expected in (
        "line 2 stands twice",
        "line 3 has another field",
        "line 4 lacks",
        "line 5 has another field",
        "line 6 has",
    ):
        assert expected in message


def test_one_prompt_is_no_suite() -> None:
    with pytest.raises(SettingsError, match="it holds 1 prompts"):
        parse_suite("a {identifier} {class_noun}", name="lonely")


def plan(settings: EvaluateSettings = SETTINGS, subject: SubjectSettings = SUBJECT):
    suite = load_suite("pocket", root=Path())
    return make_plan(settings, suite=suite, subject=subject, sampler="DDIM", resolution=64)


def test_pocket_plan_of_params_yaml_has_at_least_32_images() -> None:
    made = plan()
    assert made.num_images == len(made.prompts) * 4 >= MIN_IMAGES
    first, requests = made.round(1)
    assert first == len(made.prompts) + 4
    assert [prompt for prompt, _ in requests] == [*made.prompts, *["a photo of mug"] * 4]


def test_first_round_has_class_images_even_if_there_are_fewer_than_rounds() -> None:
    made = plan(SETTINGS.model_copy(update={"num_class_prompt_images": 2}))
    assert [len(made.round(r)[1]) - len(made.prompts) for r in range(4)] == [1, 0, 1, 0]


def test_fewer_than_32_images_per_row_raise_with_the_number_needed() -> None:
    settings = SETTINGS.model_copy(update={"images_per_prompt": 3})
    with pytest.raises(SettingsError, match=r"x 3 images = 24.*at least 32.*to 4 or more"):
        plan(settings)


def test_seeds_are_distinct_and_stay_when_the_number_of_images_grows() -> None:
    made = plan()
    more = plan(SETTINGS.model_copy(update={"images_per_prompt": 6}))
    assert len(set(made.seeds) | set(made.class_seeds)) == made.num_images + 16
    assert made.seeds == more.seeds[: made.num_images]
    assert all(0 <= seed < 2**31 for seed in made.seeds)


def test_seeds_are_those_of_their_keys() -> None:
    """With other seeds, every champion would have to be scored again."""
    made, bits = plan(), 2**31 - 1
    assert made.seeds[0] == derive_seed(1234, "evaluate", 0, 0) & bits
    assert made.seeds[len(made.prompts) + 2] == derive_seed(1234, "evaluate", 2, 1) & bits
    assert made.class_seeds[3] == derive_seed(1234, "evaluate-class", 3) & bits


def test_seeds_do_not_depend_on_the_subject() -> None:
    other = SUBJECT.model_copy(update={"class_noun": "cat"})
    assert plan().seeds == plan(subject=other).seeds


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"num_inference_steps": 3}, {"guidance_scale": 1.5}]
)
def test_whatever_changes_the_images_changes_their_key(change: dict[str, float]) -> None:
    changed = plan(SETTINGS.model_copy(update=change))
    assert changed.sampling_key("abc") != plan().sampling_key("abc")
    assert plan().sampling_key("abc") != plan().sampling_key("abd")


def test_scorers_do_not_change_the_key_of_the_images() -> None:
    changed = plan(SETTINGS.model_copy(update={"clip": "other", "bootstrap_samples": 9}))
    assert changed.sampling_key("abc") == plan().sampling_key("abc")
