"""The training step on whatever device JAX has, by torchax: the only importer of JAX."""
