"""Rows by position: the same for any split, every image once an epoch, independent draws."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from dreambooth_core import files
from dreambooth_core.data import batches
from dreambooth_core.data.batches import LatentDataset
from dreambooth_core.data.cache import prompt_key
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.models.tensors import write_tensors
from dreambooth_core.numerics.seeding import generator_for
from dreambooth_core.records import BaseModelIdentity, CachedImage, LatentCache, Role

SCALE = 0.5
PROMPTS = {"instance": "a photo of sks mug", "class": "a photo of mug"}
MEAN_STD = 3.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of 5 instance images with 2 views and 7 class images with 1, made by hand.

    Image n, view v has the mean 100 n + 10 v everywhere and the standard deviation 3.
    """
    entries = []
    for index in range(12):
        role: Role = "instance" if index < 5 else "class"
        num_views = 2 if role == "instance" else 1
        means = [torch.full((4, 8, 8), 100.0 * index + 10 * view) for view in range(num_views)]
        logvar = torch.full((num_views, 4, 8, 8), 2 * torch.tensor(MEAN_STD).log().item())
        name = f"moments/{index}.safetensors"
        sizes = torch.tensor([[80.0, 160.0, 0.0, 10.0 * view] for view in range(num_views)])
        moments = {"mean": torch.stack(means), "logvar": logvar, "size": sizes}
        write_tensors(tmp_path / name, moments)
        entries.append(
            CachedImage(
                image=f"images/{index}.png", role=role, prompt=PROMPTS[role], file=name,
                num_views=num_views,
            )
        )  # fmt: skip
    text = {}
    for number, prompt in enumerate(PROMPTS.values()):
        text[prompt_key(prompt, "hidden")] = torch.full((77, 32), float(number))
        text[prompt_key(prompt, "ids")] = torch.full((1, 77), number)
    write_tensors(tmp_path / "text.safetensors", text)
    LatentCache(
        fingerprint="f", base_model=BaseModelIdentity(name="m", revision=None, sha256="a"),
        resolution=64, latent_scale=SCALE, images=tuple(entries), text_file="text.safetensors",
        files=files.tree_hashes(tmp_path),
    ).write(tmp_path)  # fmt: skip
    return tmp_path


def dataset(folder: Path, *, seed: int = 42, with_class_rows: bool = True) -> LatentDataset:
    return LatentDataset(folder, seed=seed, with_class_rows=with_class_rows)


def test_any_split_of_positions_gives_the_same_rows(folder: Path) -> None:
    whole = dataset(folder).rows_at(range(100, 108))
    other = dataset(folder)
    other.rows_at([3, 1, 4])  # earlier work leaves no trace
    for split in ([100, 101, 102, 103], [104, 105], [106], [107]):
        part = other.rows_at(split)
        num = len(split)
        for offset, start in ((0, 0), (num, 8)):
            rows = slice(start + split[0] - 100, start + split[0] - 100 + num)
            own = slice(offset, offset + num)
            assert torch.equal(part.latents_BCHW[own], whole.latents_BCHW[rows])
            assert part.image_B[own] == whole.image_B[rows]


def test_every_epoch_shows_every_image_once_in_its_own_order(folder: Path) -> None:
    rows = dataset(folder)
    sizes: dict[Role, int] = {"instance": 5, "class": 7}
    for role, num in sizes.items():
        epochs = [
            [rows.sample_at(epoch * num + i, role=role).image for i in range(num)]
            for epoch in range(20)
        ]
        assert all(len(set(epoch)) == num for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 10


def test_one_class_row_per_instance_row_with_its_own_prompt(folder: Path) -> None:
    batch = dataset(folder).rows_at([4, 9])
    assert batch.is_class_B == (False, False, True, True)
    assert batch.position_B == (4, 9, 4, 9)
    assert batch.latents_BCHW.shape == (4, 4, 8, 8)
    assert batch.text_BLD[:, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert batch.ids_EBL is not None
    assert batch.ids_EBL[0, :, 0].tolist() == [0, 0, 1, 1]
    assert batch.pooled_BP is None
    alone = dataset(folder, with_class_rows=False).rows_at([4, 9])
    assert alone.is_class_B == (False, False)
    assert torch.equal(alone.latents_BCHW, batch.latents_BCHW[:2])


def test_latents_are_scale_times_mean_plus_std_noise(folder: Path) -> None:
    sample = dataset(folder).sample_at(17, role="instance")
    index = int(Path(sample.image).stem)
    noise = torch.randn(4, 8, 8, generator=generator_for(42, "vae/instance", 17))
    expected = SCALE * (100.0 * index + 10 * sample.view + MEAN_STD * noise)
    torch.testing.assert_close(sample.latents_Chw, expected)


def test_time_ids_are_the_sizes_of_the_rows_own_view(folder: Path) -> None:
    batch = dataset(folder, with_class_rows=False).rows_at(range(20))
    assert batch.time_ids_B6 is not None
    for position, ids in enumerate(batch.time_ids_B6.tolist()):
        view = dataset(folder).sample_at(position, role="instance").view
        assert ids == [80, 160, 0, 10 * view, 64, 64]


def test_weights_of_the_loss_follow_the_rows_view(folder: Path) -> None:
    """Image 0 has a mask; the others and all class rows count everywhere."""
    weights = torch.stack([torch.full((8, 8), float(view)) for view in range(2)])
    write_tensors(folder / "weights.safetensors", {"images/0.png": weights})
    record = LatentCache.read(folder)
    hashes = record.files | files.tree_hashes(folder)
    hashes.pop("record.json")
    changes = {"weights_file": "weights.safetensors", "files": hashes}
    assert "weights_file" not in record.to_json()
    assert dataset(folder).rows_at([0]).loss_weights_B1HW is None
    record.model_copy(update=changes).write(folder)

    rows = dataset(folder)
    batch = rows.rows_at(range(30))
    assert batch.loss_weights_B1HW is not None
    assert batch.loss_weights_B1HW.shape == (60, 1, 8, 8)
    for row, weight in enumerate(batch.loss_weights_B1HW.flatten(1).mean(1).tolist()):
        masked = batch.image_B[row] == "images/0.png"
        assert weight == (rows.sample_at(row, role="instance").view if masked else 1.0)


def test_share_of_rows_with_their_caption_is_the_caption_rate(folder: Path) -> None:
    """Image 0 has a caption; class rows and images without one always have their own prompt."""
    record = LatentCache.read(folder)
    caption = "a photo of mug"  # the class prompt, so that the cache has its text
    first = record.images[0].model_copy(
        update={"prompt": caption, "instance_prompt": PROMPTS["instance"]}
    )
    images = (first, *record.images[1:])
    record.model_copy(update={"images": images, "caption_rate": 0.3}).write(folder)

    rows = dataset(folder)
    drawn = [rows.sample_at(p, role="instance") for p in range(5000)]
    own = [sample.prompt for sample in drawn if sample.image == first.image]
    assert len(own) == 1000
    assert 256 <= own.count(caption) <= 344  # binomial(1000, 0.3): sd 14.5
    assert {s.prompt for s in drawn if s.image != first.image} == {PROMPTS["instance"]}
    batch = rows.rows_at(range(40))
    expected = [float(sample.prompt == caption) for sample in drawn[:40]]
    assert batch.text_BLD[:40, 0, 0].tolist() == expected
    assert set(expected) == {0.0, 1.0}
    other = dataset(folder)  # a resumed run
    assert [other.sample_at(p, role="instance").prompt for p in (4999, 7)] == [
        drawn[4999].prompt, drawn[7].prompt,
    ]  # fmt: skip
    assert [s.prompt for s in drawn] != [
        dataset(folder, seed=43).sample_at(p, role="instance").prompt for p in range(5000)
    ]


def test_views_are_drawn_evenly_and_independently_of_the_image(folder: Path) -> None:
    rows = dataset(folder)
    drawn = [rows.sample_at(p, role="instance") for p in range(1000)]
    pairs = Counter((s.image, s.view) for s in drawn)
    # 10 pairs, 100 each expected; views are binomial(200, 1/2) per image: sd 7.1.
    assert len(pairs) == 10
    assert all(65 <= count <= 135 for count in pairs.values())


def test_noise_differs_between_positions_roles_and_seeds(folder: Path) -> None:
    def noise(seed: int, position: int, role: Role) -> torch.Tensor:
        sample = dataset(folder, seed=seed).sample_at(position, role=role)
        mean = SCALE * (100.0 * int(Path(sample.image).stem) + 10 * sample.view)
        return ((sample.latents_Chw - mean) / (SCALE * MEAN_STD)).flatten()

    drawn = torch.stack(
        [noise(1, 0, "instance"), noise(1, 5, "instance"), noise(1, 0, "class"),
         noise(2, 0, "instance")]
    )  # fmt: skip
    correlation = torch.corrcoef(drawn) - torch.eye(4)
    assert correlation.abs().max() < 0.25  # 256 numbers: standard error 0.06


def test_the_seed_decides_the_order(folder: Path) -> None:
    orders = {tuple(dataset(folder, seed=seed).rows_at(range(35)).image_B) for seed in (1, 2, 3)}
    assert len(orders) == 3
    assert batches._order(1, "instance", 0, 5) == batches._order(1, "instance", 0, 5)


def test_a_changed_file_is_refused_when_the_cache_is_opened(folder: Path) -> None:
    path = folder / "moments" / "3.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptRecordError, match=r"missing or changed: moments/3\.safetensors"):
        dataset(folder)


def test_class_rows_without_class_images_are_refused(folder: Path) -> None:
    record = LatentCache.read(folder)
    instance = tuple(entry for entry in record.images if entry.role == "instance")
    record.model_copy(update={"images": instance}).write(folder)
    with pytest.raises(SettingsError, match=r"lacks class images.*run the stages class-images"):
        dataset(folder)
    assert dataset(folder, with_class_rows=False).rows_at([0]).is_class_B == (False,)
