"""Class images: exact counts, nothing made twice, nothing half-made or foreign ever used."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_core import blocks, files
from dreambooth_core.config import BaseModelSettings, PriorSettings
from dreambooth_core.data import class_images
from dreambooth_core.data.class_images import class_seed, make_class_images
from dreambooth_core.errors import Stopped
from dreambooth_core.models import load
from dreambooth_core.models.sampling import sample
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.records import BaseModelIdentity, Manifest

BLOCK = 8


class Artist:
    """Draws a picture that is a function of its index, and remembers what was asked for."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __call__(self, indices: Sequence[int]) -> list[Image.Image]:
        self.drawn += indices
        return [Image.new("RGB", (8, 8), (i % 256, i // 256, 7)) for i in indices]


def make(tmp_path: Path, num: int, artist: Artist, *, out: str = "out", **more: object) -> Manifest:
    call = {"key": "k" * 64, "fingerprint": "f", "block_size": BLOCK} | more
    call = {"sampler": artist} | call
    return make_class_images(state=tmp_path / "state", out=tmp_path / out, num=num, **call)


def test_set_of_30_grown_to_48_equals_a_set_of_48(tmp_path: Path) -> None:
    artist, alone = Artist(), Artist()
    make(tmp_path, 30, artist)
    topped_up = make(tmp_path, 48, artist, out="topped-up")
    make(tmp_path / "alone", 48, alone)
    assert len(topped_up.images) == 48
    assert files.tree_hashes(tmp_path / "topped-up") == files.tree_hashes(tmp_path / "alone/out")
    assert sorted(artist.drawn) == list(range(48)) == sorted(alone.drawn)


def test_exactly_the_asked_number_is_published_and_listed(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    call = {"progress": lambda *counts: told.append(counts), "warnings": ("few images",)}
    manifest = make(tmp_path, 13, Artist(), **call)
    assert manifest.warnings == ("few images",)
    assert told == [(8, 13), (13, 13)]
    names = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert names == [f"{i:05d}.png" for i in range(13)]
    assert [image.file for image in manifest.images] == [f"images/{name}" for name in names]
    assert Manifest.read(tmp_path / "out") == manifest
    assert not files.mismatches(tmp_path / "out", {i.file: i.sha256 for i in manifest.images})


def test_no_class_images_give_an_empty_manifest(tmp_path: Path) -> None:
    artist = Artist()
    assert make(tmp_path, 0, artist).images == ()
    assert artist.drawn == []
    assert Manifest.read(tmp_path / "out").role == "class"


def test_a_second_run_draws_nothing(tmp_path: Path) -> None:
    make(tmp_path, 20, Artist())
    again = Artist()
    make(tmp_path, 20, again, out="again")
    assert again.drawn == []
    assert files.tree_hashes(tmp_path / "again") == files.tree_hashes(tmp_path / "out")


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARMS: dict[str, Callable[[Path], None]] = {
    "an image damaged": lambda block: _damage(block / "00010.png"),
    "an image deleted": lambda block: (block / "00010.png").unlink(),
    "an image cut short": lambda block: (block / "00010.png").write_bytes(b"\x89PNG"),
    "the record deleted": lambda block: (block / "record.json").unlink(),
    "the record cut short": lambda block: (block / "record.json").write_text('{"key":'),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_harmed_block_is_made_again_and_no_other(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    make(tmp_path, 24, Artist())
    harm(tmp_path / "state" / "00008" / "block")
    again = Artist()
    make(tmp_path, 24, again, out="again")
    assert again.drawn == list(range(8, 16))
    assert files.tree_hashes(tmp_path / "again") == files.tree_hashes(tmp_path / "out")


def test_a_stray_picture_in_the_store_does_not_count(tmp_path: Path) -> None:
    make(tmp_path, 8, Artist())
    stray = tmp_path / "state" / "00008" / "block"
    stray.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(stray / "00008.png")
    artist = Artist()
    assert len(make(tmp_path, 16, artist, out="more").images) == 16
    assert artist.drawn == list(range(8, 16))


def test_a_set_of_another_key_is_never_reused(tmp_path: Path) -> None:
    make(tmp_path, 8, Artist())
    artist = Artist()
    make(tmp_path, 8, artist, out="other", key="o" * 64)
    assert artist.drawn == list(range(8))


def test_a_stop_keeps_finished_blocks(tmp_path: Path) -> None:
    first, second = Artist(), Artist()
    with pytest.raises(Stopped):
        make(tmp_path, 24, first, should_stop=lambda: len(first.drawn) >= 16)
    assert not (tmp_path / "out" / "record.json").exists()
    make(tmp_path, 24, second)
    assert first.drawn + second.drawn == list(range(24))


_SLOW_RUN = """
import sys, time
from pathlib import Path
from PIL import Image
from dreambooth_core.data.class_images import make_class_images

def slowly(indices):
    with Path(sys.argv[2]).open("a") as log:
        log.write("".join(f"{i}\\n" for i in indices))
    time.sleep(0.15)
    return [Image.new("RGB", (8, 8), (i % 256, i // 256, 7)) for i in indices]

root = Path(sys.argv[1])
make_class_images(state=root / "state", out=root / "out", key="k" * 64, fingerprint="f", num=48,
                  block_size=8, sampler=slowly)
"""


def test_each_kill_costs_at_most_one_block_and_no_byte(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.touch()
    command = [sys.executable, "-c", _SLOW_RUN, str(tmp_path), str(log)]
    for num_blocks in (2, 4):
        process = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 120
            while len(log.read_text().split()) < num_blocks * BLOCK and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        assert not (tmp_path / "out" / "record.json").exists()
    subprocess.run(command, check=True)
    make(tmp_path / "undisturbed", 48, Artist())
    assert files.tree_hashes(tmp_path / "out") == files.tree_hashes(tmp_path / "undisturbed/out")
    assert 48 <= len(log.read_text().split()) <= 48 + 2 * BLOCK


def test_two_processes_making_one_set_share_the_work(tmp_path: Path) -> None:
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    script = _SLOW_RUN.replace('root / "out"', 'root / f"out-{Path(sys.argv[2]).name}"')
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(log)]) for log in logs
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    drawn = [int(i) for log in logs if log.exists() for i in log.read_text().split()]
    assert sorted(drawn) == list(range(48))
    assert files.tree_hashes(tmp_path / "out-log-0") == files.tree_hashes(tmp_path / "out-log-1")


def test_key_covers_everything_but_the_count() -> None:
    prior = PriorSettings(
        prior_loss_weight=1, num_class_images=30, num_inference_steps=25, guidance_scale=3,
        sample_batch_size=16, seed=7,
    )  # fmt: skip
    identity = BaseModelIdentity(name="m", revision=None, sha256="a" * 64)
    given = {
        "identity": identity, "class_prompt": "a photo of mug", "prior": prior, "resolution": 64,
        "sampler": "PNDMScheduler", "compute": ("cpu", 1),
    }  # fmt: skip

    def key(**changed: object) -> str:
        call = given | changed
        return class_images.class_image_key(call.pop("identity"), **call)

    def prior_with(**changed: object) -> PriorSettings:
        return prior.model_copy(update=changed)

    same = [
        key(),
        key(prior=prior_with(num_class_images=48)),
        key(prior=prior_with(prior_loss_weight=0.5)),
        key(identity=identity.model_copy(update={"name": "moved/elsewhere"})),
    ]
    other = [
        key(identity=identity.model_copy(update={"sha256": "b" * 64})),
        key(class_prompt="a photo of dog"),
        key(resolution=32),
        key(sampler="DDIMScheduler"),
        key(compute=("cuda", 1)),
        *(
            key(prior=prior_with(**{name: 5}))
            for name in ("num_inference_steps", "guidance_scale", "sample_batch_size", "seed")
        ),
    ]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 1 + len(other)
    # With another key, every user's class images are sampled again.
    assert key() == "1625ba53301b8597c2bcc03d85a388a996c58451c1cc4358638c9bc7ce523e59"
    assert class_seed(7, 3) == derive_seed(7, "class-image", 3)


def test_png_is_lossless_and_carries_nothing_but_pixels() -> None:
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    tagged = noise.copy()
    tagged.info["comment"] = "made yesterday"
    tagged.info["dpi"] = (300, 300)
    assert blocks.png_bytes(noise) == blocks.png_bytes(tagged)
    with Image.open(io.BytesIO(blocks.png_bytes(noise))) as again:
        assert again.tobytes() == noise.tobytes()


def test_real_pipeline_extends_3_images_to_5(tiny_sd: Path, tmp_path: Path) -> None:
    settings = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    pipe = load.load_pipeline(settings, tmp_path, device=torch.device("cpu"))

    def sampler(indices: Sequence[int]) -> list[Image.Image]:
        return sample(
            pipe, prompts=["a photo of mug"] * len(indices),
            seeds=[class_seed(7, i) for i in indices],
            steps=2, guidance=3.0, resolution=64, batch_size=2,
        )  # fmt: skip

    def run(folder: str, num: int, out: str) -> dict[str, str]:
        make_class_images(
            state=tmp_path / folder, out=tmp_path / out, key="k", fingerprint="f", num=num,
            block_size=2, sampler=sampler,
        )  # fmt: skip
        return files.tree_hashes(tmp_path / out / "images")

    three, five, at_once = run("a", 3, "a3"), run("a", 5, "a5"), run("b", 5, "b5")
    assert five == at_once
    assert three.items() < five.items()
    assert len(set(five.values())) == 5


def test_two_lanes_sample_the_bytes_of_one(tiny_sd: Path, tmp_path: Path) -> None:
    settings = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    pipe = load.load_pipeline(settings, tmp_path, device=torch.device("cpu"))
    threads: set[str] = set()

    def sampler(indices: Sequence[int]) -> list[Image.Image]:
        threads.add(threading.current_thread().name)
        return sample(
            pipe, prompts=["a photo of mug"] * len(indices),
            seeds=[class_seed(7, i) for i in indices],
            steps=4, guidance=3.0, resolution=64, batch_size=2,
        )  # fmt: skip

    def run(lanes: int) -> dict[str, str]:
        out = tmp_path / f"out-{lanes}"
        make_class_images(
            state=tmp_path / str(lanes), out=out, key="k", fingerprint="f", num=12,
            block_size=2, sampler=sampler, lanes=lanes,
        )  # fmt: skip
        return files.tree_hashes(out)

    one = run(1)
    assert threads == {"MainThread"}
    assert run(3) == one
    assert len(threads) == 4


def test_error_in_one_lane_ends_the_others_and_keeps_whole_blocks(tmp_path: Path) -> None:
    artist = Artist()

    def sampler(indices: Sequence[int]) -> list[Image.Image]:
        if 8 in indices:
            raise Stopped("stopped in block 1")
        return artist(indices)

    with pytest.raises(Stopped, match="block 1"):
        make(tmp_path, 800, artist, sampler=sampler, lanes=2)
    assert not (tmp_path / "out" / "images").exists()
    drawn = len(artist.drawn)
    assert drawn < 792
    make(tmp_path, 800, artist)
    assert sorted(artist.drawn) == list(range(800))


def test_threads_open_a_sampler_once() -> None:
    opened: list[int] = []
    get = blocks.once(lambda: (time.sleep(0.05), opened.append(1)))
    with ThreadPoolExecutor(8) as pool:
        assert len({id(made) for made in pool.map(lambda _: get(), range(8))}) == 1
    assert opened == [1]
