"""Package an exported pipeline as an MLflow model of safetensors, text and one .py file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import Model
from mlflow.models.utils import _save_example

from dreambooth_core import config, files
from dreambooth_core.errors import RegistryError

SERVING_CODE = Path(__file__).with_name("serving_model.py")
ARTIFACT = "pipeline"
"""Name of the pipeline folder below `artifacts/` of the packed model."""

_REQUIREMENTS = (
    "mlflow", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pillow",
    "pydantic",
)  # fmt: skip
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy"}


@dataclass(frozen=True)
class Serving:
    """The sampling defaults of a served model: those of the evaluation.

    `block_size` is the evaluation's sampling batch size (other sizes give other bits). LoRA weights
    need `base_model` (hub id or folder) and `base_revision`.
    """

    steps: int
    guidance: float
    resolution: int
    block_size: int
    dtype: str = "float32"
    device: str = "auto"
    base_model: str | None = None
    base_revision: str | None = None


def package_digest(export: Path, serving: Serving) -> str:
    """Hash an upload: exported files, sampling defaults, serving code."""
    return files.digest_of(
        {
            "export": files.tree_hashes(export),
            "serving": asdict(serving),
            "code": files.sha256_file(SERVING_CODE),
        }
    )


@contextlib.contextmanager
def packed(
    export: Path, *, serving: Serving, metadata: Mapping[str, Any], prompt: str, scratch: Path
) -> Iterator[Path]:
    """Yield a temporary folder below `scratch` with the MLflow model; `prompt` is its example.

    Raises RegistryError if the export has a file that could be a pickle.
    """
    _refuse_pickles(export)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="packing-", dir=scratch) as folder:
        model = Path(folder) / "model"
        with _quiet_mlflow():
            mlflow.pyfunc.save_model(
                str(model),
                python_model=str(SERVING_CODE),
                artifacts={ARTIFACT: export.absolute().as_uri()},
                model_config={k: v for k, v in asdict(serving).items() if v is not None},
                metadata={**metadata, "files": files.tree_hashes(export)},
                pip_requirements=_requirements(),
            )
        _complete_spec(model, prompt)
        yield model


def load_spec(model: Path) -> Model:
    """The MLmodel file of a local folder; `Model.load` takes a path for an encoded URI."""
    return Model.from_dict(config.read_yaml(model / "MLmodel"))


def _complete_spec(model: Path, prompt: str) -> None:
    """Rename the pipeline folder to ARTIFACT, make paths relative, and add an example of a request.

    `save_model` would load the model and sample images for the example.
    """
    path = model / "MLmodel"
    spec = load_spec(model)
    flavor = spec.flavors["python_function"]
    entry = flavor["artifacts"][ARTIFACT]
    (model / entry["path"]).rename(model / "artifacts" / ARTIFACT)
    entry["path"] = entry["uri"] = f"artifacts/{ARTIFACT}"
    flavor["model_code_path"] = SERVING_CODE.name
    _save_example(spec, [{"prompt": prompt, "seed": 0}], str(model))
    spec.save(str(path))


def _refuse_pickles(export: Path) -> None:
    found = sorted(
        path.relative_to(export).as_posix()
        for path in export.rglob("*")
        if path.suffix.lower() in _PICKLES
    )
    if found:
        raise RegistryError(
            "the exported pipeline has files that may be pickles",
            got=", ".join(found[:5]),
            allowed="safetensors and text files",
        )


def _requirements() -> list[str]:
    """The installed versions, without local suffixes such as +cpu, which are not on PyPI."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]


@contextlib.contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Mute MLflow's hints (missing signature or example), which help interactive users only."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
