"""The experiments that the papers call for, one command each. `python -m benchmarks.experiments` lists them."""
