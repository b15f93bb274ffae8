"""Long prompts of the flags are refused before any class image is drawn."""

import pytest

from dreambooth_core.scripts import flags
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
