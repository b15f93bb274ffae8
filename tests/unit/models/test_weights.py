"""Checkpoints in a resident pipeline: swapped in, and the base back to the bit; exports load."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dreambooth_core import files
from dreambooth_core.config import BaseModelSettings, LoraSettings
from dreambooth_core.errors import CorruptRecordError
from dreambooth_core.models import load, lora, weights
from dreambooth_core.models.sampling import sample
from dreambooth_core.numerics.seeding import generator_for
from dreambooth_core.records import Checkpoint

CPU = torch.device("cpu")
LORA = LoraSettings(rank=2, lora_alpha=4.0, lora_dropout=0.1, lora_layers=("to_q", "to_v"))


@pytest.fixture
def base(tiny_sd: Path) -> BaseModelSettings:
    return BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))


def record(folder: Path, method: str, step: int = 10) -> Checkpoint:
    hashes = files.tree_hashes(folder)
    checkpoint = Checkpoint(
        name=folder.name, step=step, method=method, sha256=files.digest_of(hashes), files=hashes
    )
    checkpoint.write(folder)
    return checkpoint


def shake(parameters: list[torch.nn.Parameter], *, seed: int) -> None:
    with torch.no_grad():
        for index, p in enumerate(parameters):
            noise = torch.randn(p.shape, generator=generator_for(seed, "shake", index))
            p.add_(0.05 * noise)


@pytest.fixture(params=["full", "lora"])
def trained(
    request: pytest.FixtureRequest, base: BaseModelSettings, tmp_path: Path
) -> tuple[Path, Checkpoint]:
    """A checkpoint folder of either method, with weights unlike the base's."""
    unet = load.load_component("unet", base, tmp_path, device=CPU)
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    if request.param == "full":
        shake(list(unet.parameters()), seed=1)
        weights.write_networks({"unet": unet}, folder)
    else:
        lora.add_adapter(unet, LORA, part="unet", seed=1)
        shake(lora.adapter_parameters(unet), seed=1)
        lora.write_adapter({"unet": unet}, folder)
    return folder, record(folder, request.param)


def picture(pipe: StableDiffusionPipeline) -> bytes:
    call = {"steps": 2, "guidance": 3.0, "resolution": 64, "batch_size": 1}
    return sample(pipe, prompts=["a photo of sks mug"], seeds=[4], **call)[0].tobytes()


def test_base_comes_back_to_the_bit_after_a_checkpoint(
    base: BaseModelSettings, trained: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    pipe = load.load_pipeline(base, tmp_path, device=CPU)
    state = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    before = picture(pipe)
    with weights.applied(pipe, *trained):
        inside = picture(pipe)
    with weights.applied(pipe, *trained):
        assert picture(pipe) == inside
    assert inside != before
    assert picture(pipe) == before
    assert set(pipe.unet.state_dict()) == set(state)
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_no_checkpoint_means_the_base_model(base: BaseModelSettings, tmp_path: Path) -> None:
    pipe = load.load_pipeline(base, tmp_path, device=CPU)
    before = picture(pipe)
    with weights.applied(pipe, tmp_path / "nowhere", None):
        assert picture(pipe) == before


def test_base_comes_back_when_the_work_inside_fails(
    base: BaseModelSettings, trained: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    pipe = load.load_pipeline(base, tmp_path, device=CPU)
    before = picture(pipe)
    with (
        pytest.raises(RuntimeError, match="no memory"),
        weights.applied(pipe, *trained),
    ):
        raise RuntimeError("no memory")
    assert picture(pipe) == before


def test_a_changed_file_is_refused_before_it_is_loaded(
    base: BaseModelSettings, trained: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    folder, checkpoint = trained
    name = next(n for n in checkpoint.files if n.endswith(".safetensors"))
    damaged = bytearray((folder / name).read_bytes())
    damaged[-1] ^= 1
    (folder / name).write_bytes(damaged)
    pipe = load.load_pipeline(base, tmp_path, device=CPU)
    with (
        pytest.raises(
            CorruptRecordError, match=f"checkpoint-10 differs from its record.* changed: {name}"
        ),
        weights.applied(pipe, folder, checkpoint),
    ):
        pass


def test_weights_of_another_shape_are_refused(base: BaseModelSettings, tmp_path: Path) -> None:
    pipe = load.load_pipeline(base, tmp_path, device=CPU)
    before = picture(pipe)
    config = {**pipe.unet.config, "layers_per_block": 2}
    folder = tmp_path / "checkpoint-10"
    weights.write_networks({"unet": UNet2DConditionModel.from_config(config)}, folder)
    with (
        pytest.raises(CorruptRecordError, match="do not fit the base model"),
        weights.applied(pipe, folder, record(folder, "full")),
    ):
        pass
    assert picture(pipe) == before


def test_checkpoint_loads_as_the_snippets_promise_and_names_no_path(
    base: BaseModelSettings, tmp_path: Path
) -> None:
    unet = load.load_component("unet", base, tmp_path, device=CPU)
    weights.write_networks({"unet": unet}, tmp_path / "checkpoint-5")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "checkpoint-5" / "unet")
    for name, tensor in unet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    text = (tmp_path / "checkpoint-5" / "unet" / "config.json").read_text()
    assert str(tmp_path.parent) not in text
    assert "_name_or_path" not in text


def test_export_draws_the_pictures_of_the_swapped_checkpoint(
    base: BaseModelSettings, trained: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    folder, checkpoint = trained
    pipe = load.load_pipeline(base, tmp_path, device=CPU)
    with weights.applied(pipe, folder, checkpoint):
        scored = picture(pipe)
    hash_cache, out = tmp_path / "hashes.json", tmp_path / "export"
    identity = load.resolve_base_model(base, tmp_path, hash_cache=hash_cache)
    weights.export_pipeline(
        base, tmp_path, identity=identity, checkpoint_dir=folder, checkpoint=checkpoint, out=out
    )
    exported = weights.load_exported(out, tmp_path, device=CPU, hash_cache=hash_cache)
    assert picture(exported) == scored
    if checkpoint.method == "full":
        plain = StableDiffusionPipeline.from_pretrained(out)
        assert plain.safety_checker is None
        assert all(str(tmp_path) not in p.read_text() for p in out.rglob("*.json"))
    else:
        assert sorted(p.name for p in out.iterdir()) == [
            "base_model.json", "lora_kohya.safetensors", "pytorch_lora_weights.safetensors",
        ]  # fmt: skip


def test_adapter_refuses_a_base_that_is_not_its_own(
    tiny_sd: Path, base: BaseModelSettings, tmp_path: Path
) -> None:
    unet = load.load_component("unet", base, tmp_path, device=CPU)
    lora.add_adapter(unet, LORA, part="unet", seed=1)
    folder = tmp_path / "checkpoint-10"
    lora.write_adapter({"unet": unet}, folder)
    own = tmp_path / "models" / "own"
    shutil.copytree(tiny_sd, own)
    settings = BaseModelSettings(pretrained_model_name_or_path="models/own")
    cache = tmp_path / "hashes.json"
    weights.export_pipeline(
        settings, tmp_path, checkpoint_dir=folder, checkpoint=record(folder, "lora"),
        identity=load.resolve_base_model(settings, tmp_path, hash_cache=cache),
        out=tmp_path / "export",
    )  # fmt: skip
    assert json.loads((tmp_path / "export/base_model.json").read_text())["identity"]["sha256"]
    scheduler = own / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    with pytest.raises(CorruptRecordError, match="models/own is not the one that the adapter"):
        weights.load_exported(tmp_path / "export", tmp_path, device=CPU, hash_cache=cache)


def test_exported_text_encoder_keeps_the_base_models_names(tiny_sd: Path, tmp_path: Path) -> None:
    """Published models have the prefix `text_model.`, and older libraries look for it."""
    base = tmp_path / "published"
    shutil.copytree(tiny_sd, base)
    file = base / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})
    pipe = load.load_pipeline_folder(base, device=CPU)
    weights.write_pipeline(pipe, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "text_encoder" / "model.safetensors")
    assert set(written) == set(named)
    pipe.save_pretrained(tmp_path / "theirs")
    weights.make_portable(tmp_path / "theirs")
    assert files.tree_hashes(tmp_path / "ours") == files.tree_hashes(tmp_path / "theirs")


def test_writing_a_pipeline_imports_neither_deepspeed_nor_mlflow(
    tiny_sd: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; import torch\n"
        "from dreambooth_core.models import load, weights\n"
        f"pipe = load.load_pipeline_folder(Path({str(tiny_sd)!r}), device=torch.device('cpu'))\n"
        f"weights.write_pipeline(pipe, Path({str(tmp_path / 'out')!r}))\n"
        "print(sorted({'deepspeed', 'mlflow', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['transformers']"
