"""Adapters, task heads and inverse design on top of a pretrained foundation model."""
