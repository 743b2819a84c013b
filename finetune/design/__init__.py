"""Inverse design: polymers drawn for target properties."""
