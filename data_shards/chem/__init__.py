"""Graph chemistry of polymers: P-SMILES, repeat units, chains."""
