"""Shards to packed batches, in an order that is pure arithmetic."""
