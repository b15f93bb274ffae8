"""A base model's folder is checked before any work, and a refusal names what is there."""

import shutil
from pathlib import Path

import pytest
import torch

from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, source

CPU = torch.device("cpu")


def base(name: str, variant: str | None = None) -> BaseModelSettings:
    return BaseModelSettings(pretrained_model_name_or_path=name, variant=variant)


@pytest.fixture
def model(tiny_sd: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "assets" / "tiny-sd"
    shutil.copytree(tiny_sd, folder)
    return folder


def check(settings: BaseModelSettings, root: Path) -> None:
    """The checks of every door: does the folder exist, and is it complete?"""
    folder = source.named_folder(settings, root)
    if folder is not None:
        source.check_pipeline(folder, settings.variant)


def rename_weights(part: Path, ending: str) -> None:
    (weights,) = part.glob("*.safetensors")
    weights.rename(weights.with_name(weights.stem + ending))


def test_complete_folder_passes(model: Path, tmp_path: Path) -> None:
    check(base("assets/tiny-sd"), tmp_path)


@pytest.mark.parametrize("name", ["assets/tiny_sd", "assts/tiny-sd", "assets/tiny-sdd"])
def test_misspelled_folder_is_refused_with_the_nearest(
    model: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(SettingsError, match=r"did you mean assets/tiny-sd\?"):
        check(base(name), tmp_path)


def test_hub_id_of_another_owner_passes(model: Path, tmp_path: Path) -> None:
    local = tmp_path / "models" / "stable-diffusion-v1-5"
    shutil.copytree(model, local)
    check(base("runwayml/stable-diffusion-v1-5"), tmp_path)


def test_single_file_is_refused_with_its_conversion(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"weights")
    with pytest.raises(SettingsError, match=r"is a file.*from_single_file\('v1-5.safetensors'\)"):
        check(base("v1-5.safetensors"), tmp_path)


def test_folder_around_a_pipeline_is_refused_with_the_pipeline(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"found: tiny-sd/; .*did you mean .*assets/tiny-sd\?"):
        check(base("assets"), tmp_path)


def test_fp16_files_alone_are_refused_with_the_setting(model: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        rename_weights(model / part, ".fp16.safetensors")
    for load_or_check in (
        lambda: check(base("assets/tiny-sd"), tmp_path),
        lambda: load.load_pipeline_folder(model, device=CPU),
        lambda: load.load_text_encoders(base("assets/tiny-sd"), tmp_path),
    ):
        with pytest.raises(SettingsError, match=r"found: the variant fp16: .*variant: fp16"):
            load_or_check()
    check(base("assets/tiny-sd", "fp16"), tmp_path)


def test_parts_without_the_variant_are_loaded_from_plain_files(model: Path, tmp_path: Path) -> None:
    rename_weights(model / "unet", ".fp16.safetensors")
    settings = base("assets/tiny-sd", "fp16")
    check(settings, tmp_path)
    load.load_component("unet", settings, tmp_path, device=CPU)
    assert list(load.load_text_encoders(settings, tmp_path)) == ["text_encoder"]


def test_variant_that_no_part_has_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no weights of the variant fp16; found: the plain"):
        check(base("assets/tiny-sd", "fp16"), tmp_path)


@pytest.mark.parametrize(
    ("ending", "found"), [(".bin", "diffusion_pytorch_model.bin"), (".txt", "config.json")]
)
def test_folder_without_usable_weights_is_refused_by_its_content(
    model: Path, tmp_path: Path, ending: str, found: str
) -> None:
    rename_weights(model / "unet", ending)
    with pytest.raises(SettingsError, match=f"holds no weights.*found: .*{found}.*save_pretrained"):
        check(base("assets/tiny-sd"), tmp_path)


def test_missing_part_is_named(model: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "vae")
    with pytest.raises(SettingsError, match=r"found: no folder .*vae"):
        check(base("assets/tiny-sd"), tmp_path)
