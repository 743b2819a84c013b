"""DiTMC."""
