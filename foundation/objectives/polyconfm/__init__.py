"""PolyConFM: masked autoregression over repeat units, a local conformation head and an orientation head."""
