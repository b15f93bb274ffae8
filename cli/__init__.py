"""The command `dreambooth`, with one file per group of commands."""
