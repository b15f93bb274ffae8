"""The embedded pocket models: a drawn world with captions, and four small models trained on it."""
