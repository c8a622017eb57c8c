"""Functions computed in other precisions: other dtypes, or an accelerator's emulated arithmetic.

A CPU multiplies float32 in full precision, whatever precision JAX is asked for. To show what
another machine would compute with the same program, this module evaluates the program's jaxpr and
rounds the matmuls' operands, or all values, as that machine rounds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from waveglow_jax.jaxprs import evaluate, plainly

Bits = tuple[int, int]
"""Exponent and mantissa bits of a floating-point format, without the hidden bit."""

BFLOAT16, FLOAT16, TF32 = (8, 7), (5, 10), (8, 10)


@dataclass(frozen=True)
class Precision:
    """The precision in which the flow is computed.

    stream: dtype of the flow's arrays, parameters and log-determinants. products: the compute
    `dtype` of the WN networks. operands: the format to which the emulation rounds both operands of
    every matmul. split: whether the emulation represents each operand as a sum of two such numbers
    and computes three of the four partial matmuls. values: the format to which the emulation rounds
    parameters, inputs and every result; sums run in float32. significand: the number of significand
    bits, including the hidden bit, which `bits_lost` refers to.
    """

    name: str
    about: str
    stream: str = "float32"
    products: str = "float32"
    operands: Bits | None = None
    split: bool = False
    values: Bits | None = None
    significand: int = 24

    @property
    def emulated(self) -> bool:
        return self.operands is not None or self.values is not None


PRECISIONS = (
    Precision("float64", "everything in float64", "float64", "float64", significand=53),
    Precision("float32", "everything in float32, products in full (`highest`)"),
    Precision(
        "bfloat16_3x products",
        "emulated: every product as three of bfloat16 (`high` on a TPU)",
        operands=BFLOAT16,
        split=True,
    ),
    Precision(
        "TF32 products",
        "emulated: operands of every product rounded to 10 mantissa bits (`default` on a GPU)",
        operands=TF32,
    ),
    Precision(
        "bfloat16 products",
        "emulated: operands of every product rounded to bfloat16 (`default` on a TPU)",
        operands=BFLOAT16,
    ),
    Precision(
        "float16 in WN",
        "`--dtype float16`: WN's operands, its sums and the stream float32",
        products="float16",
    ),
    Precision("bfloat16 in WN", "`--dtype bfloat16`: likewise", products="bfloat16"),
    Precision(
        "float16",
        "emulated: every value of the flow rounded to float16, its stream too",
        values=FLOAT16,
        significand=11,
    ),
    Precision(
        "bfloat16",
        "emulated: every value of the flow rounded to bfloat16, its stream too",
        values=BFLOAT16,
        significand=8,
    ),
)
BY_NAME = {precision.name: precision for precision in PRECISIONS}
FLOAT64, FLOAT32 = PRECISIONS[:2]


def rounded(x: jax.Array, bits: Bits) -> jax.Array:
    """x rounded to nearest, ties to even, to a format whose values x's own dtype can represent."""
    return jax.lax.reduce_precision(x, *bits)


def emulated(function: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    """The function of arrays (or pytrees of arrays) as that precision would compute it.

    For a precision without emulation, this is the function itself. Values inside an XLA loop (scan,
    while) or a LAPACK routine are not rounded; only its results are.
    """
    if not precision.emulated:
        return function

    def run(*arguments: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = [_result(leaf, precision) for leaf in jax.tree.leaves(arguments)]
        return jax.tree.unflatten(jax.tree.structure(shape), evaluate(program, leaves, rule))

    def rule(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
        if eqn.primitive.name == "dot_general" and precision.operands:
            results = [_product(values[0], values[1], eqn.params, precision)]
        else:
            results = plainly(eqn, values, rule)
        return [_result(result, precision) for result in results]

    return run


def _result(x: Any, precision: Precision) -> Any:
    if precision.values is None or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return rounded(x, precision.values)


def _product(a: jax.Array, b: jax.Array, parameters: dict[str, Any], precision: Precision) -> Any:
    how = {"dimension_numbers": parameters["dimension_numbers"], "precision": "highest"}
    operands = precision.operands
    assert operands is not None
    a_high, b_high = rounded(a, operands), rounded(b, operands)
    high = jax.lax.dot_general(a_high, b_high, **how)
    if not precision.split:
        return high
    a_low, b_low = (rounded(x - top, operands) for x, top in ((a, a_high), (b, b_high)))
    low = jax.lax.dot_general(a_high, b_low, **how) + jax.lax.dot_general(a_low, b_high, **how)
    return high + low
