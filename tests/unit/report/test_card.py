"""The model card of a registered version."""

from __future__ import annotations

import dataclasses

import pytest

from dreambooth_core.records import BaseModelIdentity
from dreambooth_core.report.card import CardContent, render_card, render_text
from tests.unit.report.made_up import SCORES, SELECTION, row

CONTENT = CardContent(
    model_name="dreambooth-mug",
    subject="mug",
    identifier="sks",
    class_noun="mug",
    base_model=BaseModelIdentity(name="assets/pocket-sd", revision="abc", sha256="9" * 64),
    method="full",
    scores=SCORES,
    confirmed=row("checkpoint-200", 200, 0.789),
    selection=SELECTION,
    lineage={"Instance photos": "e" * 64},
)


def test_card_shows_the_chosen_row_and_the_references_only() -> None:
    card = render_card(CONTENT)
    assert "| **checkpoint-200** | 0.789 (0.778 to 0.802) |" in card
    assert "| step 0 (base model) | 0.512" in card
    assert "| real (the photos) | 0.901 (0.890 to 0.914) | 0.812 (0.801 to 0.825) | – |" in card
    assert "checkpoint-100" not in card


def test_the_card_begins_with_the_hubs_metadata() -> None:
    lines = render_card(CONTENT).splitlines()
    assert lines[:4] == [
        "---",
        "base_model: 'assets/pocket-sd'",
        "library_name: diffusers",
        "instance_prompt: 'a photo of sks mug'",
    ]


def test_the_text_is_the_card_without_the_metadata() -> None:
    assert render_text(CONTENT).startswith("# dreambooth-mug")
    assert render_card(CONTENT).endswith(f"---\n\n{render_text(CONTENT)}")


@pytest.mark.parametrize(("method", "there"), [("full", False), ("lora", True)])
def test_adapters_are_tagged_as_such(method: str, there: bool) -> None:
    card = render_card(dataclasses.replace(CONTENT, method=method))  # type: ignore[arg-type]
    assert ("- lora" in card) is there


def test_a_version_that_does_not_qualify_says_so() -> None:
    selection = SELECTION.model_copy(update={"qualified": False})
    card = render_card(dataclasses.replace(CONTENT, selection=selection))
    assert "**It does not keep to the limits of the selection**" in card


def test_a_users_words_cannot_break_out_of_the_markdown() -> None:
    card = render_card(dataclasses.replace(CONTENT, class_noun="<b>`mug`</b>"))
    assert "`a photo of sks <b>'mug'</b>`" in card
    assert "one \\<b\\>\\`mug\\`\\</b\\>:" in card
