"""The warning about identifiers that the base model's tokenizer splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dreambooth_core import config
from dreambooth_core.models.identifier import (
    pieces_of,
    rare_words,
    split_identifier,
    tokenizers_on_disk,
)
from tests.paths import PARAMS, ROOT


def test_warning_names_the_pieces_of_a_split_identifier() -> None:
    settings = config.load_settings(PARAMS).base_model
    tokenizers = tokenizers_on_disk(settings, ROOT)
    assert split_identifier("sks", tokenizers) == ()
    (warning,) = split_identifier("sks_dog", tokenizers)
    assert "reads the identifier 'sks_dog' in 5 pieces (sks _ d o g)" in warning


def test_tokenizer_that_is_not_on_this_machine_is_not_fetched(tmp_path: Path) -> None:
    settings = config.load_settings(PARAMS).base_model
    missing = settings.model_copy(update={"pretrained_model_name_or_path": "nobody/nothing"})
    assert tokenizers_on_disk(missing, tmp_path) == []


def test_check_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from pathlib import Path; from dreambooth_core import config; "
        "from dreambooth_core.models import identifier; "
        "settings = config.load_settings(Path('params.yaml')).base_model; "
        "(found,) = identifier.tokenizers_on_disk(settings, Path('.')); "
        "assert identifier.split_identifier('sks', [found]) == (); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_rare_words_have_one_piece_and_begin_with_sks() -> None:
    tokenizers = tokenizers_on_disk(config.load_settings(PARAMS).base_model, ROOT)
    words = rare_words(tokenizers, limit=4)
    assert words[0] == "sks"
    assert len(set(words)) == len(words) == 4
    assert {len(pieces_of(word, tokenizers[0])) for word in words} == {1}
    assert rare_words([], limit=4) == []
