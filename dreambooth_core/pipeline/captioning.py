"""Suggests captions for photos: what is seen in them besides the subject, above all the place.

With a small base model, which comes with a list of its places, CLIP picks the prompt of the suite
that fits best. For photographs, a captioner completes "a photo of a dog".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from dreambooth_core.config import SubjectView
from dreambooth_core.data import gate
from dreambooth_core.data.listing import printable
from dreambooth_core.errors import SettingsError
from dreambooth_core.evaluation import suites
from dreambooth_core.evaluation.extractors import load_clip
from dreambooth_core.models import captioner, load, source
from dreambooth_core.numerics.similarity import cosines
from dreambooth_core.pipeline import validate
from dreambooth_core.pipeline.common import RunContext
from dreambooth_core.workspace import Places

_POCKET_SUITE = "pocket"

Describe = Callable[[Image.Image], str]


def suggest(
    view: SubjectView, places: Places, *, model: str | None = None, replace: bool = False
) -> tuple[dict[str, str], dict[str, str]]:
    """The captions that the accepted photos have, and suggestions for those without one.

    Both are by file name. With `replace`, all photos get a suggestion. `model` is the captioner:
    a hub id or a folder. Raises DataError without any usable photo, and SettingsError for a
    captioner that is not available.
    """
    data = view.data.model_copy(update={"captions": True})
    context = RunContext(view.model_copy(update={"data": data}), places)
    folder = places.resolve(view.subject.instance_dir)
    names = {printable(path.name): path.name for path in folder.glob("*")}
    with validate.inspected(context) as inspection:
        gate.require_usable(inspection.report)
        photos = {names[image.name]: i for i, image in enumerate(inspection.report.accepted)}
        present = {n: text for n, i in photos.items() if (text := inspection.captions[i])}
        wanted = [name for name in photos if replace or name not in present]
        if not wanted:
            return present, {}
        describe = _describer(view, places.root, model)
        by_stem: dict[str, str] = {}  # cat.jpg and cat.png share cat.txt
        for name in wanted:
            with Image.open(inspection.copies[photos[name]]) as image:
                by_stem[Path(name).stem] = by_stem.get(Path(name).stem) or describe(image)
        return present, {name: by_stem[Path(name).stem] for name in wanted}


def _describer(view: SubjectView, root: Path, model: str | None) -> Describe:
    known = source.known_words(view.base_model.pretrained_model_name_or_path, root, "place")
    suite = suites.load_suite(_POCKET_SUITE, root=root)
    templates = [each for each in suite.templates if each.split()[-1] in (known or ())]
    if model is None and templates:
        return _from_suite(view, root, templates)
    return _from_captioner(view, root, model or captioner.DEFAULT)


def _from_suite(view: SubjectView, root: Path, templates: Sequence[str]) -> Describe:
    """Picks the prompt, among those with a known place, whose CLIP feature is nearest."""
    scorer = load_clip(view.evaluate.clip, root=root, device=load.pick_device(view.compute))
    words = view.subject
    texts_ND = scorer.texts(
        [suites.render(t, identifier="", class_noun=words.class_noun) for t in templates]
    )

    def describe(image: Image.Image) -> str:
        best = int(cosines(scorer.images([image]), texts_ND).argmax())
        return suites.render(
            templates[best], identifier=words.identifier, class_noun=words.class_noun
        )

    return describe


def _from_captioner(view: SubjectView, root: Path, model: str) -> Describe:
    """Lets a captioner complete the class prompt, and puts the instance prompt in its place."""
    try:
        found = source.find_model(model, root, patterns=source.MODEL_PATTERNS)
        blip = captioner.Captioner(found.folder, device=load.pick_device(view.compute))
    except SettingsError as error:
        raise SettingsError(
            "the captioner cannot be used",
            got=f"{model}: {error.what}" + (f" ({error.got})" if error.got else ""),
            allowed=f"the folder of a saved BLIP model, or a hub id such as {captioner.DEFAULT}",
            hint="name one with --model, or write the captions yourself: photo.txt next to "
            "photo.jpg",
        ) from None
    noun = view.subject.class_noun
    beginning = f"a photo of {'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"

    def describe(image: Image.Image) -> str:
        return f"{view.subject.instance_prompt} {blip.complete(image, beginning)}".rstrip()

    return describe
