"""P-SMILES -> chemistry -> 3-D conformations -> quality -> WebDataset shards. Never imports torch."""
