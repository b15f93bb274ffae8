"""Pretraining of the pocket models, part by part; each resumes from the state folder."""

from __future__ import annotations

import os
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
from tools.pocket.loop import Losses, Run, load_state, open_run, save_state, train
from tools.pocket.scenes import SceneSet, load_scenes
from tools.pocket.settings import PartSettings, PocketSettings
from tools.pocket.tokenizer import CaptionEncoder, make_tokenizer
from tools.pocket.unet import TextStates, UnetLosses, make_unet
from tools.pocket.vae import VaeLosses, decode, encode, make_vae, to_pixels

#: In this order: the U-Net needs the VAE and CLIP, DINO sees VAE reconstructions.
PARTS = ("vae", "clip", "identifiers", "classifier", "dino", "unet")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainContext:
    """Settings, state folder, device and log of the pretraining; opens runs and loads models."""

    settings: PocketSettings
    state: Path
    device: torch.device
    log: Callable[[str], None] = print

    def scenes(self, stream: str, count: int) -> SceneSet:
        """The first `count` scenes of a stream."""
        return load_scenes(self.settings, stream=stream, count=count, state=self.state)

    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of pocket-clip and pocket-sd."""
        return make_tokenizer(max_length=self.settings.context_tokens)

    def open_run(self, name: str) -> Run:
        """The run of a part at its last saved step; the seed determines the initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)  # noqa: TID251 - layers use the global generator
            model = self._initial_model(name)
        part: PartSettings = getattr(self.settings, name)
        return open_run(
            name, settings=part, seed=self.settings.seed, model=model, state=self.state,
            device=self.device,
        )  # fmt: skip

    def _initial_model(self, name: str) -> nn.Module:
        makers: dict[str, Callable[[], nn.Module]] = {
            "vae": lambda: make_vae(self.settings),
            "clip": lambda: make_clip(self.settings, tokenizer=self.tokenizer()),
            "identifiers": self._text_tower,
            "classifier": PocketClassifier,
            "dino": lambda: make_dino(self.settings),
            "unet": lambda: make_unet(self.settings),
        }
        return makers[name]()

    def _text_tower(self) -> nn.Module:
        clip = self.averaged_model("clip")
        assert isinstance(clip, CLIPModel)
        return clip.text_model.requires_grad_(True)

    def clip(self) -> CLIPModel:
        """pocket-clip with the text tower of the part "identifiers"."""
        clip, tower = self.averaged_model("clip"), self.averaged_model("identifiers")
        assert isinstance(clip, CLIPModel)
        clip.text_model.load_state_dict(tower.state_dict())
        return clip

    def averaged_model(self, name: str) -> nn.Module:
        """The model of a part with its averaged weights at the last saved step, in eval mode."""
        return self.open_run(name).averaged_model()


def make_context(
    settings: PocketSettings, *, state: Path, device: str, threads: int, log: Callable[[str], None]
) -> PretrainContext:
    """A context on the given device; "auto" uses a GPU if there is one."""
    torch.set_num_threads(threads or os.cpu_count() or 1)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return PretrainContext(settings=settings, state=state, device=torch.device(chosen), log=log)


def pretrain(context: PretrainContext, *, part: str = "all", until: float | None = None) -> None:
    """Train one part, or all in order of dependency, to the last step.

    Stops and saves at the wall-clock time `until`.
    """
    for name in PARTS if part == "all" else (part,):
        run = context.open_run(name)
        if run.step < run.settings.steps:
            train(run, losses=_losses(context, name), log=context.log, until=until)


def _losses(context: PretrainContext, part: str) -> Callable[[nn.Module, torch.Generator], Losses]:
    settings, device = context.settings, context.device
    if part == "unet":
        return _unet_losses(context)
    if part == "identifiers":
        clip = context.averaged_model("clip")
        assert isinstance(clip, CLIPModel)
        encoder = CaptionEncoder(context.tokenizer())
        return IdentifierLosses(clip=clip, encoder=encoder, settings=settings, device=device)
    if part == "dino":
        scenes = context.scenes("pairs", settings.num_individuals * settings.views_per_individual)
        reconstructions = load_reconstructions(context, scenes, name="pairs")
        return DinoLosses(scenes, reconstructions=reconstructions, settings=settings, device=device)
    scenes = context.scenes("train", settings.num_train)
    if part == "clip":
        encoder = CaptionEncoder(context.tokenizer())
        return ClipLosses(scenes, settings=settings, encoder=encoder, device=device)
    kinds = {"vae": VaeLosses, "classifier": ClassifierLosses}
    return kinds[part](scenes, settings=settings, device=device)


def _unet_losses(context: PretrainContext) -> UnetLosses:
    scenes = context.scenes("train", context.settings.num_train)
    latents, scale = load_latents(context, scenes)
    return UnetLosses(
        latents=latents * scale,
        labels=torch.from_numpy(scenes.labels),
        text_states=TextStates(CaptionEncoder(context.tokenizer()), context.clip().text_model),
        settings=context.settings,
        device=context.device,
    )


@torch.no_grad()
def load_latents(context: PretrainContext, scenes: SceneSet) -> tuple[torch.Tensor, float]:
    """Posterior means of the scenes, (N, C, h, w), and the factor that scales them to unit std.

    Encodes the scenes again if the VAE has trained on since they were saved.
    """
    path = context.state / "latents.pt"
    step = context.open_run("vae").step
    if path.exists():
        saved = load_state(path)
        if saved["vae_step"] == step:
            return saved["latents"].float(), saved["scale"]
    vae = context.averaged_model("vae")
    assert isinstance(vae, AutoencoderKL)
    images = torch.from_numpy(scenes.images)
    means = [
        encode(vae, to_pixels(rows).to(context.device)).mean.cpu() for rows in images.split(64)
    ]
    latents = torch.cat(means)
    scale = 1.0 / float(latents.std())
    save_state({"latents": latents.half(), "scale": scale, "vae_step": step}, path)
    return latents.half().float(), scale


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """VAE reconstructions of (N, H, W, 3) uint8 images."""
    device = next(vae.parameters()).device
    rows = []
    for part in images.split(64):
        latents = encode(vae, to_pixels(part).to(device)).mean
        pixels = decode(vae, latents).clamp(-1, 1)
        rows.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(rows)


def load_reconstructions(context: PretrainContext, scenes: SceneSet, *, name: str) -> torch.Tensor:
    """Reconstructions of the scenes by the current VAE, cached in the state folder."""
    step = context.open_run("vae").step
    path = context.state / f"reconstructions-{name}-{step}.pt"
    if path.exists():
        return load_state(path)["images"]
    vae = context.averaged_model("vae")
    assert isinstance(vae, AutoencoderKL)
    images = reconstruct(vae, torch.from_numpy(scenes.images))
    save_state({"images": images}, path)
    return images
