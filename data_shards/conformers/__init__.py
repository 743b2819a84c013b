"""Three-dimensional chains: fragment ensembles, the grow engine, quality checks."""
