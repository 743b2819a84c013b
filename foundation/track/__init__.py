"""Metrics: JSONL always, W&B as a mirror."""
