"""Profiles of hypothesis: bounded by default, endless for `--hypothesis-profile long`."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, Phase, settings

_DEADLINE = timedelta(seconds=20)  # a time bomb takes minutes; a busy machine takes seconds
_CHECKS = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile(
    "bounded", max_examples=200, deadline=_DEADLINE, suppress_health_check=_CHECKS
)
settings.register_profile(
    "long",
    max_examples=1_000_000_000,
    deadline=_DEADLINE,
    suppress_health_check=_CHECKS,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    print_blob=True,
)
settings.load_profile("bounded")
