"""Every prompt of a subject against the text encoders that will read it. Torch-free.

A suite that cannot be read has its own error, so it counts as empty here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from dreambooth_core.config import SubjectView
from dreambooth_core.errors import SettingsError
from dreambooth_core.evaluation import suites
from dreambooth_core.evaluation.suites import PromptSuite
from dreambooth_core.models import prompts, source


def check_drawn(view: SubjectView, root: Path) -> None:
    """Raise SettingsError for prompts that the base model would cut, if it is on this machine."""
    base = source.folder_at_hand(view.base_model, root)
    if base is None:
        return
    subject, suite = view.subject, _suite(view, root)
    drawn = suite.prompts(identifier=subject.identifier, class_noun=subject.class_noun)
    named = {
        "the instance prompt": subject.instance_prompt,
        "the class prompt": subject.class_prompt,
        **_numbered(suite.name, drawn),
    }
    prompts.check_prompts(named, prompts.saved_tokenizers_in(base))


def check_scored(view: SubjectView, root: Path, clip: Path) -> None:
    """Raise SettingsError for texts of the suite that the scorer in the folder `clip` would cut."""
    config = source.read_json_file(clip / "config.json", what="a scorer")
    text = cast("dict[str, Any]", config.get("text_config") or {})
    tokenizer = prompts.SavedTokenizer(clip, text.get("max_position_embeddings"))
    suite = _suite(view, root)
    scored = suite.scored_texts(class_noun=view.subject.class_noun)
    prompts.check_prompts(_numbered(f"{suite.name}, for CLIP-T,", scored), [tokenizer])


def _suite(view: SubjectView, root: Path) -> PromptSuite:
    name = view.subject.prompts or view.evaluate.suite
    try:
        return suites.load_suite(name, root=root)
    except SettingsError:
        return PromptSuite(name=name, templates=())


def _numbered(suite: str, texts: tuple[str, ...]) -> dict[str, str]:
    return {f"prompt {i} of the suite {suite}": text for i, text in enumerate(texts, start=1)}
