"""Samplers that a pipeline is given instead of its own, for the same picture in fewer steps."""

from __future__ import annotations

from typing import Any

from diffusers import DPMSolverMultistepScheduler

from dreambooth_core.config import Solver
from dreambooth_core.models.families import Pipeline


def give_solver(pipe: Pipeline, solver: Solver | None) -> None:
    """Exchange the pipeline's sampler; None leaves its own.

    dpm++ is DPM-Solver++ of second order (Lu et al. 2022, "DPM-Solver++", algorithm 2), with the
    noise schedule and the kind of prediction that the pipeline's own sampler states.
    """
    if solver is None:
        return
    stated: Any = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        stated, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )


def solver_name(solver: Solver | None, *, own: str) -> str:
    """The name of the sampler that draws, for records; `own` is the pipeline's own."""
    return own if solver is None else f"{DPMSolverMultistepScheduler.__name__} ({solver})"
