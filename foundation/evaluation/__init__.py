"""Metrics with intervals, failures counted, baselines beside them."""
