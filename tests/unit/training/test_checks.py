"""The errors of non-finite numbers: what they name and what they advise."""

import pytest
import torch

from dreambooth_core.training import checks
from dreambooth_core.training.checks import RowErrors

NAN = float("nan")
GOOD = RowErrors(("a.png", "b.png"), [10, 20], torch.tensor([0.5, 0.6]))
BAD = RowErrors(("c.png", "d.png"), [30, 40], torch.tensor([0.5, NAN]))


def test_rows_with_a_non_finite_error_are_named_alone():
    assert checks.rows_to_report([GOOD, BAD]) == ["d.png at timestep 40"]


def test_all_rows_are_named_if_only_the_gradient_is_non_finite():
    rows = ["a.png at timestep 10", "b.png at timestep 20"]
    assert checks.rows_to_report([GOOD]) == rows


@pytest.mark.parametrize("steps", [[10], [10, 20, 30]])
def test_rows_without_their_own_timestep_are_refused(steps):
    rows = RowErrors(("a.png", "b.png"), steps, torch.tensor([0.5, 0.6]))
    for name in (rows.rows, rows.non_finite_rows):
        with pytest.raises(ValueError, match="zip"):
            name()


HINT = (
    "inspect these images, lower learning_rate, or set mixed_precision to 'no'; the last saved "
    "state is intact"
)


@pytest.mark.parametrize(
    ("loss", "skipped", "what"),
    [
        (NAN, (), "step 3 has a non-finite loss; the update was not applied"),
        (NAN, ("w",), "step 3 has a non-finite loss; the update was not applied"),
        (0.5, (), "step 3 has a non-finite gradient; the update was not applied"),
        (
            0.5, ("v", "w"),
            "step 3 has a non-finite gradient; fused_backward has already updated all parameters "
            "except v, w; continue from the last checkpoint",
        ),
    ],
)  # fmt: skip
def test_non_finite_update_is_explained(loss, skipped, what):
    error = checks.non_finite(3, loss=loss, grad_norm=NAN, rows=["a", "b"], skipped=skipped)
    assert error.what == what
    assert error.got == f"loss {loss}, gradient norm nan, images: a, b"
    assert error.hint == HINT


@pytest.mark.parametrize(
    ("num", "shown"), [(5, "0, 1, 2, 3, 4;"), (6, "0, 1, 2, 3, 4 and 1 more;")]
)
def test_at_most_five_parameters_are_named(num, shown):
    names = [str(i) for i in range(num)]
    error = checks.non_finite(3, loss=0.5, grad_norm=NAN, rows=[], skipped=names)
    assert f"except {shown}" in error.what
