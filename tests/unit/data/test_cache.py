"""The latent cache: what it holds, that it is found by content, and that harm is noticed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from dreambooth_core import files
from dreambooth_core.config import BaseModelSettings, DataSettings, load_settings
from dreambooth_core.data import cache
from dreambooth_core.data.cache import Encoders, ImageSet, build_cache
from dreambooth_core.errors import CorruptRecordError, DataError, StageError, Stopped
from dreambooth_core.models import load
from dreambooth_core.models.tensors import read_tensors
from dreambooth_core.records import BaseModelIdentity, LatentCache, Manifest, ManifestImage, Role
from tests import tiny_models
from tests.paths import PARAMS

CPU = torch.device("cpu")
IDENTITY = BaseModelIdentity(name="tiny", revision=None, sha256="a" * 64)
SETTINGS = load_settings(PARAMS).data.model_copy(
    update={"resolution": 64, "center_crop": False, "crops_per_image": 3, "random_flip": False}
)


@pytest.fixture(scope="module")
def encoders(tiny_sd: Path) -> Encoders:
    base = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    return Encoders(
        vae=load.load_component("vae", base, tiny_sd, device=CPU),
        text_encoders=tuple(load.load_text_encoders(base, tiny_sd).values()),
        tokenizers=load.load_tokenizers(base, tiny_sd),
        identity=IDENTITY,
    )


def image_set(folder: Path, *, role: Role, prompt: str, wide: bool = True) -> ImageSet:
    """The pictures of a folder as a stage would have published them."""
    tiny_models.build_photos(folder, count=3)
    images = []
    for path in sorted(folder.glob("*.png")):
        if wide:
            Image.open(path).resize((160, 80)).save(path)
        images.append(ManifestImage(file=path.name, sha256=files.sha256_file(path)))
    manifest = Manifest(role=role, fingerprint="f", images=tuple(images))
    return ImageSet(manifest=manifest, folder=folder, prompt=prompt)


@pytest.fixture
def sets(tmp_path: Path) -> list[ImageSet]:
    return [
        image_set(tmp_path / "instance", role="instance", prompt="a photo of sks mug"),
        image_set(tmp_path / "class", role="class", prompt="a photo of mug", wide=False),
    ]


def build(tmp_path: Path, sets: list[ImageSet], encoders: Encoders, **more: object) -> LatentCache:
    call = {"settings": SETTINGS, "out": tmp_path / "out", "fingerprint": "f"} | more
    return build_cache(sets, encoders=encoders, content_store=tmp_path / "store", **call)


def test_moments_are_those_of_the_vae_for_each_view(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    record = build(tmp_path, sets, encoders)
    assert [(e.role, e.num_views) for e in record.images] == [("instance", 3)] * 3 + [
        ("class", 1)
    ] * 3
    entry = record.images[1]
    moments = read_tensors(tmp_path / "out" / entry.file)
    assert moments["mean"].shape == (3, 4, 8, 8) == moments["logvar"].shape
    sha256 = sets[0].manifest.images[1].sha256
    views = cache.transform.tensors_of(
        Image.open(sets[0].folder / entry.image), SETTINGS, sha256=sha256
    )
    with torch.inference_mode():
        expected = encoders.vae.encode(views[2:3]).latent_dist
    assert torch.equal(moments["mean"][2], expected.mean[0])
    assert torch.equal(moments["logvar"][2], expected.logvar[0])
    assert record.latent_scale == encoders.vae.config.scaling_factor == 0.18215


def test_text_embeddings_are_those_that_the_pipeline_uses(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders, tiny_sd: Path
) -> None:
    record = build(tmp_path, sets, encoders)
    text = read_tensors(tmp_path / "out" / str(record.text_file))
    base = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    pipe = load.load_pipeline(base, tiny_sd, device=CPU)
    assert len(text) == 4  # two prompts, each with ids and hidden states
    for one in sets:
        with torch.inference_mode():
            expected, _ = pipe.encode_prompt(one.prompt, CPU, 1, do_classifier_free_guidance=False)
        assert torch.equal(text[cache.prompt_key(one.prompt, "hidden")], expected[0])
        ids = pipe.tokenizer(one.prompt, padding="max_length", return_tensors="pt").input_ids
        assert torch.equal(text[cache.prompt_key(one.prompt, "ids")], ids)


def test_record_comes_last_and_lists_every_file(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    record = build(tmp_path, sets, encoders)
    hashes = files.tree_hashes(tmp_path / "out")
    del hashes["record.json"]
    assert record.files == hashes
    assert LatentCache.read(tmp_path / "out") == record


def test_a_second_cache_encodes_nothing_and_has_the_same_bytes(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, sets, encoders)
    first = files.tree_hashes(tmp_path / "out")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an image was encoded again")

    monkeypatch.setattr(cache, "encode_image", refuse)
    build(tmp_path, sets, encoders, out=tmp_path / "again")
    assert files.tree_hashes(tmp_path / "again") == first


def test_an_added_photo_moves_no_bit_of_the_others(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    few = build(tmp_path, sets[:1], encoders)
    added = replace(
        sets[0],
        manifest=sets[0].manifest.model_copy(
            update={"images": (_extra(sets[0].folder), *sets[0].manifest.images)}
        ),
    )
    many = build(tmp_path / "elsewhere", [added], encoders, out=tmp_path / "more")
    assert few.files.items() < many.files.items()


def _extra(folder: Path) -> ManifestImage:
    Image.effect_noise((120, 90), 70).convert("RGB").save(folder / "a.png")
    return ManifestImage(file="a.png", sha256=files.sha256_file(folder / "a.png"))


@pytest.mark.parametrize("harm", ["damaged", "cut short", "seal missing"])
def test_harm_in_the_content_store_is_noticed_and_mended(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders, harm: str
) -> None:
    build(tmp_path, sets, encoders)
    first = files.tree_hashes(tmp_path / "out")
    stored = sorted((tmp_path / "store").rglob("*.safetensors"))[0]
    data = bytearray(stored.read_bytes())
    if harm == "damaged":
        data[-3] ^= 4
        stored.write_bytes(data)
    elif harm == "cut short":
        stored.write_bytes(data[:-8])
    else:
        stored.with_suffix(".sha256").unlink()
    build(tmp_path, sets, encoders, out=tmp_path / "again")
    assert files.tree_hashes(tmp_path / "again") == first
    assert files.sha256_file(stored) == stored.with_suffix(".sha256").read_text()


def test_the_address_holds_pixels_weights_and_transform(encoders: Encoders) -> None:
    def key(image: str = "i", vae: str = "v", **changed: object) -> str:
        settings: DataSettings = SETTINGS.model_copy(update=changed)
        return cache.moments_key(image, vae_sha256=vae, settings=settings)

    others = [
        key(image="j"), key(vae="w"), key(resolution=32), key(center_crop=True),
        key(crops_per_image=2), key(random_flip=True),
    ]  # fmt: skip
    assert len({key(), *others}) == 7
    assert key(blur_threshold=1.0) == key(min_photos=1) == key()


def _vae(folder: Path) -> AutoencoderKL:
    base = BaseModelSettings(pretrained_model_name_or_path=str(folder))
    return load.load_component("vae", base, folder, device=CPU)


def test_other_vae_weights_have_another_address(tiny_sd: Path) -> None:
    vae = _vae(tiny_sd)
    before = cache.model_sha256(vae)
    assert cache.model_sha256(_vae(tiny_sd)) == before
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-3
    assert cache.model_sha256(vae) != before


def test_the_same_weights_under_another_config_have_another_address(tiny_sd: Path) -> None:
    """They make other moments: `norm_num_groups` changes no shape of a weight."""
    vae = _vae(tiny_sd)
    other = AutoencoderKL.from_config({**vae.config, "norm_num_groups": 2}).eval()
    other.load_state_dict(vae.state_dict())
    view = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        means = [one.encode(view).latent_dist.mean for one in (vae, other)]
    assert (means[0] - means[1]).abs().max() > 0.01
    assert cache.model_sha256(vae) != cache.model_sha256(other)


def test_copy_of_the_vae_has_the_same_address(tiny_sd: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd, tmp_path / "copy")
    assert cache.model_sha256(_vae(tmp_path / "copy")) == cache.model_sha256(_vae(tiny_sd))


def test_the_address_holds_type_device_threads_and_kernels(tiny_sd: Path) -> None:
    vae, threads = _vae(tiny_sd), torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()  # by an earlier test
    torch.use_deterministic_algorithms(mode=False)
    addresses = [cache.model_sha256(vae)]
    try:
        torch.set_num_threads(threads + 1)
        addresses.append(cache.model_sha256(vae))
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=True)
        addresses.append(cache.model_sha256(vae))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=was_deterministic)
    assert len(set(addresses)) == 3
    kinds = [
        {"dtype": dtype, "device": device}
        for dtype in (torch.float32, torch.float16)
        for device in ("cpu", "meta")
    ]
    told = [cache.arithmetic_of(torch.nn.Linear(1, 1, **kind)) for kind in kinds]
    assert len({tuple(one) for one in told}) == 4


def test_an_image_that_is_not_its_manifests_is_refused(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    name = sets[0].manifest.images[0].file
    shutil.copy(sets[0].folder / sets[0].manifest.images[1].file, sets[0].folder / name)
    with pytest.raises(CorruptRecordError, match=f"{name} differs from the image in its manifest"):
        build(tmp_path, sets, encoders)
    assert not (tmp_path / "out" / "record.json").exists()


def test_too_long_prompt_raises_with_its_length(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    long = replace(sets[0], prompt="a photo of " + "dog " * 80)
    with pytest.raises(DataError, match="found: 85 tokens; allowed: 77 tokens"):
        build(tmp_path, [long], encoders)


def test_numbers_that_are_not_finite_stop_with_the_images_name(
    tmp_path: Path, sets: list[ImageSet], tiny_sd: Path, encoders: Encoders
) -> None:
    vae = _vae(tiny_sd)
    with torch.no_grad():
        next(vae.parameters()).fill_(float("inf"))
    with pytest.raises(StageError, match=r"non-finite numbers for photo-0\.png"):
        build(tmp_path, sets, replace(encoders, vae=vae))


def test_a_stop_is_heeded_and_what_was_encoded_stays(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        build(tmp_path, sets, encoders, should_stop=lambda: next(asked))
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 2
    assert not (tmp_path / "out" / "record.json").exists()


def test_two_text_encoders_give_what_the_sdxl_pipeline_uses(
    tmp_path: Path, sets: list[ImageSet], tiny_sdxl: Path
) -> None:
    base = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sdxl))
    encoders = Encoders(
        vae=load.load_component("vae", base, tiny_sdxl, device=CPU),
        text_encoders=tuple(load.load_text_encoders(base, tiny_sdxl).values()),
        tokenizers=load.load_tokenizers(base, tiny_sdxl),
        identity=IDENTITY,
    )
    record = build(tmp_path, sets, encoders)
    text = read_tensors(tmp_path / "out" / record.text_file)
    pipe = load.load_pipeline(base, tiny_sdxl, device=CPU)
    for one in sets:
        with torch.inference_mode():
            hidden, _, pooled, _ = pipe.encode_prompt(
                one.prompt, device=CPU, do_classifier_free_guidance=False
            )
        assert torch.equal(text[cache.prompt_key(one.prompt, "hidden")], hidden[0])
        assert torch.equal(text[cache.prompt_key(one.prompt, "pooled")], pooled[0])
        ids_EL = text[cache.prompt_key(one.prompt, "ids")]
        assert ids_EL.shape == (2, 77)
        assert not torch.equal(*ids_EL)  # the second tokenizer pads with "!"
    assert record.latent_scale == 0.13025


def test_sizes_are_the_pictures_and_the_places_of_its_crops(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    record = build(tmp_path, sets, encoders)
    sizes = read_tensors(tmp_path / "out" / record.images[0].file)["size"]
    sha256 = sets[0].manifest.images[0].sha256
    views = cache.transform.views_of((160, 80), SETTINGS, sha256=sha256)
    assert sizes.tolist() == [[80, 160, view.top, view.left] for view in views]


def test_caption_replaces_the_prompt_of_its_photo_alone(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    first, *others = sets[0].manifest.images
    named = first.model_copy(update={"caption": "sks mug on the table"})
    manifest = sets[0].manifest.model_copy(update={"images": (named, *others)})
    record = build(tmp_path, [replace(sets[0], manifest=manifest)], encoders)
    prompts = [image.prompt for image in record.images]
    assert prompts == ["sks mug on the table", *["a photo of sks mug"] * 2]
    text = read_tensors(tmp_path / "out" / record.text_file)
    assert set(text) == {
        cache.prompt_key(prompt, what) for prompt in prompts for what in ("ids", "hidden")
    }
    published = (tmp_path / "out" / "record.json").read_text()
    assert "caption_rate" not in published
    assert "instance_prompt" not in published


def test_caption_rate_keeps_the_instance_prompt_for_photos_with_captions(
    tmp_path: Path, sets: list[ImageSet], encoders: Encoders
) -> None:
    captioned = [
        image.model_copy(update={"caption": "sks mug on the table"})
        for image in sets[0].manifest.images[:2]
    ]
    images = (*captioned, sets[0].manifest.images[2])
    manifest = sets[0].manifest.model_copy(update={"images": images})
    settings = SETTINGS.model_copy(update={"captions": True, "caption_rate": 0.25})
    record = build(tmp_path, [replace(sets[0], manifest=manifest)], encoders, settings=settings)
    own = "a photo of sks mug"
    assert [image.instance_prompt for image in record.images] == [own, own, None]
    assert record.caption_rate == 0.25
    assert LatentCache.read(tmp_path / "out") == record
    text = read_tensors(tmp_path / "out" / record.text_file)
    assert set(text) == {
        cache.prompt_key(prompt, what)
        for prompt in ("sks mug on the table", own)
        for what in ("ids", "hidden")
    }
