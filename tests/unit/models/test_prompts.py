"""Prompts that a text encoder would cut are refused with what would be lost."""

from pathlib import Path

import pytest
import torch

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, prompts, sampling
from tests.paths import ROOT

POCKET = ROOT / "assets" / "pocket-sd"
WORDS = "a photo of a red robot with a blue house behind it on the beach at night"


@pytest.fixture(scope="module")
def tokenizers():
    return prompts.tokenizers_in(POCKET)


def test_pocket_text_encoder_reads_24_tokens(tokenizers) -> None:
    assert [t.model_max_length for t in tokenizers] == [24]


def test_prompt_that_fits_exactly_passes_and_one_word_more_is_refused(tokenizers) -> None:
    fitting = " ".join(["photo"] * 22)
    prompts.check_prompts({"the prompt": fitting}, tokenizers)
    with pytest.raises(SettingsError, match=r"found: 25 tokens; allowed: 24.*before 'beach'"):
        prompts.check_prompts({"the prompt": f"{fitting} beach"}, tokenizers)


@pytest.mark.parametrize("text", [WORDS, "", "Sks  MUG, on a b\u00e9ach at night! " * 5])
def test_saved_tokenizer_counts_as_transformers_does(text: str, tokenizers) -> None:
    (saved,) = prompts.saved_tokenizers_in(POCKET)
    theirs = tokenizers[0](text, return_offsets_mapping=True)
    own = saved(text)
    assert own["input_ids"] == theirs["input_ids"]
    assert own["offset_mapping"] == theirs["offset_mapping"]
    assert saved.tokenize(text) == tokenizers[0].tokenize(text)
    assert saved.model_max_length == tokenizers[0].model_max_length


def test_words_named_as_lost_are_those_that_the_encoder_does_not_see(tokenizers) -> None:
    text = f"{WORDS} and a green mug on a yellow table in the snow"
    with pytest.raises(SettingsError) as caught:
        prompts.check_prompts({"the prompt": text}, tokenizers)
    (tokenizer,) = tokenizers
    kept = tokenizer.decode(
        tokenizer(text, truncation=True, max_length=24).input_ids, skip_special_tokens=True
    )
    lost = str(caught.value).rpartition("before '")[2].removesuffix(" ...'")
    assert text.startswith(f"{kept.strip()} {lost}")


def test_all_long_prompts_are_reported_at_once(tokenizers) -> None:
    long = " ".join(["photo"] * 40)
    with pytest.raises(SettingsError) as caught:
        prompts.check_prompts({"the class prompt": long, "x": "a mug", "y": long}, tokenizers)
    assert [str(p).split(" does")[0] for p in caught.value.problems] == ["the class prompt", "y"]


def test_limit_is_that_of_the_text_encoder_if_the_tokenizer_states_none(
    tiny_sd: Path, tmp_path: Path
) -> None:
    tokenizer = prompts.load_tokenizer(tiny_sd / "tokenizer")
    tokenizer.model_max_length = int(1e30)
    assert prompts.limited(tokenizer, 77).model_max_length == 77


@pytest.mark.parametrize("which", ["prompt", "negative"])
def test_nothing_is_drawn_of_a_long_prompt(which: str) -> None:
    pipe = load.load_pipeline_folder(POCKET, device=torch.device("cpu"))
    long = " ".join(["photo"] * 40)
    texts = {"prompts": [long], "negative_prompt": ""}
    if which == "negative":
        texts = {"prompts": ["a photo"], "negative_prompt": long}
    with pytest.raises(SettingsError, match=f"{which}.* does not fit the text encoder"):
        sampling.sample(
            pipe, seeds=[0], steps=1, guidance=2.0, resolution=64, batch_size=1, **texts
        )


def test_empty_prompt_is_refused_with_its_consequence() -> None:
    with pytest.raises(SettingsError, match="--prompt is empty: the images would show anything"):
        prompts.require_text("--prompt", "  ")
