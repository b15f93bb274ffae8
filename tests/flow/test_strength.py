"""The strength of a training, and what `dreambooth export` writes, on tiny and pocket models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cli import exporting, generation
from cli.generation import Request
from dreambooth_core import config, files
from dreambooth_core.config import BaseModelSettings, LoraSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, lora, weights
from dreambooth_core.records import Checkpoint, Method
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REQUEST = Request(
    prompt="a photo of sks mug",
    negative_prompt="",
    num=1,
    seed=7,
    steps=2,
    guidance=3.0,
    batch_size=1,
    device="cpu",
    dtype="fp32",
    with_sheet=False,
)
LORA = LoraSettings(rank=2, lora_alpha=4.0, lora_dropout=0.0, lora_layers=("to_q", "to_v"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Workspace:
    """Settings whose base model is the tiny one, and a checkpoint of each method."""
    root = tmp_path_factory.mktemp("strength")
    workspaces.write_settings(root, ("mug",))
    workspaces.change(root, "base_model.pretrained_model_name_or_path", str(tiny_sd))
    base = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    methods: tuple[Method, ...] = ("full", "lora")
    for method in methods:
        pipe = load.load_pipeline(base, root, device=torch.device("cpu"))
        _train(pipe.unet, method, root / f"{method}-4")
    return Workspace(root)


def _train(unet: torch.nn.Module, method: Method, folder: Path) -> None:
    """Move every weight, as a training would, and save a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    if method == "lora":
        lora.add_adapter(unet, LORA, part="unet", seed=0)
    moved = lora.adapter_parameters(unet) if method == "lora" else list(unet.parameters())
    with torch.no_grad():
        for weight in moved:
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    if method == "lora":
        lora.write_adapter({"unet": unet}, folder)
    else:
        weights.write_networks({"unet": unet}, folder)
    hashes = files.tree_hashes(folder)
    Checkpoint(
        name=folder.name, step=4, method=method, sha256=files.digest_of(hashes), files=hashes
    ).write(folder)  # fmt: skip


def _image(workspace: Workspace, model: Path | str, strength: float = 1.0) -> np.ndarray:
    out = workspace.root / f"out-{len(list(workspace.root.iterdir()))}"
    request = Request(**{**vars(REQUEST), "strength": strength})
    made = generation.generate(workspace, str(model), request, out, tracking_uri=None)
    with Image.open(made["images"][0]) as image:
        assert ('"strength"' in image.info["dreambooth"]) is (strength != 1.0)
        assert (f"Strength: {strength:g}" in image.info["parameters"]) is (strength != 1.0)
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_strength_leads_from_the_base_model_to_the_trained_one(workspace, tiny_sd, method) -> None:
    model = workspace.root / f"{method}-4"
    base, trained = _image(workspace, tiny_sd), _image(workspace, model)
    assert np.abs(base - trained).mean() > 1
    assert np.abs(_image(workspace, model, 0.0) - base).max() <= 1
    half = _image(workspace, model, 0.5)
    assert np.abs(half - base).mean() > 0.1
    assert np.abs(half - trained).mean() > 0.1


def test_strength_blends_every_weight(workspace: Workspace, tiny_sd: Path) -> None:
    exported = exporting.export(
        workspace, str(workspace.root / "full-4"), "pipeline", workspace.root / "blend",
        tracking_uri=None,
    )  # fmt: skip
    from dreambooth_core.models.strength import set_strength

    cpu = torch.device("cpu")
    pipe, base, trained = (
        load.load_pipeline_folder(Path(folder), device=cpu)
        for folder in (exported["path"], tiny_sd, exported["path"])
    )
    set_strength(pipe, 0.25, load_base=lambda: base)
    own, start, end = (part.unet.state_dict() for part in (pipe, base, trained))
    for name, weight in own.items():
        wanted = start[name] + 0.25 * (end[name] - start[name])
        assert torch.allclose(weight, wanted, atol=1e-6), name


def test_strength_of_another_base_model_is_refused(workspace, tiny_sdxl) -> None:
    text = workspace.params.read_text()
    workspaces.change(workspace.root, "base_model.pretrained_model_name_or_path", str(tiny_sdxl))
    try:
        with pytest.raises(SettingsError, match=r"other layers than the trained one.*base_model"):
            _image(workspace, workspace.root / "blend" / "full-4", 0.5)
    finally:
        workspace.params.write_text(text)


def _export(workspace: Workspace, model: str, form: exporting.Form, out: str) -> Path:
    folder = workspace.root / out
    made = exporting.export(workspace, str(workspace.root / model), form, folder, tracking_uri=None)
    assert made["bytes"] > 1000
    return Path(made["path"])


def test_exported_adapter_is_that_of_the_checkpoint(workspace: Workspace) -> None:
    path = _export(workspace, "lora-4", "lora", "exports")
    assert path.name == "lora-4-lora.safetensors"
    assert path.read_bytes() == (workspace.root / "lora-4" / lora.LORA_FILE).read_bytes()
    kohya = load_file(_export(workspace, "lora-4", "kohya", "exports"))
    assert {name.rsplit(".", 1)[-1] for name in kohya} == {"alpha", "weight"}
    assert all(name.startswith("lora_unet_") for name in kohya)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_exported_pipeline_draws_the_same_image(workspace: Workspace, method: str) -> None:
    path = _export(workspace, f"{method}-4", "pipeline", "pipelines")
    assert not (path / lora.LORA_FILE).exists()
    difference = np.abs(_image(workspace, path) - _image(workspace, workspace.root / f"{method}-4"))
    assert difference.max() <= 1  # merging rounds


def test_impossible_export_is_refused_and_leaves_nothing(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match=r"full-4 has no adapter.*allowed: pipeline"):
        _export(workspace, "full-4", "kohya", "refused")
    _export(workspace, "lora-4", "lora", "taken")
    with pytest.raises(SettingsError, match=r"lora-4-lora.safetensors is there already"):
        _export(workspace, "lora-4", "lora", "taken")
    (workspace.root / "file").write_text("mine")
    with pytest.raises(SettingsError, match="--out: nothing can be written to"):
        _export(workspace, "lora-4", "lora", "file/below")
    assert config.load_settings(workspace.params)
