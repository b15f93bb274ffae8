"""The scripts of the seed document: their flags, folders and outputs, over the same core."""
