"""The command `dreambooth`: one file per group of commands."""
