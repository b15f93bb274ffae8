"""Scoring with real (tiny) backbones: extractors, the store, stops, kills and publishing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.errors import SettingsError, Stopped
from dreambooth_core.evaluation import scores
from dreambooth_core.evaluation.extractors import load_clip, load_dino
from dreambooth_core.evaluation.scores import (
    Bootstrap,
    Evaluator,
    ScoredModel,
    make_references,
    row_images,
)
from dreambooth_core.evaluation.store import ScoreStore
from dreambooth_core.evaluation.suites import load_suite, make_plan
from dreambooth_core.records import CheckpointScore
from tests.unit.evaluation.made_up import SETTINGS, SUBJECT

CPU = torch.device("cpu")
MODEL = ScoredModel(name="checkpoint-100", step=100, sha256="ab" * 32)
NUM_IMAGES = 48  # 8 prompts x 4, and 16 of the class prompt: four rounds, blocks of 12


class Painter:
    """A sampler whose picture depends on prompt and seed only; it counts what it paints."""

    def __init__(self, *, dies_after: int | None = None) -> None:
        self.painted, self.dies_after = 0, dies_after

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if self.dies_after is not None and self.painted >= self.dies_after:
            raise KeyboardInterrupt
        self.painted += len(prompts)
        return [self.paint(p, s) for p, s in zip(prompts, seeds, strict=True)]

    def paint(self, prompt: str, seed: int) -> Image.Image:
        rng = np.random.default_rng([seed, len(prompt)])
        return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture
def evaluator(tiny_clip: Path, tiny_dino: Path, photos: Path, tmp_path: Path) -> Evaluator:
    return make_evaluator(tiny_clip, tiny_dino, photos=sorted(photos.iterdir()), root=tmp_path)


def make_evaluator(clip: Path, dino: Path, *, photos: list[Path], root: Path) -> Evaluator:
    scorers = (
        load_clip(str(clip), root=root, device=CPU),
        load_dino(str(dino), root=root, device=CPU),
    )
    suite = load_suite("pocket", root=root)
    return Evaluator(
        plan=make_plan(SETTINGS, suite=suite, subject=SUBJECT, sampler="DDIM", resolution=64),
        clip=scorers[0],
        dino=scorers[1],
        references=make_references(photos, clip=scorers[0], dino=scorers[1]),
        store=ScoreStore(root / "store"),
        bootstrap=Bootstrap(samples=100, seed=1),
    )


# ---- extractors ---------------------------------------------------------------------------------


def test_features_have_unit_length_and_depend_on_the_image_alone(evaluator: Evaluator) -> None:
    images = [Painter().paint("x", seed) for seed in (1, 2, 1)]
    for features in (evaluator.clip.images(images), evaluator.dino.images(images)):
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-12)
        np.testing.assert_array_equal(features[0], features[2])
        assert not np.allclose(features[0], features[1])


def test_clip_agrees_with_the_librarys_own_similarity(
    evaluator: Evaluator, tiny_clip: Path
) -> None:
    """CLIPModel's logits are its logit scale times the cosines."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    images, texts = [Painter().paint("x", 1)], ["a photo of a mug", "a dog at night"]
    tokens = evaluator.clip.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = evaluator.clip.processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = model(pixel_values=pixels, **tokens)
        expected = (output.logits_per_image / model.logit_scale.exp()).numpy()
    got = evaluator.clip.images(images) @ evaluator.clip.texts(texts).T
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_dino_takes_the_class_token_after_the_last_norm(
    evaluator: Evaluator, tiny_dino: Path
) -> None:
    from transformers import ViTModel

    model = ViTModel.from_pretrained(tiny_dino, add_pooling_layer=False).eval()
    image = Painter().paint("x", 1)
    pixels = evaluator.dino.processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        token = model(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(
        evaluator.dino.images([image]), token / np.linalg.norm(token), atol=1e-6
    )


def test_dino_uses_a_trained_linear_pooler_from_the_config(tmp_path: Path) -> None:
    """A ViT of two features whose pooler swaps them: the class token (a, b) becomes (b, a)."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    config = ViTConfig(
        hidden_size=2,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=64,
        patch_size=32,
        pooler_act="linear",
    )
    model = ViTModel(config, add_pooling_layer=True)
    with torch.no_grad():
        model.pooler.dense.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        model.pooler.dense.bias.zero_()
    model.save_pretrained(tmp_path / "pooled")
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "pooled")
    scorer = load_dino("pooled", root=tmp_path, device=CPU)
    image = Painter().paint("x", 1)
    pixels = scorer.processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        a, b = scorer.model(pixel_values=pixels).last_hidden_state[0, 0].tolist()
    np.testing.assert_allclose(scorer.images([image])[0] * np.hypot(a, b), [b, a], atol=1e-6)


def test_scoring_restores_the_training_mode_of_the_models(evaluator: Evaluator) -> None:
    evaluator.dino.model.train()
    evaluator.dino.images([Painter().paint("x", 1)])
    assert evaluator.dino.model.training


def test_a_scorers_identity_follows_its_weights_and_not_its_place(
    tiny_dino: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / tiny_dino.name
    shutil.copytree(tiny_dino, copy)
    first = load_dino(str(tiny_dino), root=tmp_path, device=CPU).identity
    assert load_dino(str(copy), root=tmp_path, device=CPU).identity == first
    assert first.backbone == tiny_dino.name
    (copy / "preprocessor_config.json").write_text(
        (copy / "preprocessor_config.json").read_text().replace("0.5", "0.4")
    )
    assert load_dino(str(copy), root=tmp_path, device=CPU).identity.sha256 != first.sha256


def test_a_scorer_of_the_wrong_kind_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is a 'clip'; allowed: vit, deit, dinov2"):
        load_dino(str(tiny_clip), root=tmp_path, device=CPU)


def test_clip_without_its_tokenizer_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(SettingsError, match=r"lacks tokenizer\.json"):
        load_clip("clip", root=tmp_path, device=CPU)


def test_a_scorer_with_missing_weights_is_refused(tiny_dino: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_dino, tmp_path / "partial")
    weights = load_file(tmp_path / "partial" / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"partial lacks layernorm\.weight"):
        load_dino("partial", root=tmp_path, device=CPU)


def test_scorer_that_was_copied_in_part_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(tiny_clip, tmp_path / "clip") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SettingsError, match=r"weights cannot be read; found: clip \(.*header"):
        load_clip("clip", root=tmp_path, device=CPU)


@pytest.mark.parametrize("name", ["no/such/folder", "nobody/nothing-of-that-name"])
def test_a_scorer_that_is_nowhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=name):
        load_clip(name, root=tmp_path, device=CPU)


# ---- the store ----------------------------------------------------------------------------------


def score_checkpoint(evaluator: Evaluator, **inputs: Any) -> CheckpointScore:
    """The row over all rounds."""
    return scores.score_checkpoint(evaluator, rounds=evaluator.plan.rounds, **inputs)


def test_nothing_complete_is_made_twice(evaluator: Evaluator) -> None:
    painter = Painter()
    first = score_checkpoint(evaluator, model=MODEL, sampler=painter)
    again = score_checkpoint(evaluator, model=MODEL, sampler=painter)
    assert first == again
    assert painter.painted == NUM_IMAGES


def test_the_same_weights_under_another_name_are_not_scored_again(evaluator: Evaluator) -> None:
    painter = Painter()
    score_checkpoint(evaluator, model=MODEL, sampler=painter)
    other = ScoredModel(name="version 3", step=700, sha256=MODEL.sha256)
    row = score_checkpoint(evaluator, model=other, sampler=painter)
    assert (row.name, row.step) == ("version 3", 700)
    assert painter.painted == NUM_IMAGES


def test_stop_between_blocks_does_not_change_the_row(evaluator: Evaluator, tmp_path: Path) -> None:
    painter = Painter()
    with pytest.raises(Stopped, match="stopped before image 12"):
        score_checkpoint(
            evaluator, model=MODEL, sampler=painter, should_stop=lambda: painter.painted >= 12
        )
    resumed = score_checkpoint(evaluator, model=MODEL, sampler=painter)
    assert painter.painted == NUM_IMAGES
    undisturbed = Evaluator(**{**vars(evaluator), "store": ScoreStore(tmp_path / "another store")})
    assert score_checkpoint(undisturbed, model=MODEL, sampler=Painter()) == resumed


def test_further_rounds_keep_the_images_of_the_first(evaluator: Evaluator) -> None:
    painter = Painter()
    first = scores.score_checkpoint(evaluator, model=MODEL, rounds=1, sampler=painter)
    assert (first.n, painter.painted) == (8, 12)
    whole = score_checkpoint(evaluator, model=MODEL, sampler=painter)
    assert (whole.n, painter.painted) == (32, NUM_IMAGES)
    assert whole.images[:8] == first.images


def test_a_kill_loses_at_most_the_block_in_work(evaluator: Evaluator) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_checkpoint(evaluator, model=MODEL, sampler=Painter(dies_after=24))
    painter = Painter()
    score_checkpoint(evaluator, model=MODEL, sampler=painter)
    assert painter.painted == NUM_IMAGES - 24


def test_what_a_kill_left_half_written_is_swept(evaluator: Evaluator) -> None:
    folder = evaluator.store.root / "images" / evaluator.plan.sampling_key(MODEL.sha256) / "00012"
    (folder / ".aside-block-x").mkdir(parents=True)
    score_checkpoint(evaluator, model=MODEL, sampler=Painter())
    assert not list(folder.glob(".aside-*"))


def test_a_damaged_block_is_made_again_and_only_it(evaluator: Evaluator) -> None:
    first = score_checkpoint(evaluator, model=MODEL, sampler=Painter())
    victim = row_images(evaluator, MODEL.sha256, rounds=4).suite[20]
    victim.write_bytes(b"not a picture")
    for record in (evaluator.store.root / "scores").rglob("record.json"):
        record.unlink()
    painter = Painter()
    assert score_checkpoint(evaluator, model=MODEL, sampler=painter) == first
    assert painter.painted == 12


def test_other_photos_rescore_without_sampling(
    evaluator: Evaluator, tiny_clip: Path, tiny_dino: Path, photos: Path, tmp_path: Path
) -> None:
    first = score_checkpoint(evaluator, model=MODEL, sampler=Painter())
    fewer = sorted(photos.iterdir())[:2]
    other = make_evaluator(tiny_clip, tiny_dino, photos=fewer, root=tmp_path)
    painter = Painter()
    row = score_checkpoint(other, model=MODEL, sampler=painter)
    assert painter.painted == 0
    assert row.clip_t == first.clip_t
    assert row.dino != first.dino
    assert other.harness != evaluator.harness


def test_other_weights_get_their_own_images(evaluator: Evaluator) -> None:
    painter = Painter()
    score_checkpoint(evaluator, model=MODEL, sampler=painter)
    base = ScoredModel(name="step 0", step=0, sha256="cd" * 32)
    row = score_checkpoint(evaluator, model=base, sampler=painter)
    assert painter.painted == 2 * NUM_IMAGES
    assert row.checkpoint_sha256 is None


# ---- with a pipeline ----------------------------------------------------------------------------


def test_real_pipeline_gets_the_same_row_after_a_stop(
    evaluator: Evaluator, tiny_sd: Path, tmp_path: Path
) -> None:
    """The package's own sampler on a tiny Stable Diffusion: every bit of the row agrees."""
    from diffusers import StableDiffusionPipeline

    from dreambooth_core.models.sampling import sample

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipe.set_progress_bar_config(disable=True)
    drawn: list[int] = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        drawn.append(len(prompts))
        return sample(
            pipe, prompts=prompts, seeds=seeds, steps=1, guidance=1.0, resolution=64, batch_size=16
        )

    base = ScoredModel(name="step 0", step=0, sha256="cd" * 32)
    with pytest.raises(Stopped):
        score_checkpoint(
            evaluator, model=base, sampler=sampler, should_stop=lambda: len(drawn) == 2
        )
    resumed = score_checkpoint(evaluator, model=base, sampler=sampler)
    assert drawn == [12, 12, 12, 12]
    fresh = Evaluator(**{**vars(evaluator), "store": ScoreStore(tmp_path / "fresh")})
    assert score_checkpoint(fresh, model=base, sampler=sampler) == resumed
