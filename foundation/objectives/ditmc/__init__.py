"""DiTMC: flow matching of atoms in space with diffusion transformers."""
