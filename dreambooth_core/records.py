"""The frozen records that stages exchange, and their JSON files.

A stage writes `record.json` last, so a folder without one counts as missing. Records contain no
time, host, process, absolute path or run id: the same work gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from dreambooth_core import files
from dreambooth_core.errors import CorruptRecordError, corrupt_record, repeat_hint

RECORD_NAME = "record.json"

Role = Literal["instance", "class"]


class Record(BaseModel):
    """Base class of records: frozen, without unknown keys, with reproducible bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, object]:
        """The record as a plain dictionary."""
        return self.model_dump(mode="json")

    def write(self, folder: Path, name: str = RECORD_NAME) -> None:
        """Write the record as JSON into `folder`, completely or not at all."""
        files.write_json(folder / name, self.to_json())

    @classmethod
    def read(cls, folder: Path, name: str = RECORD_NAME) -> Self:
        """Read a record. Raises CorruptRecordError if it is missing or invalid."""
        path = folder / name
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise CorruptRecordError(
                f"{path} does not exist, so the stage that makes it has not finished",
                hint=repeat_hint(path),
            ) from None
        except OSError as error:
            raise CorruptRecordError(f"{path} cannot be read", got=error.strerror) from None
        except ValidationError as error:
            unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
            raise corrupt_record(path, cls.__name__, str(error), unknown) from None

    @classmethod
    def read_if_there(cls, folder: Path, name: str = RECORD_NAME) -> Self | None:
        """The record, or None if the folder has no valid one."""
        try:
            return cls.read(folder, name)
        except CorruptRecordError:
            return None


class _WithOptionalFields(Record):
    """A record whose fields that default to None are left out of the JSON while they are None."""

    @model_serializer(mode="wrap")
    def _without_absent_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        dumped: dict[str, object] = dump(self)
        optional = [n for n, field in type(self).model_fields.items() if not field.is_required()]
        return {k: v for k, v in dumped.items() if k not in optional or v is not None}


class BaseModelIdentity(Record):
    """The exact base model: hub id and commit, or path and sha256 of its weights."""

    name: str
    revision: str | None
    sha256: str


# ---- validate -----------------------------------------------------------------------------------


class AcceptedImage(Record):
    """A photo that passed the data gate; `sha256` is that of the user's file."""

    name: str
    sha256: str
    width: int
    height: int
    warnings: tuple[str, ...] = ()


class RejectedFile(Record):
    """A file that the data gate rejected (a photo) or skipped (anything else), and the reason."""

    name: str
    reason: str


class GateReport(Record):
    """`validate/report.json`: the data gate's verdict on every entry of the folder."""

    subject: str
    accepted: tuple[AcceptedImage, ...]
    rejected: tuple[RejectedFile, ...]
    skipped: tuple[RejectedFile, ...]
    warnings: tuple[str, ...] = ()


class ImageMask(Record):
    """A mask file: its path relative to the manifest's folder, and its sha256."""

    file: str
    sha256: str


class ManifestImage(_WithOptionalFields):
    """One image file of a manifest: path relative to the manifest's folder, and its sha256.

    `caption` is its own prompt, `mask` shows where the subject is, where it has them.
    """

    file: str
    sha256: str
    caption: str | None = None
    mask: ImageMask | None = None


class Manifest(Record):
    """A set of images with one role. Listed here is what exists; folder listings are not asked."""

    role: Role
    fingerprint: str
    images: tuple[ManifestImage, ...]
    warnings: tuple[str, ...] = ()


# ---- cache --------------------------------------------------------------------------------------


class CachedImage(_WithOptionalFields):
    """The cached views (crops) of one image: the file of its VAE moments, and how many views.

    `prompt` is the photo's caption, if it has one. `instance_prompt` is what rows without the
    caption are trained on, if there are any.
    """

    image: str
    role: Role
    prompt: str
    file: str
    num_views: int
    instance_prompt: str | None = None


class LatentCache(_WithOptionalFields):
    """VAE moments of every image; token ids and embeddings of every prompt.

    With masks, `weights_file` has the weights of each position in the loss. `caption_rate` is the
    share of the rows with a caption, if it is below 1.
    """

    fingerprint: str
    base_model: BaseModelIdentity
    resolution: int
    latent_scale: float
    """What the VAE's samples are multiplied by to become latents."""
    images: tuple[CachedImage, ...]
    text_file: str
    files: dict[str, str]
    warnings: tuple[str, ...] = ()
    weights_file: str | None = None
    caption_rate: float | None = None


# ---- train --------------------------------------------------------------------------------------

Method = Literal["full", "lora"]


class Checkpoint(Record):
    """Weights at a step, on disk, hashed: `checkpoint-<step>/` with sha256 of every file."""

    name: str
    step: int
    method: Method
    sha256: str
    files: dict[str, str]


class InitialWeights(Record):
    """The weights that a training started from: the name of their model or folder, and their hash.

    The hash is that of the checkpoint which a version holds, whatever the version's number.
    """

    name: str
    sha256: str


class TrainingRun(_WithOptionalFields):
    """What a training published: every checkpoint, in order of steps.

    `init_from` is absent if the training started from the base model.
    """

    fingerprint: str
    base_model: BaseModelIdentity
    method: Method
    max_train_steps: int
    checkpoints: tuple[Checkpoint, ...]
    init_from: InitialWeights | None = None


# ---- evaluate, select ---------------------------------------------------------------------------

SCORES = {"clip_t": "CLIP-T", "clip_i": "CLIP-I", "dino": "DINO", "pres": "PRES", "div": "DIV"}
"""The scores: the field of a row -> the name in tables and charts (docs/scores.md)."""

STEP_0 = "step 0"
"""Name of the base model's row."""
REAL = "real"
"""Name of the row that compares the instance photos with each other."""


class Interval(Record):
    """A mean with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float


class ScorerIdentity(Record):
    """A scorer's backbone and the sha256 of its weights."""

    name: str
    backbone: str
    sha256: str


class Harness(Record):
    """All that must be equal for two rows of scores to be comparable."""

    suite: str
    prompts: tuple[str, ...]
    class_prompt: str
    seeds: tuple[int, ...]
    class_seeds: tuple[int, ...]
    scorers: dict[str, ScorerIdentity]
    sampler: str
    steps: int
    guidance: float
    resolution: int
    batch_size: int
    instance_sha256: str


class ImageScore(Record):
    """Scores of one generated image: `prompt` and `seed` pair it across checkpoints.

    `nearest` is the index of the photo with the most similar layout, `copied` how similar it is:
    1 for a copy. Records of older versions lack both.
    """

    prompt: str
    seed: int
    clip_t: float
    clip_i: float
    dino: float
    nearest: int | None = None
    copied: float | None = None


class ScoreRow(Record):
    """One row of `evaluate/scores.json`."""

    name: str
    step: int | None
    n: int
    clip_t: Interval | None
    clip_i: Interval | None
    dino: Interval | None
    pres: Interval | None
    div: Interval | None

    def intervals(self) -> dict[str, Interval]:
        """The scores that the row has, by field."""
        found: dict[str, Interval | None] = {name: getattr(self, name) for name in SCORES}
        return {name: interval for name, interval in found.items() if interval is not None}

    def means(self) -> dict[str, float]:
        """The means of the scores that the row has, by field."""
        return {name: interval.mean for name, interval in self.intervals().items()}


class CheckpointScore(ScoreRow):
    """One row with all its samples, as kept in the score store.

    `class_dino` holds the DINO of every image of the class prompt, whose mean is PRES; records from
    before it existed have none. `text_range` is the mean CLIP-T of matched minus that of shuffled
    prompts.
    """

    checkpoint_sha256: str | None
    images: tuple[ImageScore, ...]
    class_dino: tuple[float, ...] = ()
    text_range: float | None


class Evaluation(Record):
    """`evaluate/record.json`: every row with its samples, the basis of paired comparisons."""

    harness: Harness
    text_range: float
    rows: tuple[CheckpointScore, ...]

    def row(self, name: str) -> CheckpointScore:
        """The row called `name`. Raises KeyError with the names that are there."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r} among {[row.name for row in self.rows]}")


class Scores(Record):
    """`evaluate/scores.json`: the harness, a row per checkpoint, and rows `step 0` and `real`."""

    harness: Harness
    text_range: float
    rows: tuple[ScoreRow, ...]


class RankedCheckpoint(Record):
    """A checkpoint's place in the selection and why it has it."""

    name: str
    step: int
    qualified: bool
    why: str
    clip_t: float
    dino: float
    pres: float


class Selection(Record):
    """`select/selection.json`: the best checkpoint of a run and the rule that decided."""

    best: str | None
    qualified: bool
    rule: str
    ranked: tuple[RankedCheckpoint, ...]


# ---- register, compare --------------------------------------------------------------------------


class ModelVersion(Record):
    """`register/version.json`: what stands (or will stand) in the registry."""

    name: str
    fingerprint: str
    checkpoint: str
    sha256: str


class RegisteredVersion(Record):
    """A version as the registry has it; not published, as its number is the registry's own."""

    name: str
    version: int
    fingerprint: str
    checkpoint: str
    sha256: str
    qualified: bool


class Duel(Record):
    """The images of two versions on the same prompts and seeds, in order of the picture files."""

    challenger: str
    champion: str
    challenger_images: tuple[ImageScore, ...]
    champion_images: tuple[ImageScore, ...]


class Verdict(Record):
    """The comparison of challenger and champion, as a decision with its reason."""

    challenger: str
    champion: str | None
    promote: bool
    why: str
    difference: dict[str, Interval]
