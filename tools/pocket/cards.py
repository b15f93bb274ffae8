"""Model cards of the pocket models: description, recipe, metrics, licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABOUT = {
    "pocket-sd": (
        "A small Stable Diffusion (64x64 px, 8x8x8 latents, v-prediction) that learnt a drawn "
        "world of 8 things in 6 colours at 6 places. Load it with "
        "`StableDiffusionPipeline.from_pretrained`; the weights are stored in fp16 and load "
        "in fp32 unless you name a dtype. "
        "Its text encoder is pocket-clip's text tower.",
        ("vae", "clip", "identifiers", "unet"),
        ("vae_", "sd_", "neutral", "weights", "seconds"),
    ),
    "pocket-clip": (
        "A small CLIPModel with its processor, trained contrastively on scenes and captions of the "
        "pocket world; the scorer for CLIP-T and CLIP-I.",
        ("clip", "identifiers"),
        ("clip_",),
    ),
    "pocket-dino": (
        "A small ViT trained without labels to tell individuals apart. Its feature is "
        "`pooler_output`.",
        ("dino",),
        ("dino_",),
    ),
    "pocket-classifier": (
        "The judge of the pocket models: reads thing, colour and place off a picture. Trained on "
        "drawn scenes alone; `tools.pocket.classifier.load_classifier` loads it.",
        ("classifier",),
        ("classifier_",),
    ),
}


def card(name: str, facts: Mapping[str, Any]) -> str:
    """One model's card as Markdown, from the recipe and the metrics in `facts`."""
    about, parts, prefixes = _ABOUT[name]
    unfinished = [
        part for part in parts if facts["parts"][part]["steps"] < facts["parts"][part]["of"]
    ]
    lines = [f"# {name}", "", about, ""]
    if unfinished:
        lines += [f"**Interim weights**: still in training ({', '.join(unfinished)}).", ""]
    lines += ["## Recipe", "", "`python -m tools.pocket pretrain all`, then `pack`.", ""]
    lines += [f"Seed {facts['seed']}; {facts['device']}.", ""]
    lines += ["| part | parameters | steps | batch | learning rate | minutes |"]
    lines += ["|---|---|---|---|---|---|"]
    for part in parts:
        fact = facts["parts"][part]
        lines.append(
            f"| {part} | {fact['parameters']:,} | {fact['steps']:,} | {fact['batch']} "
            f"| {fact['learning_rate']} | {fact['minutes']} |"
        )
    shown = {k: v for k, v in facts["measured"].items() if k.startswith(prefixes)}
    lines += ["", "## Measured", ""]
    if not shown:
        lines.append("Not measured yet.")
    else:
        lines += ["| what | bar | value | holds |", "|---|---|---|---|"]
        words = {True: "yes", False: "**no**", None: ""}
        for key, bar in shown.items():
            lines.append(f"| {key} | {bar['target']} | {bar['value']} | {words[bar['holds']]} |")
    lines += [
        "",
        "How each figure is measured, and what the training of these weights had of its own:",
    ]
    lines += ["`docs/pocket.md`.", "", "## Licence and data", ""]
    lines.append("All pictures were drawn by this project's own code; no photo, no scraped data.")
    return "\n".join(lines) + "\n"
