"""Words of the environment that keep libraries quiet: no calls home, no noise on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

SPINNING: Mapping[str, str] = {
    # How often a waiting thread of GNU's OpenMP looks again before it sleeps. Two threads on two
    # cores: never (OMP_WAIT_POLICY=PASSIVE), an update takes 72 ms, and 55 when two processes
    # share the cores; 1,000 times, 37 and 96; the library's 300,000 times, 35 and 158.
    "GOMP_SPINCOUNT": "1000",
    # The OpenMP of LLVM and Intel (macOS, conda): milliseconds before it sleeps. Not measured.
    "KMP_BLOCKTIME": "0",
}

QUIET: Mapping[str, str] = {
    # No component calls home; each of these words was found by tracing look-ups.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    # Results are JSON: with the default, whoever can write them runs code here.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
    **SPINNING,
    "TOKENIZERS_PARALLELISM": "false",
    # Advice for other people's code, and bars for files that load in milliseconds.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

_CHATTY = (
    # Says at its import, on some CPUs, that a kernel for inference in 4 bits is not installed.
    "bitsandbytes.backends.cpu.ops",
)

_EXTENSIONS = Path.home() / ".cache" / "dreambooth" / "torch_extensions"
"""Where DeepSpeed's compiled parts are kept: they take minutes to build, and its own place is
/tmp."""
_NVIDIA = Path("/dev/nvidiactl")
_AMD = Path("/dev/kfd")


def quiet() -> dict[str, str]:
    """The words for this machine; loggers that no word silences are silenced in this process.

    DeepSpeed, which accelerate imports, looks for a GPU of its own accord and tells what it found:
    where there is none, it is told so.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    words = {**QUIET, "TORCH_EXTENSIONS_DIR": str(_EXTENSIONS)}
    has_gpu = _NVIDIA.exists() or _AMD.exists()
    return words if has_gpu else {**words, "DS_ACCELERATOR": "cpu"}
