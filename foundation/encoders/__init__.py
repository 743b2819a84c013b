"""1-D sequence, 2-D graph and 3-D unit encoders."""
