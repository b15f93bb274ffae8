"""Long prompts of the flags are refused before any class image is drawn."""

import re

import pytest
from pydantic import ValidationError

from dreambooth_core.scripts import flag_checks, flags
from dreambooth_core.scripts.flags import DREAMBOOTH
from tests.paths import ROOT
from tests.unit.scripts.command import prior, run

LONG = "photo " * 90


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        (flags.DREAMBOOTH, "instance_prompt"),
        (flags.DREAMBOOTH, "class_prompt"),
        (flags.DREAMBOOTH, "validation_prompt"),
        (flags.DREAMBOOTH_LORA, "validation_prompt"),
    ],
)
def test_long_prompt_is_refused_before_class_images(
    script, flag, tiny_sd, photos, tmp_path, capsys
):
    given = {**prior(tmp_path / "class", 2), flag: LONG}
    assert run(tiny_sd, photos, tmp_path / "out", script=script, **given) == 2
    said = capsys.readouterr().err
    assert f"--{flag} does not fit the text encoder; found: 92 tokens; allowed: 77" in said
    assert not list((tmp_path / "class").glob("*.png"))
    assert not (tmp_path / "out").exists()


def test_sdxl_checks_both_text_encoders(tiny_sdxl, photos, tmp_path, capsys):
    given = prior(tmp_path / "class", 2, class_prompt=LONG)
    assert run(tiny_sdxl, photos, tmp_path / "out", script=flags.DREAMBOOTH_LORA_SDXL, **given) == 2
    assert "--class_prompt does not fit the text encoder" in capsys.readouterr().err


PROMPT = "a photo of sks mug "


def at_the_door(tmp_path, **flags):
    """The mistakes that the checks find before torch is imported."""
    given = {
        "pretrained_model_name_or_path": str(ROOT / "assets" / "pocket-sd"),
        "instance_data_dir": str(ROOT / "examples" / "mug-stripes"),
        "output_dir": str(tmp_path / "out"),
        "instance_prompt": PROMPT,
        "resolution": 64,
        **flags,
    }
    return "\n".join(map(str, flag_checks.flag_problems(DREAMBOOTH.flags.model_validate(given))))


def test_door_counts_the_tokens_of_every_prompt(tmp_path):
    prior = {"with_prior_preservation": True, "class_data_dir": str(tmp_path / "class")}
    long = {
        "instance_prompt": PROMPT * 9,
        "class_prompt": "mug " * 40,
        "validation_prompt": "a " * 40,
    }
    said = at_the_door(tmp_path, **prior, **long)
    for flag in long:
        assert f"--{flag} does not fit the text encoder" in said
    assert at_the_door(tmp_path) == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tokenizer_max_length": 500}, "--tokenizer_max_length: .*allowed: up to 24"),
        ({"tokenizer_max_length": 3}, "--instance_prompt does not fit .*allowed: 3 tokens"),
        ({"tokenizer_name": "examples"}, "--tokenizer_name: .*examples holds no tokenizer"),
    ],
)
def test_door_checks_the_flags_of_the_tokenizer(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(ROOT)
    assert re.search(message, at_the_door(tmp_path, **flags))


@pytest.mark.parametrize(
    "flag", ["output_dir", "instance_data_dir", "pretrained_model_name_or_path", "logging_dir"]
)
def test_empty_path_is_not_the_current_folder(tmp_path, flag):
    with pytest.raises(ValidationError, match="the path is empty"):
        at_the_door(tmp_path, **{flag: " "})
