"""Compiling is what most tests spend their time on."""

from functools import partial

import jax

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` without the backend's polish, which doubles the time: for small functions and for what
the product is compared with."""
