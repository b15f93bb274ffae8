from __future__ import annotations

import pytest
import torch

from tools.pocket.captions import (
    NOISE_SHARE,
    RARE_TOKENS,
    Mention,
    draw_caption,
    full_caption,
    vocabulary,
    write_caption,
)
from tools.pocket.clip import same_mention
from tools.pocket.tokenizer import CaptionEncoder, learn_merges, make_tokenizer

TOKENIZER = make_tokenizer(max_length=24)


def test_full_caption_names_thing_colour_and_place() -> None:
    assert full_caption(0, 0, 0) == "a photo of a red mug on the beach"


def test_empty_parts_of_a_caption_leave_no_double_spaces() -> None:
    assert write_caption(Mention(1, None, None), prefix="", article="") == "car"


def test_caption_contains_exactly_its_mention() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        caption, mention = draw_caption(2, 3, 4, generator=generator)
        assert ("cat" in caption, "blue" in caption, "city" in caption) == (
            True,
            mention.colour is not None,
            mention.place is not None,
        )


def test_at_most_one_rare_token_occurs_in_the_expected_share_of_captions() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = [draw_caption(0, 0, 0, generator=generator)[0].split() for _ in range(2000)]
    counts = [sum(word in RARE_TOKENS for word in words) for words in captions]
    assert max(counts) == 1
    assert sum(counts) / len(counts) == pytest.approx(NOISE_SHARE, abs=0.03)


@pytest.mark.parametrize("word", vocabulary())
def test_each_vocabulary_word_is_one_token(word: str) -> None:
    assert TOKENIZER.tokenize(word) == [word + "</w>"]


def test_tokenizer_has_the_same_ids_in_each_build() -> None:
    vocabularies = [make_tokenizer(max_length=24).get_vocab() for _ in range(5)]
    assert all(vocab == vocabularies[0] for vocab in vocabularies)


def test_merges_are_ordered_by_frequency_then_alphabet() -> None:
    assert learn_merges(["ab", "cab", "cd"]) == [("a", "b</w>"), ("c", "ab</w>"), ("c", "d</w>")]


def test_tokenizer_spells_other_words_without_unknown_tokens() -> None:
    pieces = TOKENIZER.tokenize("giraffe, Übermut")
    assert len(pieces) > 5
    assert TOKENIZER.unk_token not in pieces


def test_end_tokens_pad_captions_to_the_context_length() -> None:
    ids = CaptionEncoder(TOKENIZER)(["a photo of sks mug", ""])
    assert ids.shape == (2, 24)
    assert ids[0, 0] == TOKENIZER.bos_token_id
    assert (ids[1, 1:] == TOKENIZER.eos_token_id).all()


def test_equal_mentions_share_the_target() -> None:
    mentions = [Mention(0, None, 1), Mention(0, 2, 1), Mention(0, None, 1)]
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert torch.equal(same_mention(mentions), expected)
