"""From a checkpoint and P-SMILES to structure files."""
