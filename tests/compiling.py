"""A `jax.jit` that compiles quickly, because compiling takes most of the tests' time."""

from functools import partial

import jax

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` without the backend's optimisations, which double the compile time: for small functions
and for the references with which results are compared."""
