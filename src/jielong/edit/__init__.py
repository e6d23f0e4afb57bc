"""Correct one fact in a model that is trained."""
