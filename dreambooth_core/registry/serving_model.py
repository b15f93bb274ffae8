"""The code that a registered model carries with it: requests in, PNG pictures out.

MLflow copies this file into the model and runs it where the model is loaded, so it stands alone:
it needs torch, diffusers and MLflow, not this project, and nothing in the model is a pickle. It
samples in the same fixed blocks as `models/sampling.py` (a test compares the two pixel by pixel):
a short block is padded with repeats of its last row, as the size of a batch changes the bits.

The annotations must be real types (MLflow builds the signature from them), hence no
`from __future__ import annotations` here.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pydantic
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ImageRequest(pydantic.BaseModel):
    """What to draw. Where steps or guidance are missing, those of the evaluation are used."""

    model_config = pydantic.ConfigDict(extra="forbid")

    prompt: str
    negative_prompt: Optional[str] = None  # noqa: UP045 - MLflow reads this spelling
    seed: int = 0
    num: int = pydantic.Field(default=1, ge=1, le=64)
    steps: Optional[int] = pydantic.Field(default=None, ge=1, le=1000)  # noqa: UP045
    guidance: Optional[float] = pydantic.Field(default=None, ge=0)  # noqa: UP045


class _Row(NamedTuple):
    """One image to draw."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float


class DreamBoothModel(PythonModel):
    """A pipeline folder (Stable Diffusion, SDXL), or LoRA weights on a base model named beside."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights (safetensors only) onto the device that the model config names."""
        import torch

        self._config = dict(context.model_config or {})
        device = self._config.get("device", "auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, self._config.get("dtype", "float32"))
        self._pipe = _load(Path(context.artifacts["pipeline"]), self._config, dtype)
        self._pipe.set_progress_bar_config(disable=True)
        for part in self._pipe.components.values():
            if isinstance(part, torch.nn.Module):
                _settle(part, device)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's signature
        model_input: list[ImageRequest],
        params: Optional[dict[str, Any]] = None,  # noqa: ARG002, UP045
    ) -> list[str]:
        """PNG pictures as base64, request by request; of one request: seed, seed + 1, ..."""
        for request in model_input:
            self._check(request)
        rows = [row for request in model_input for row in self._rows(request)]
        pictures: list[str] = []
        for start, stop in _runs(rows, self._config["block_size"]):
            pictures += self._draw(rows[start:stop])
        return pictures

    def _check(self, request: ImageRequest) -> None:
        """Refuse a prompt that is empty, or that the text encoder would cut without a word."""
        if not request.prompt.strip():
            raise MlflowException.invalid_parameter_value(
                "the prompt is empty: the picture would show anything that the model has learnt"
            )
        for what, text in (
            ("prompt", request.prompt),
            ("negative prompt", request.negative_prompt or ""),
        ):
            for tokenizer, encoder in _text_parts(self._pipe):
                limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
                encoded = tokenizer(text, return_offsets_mapping=True)
                num = len(encoded["input_ids"])
                if num > limit:
                    lost = text[encoded["offset_mapping"][limit - 1][0] :]
                    raise MlflowException.invalid_parameter_value(
                        f"the {what} does not fit the text encoder; found: {num} tokens; allowed: "
                        f"{limit} tokens; what to do: shorten it: it would be cut before {lost!r}"
                    )

    def _rows(self, request: ImageRequest) -> list[_Row]:
        steps = self._config["steps"] if request.steps is None else request.steps
        guidance = self._config["guidance"] if request.guidance is None else request.guidance
        negative = request.negative_prompt or ""
        return [
            _Row(request.prompt, negative, request.seed + i, steps, guidance)
            for i in range(request.num)
        ]

    def _draw(self, rows: list[_Row]) -> list[str]:
        """Draw one block: as many rows as its size, the last one repeated where rows are few."""
        import torch

        block = rows + rows[-1:] * (self._config["block_size"] - len(rows))
        side = self._config["resolution"]
        images = self._pipe(
            prompt=[row.prompt for row in block],
            # Without one SDXL takes zeros; an empty text is another thing to it.
            negative_prompt=[row.negative for row in block] if block[0].negative else None,
            num_inference_steps=rows[0].steps,
            guidance_scale=rows[0].guidance,
            height=side,
            width=side,
            generator=[torch.Generator("cpu").manual_seed(row.seed) for row in block],
        ).images
        return [_png(image) for image in images[: len(rows)]]


def _text_parts(pipe: Any) -> list[tuple[Any, Any]]:
    """Each tokenizer of a pipeline with its text encoder."""
    names = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    pairs = [(getattr(pipe, a, None), getattr(pipe, b, None)) for a, b in names]
    return [pair for pair in pairs if None not in pair]


def _runs(rows: list[_Row], block_size: int) -> list[tuple[int, int]]:
    """Bounds of consecutive rows that can be drawn together, at most a block each: with the same
    steps and guidance, and with a negative prompt in all or in none."""
    bounds: list[tuple[int, int]] = []
    start = 0
    for i in range(1, len(rows) + 1):
        full = i - start == block_size
        if i == len(rows) or full or _kind(rows[i]) != _kind(rows[start]):
            bounds.append((start, i))
            start = i
    return bounds


def _kind(row: _Row) -> tuple[int, float, bool]:
    return row.steps, row.guidance, bool(row.negative)


def _settle(part: Any, device: str) -> None:
    """Onto the device, in evaluation mode, weights copied out of the memory-mapped file.

    Mapped weights lie at other alignments than allocated ones, and kernels give other last bits
    for them.
    """
    part.eval().to(device)
    for tensor in (*part.parameters(), *part.buffers()):
        tensor.data = tensor.data.clone()


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _load(folder: Path, config: dict[str, Any], dtype: Any) -> Any:
    """The pipeline in `folder`, or the base model with the LoRA weights that lie there."""
    if (folder / "model_index.json").is_file():
        return _pipeline(folder, dtype, local_files_only=True)
    base, revision = config.get("base_model"), config.get("base_revision")
    if not base:
        named = json.loads((folder / "base_model.json").read_text())
        base, revision = named["pretrained_model_name_or_path"], named["revision"]
    try:
        pipe = _pipeline(base, dtype, revision=revision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"this model is LoRA weights for the base model {base!r}, which is not here; say where "
            "it is: mlflow.pyfunc.load_model(URI, model_config={'base_model': FOLDER})"
        ) from error
    pipe.load_lora_weights(str(folder), weight_name="pytorch_lora_weights.safetensors")
    return pipe


def _pipeline(source: Any, dtype: Any, **options: Any) -> Any:
    """The pipeline of a folder or hub id, of the class that it names; without a safety checker."""
    from diffusers import DiffusionPipeline

    config: Any = DiffusionPipeline.load_config(source, **options)
    if config["_class_name"] == "StableDiffusionPipeline":
        options |= {"safety_checker": None, "requires_safety_checker": False}
        options |= {"feature_extractor": None}
    else:
        options |= {"add_watermarker": False}
    return DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)


set_model(DreamBoothModel())
