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


def test_a_full_caption_names_thing_colour_and_place_in_plain_english() -> None:
    assert full_caption(0, 0, 0) == "a photo of a red mug on the beach"


def test_empty_parts_of_a_caption_leave_no_double_spaces() -> None:
    assert write_caption(Mention(1, None, None), prefix="", article="") == "car"


def test_a_caption_says_exactly_what_its_mention_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        caption, mention = draw_caption(2, 3, 4, generator=generator)
        assert ("cat" in caption, "blue" in caption, "city" in caption) == (
            True,
            mention.colour is not None,
            mention.place is not None,
        )


def test_rare_tokens_slip_into_their_share_of_captions_and_never_two_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = [draw_caption(0, 0, 0, generator=generator)[0].split() for _ in range(2000)]
    counts = [sum(word in RARE_TOKENS for word in words) for words in captions]
    assert max(counts) == 1
    assert sum(counts) / len(counts) == pytest.approx(NOISE_SHARE, abs=0.03)


@pytest.mark.parametrize("word", vocabulary())
def test_every_word_of_the_world_is_one_token(word: str) -> None:
    assert TOKENIZER.tokenize(word) == [word + "</w>"]


def test_the_tokenizer_gives_the_same_ids_each_time_it_is_made() -> None:
    vocabularies = [make_tokenizer(max_length=24).get_vocab() for _ in range(5)]
    assert all(vocab == vocabularies[0] for vocab in vocabularies)


def test_merges_are_learnt_by_frequency_and_then_by_alphabet() -> None:
    assert learn_merges(["ab", "cab", "cd"]) == [("a", "b</w>"), ("c", "ab</w>"), ("c", "d</w>")]


def test_a_word_outside_the_vocabulary_is_spelled_out_and_nothing_is_unknown() -> None:
    pieces = TOKENIZER.tokenize("giraffe, Übermut")
    assert len(pieces) > 5
    assert TOKENIZER.unk_token not in pieces


def test_captions_are_padded_with_the_end_token_to_the_context_length() -> None:
    ids = CaptionEncoder(TOKENIZER)(["a photo of sks mug", ""])
    assert ids.shape == (2, 24)
    assert ids[0, 0] == TOKENIZER.bos_token_id
    assert (ids[1, 1:] == TOKENIZER.eos_token_id).all()


def test_captions_that_say_the_same_share_the_target_equally() -> None:
    mentions = [Mention(0, None, 1), Mention(0, 2, 1), Mention(0, None, 1)]
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert torch.equal(same_mention(mentions), expected)
