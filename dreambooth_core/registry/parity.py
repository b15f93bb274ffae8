"""Export parity: the uploaded model must reproduce the scored images in a fresh process."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import mlflow
import mlflow.pyfunc
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from PIL import Image

from dreambooth_core import files
from dreambooth_core.config import ComputeSettings
from dreambooth_core.errors import StageError, Stopped
from dreambooth_core.masking import scrubbed
from dreambooth_core.models.load import configure_torch, pick_device
from dreambooth_core.ports import StopSignal, never_stop
from dreambooth_core.records import Record
from dreambooth_core.registry.store_uri import is_plain, local_path
from dreambooth_core.registry.tracking import Tracking, as_default
from dreambooth_core.supervision import supervised
from dreambooth_core.waiting import wait_until

PARITY_TIMEOUT_S = 1800.0

_COMMAND = ("-m", "dreambooth_core", "parity")
_RESULT = "result.json"
_LAST_LINES = 15
_POLL_S = 0.1


class ParityRequest(Record):
    """A scored image: prompt, seed, and the hash of its pixels."""

    prompt: str
    seed: int
    pixels_sha256: str


class ParityResult(Record):
    """The number of compared images, and those that differ, with the hash of the upload's image."""

    model_uri: str
    compared: int
    mismatches: tuple[ParityRequest, ...]

    @property
    def passed(self) -> bool:
        """Whether all images are equal, pixel by pixel, and there was at least one."""
        return self.compared > 0 and not self.mismatches

    @property
    def text(self) -> str:
        """The result as a sentence."""
        if self.passed:
            return f"{self.compared} images of {self.model_uri} in a fresh process: all the same"
        return (
            f"{len(self.mismatches)} of {self.compared} images of {self.model_uri} in a fresh "
            "process differ from those that were scored"
        )


class ParityPlan(Record):
    """The version and images to compare, with the sampling settings of the evaluation."""

    model_uri: str
    requests: tuple[ParityRequest, ...]
    steps: int
    guidance: float
    compute: ComputeSettings


def pixels_sha256(image: Image.Image) -> str:
    """Hex sha256 of an image's mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def request_of(prompt: str, seed: int, path: Path) -> ParityRequest:
    """The request for a scored image in a file."""
    with Image.open(path) as image:
        return ParityRequest(prompt=prompt, seed=seed, pixels_sha256=pixels_sha256(image))


def check_parity(
    tracking: Tracking, plan: ParityPlan, *, should_stop: StopSignal = never_stop
) -> ParityResult:
    """Sample the plan's images with the registered model in a fresh process; compare the pixels.

    Raises StageError with the last lines of that process if it fails, and Stopped on a stop.
    """
    with files.scratch_dir(tracking.cache.with_name("parity"), "plan") as folder:
        plan.write(folder, "plan.json")
        # The address may hold a password, so it goes by the environment, never into a file.
        with as_default(tracking), (folder / "log").open("w+b") as log:
            code = _wait(_start(folder / "plan.json", log), should_stop)
            if code != 0:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
                raise StageError(
                    f"the process that loads {plan.model_uri} ended with code {code}",
                    got=scrubbed("\n".join(lines), tracking.uri),
                )
        return ParityResult.read(folder, _RESULT)


def _start(plan: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the fresh process, which ends with this one.

    A server's model is downloaded next to the plan: after a kill the next run removes both.
    """
    return subprocess.Popen(
        supervised([sys.executable, *_COMMAND, str(plan)], variables={"TMPDIR": str(plan.parent)}),
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def _wait(process: subprocess.Popen[bytes], should_stop: StopSignal) -> int:
    try:
        wait_until(
            lambda: process.poll() is not None or should_stop(),
            timeout_s=PARITY_TIMEOUT_S,
            every_s=_POLL_S,
        )
        if (code := process.poll()) is not None:
            return code
        if should_stop():
            raise Stopped("the export parity check stopped", hint="run the same command again")
        raise StageError(f"the export parity check took longer than {PARITY_TIMEOUT_S:.0f} s")
    finally:
        process.kill()
        process.wait()


# ---- in the fresh process ------------------------------------------------------------------------


def main(plan_file: Path) -> int:
    """Load the model of a plan, sample its images, write the result into its folder; returns 0."""
    plan = ParityPlan.read(plan_file.parent, plan_file.name)
    configure_torch(plan.compute)
    mlflow.set_registry_uri(mlflow.get_tracking_uri())
    model = mlflow.pyfunc.load_model(
        plan.model_uri,
        dst_path=_copy_dir(plan.model_uri, plan_file.parent),
        model_config={"device": str(pick_device(plan.compute))},
    )
    _compare(model, plan).write(plan_file.parent, _RESULT)
    return 0


def _copy_dir(model_uri: str, scratch: Path) -> str | None:
    """Where to copy the upload to, if its path has characters that MLflow would decode."""
    place = local_path(str(ModelsArtifactRepository.get_underlying_uri(model_uri)))
    return None if place is None or is_plain(place) else str(scratch)


def _compare(model: Any, plan: ParityPlan) -> ParityResult:
    """Sample all requests in one call, so that the blocks equal those of the evaluation."""
    pictures = model.predict(
        [
            {"prompt": r.prompt, "seed": r.seed, "steps": plan.steps, "guidance": plan.guidance}
            for r in plan.requests
        ]
    )
    sampled = [
        request.model_copy(update={"pixels_sha256": _hash_of_png(picture)})
        for request, picture in zip(plan.requests, pictures, strict=True)
    ]
    mismatches = tuple(
        found for found, scored in zip(sampled, plan.requests, strict=True) if found != scored
    )
    return ParityResult(model_uri=plan.model_uri, compared=len(sampled), mismatches=mismatches)


def _hash_of_png(picture: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return pixels_sha256(image)
