"""The HTML page, grids, curves and the model card."""
