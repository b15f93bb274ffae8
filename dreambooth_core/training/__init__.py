"""The training engine: loss, step, loop, checkpoints, launch."""
