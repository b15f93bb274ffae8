"""LoRA: what is written is what was trained, in both formats, whatever alpha is."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from dreambooth_core.config import BaseModelSettings, LoraSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, lora
from dreambooth_core.models.tensors import read_tensors, tensor_bytes
from dreambooth_core.numerics.seeding import generator_for

CPU = torch.device("cpu")
LORA = LoraSettings(
    rank=4, lora_alpha=6.0, lora_dropout=0.0, lora_layers=("to_q", "to_k", "to_v", "to_out.0")
)


def fresh_unet(tiny_sd: Path) -> UNet2DConditionModel:
    settings = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    return load.load_component("unet", settings, tiny_sd, device=CPU)


def trained_unet(tiny_sd: Path) -> UNet2DConditionModel:
    """A U-Net whose adapters are not zero, as after a training."""
    unet = fresh_unet(tiny_sd)
    lora.add_adapter(unet, LORA, part="unet", seed=3)
    with torch.no_grad():
        for index, weight in enumerate(lora.adapter_parameters(unet)):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator_for(1, "t", index)))
    return unet


def pipeline(tiny_sd: Path) -> StableDiffusionPipeline:
    settings = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    return load.load_pipeline(settings, tiny_sd, device=CPU)


def merged(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The U-Net's weights with the loaded adapter added in."""
    pipe.fuse_lora()
    return {
        name.replace(".base_layer", ""): tensor
        for name, tensor in pipe.unet.state_dict().items()
        if ".lora_" not in name
    }


def expected_merge(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """W + (alpha / r) B A, computed by hand."""
    state = unet.state_dict()
    merge = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer", "")
        merge[plain] = tensor
        if plain != name and name.endswith("weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{layer}.lora_{m}.default.weight"] for m in "AB")
            merge[plain] = tensor + LORA.lora_alpha / LORA.rank * up @ down
    return merge


def test_new_adapters_change_nothing_and_only_they_are_trained(tiny_sd: Path) -> None:
    plain, adapted = fresh_unet(tiny_sd), fresh_unet(tiny_sd)
    lora.add_adapter(adapted, LORA, part="unet", seed=3)
    inputs = (
        torch.randn(1, 4, 8, 8, generator=generator_for(0, "x")),
        torch.tensor([500]),
        torch.randn(1, 77, 32, generator=generator_for(0, "text")),
    )
    with torch.inference_mode():
        assert torch.equal(plain(*inputs).sample, adapted(*inputs).sample)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert (
        len(trainable) == len(lora.adapter_parameters(adapted)) == 64
    )  # 4 transformers x 2 attentions x 4 layers x A, B
    assert all(".lora_" in name for name in trainable)


def test_initial_adapters_depend_on_the_seed_alone(tiny_sd: Path) -> None:
    states = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        unet = fresh_unet(tiny_sd)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            lora.add_adapter(unet, LORA, part="unet", seed=seed)
        states.append(tensor_bytes(lora.adapter_state_dict({"unet": unet})))
    assert states[0] == states[1] != states[2]


def test_layers_that_fit_nothing_are_refused_with_what_would(tiny_sd: Path) -> None:
    wrong = LORA.model_copy(update={"lora_layers": ("to_nowhere",)})
    with pytest.raises(SettingsError, match=r"found: to_nowhere; allowed: .*to_q"):
        lora.add_adapter(fresh_unet(tiny_sd), wrong, part="unet", seed=3)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("to_k to_xx", "no layer of the U-Net has the name: to_xx; found: to_k, to_xx; allowed: "),
        ("to_k to_xx q_proj", "has the name: to_xx, q_proj;"),
        ("to_xx", r"did you mean to_\w or to_\w or to_\w for to_xx\?"),
        ("to_q to_out", r"lora_layers: cannot take an adapter: to_out; .*to_out\.0 for to_out\?"),
        ("norm1", "cannot take an adapter: norm1; found: norm1; allowed: ends of names of linear"),
        ("attn1", r"cannot take an adapter: attn1; .*attn1\.to_q or .* for attn1"),
        ("to_xx norm1", "has the name: to_xx, and cannot take an adapter: norm1; found"),
        ("", "lora_layers: names no layer of the U-Net; allowed"),
    ],
)
def test_every_unusable_layer_name_is_reported_with_suggestions(
    tiny_sd: Path, layers: str, said: str
) -> None:
    wrong = LORA.model_copy(update={"lora_layers": tuple(layers.split())})
    with pytest.raises(SettingsError, match=said):
        lora.require_layers({"unet": fresh_unet(tiny_sd)}, wrong)


def test_text_encoder_layer_may_exist_in_only_one_encoder(tiny_sdxl: Path) -> None:
    base = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sdxl))
    parts = {
        "unet": load.load_component("unet", base, tiny_sdxl, device=CPU),
        **load.load_text_encoders(base, tiny_sdxl),
    }

    def require(*names: str, unet: tuple[str, ...] = LORA.lora_layers) -> None:
        changes = {"text_encoder_layers": names, "lora_layers": unet}
        lora.require_layers(parts, LORA.model_copy(update=changes))

    require("q_proj", "text_projection")  # a layer of the second alone
    with pytest.raises(
        SettingsError, match=r"text_encoder_layers: .*: q_prj; .*q_proj.* for q_prj\?"
    ):
        require("q_proj", "q_prj")
    with pytest.raises(SettingsError, match="cannot take an adapter: token_embedding"):
        require("q_proj", "token_embedding")
    with pytest.raises(SettingsError, match=r"(?s)has the name: x;.*\n.*has the name: y;"):
        require("y", unet=("x",))


@pytest.mark.parametrize("format_", ["diffusers", "kohya"])
def test_loaded_adapter_adds_alpha_over_r_times_b_a(
    tiny_sd: Path, tmp_path: Path, format_: str
) -> None:
    unet = trained_unet(tiny_sd)
    lora.write_adapter({"unet": unet}, tmp_path)
    lora.write_kohya(tmp_path, out=tmp_path / lora.KOHYA_FILE)
    pipe = pipeline(tiny_sd)
    name = lora.LORA_FILE if format_ == "diffusers" else lora.KOHYA_FILE
    pipe.load_lora_weights(tmp_path, weight_name=name)
    found, expected = merged(pipe), expected_merge(unet)
    assert set(found) == set(expected)
    base = fresh_unet(tiny_sd).state_dict()
    changed = 0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5)
        changed += not torch.equal(base[key], value)
    assert changed == len(lora.adapter_parameters(unet)) / 2


def test_kohya_file_has_the_names_and_alpha_of_the_format(tiny_sd: Path, tmp_path: Path) -> None:
    lora.write_adapter({"unet": trained_unet(tiny_sd)}, tmp_path)
    lora.write_kohya(tmp_path, out=tmp_path / "k.safetensors")
    kohya = read_tensors(tmp_path / "k.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert kohya[f"{layer}.lora_down.weight"].shape == (4, 16)
    assert kohya[f"{layer}.lora_up.weight"].shape == (16, 4)
    assert float(kohya[f"{layer}.alpha"]) == 6.0


def test_adapters_survive_writing_and_reading_to_the_bit(tiny_sd: Path, tmp_path: Path) -> None:
    unet = trained_unet(tiny_sd)
    lora.write_adapter({"unet": unet}, tmp_path)
    state, alpha = lora.read_adapter(tmp_path)
    assert alpha == 6.0
    own = lora.adapter_state_dict({"unet": unet})
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())


def test_file_bytes_are_the_same_in_every_process() -> None:
    code = (
        "import torch, hashlib; from dreambooth_core.models.tensors import tensor_bytes;"
        "t = {'b': torch.ones(3), 'a': torch.zeros(2)}; m = {k: k for k in 'zyxwvu'};"
        "print(hashlib.sha256(tensor_bytes(t, metadata=m)).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = tensor_bytes(
        {"a": torch.zeros(2), "b": torch.ones(3)}, metadata={k: k for k in "uvwxyz"}
    )
    assert run.stdout.strip() == hashlib.sha256(here).hexdigest()


def trained_parts(folder: Path, settings: LoraSettings = LORA) -> dict[str, torch.nn.Module]:
    """All networks with adapters that are not zero.

    diffusers reads kohya's form of a text encoder only where `out_proj` is among its layers, as it
    is by default.
    """
    base = BaseModelSettings(pretrained_model_name_or_path=str(folder))
    parts = {
        "unet": load.load_component("unet", base, folder, device=CPU),
        **load.load_text_encoders(base, folder),
    }
    for part, model in parts.items():
        lora.add_adapter(model, settings, part=part, seed=3)
        with torch.no_grad():
            for index, weight in enumerate(lora.adapter_parameters(model)):
                noise = torch.randn(weight.shape, generator=generator_for(1, part, index))
                weight.add_(0.1 * noise)
    return parts


@pytest.mark.parametrize("format_", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sd2", "tiny_sdxl"])
def test_adapters_of_all_networks_load_from_both_formats(
    family: str, format_: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    parts = trained_parts(folder)
    lora.write_adapter(parts, tmp_path)
    lora.write_kohya(tmp_path, out=tmp_path / lora.KOHYA_FILE)
    name = lora.LORA_FILE if format_ == "diffusers" else lora.KOHYA_FILE
    base = BaseModelSettings(pretrained_model_name_or_path=str(folder))
    pipe = load.load_pipeline(base, folder, device=CPU)
    pipe.load_lora_weights(tmp_path, weight_name=name)
    for part, model in parts.items():
        loaded = {
            key.replace(".default_0.", ".default."): tensor
            for key, tensor in getattr(pipe, part).state_dict().items()
        }
        own = model.state_dict()
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in own.items()), part
        scales = [m.scaling for m in getattr(pipe, part).modules() if hasattr(m, "scaling")]
        assert scales
        assert all(list(scale.values()) == [1.5] for scale in scales if scale)  # alpha 6 / r 4


def test_text_encoders_have_the_names_that_all_tools_know(tiny_sdxl: Path, tmp_path: Path) -> None:
    lora.write_adapter(trained_parts(tiny_sdxl), tmp_path)
    lora.write_kohya(tmp_path, out=tmp_path / "k.safetensors")
    state, kohya = lora.read_adapter(tmp_path)[0], read_tensors(tmp_path / "k.safetensors")
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    assert {f"text_encoder.{layer}.lora_A.weight", f"text_encoder_2.{layer}.lora_A.weight"} <= set(
        state
    )
    for prefix in ("lora_te1", "lora_te2"):
        assert f"{prefix}_{layer.replace('.', '_')}.lora_down.weight" in kohya
    assert {name.split("_text_model")[0].split("_down")[0] for name in kohya} >= {"lora_unet"}


def test_dora_magnitudes_start_as_row_norms_and_load_back(tiny_sd: Path, tmp_path: Path) -> None:
    settings = LORA.model_copy(update={"use_dora": True})
    base = fresh_unet(tiny_sd).state_dict()
    unet = fresh_unet(tiny_sd)
    lora.add_adapter(unet, settings, part="unet", seed=3)
    state = lora.adapter_state_dict({"unet": unet})
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lengths = state[f"unet.{layer}.lora_magnitude_vector"]
    torch.testing.assert_close(lengths, base[f"{layer}.weight"].norm(dim=1))
    parts = {"unet": trained_parts(tiny_sd, settings)["unet"]}
    lora.write_adapter(parts, tmp_path)
    lora.write_kohya(tmp_path, out=tmp_path / "k.safetensors")
    pipe = pipeline(tiny_sd)
    pipe.load_lora_weights(tmp_path)
    for name, tensor in parts["unet"].state_dict().items():
        loaded = pipe.unet.state_dict()[name.replace(".default.", ".default_0.")]
        assert torch.equal(loaded, tensor), name
    kohya = read_tensors(tmp_path / "k.safetensors")
    assert kohya[f"lora_unet_{layer.replace('.', '_')}.dora_scale"].shape == (16, 1)
