"""Pretraining of the pocket models, part by part; each continues where the state folder left it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from tools.pocket.classifier import ClassifierLosses, PocketClassifier
from tools.pocket.clip import ClipLosses, make_clip
from tools.pocket.dino import DinoLosses, make_dino
from tools.pocket.identifiers import IdentifierLosses
from tools.pocket.loop import Run, load_state, open_run, save_state, train
from tools.pocket.scenes import SceneSet, load_scenes
from tools.pocket.settings import PartSettings, PocketSettings
from tools.pocket.tokenizer import CaptionEncoder, make_tokenizer
from tools.pocket.unet import TextStates, UnetLosses, make_unet
from tools.pocket.vae import VaeLosses, decode, encode, make_vae, to_pixels

#: In this order: the U-Net needs the VAE and CLIP, DINO sees VAE reconstructions.
PARTS = ("vae", "clip", "identifiers", "classifier", "dino", "unet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """Where and on what the parts are trained."""

    settings: PocketSettings
    state: Path
    device: torch.device
    say: Callable[[str], None] = print

    def scenes(self, stream: str, count: int) -> SceneSet:
        """The first `count` scenes of a stream."""
        return load_scenes(self.settings, stream=stream, count=count, state=self.state)

    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of pocket-clip and pocket-sd."""
        return make_tokenizer(max_length=self.settings.context_tokens)

    def open(self, name: str) -> Run:
        """The run of a part at the step where it stands; untrained weights come from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)  # noqa: TID251 - layers ask this generator
            model = self._untrained(name)
        part: PartSettings = getattr(self.settings, name)
        return open_run(
            name, settings=part, seed=self.settings.seed, model=model, state=self.state,
            device=self.device,
        )  # fmt: skip

    def _untrained(self, name: str) -> nn.Module:
        makers: dict[str, Callable[[], nn.Module]] = {
            "vae": lambda: make_vae(self.settings),
            "clip": lambda: make_clip(self.settings, tokenizer=self.tokenizer()),
            "identifiers": self._tower,
            "classifier": PocketClassifier,
            "dino": lambda: make_dino(self.settings),
            "unet": lambda: make_unet(self.settings),
        }
        return makers[name]()

    def _tower(self) -> nn.Module:
        clip = self.trained("clip")
        assert isinstance(clip, CLIPModel)
        return clip.text_model.requires_grad_(True)

    def clip(self) -> CLIPModel:
        """pocket-clip with the text tower that knows its rare tokens apart."""
        clip, tower = self.trained("clip"), self.trained("identifiers")
        assert isinstance(clip, CLIPModel)
        clip.text_model.load_state_dict(tower.state_dict())
        return clip

    def trained(self, name: str) -> nn.Module:
        """The averaged weights of a part as they stand, in eval mode."""
        return self.open(name).average.eval()


def pretrain(shop: Workshop, *, part: str, until: float | None = None) -> None:
    """Trains one part to its last step; `until` is a wall-clock time at which to stop and save."""
    run = shop.open(part)
    if run.step < run.settings.steps:
        train(run, losses=_losses(shop, part), say=shop.say, until=until)


def _losses(shop: Workshop, part: str) -> Callable[..., dict[str, torch.Tensor]]:
    settings, device = shop.settings, shop.device
    if part == "unet":
        return _unet_losses(shop)  # type: ignore[return-value]
    if part == "identifiers":
        clip = shop.trained("clip")
        assert isinstance(clip, CLIPModel)
        encoder = CaptionEncoder(shop.tokenizer())
        return IdentifierLosses(clip=clip, encoder=encoder, settings=settings, device=device)  # type: ignore[return-value]
    if part == "dino":
        scenes = shop.scenes("pairs", settings.num_individuals * settings.views_per_individual)
        rebuilt = rebuilt_pictures(shop, scenes, name="pairs")
        return DinoLosses(scenes, rebuilt=rebuilt, settings=settings, device=device)  # type: ignore[return-value]
    scenes = shop.scenes("train", settings.num_train)
    if part == "clip":
        encoder = CaptionEncoder(shop.tokenizer())
        return ClipLosses(scenes, settings=settings, encoder=encoder, device=device)  # type: ignore[return-value]
    kinds = {"vae": VaeLosses, "classifier": ClassifierLosses}
    return kinds[part](scenes, settings=settings, device=device)


def _unet_losses(shop: Workshop) -> UnetLosses:
    scenes = shop.scenes("train", shop.settings.num_train)
    latents, scale = encoded_latents(shop, scenes)
    return UnetLosses(
        latents=latents * scale,
        labels=torch.from_numpy(scenes.labels),
        text_states=TextStates(CaptionEncoder(shop.tokenizer()), shop.clip().text_model),
        settings=shop.settings,
        device=shop.device,
    )


@torch.no_grad()
def encoded_latents(shop: Workshop, scenes: SceneSet) -> tuple[torch.Tensor, float]:
    """Posterior means of the training scenes, (N, C, h, w), and the factor that makes them unit."""
    path = shop.state / "latents.pt"
    step = shop.open("vae").step
    if path.exists():
        kept = load_state(path)
        if kept["vae_step"] == step:
            return kept["latents"].float(), kept["scale"]
    vae = shop.trained("vae")
    assert isinstance(vae, AutoencoderKL)
    images = torch.from_numpy(scenes.images)
    means = [encode(vae, to_pixels(rows).to(shop.device)).mean.cpu() for rows in images.split(64)]
    latents = torch.cat(means)
    scale = 1.0 / float(latents.std())
    save_state({"latents": latents.half(), "scale": scale, "vae_step": step}, path)
    return latents.half().float(), scale


@torch.no_grad()
def rebuild(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 pictures through the VAE and back."""
    device = next(vae.parameters()).device
    rows = []
    for part in images.split(64):
        latents = encode(vae, to_pixels(part).to(device)).mean
        pixels = decode(vae, latents).clamp(-1, 1)
        rows.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(rows)


def rebuilt_pictures(shop: Workshop, scenes: SceneSet, *, name: str) -> torch.Tensor:
    """The scenes after the VAE as it stands, kept in the state folder."""
    step = shop.open("vae").step
    path = shop.state / f"rebuilt-{name}-{step}.pt"
    if path.exists():
        return load_state(path)["images"]
    vae = shop.trained("vae")
    assert isinstance(vae, AutoencoderKL)
    images = rebuild(vae, torch.from_numpy(scenes.images))
    save_state({"images": images}, path)
    return images
