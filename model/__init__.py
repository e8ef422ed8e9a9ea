"""Joint (static + dynamic) masked autoencoder for tactile clips: model, data and trainer. Knows nothing of sweeps."""
