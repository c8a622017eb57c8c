"""WaveGlow (arXiv 1811.00002) in JAX: `wg.forward`, `wg.inverse`, `wg.loss`, `wg.load`."""
