"""BLIP completes a prompt for an image; a folder that holds no captioner is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from dreambooth_core.errors import SettingsError
from dreambooth_core.models.captioner import Captioner, tidy
from tests import tiny_models

CPU = torch.device("cpu")
BEGINNING = "a photo of a mug"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def image(photos: Path) -> Image.Image:
    return Image.open(sorted(photos.glob("*.png"))[0])


def test_completion_is_what_transformers_writes_after_the_prompt(
    blip: Path, image: Image.Image
) -> None:
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = BlipProcessor.from_pretrained(blip)
    inputs = processor(images=image, text=BEGINNING, return_tensors="pt")
    written = model.generate(
        pixel_values=inputs["pixel_values"],
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=3,
        max_new_tokens=30,
    )
    whole = processor.decode(written[0], skip_special_tokens=True)
    captioner = Captioner(blip, device=CPU)
    completed = captioner.complete(image, BEGINNING)
    assert len(completed.split()) > 5
    assert whole == f"{BEGINNING} {completed}"
    assert captioner.complete(image, BEGINNING) == completed


def test_completion_depends_on_the_image(blip: Path, image: Image.Image) -> None:
    captioner = Captioner(blip, device=CPU)
    with torch.no_grad():  # a random model hardly looks at the image
        for name, value in captioner._model.named_parameters():
            if "patch_embedding.weight" in name or "crossattention" in name:
                value.mul_(30)
    other = Image.new("RGB", image.size, "yellow")
    assert captioner.complete(image, BEGINNING) != captioner.complete(other, BEGINNING)


@pytest.mark.parametrize(
    ("written", "left"),
    [("##s on the grass.", "on the grass"), (", on a bed", "on a bed"), ("##s", ""), ("", "")],
)
def test_plural_and_punctuation_are_left_out(written: str, left: str) -> None:
    assert tidy(written) == left


def test_folder_without_a_captioner_is_refused_with_what_it_holds(
    blip: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"it has no config\.json"):
        Captioner(tiny_sd, device=CPU)
    with pytest.raises(SettingsError, match="a model of type 'clip_text_model'"):
        Captioner(tiny_sd / "text_encoder", device=CPU)
    config = json.loads((blip / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(SettingsError, match=r"allowed: safetensors files \(pickled \.bin"):
        Captioner(tmp_path, device=CPU)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        Captioner(tmp_path, device=CPU)
