"""Pretraining of the pocket models: four small models trained on drawn scenes with captions."""
