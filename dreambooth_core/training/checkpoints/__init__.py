"""Checkpoints on disk: layout, publishing, resume state, saving."""
