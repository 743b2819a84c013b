"""Network blocks shared by encoders and objectives."""
