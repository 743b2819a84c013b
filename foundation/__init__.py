"""Shards -> batches -> encoders and one objective -> training -> sampling -> evaluation."""
