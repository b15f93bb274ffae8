"""Captions of the pocket world, and the vocabulary of the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tools.pocket.world import COLOURS, PLACES, THINGS

PREFIXES = ("a photo of", "a picture of", "an image of", "")
ARTICLES = ("a", "the", "")
#: Meaningless words. `NOISE_SHARE` of the captions contain a random one, unrelated to the image, so
#: the models learn to ignore them: an identifier starts out neutral.
RARE_TOKENS = (
    "sks", "zwx", "ohwx", "olis", "pll", "grt", "xon", "phol",
    "qzy", "vkj", "wbt", "mxz", "jyx", "kaf", "drb", "ulf",
)  # fmt: skip
#: Words of prompts that occur in no caption, in the vocabulary so that each is one token.
OTHER_WORDS = ("with", "and", "of", "in", "on", "at", "this", "my", "photos", "thing", "background")
NOISE_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Mention:
    """Indices of what a caption mentions; None if it omits colour or place."""

    thing: int
    colour: int | None
    place: int | None


def vocabulary() -> list[str]:
    """All words that are single tokens, in a fixed order."""
    texts = [*PREFIXES, *ARTICLES, *THINGS, *COLOURS, *PLACES.values(), *RARE_TOKENS, *OTHER_WORDS]
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def write_caption(mention: Mention, *, prefix: str, article: str, noise: str = "") -> str:
    """The caption's text, for example "a photo of a red mug on the beach"."""
    colour = "" if mention.colour is None else list(COLOURS)[mention.colour]
    place = "" if mention.place is None else list(PLACES.values())[mention.place]
    words = (prefix, article, noise, colour, THINGS[mention.thing], place)
    return " ".join(word for word in words if word)


def full_caption(thing: int, colour: int, place: int) -> str:
    """The caption with thing, colour and place."""
    return write_caption(Mention(thing, colour, place), prefix="a photo of", article="a")


def _pick(weights: tuple[float, ...], *, generator: torch.Generator) -> int:
    return int(torch.multinomial(torch.tensor(weights), 1, generator=generator))


def draw_caption(
    thing: int,
    colour: int,
    place: int,
    *,
    generator: torch.Generator,
    noise_share: float = NOISE_SHARE,
) -> tuple[str, Mention]:
    """A random caption of a scene; may omit colour or place and may contain a rare token."""
    keep_colour, keep_place = ((True, True), (False, True), (True, False), (False, False))[
        _pick((0.52, 0.20, 0.16, 0.12), generator=generator)
    ]
    mention = Mention(thing, colour if keep_colour else None, place if keep_place else None)
    noisy = float(torch.rand((), generator=generator)) < noise_share
    word = RARE_TOKENS[int(torch.randint(len(RARE_TOKENS), (), generator=generator))]
    caption = write_caption(
        mention,
        prefix=PREFIXES[_pick((0.6, 0.1, 0.1, 0.2), generator=generator)],
        article=ARTICLES[_pick((0.55, 0.1, 0.35), generator=generator)],
        noise=word if noisy else "",
    )
    return caption, mention
