"""The benchmarks' memory counters, against hand-computed cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.tracing import HeldBytes

ROOT = Path(__file__).parents[3]

COUNTED = """
import torch
from benchmarks.allocations import counting

before = torch.ones(500)
with counting() as found:
    x = torch.ones(1000, 1000)        # 4 MB
    y = x @ x                         # 8
    z = torch.relu(y)                 # 12: the peak of the first stretch
    del y, before                     # 8: what was there before does not count
    found.mark()
    w = torch.zeros(250_000)          # 9
    found.mark()
    del x, z                          # 1
    found.mark()
    after = torch.zeros(10_000_000)   # after the last mark
assert found.peaks == [12_000_000, 9_000_000, 9_000_000], found
assert found.at_marks == [8_000_000, 9_000_000, 1_000_000], found
"""


def test_allocator_events_match_hand_computed_peaks():
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_fake_tensors_match_hand_computed_peak_of_a_pass():
    """W is [1000, 1000], x [1000, 250]: x and y take 1 MB each, W's gradient 4, `following` 5.

    x, the gradient and `following` take 10 MB. If the gradient is freed first, the peak is 6 MB: x
    and `following`, or x, y and the gradient in the backward pass. A fused update of W with 4 bytes
    per number adds 4 MB to the latter: 10 MB.
    """
    with FakeTensorMode():
        weight, gradient = nn.Parameter(torch.ones(1000, 1000)), torch.ones(1000, 250)
        with HeldBytes([weight], update_bytes=4) as found:
            x = torch.ones(1000, 250)
            (weight @ x).backward(gradient)
            following = torch.empty(1_250_000)
    assert following.nbytes == 5_000_000
    assert found.peak == 10_000_000
    assert found.peak_without_gradients == 6_000_000
    assert found.peak_with_updates == 10_000_000
