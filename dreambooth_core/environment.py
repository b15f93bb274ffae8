"""The process environment: variables that silence libraries, workspace defaults, fast imports.

Only this module and the entry points read or write `os.environ`; everything else gets values.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Limit, use and details as a container sees its own, by version 2 and 1 of Linux' cgroups."""


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """What the machine has free, or less where the container that this runs in has a limit.

    Cached files count as free, as they give way.
    """
    import psutil  # 20 ms, a twentieth of `dreambooth --help`

    free = psutil.virtual_memory().available
    return min([free, *_left_in_container(cgroup)])


def _left_in_container(cgroup: Path) -> list[int]:
    left: list[int] = []
    for limit_name, used_name, stat_name, cached_key in _LIMITS:
        limit = _read(cgroup / limit_name)
        if not limit.isdecimal():  # no such file, or "max"
            continue
        stat = dict(line.split() for line in _read(cgroup / stat_name).splitlines())
        used = int(_read(cgroup / used_name)) - int(stat.get(cached_key, 0))
        left.append(max(0, int(limit) - used))
    return left


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


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
    # It would print the server's address with the password.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_CHATTY = {
    # Says at its import, on some CPUs, that a kernel for inference in 4 bits is not installed.
    "bitsandbytes.backends.cpu.ops": logging.ERROR,
    # Prints the traceback of an error, such as a full disk, that it then raises.
    "mlflow.store.db.utils": logging.CRITICAL,
    # Prints a traceback when Prefect's server goes away, although its client connects again.
    "websockets.client": logging.CRITICAL,
}

_PROXIES = frozenset(("http_proxy", "https_proxy", "all_proxy"))
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_EXTENSIONS = Path.home() / ".cache" / "dreambooth" / "torch_extensions"
"""Where DeepSpeed's compiled parts are kept: they take minutes to build, and its own place is
/tmp."""
_NVIDIA = Path("/dev/nvidiactl")
_AMD = Path("/dev/kfd")


def library_defaults() -> dict[str, str]:
    """Environment variables for this machine that keep libraries quiet and offline.

    Loggers that no variable silences are silenced in this process. DeepSpeed, which accelerate
    imports, looks for a GPU and logs what it finds; without a GPU it is told to use the CPU.
    """
    for name, level in _CHATTY.items():
        logging.getLogger(name).setLevel(level)
    defaults = {**QUIET, "TORCH_EXTENSIONS_DIR": str(_EXTENSIONS)}
    has_gpu = _NVIDIA.exists() or _AMD.exists()
    return defaults if has_gpu else {**defaults, "DS_ACCELERATOR": "cpu"}


def quiet_libraries() -> dict[str, str]:
    """Add `library_defaults` to this process's environment; return a copy of the result.

    Libraries read these when they are imported, so call this first.
    """
    for name, value in library_defaults().items():
        os.environ.setdefault(name, value)
    return dict(os.environ)


def set_defaults(root: Path, **more: str) -> dict[str, str]:
    """Add a workspace's defaults to this process's environment; return a copy of the result.

    Variables that are already set win. Prefect and MLflow read the environment when they are
    imported, so call this first.
    """
    defaults = {
        **library_defaults(),
        "PREFECT_HOME": str(root / ".prefect"),
        **more,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    exempt_loopback()
    return dict(os.environ)


def exempt_loopback() -> None:
    """Keep a proxy in the environment away from this machine's own services.

    HTTP clients of this process and its children would send it calls to 127.0.0.1, which it cannot
    reach. Without a proxy nothing is set: on macOS, a variable hides the system's proxies.
    """
    if not any(name.lower() in _PROXIES and value for name, value in os.environ.items()):
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" in hosts:
        return
    text = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = text


def tracking_uri() -> str | None:
    """The MLflow store that the environment names."""
    return os.environ.get("MLFLOW_TRACKING_URI")


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector during a process's first large imports, then freeze the heap.

    Torch, diffusers and transformers allocate millions of objects that live for ever; collecting
    while they load costs a third of the CPU time from a command to its first step. Later imports
    are not frozen, since the objects alive by then may still be freed.
    """
    is_first = gc.get_freeze_count() == 0
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if was_enabled:
            gc.enable()


def is_installed(package: str) -> bool:
    """Whether `package` can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None
