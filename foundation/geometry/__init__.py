"""Rotations, frames, torsions and the distributions on them. float32 data, float64 accumulators."""
