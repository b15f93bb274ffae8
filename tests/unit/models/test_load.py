"""Loading: what a base model is, what is refused, and that bits do not depend on the way."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from dreambooth_core.config import BaseModelSettings, ComputeSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import families, load, source

CPU = torch.device("cpu")


def base(path: Path | str, **more: str) -> BaseModelSettings:
    return BaseModelSettings(pretrained_model_name_or_path=str(path), **more)


@pytest.fixture
def copy(tiny_sd: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "assets" / "sd"
    shutil.copytree(tiny_sd, folder)
    for path in folder.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def test_identity_is_by_content_not_by_place(copy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other" / "place"
    shutil.copytree(copy, elsewhere)
    here = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=tmp_path / "h.json")
    there = load.resolve_base_model(base(elsewhere), tmp_path, hash_cache=tmp_path / "h.json")
    assert here.sha256 == there.sha256
    assert (here.name, there.name) == ("assets/sd", "place")
    assert here.revision is None


def test_second_identity_reads_no_weights(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "state" / "hashes.json"
    first = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(source.files, "sha256_file", refuse)
    assert load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache) == first


def test_changed_weight_with_old_time_and_size_is_noticed(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    stat = weights.stat()
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    time.sleep(0.02)
    weights.write_bytes(changed)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.stat().st_size == stat.st_size
    second = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache)
    assert second.sha256 != first.sha256


def test_files_that_are_not_loaded_do_not_count(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache)
    (copy / "README.md").write_text("a card")
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    assert load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache) == first


def test_a_variant_downloaded_beside_does_not_change_the_identity(
    copy: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "hashes.json"
    plain = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    half = weights.with_name("diffusion_pytorch_model.fp16.safetensors")
    half.write_bytes(weights.read_bytes() + b" ")
    assert load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache) == plain
    settings = base("assets/sd", variant="fp16")
    fp16 = load.resolve_base_model(settings, tmp_path, hash_cache=cache)
    assert fp16.sha256 != plain.sha256
    weights.unlink()
    assert load.resolve_base_model(settings, tmp_path, hash_cache=cache) == fp16


def test_variants_are_told_from_the_file_names() -> None:
    names = [
        "unet/config.json", "unet/m.safetensors", "unet/m.fp16.safetensors",
        "unet/m.non_ema.safetensors", "vae/m-00001-of-00002.safetensors",
        "vae/m-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert source.of_variant(names, None) == [*names[:2], *names[4:]]
    assert source.of_variant(names, "fp16") == [names[0], names[2], *names[4:]]
    assert source.of_variant(["unet/m.fp16-00001-of-00002.safetensors"], None) == []


def test_a_damaged_hash_cache_is_only_forgotten(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache)
    cache.write_text('{"half')
    assert load.resolve_base_model(base("assets/sd"), tmp_path, hash_cache=cache) == first


def test_missing_folder_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    with pytest.raises(SettingsError, match=r"does not exist.*assets/nothing.*hub id"):
        load.find_base_model(base("assets/nothing"), tmp_path)


def test_an_unknown_hub_id_offline_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nobody/nothing.*what to do: check the spelling"):
        load.find_base_model(base("nobody/nothing"), tmp_path)


def test_a_revision_of_a_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"only a hub id has a revision.*found: revision main"):
        load.find_base_model(base("assets/sd", revision="main"), tmp_path)


def test_a_hub_id_is_named_by_its_commit(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "hub"
    repository = hub / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(copy, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(hub))
    found = load.resolve_base_model(base("owner/tiny"), tmp_path, hash_cache=tmp_path / "h.json")
    assert (found.name, found.revision) == ("owner/tiny", commit)


def test_another_kind_of_pipeline_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusion3Pipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match="found: StableDiffusion3Pipeline; allowed: Stable"):
        load.load_pipeline(base("assets/sd"), tmp_path, device=CPU)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_were_copied_in_part_are_refused(copy: Path, part: str) -> None:
    (weights,) = (copy / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SettingsError, match=r"cannot be loaded; found: .*must be a complete model"):
        load.load_pipeline(base(copy), copy, device=torch.device("cpu"))


def test_pickled_weights_are_never_loaded(copy: Path, tmp_path: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(
        SettingsError,
        match=r"found: config.json, diffusion_pytorch_model.bin;",
    ):
        load.load_pipeline(base("assets/sd"), tmp_path, device=CPU)
    with pytest.raises(
        SettingsError,
        match=r"found: config.json, diffusion_pytorch_model.bin;",
    ):
        load.load_component("unet", base("assets/sd"), tmp_path, device=CPU)


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sd2", "tiny_sdxl"])
def test_components_are_those_of_the_pipeline_to_the_bit(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    settings = base(folder)
    pipe = load.load_pipeline(settings, folder, device=CPU)
    apart = {
        "unet": load.load_component("unet", settings, folder, device=CPU),
        "vae": load.load_component("vae", settings, folder, device=CPU),
        **load.load_text_encoders(settings, folder),
    }
    assert len(apart) == (4 if model == "tiny_sdxl" else 3)
    for name, part in apart.items():
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(part.state_dict()[key], value), f"{name}.{key}"
        assert not part.training
    tokenizer = load.load_tokenizers(settings, folder)[-1]
    own = pipe.tokenizer_2 if model == "tiny_sdxl" else pipe.tokenizer
    padded = {"padding": "max_length", "max_length": 20}
    assert tokenizer("a photo", **padded).input_ids == own("a photo", **padded).input_ids
    schedule = load.load_component("scheduler", settings, folder)
    assert schedule.config.num_train_timesteps == 1000
    assert schedule.config.beta_schedule == "scaled_linear"


def test_weights_lie_in_aligned_memory(tiny_sd: Path) -> None:
    unet = load.load_component("unet", base(tiny_sd), tiny_sd, device=CPU)
    assert {p.data_ptr() % 64 for p in unet.parameters()} == {0}


def test_the_sampler_is_named_by_its_class(tiny_sd: Path, tiny_sd_v: Path) -> None:
    assert load.sampler_name(base(tiny_sd), tiny_sd) == "PNDMScheduler"
    assert load.sampler_name(base(tiny_sd_v), tiny_sd_v) == "DPMSolverMultistepScheduler"


def test_v_prediction_reaches_the_noise_schedule(tiny_sd_v: Path) -> None:
    schedule = load.load_component("scheduler", base(tiny_sd_v), tiny_sd_v)
    assert schedule.config.prediction_type == "v_prediction"


def test_cuda_without_a_gpu_is_refused_and_auto_falls_back() -> None:
    def compute(device: str) -> ComputeSettings:
        return ComputeSettings(device=device, num_threads=1, deterministic=True)

    assert load.pick_device(compute("cpu")).type == "cpu"
    if not torch.cuda.is_available():
        assert load.pick_device(compute("auto")).type == "cpu"
        with pytest.raises(SettingsError, match=r"finds no GPU.*what to do: set compute.device"):
            load.pick_device(compute("cuda"))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_family_depends_on_configs_not_on_folder_name(
    tiny_sd: Path, tiny_sd2: Path, tiny_sdxl: Path
) -> None:
    found = [families.pipeline_family(folder).name for folder in (tiny_sd, tiny_sd2, tiny_sdxl)]
    assert found == ["sd", "sd", "sdxl"]


def test_an_inpainting_unet_in_the_same_pipeline_class_is_refused(copy: Path) -> None:
    _edit(copy / "unet" / "config.json", in_channels=9)
    with pytest.raises(SettingsError, match=r"takes other inputs.*found: in_channels 9"):
        families.pipeline_family(copy)


def test_a_pipeline_without_its_text_encoder_is_refused(copy: Path) -> None:
    _edit(copy / "model_index.json", text_encoder=[None, None])
    with pytest.raises(SettingsError, match="lacks text_encoder"):
        families.pipeline_family(copy)


def test_a_vae_that_shifts_its_latents_is_refused(copy: Path) -> None:
    _edit(copy / "vae" / "config.json", latents_mean=[0.1, 0.2, 0.3, 0.4])
    with pytest.raises(SettingsError, match="shifts its latents"):
        families.pipeline_family(copy)


def _give_scheduler(folder: Path, name: str, config: dict[str, object]) -> None:
    _edit(folder / "model_index.json", scheduler=["diffusers", name])
    written = {"_class_name": name, "num_train_timesteps": 1000, **config}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}


@pytest.mark.parametrize(
    ("name", "config", "objective"),
    [
        ("EDMDPMSolverMultistepScheduler", EDM, "EDM"),
        ("EDMEulerScheduler", {**EDM, **BETAS}, "EDM"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow matching"),
        ("DPMSolverMultistepScheduler", {**BETAS, "use_flow_sigmas": True}, "flow matching"),
        ("UniPCMultistepScheduler", {**BETAS, "prediction_type": "flow_prediction"}, "flow match"),
        ("CMStochasticIterativeScheduler", {"sigma_min": 0.002}, "config has no beta_start, beta"),
        ("EulerDiscreteScheduler", {**BETAS, "prediction_type": "x"}, "prediction_type x"),
    ],
)
def test_a_scheduler_of_another_objective_is_refused_by_its_config(
    copy: Path, tmp_path: Path, name: str, config: dict[str, object], objective: str
) -> None:
    _give_scheduler(copy, name, config)
    with pytest.raises(SettingsError, match=f"another objective.*{objective}.*found: .*{name}"):
        families.pipeline_family(copy)
    with pytest.raises(SettingsError, match=r"allowed: a scheduler of DDPM's noise"):
        load.load_component("scheduler", base("assets/sd"), tmp_path)


def test_the_class_in_the_schedulers_own_config_counts_as_well(copy: Path) -> None:
    _edit(copy / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    with pytest.raises(SettingsError, match="found: scheduler PNDMScheduler and EDMEulerScheduler"):
        families.pipeline_family(copy)


def test_trained_betas_count_as_ddpm_noise(copy: Path) -> None:
    _give_scheduler(copy, "DDIMScheduler", {"trained_betas": [0.1, 0.2], "num_train_timesteps": 2})
    assert families.pipeline_family(copy).name == "sd"
