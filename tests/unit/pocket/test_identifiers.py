from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreambooth_core.numerics.seeding import generator_for
from tools.pocket.captions import RARE_TOKENS
from tools.pocket.clip import make_clip
from tools.pocket.identifiers import OFFSET_LENGTH, IdentifierLosses, rare_offsets
from tools.pocket.loop import open_run, train
from tools.pocket.settings import POCKET, PartSettings
from tools.pocket.tokenizer import CaptionEncoder, make_tokenizer

CPU = torch.device("cpu")
SETTINGS = replace(
    POCKET,
    clip_width=32,
    clip_text_layers=1,
    clip_vision_layers=1,
    identifiers=PartSettings(steps=150, batch=32, learning_rate=5e-3, ema_decay=0.9),
)


def test_rare_offsets_have_equal_norms_and_distinct_directions() -> None:
    offsets = rare_offsets(POCKET)
    assert offsets.shape == (len(RARE_TOKENS), POCKET.clip_width)
    assert offsets.norm(dim=1).tolist() == pytest.approx([OFFSET_LENGTH] * len(RARE_TOKENS))
    cosines = offsets @ offsets.T / OFFSET_LENGTH**2 - torch.eye(len(RARE_TOKENS))
    assert cosines.abs().max() < 0.5


def test_training_moves_only_the_states_of_rare_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(max_length=SETTINGS.context_tokens)
    encoder = CaptionEncoder(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = make_clip(SETTINGS, tokenizer=tokenizer).eval()
    losses = IdentifierLosses(clip=clip, encoder=encoder, settings=SETTINGS, device=CPU)
    before = losses(clip.text_model, generator_for(0, "check"))
    run = open_run(
        "identifiers",
        settings=SETTINGS.identifiers,
        seed=1,
        model=clip.text_model,
        state=tmp_path,
        device=CPU,
    )
    tuned = train(run, losses=losses, log=lambda _: None)
    after = losses(tuned, generator_for(0, "check"))
    assert float(before["rare"]) == pytest.approx(OFFSET_LENGTH**2, rel=0.01)
    assert float(before["elsewhere"]) < 1e-6
    assert float(after["rare"]) < 0.5 * float(before["rare"])
    assert float(after["elsewhere"]) < 0.05 * OFFSET_LENGTH**2
