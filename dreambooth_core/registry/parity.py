"""Export parity: the uploaded model must reproduce the scored images in a fresh process."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import mlflow
import mlflow.pyfunc
from PIL import Image

from dreambooth_core.config import ComputeSettings
from dreambooth_core.errors import RegistryError, StageError, Stopped
from dreambooth_core.models.load import configure_torch, pick_device
from dreambooth_core.ports import StopSignal, never_stop
from dreambooth_core.records import Record
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.supervision import supervised
from dreambooth_core.waiting import wait_until

PARITY_TIMEOUT_S = 1800.0

_COMMAND = ("-m", "dreambooth_core", "parity")
_LAST_LINES = 15
_POLL_S = 0.1


class ParityRequest(Record):
    """A scored image: prompt, seed, and the hash of its pixels."""

    prompt: str
    seed: int
    pixels_sha256: str


class ParityMismatch(Record):
    """An image that the upload does not reproduce."""

    prompt: str
    seed: int
    expected: str
    got: str


class ParityResult(Record):
    """The number of compared images, and the ones that differ."""

    model_uri: str
    compared: int
    mismatches: tuple[ParityMismatch, ...]

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


class _Job(Record):
    """The input of the fresh process."""

    tracking_uri: str
    plan: ParityPlan
    result: Path


def pixels_sha256(image: Image.Image) -> str:
    """Hex sha256 of an image's mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def requests_of(
    images: Sequence[tuple[str, int, Path]],
) -> tuple[ParityRequest, ...]:
    """Requests for scored images (prompt, seed, file), in the order of the evaluation."""
    requests: list[ParityRequest] = []
    for prompt, seed, path in images:
        with Image.open(path) as image:
            requests.append(
                ParityRequest(prompt=prompt, seed=seed, pixels_sha256=pixels_sha256(image))
            )
    return tuple(requests)


def check_parity(
    tracking: Tracking,
    plan: ParityPlan,
    *,
    should_stop: StopSignal = never_stop,
    timeout_s: float = PARITY_TIMEOUT_S,
) -> ParityResult:
    """Sample the plan's images with the registered model in a fresh process; compare the pixels.

    Raises StageError with the last lines of that process if it fails, and Stopped on a stop.
    """
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folder = Path(name)
        job = _Job(tracking_uri=tracking.uri, plan=plan, result=folder / "result.json")
        job.write(folder, "job.json")
        with (folder / "log").open("w+b") as log:
            code = _wait(_start(folder / "job.json", log), should_stop, timeout_s)
            if code != 0:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
                raise StageError(
                    f"the process that loads {plan.model_uri} ended with code {code}",
                    got="\n".join(lines),
                )
        return ParityResult.read(folder, "result.json")


def _start(job: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the fresh process, which ends with this one."""
    return subprocess.Popen(
        supervised([sys.executable, *_COMMAND, str(job)]),
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def _wait(process: subprocess.Popen[bytes], should_stop: StopSignal, timeout_s: float) -> int:
    try:
        wait_until(
            lambda: process.poll() is not None or should_stop(),
            timeout_s=timeout_s,
            every_s=_POLL_S,
        )
        if (code := process.poll()) is not None:
            return code
        if should_stop():
            raise Stopped("the export parity check stopped", hint="run the same command again")
        raise StageError(f"the export parity check took longer than {timeout_s:.0f} s")
    finally:
        process.kill()
        process.wait()


# ---- in the fresh process ------------------------------------------------------------------------


def main(job_file: Path) -> int:
    """Load the model of a job file, sample its images and write the result; returns 0."""
    job = _Job.read(job_file.parent, job_file.name)
    configure_torch(job.plan.compute)
    mlflow.set_tracking_uri(job.tracking_uri)
    mlflow.set_registry_uri(job.tracking_uri)
    model = mlflow.pyfunc.load_model(
        job.plan.model_uri, model_config={"device": str(pick_device(job.plan.compute))}
    )
    _compare(model, job.plan).write(job.result.parent, job.result.name)
    return 0


def _compare(model: Any, plan: ParityPlan) -> ParityResult:
    """Sample all requests in one call, so that the blocks equal those of the evaluation."""
    pictures = model.predict(
        [
            {"prompt": r.prompt, "seed": r.seed, "steps": plan.steps, "guidance": plan.guidance}
            for r in plan.requests
        ]
    )
    found = [_hash_of_png(picture) for picture in pictures]
    if len(found) != len(plan.requests):
        raise RegistryError(f"expected {len(plan.requests)} images", got=str(len(found)))
    mismatches = [
        ParityMismatch(prompt=r.prompt, seed=r.seed, expected=r.pixels_sha256, got=got)
        for r, got in zip(plan.requests, found, strict=True)
        if r.pixels_sha256 != got
    ]
    return ParityResult(model_uri=plan.model_uri, compared=len(found), mismatches=tuple(mismatches))


def _hash_of_png(picture: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return pixels_sha256(image)
