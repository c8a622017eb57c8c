from waveglow_jax.synthesis import denoiser

__all__ = ["denoiser"]
