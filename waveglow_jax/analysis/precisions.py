"""What a precision does to a function: its own dtypes, or an accelerator's arithmetic emulated.

A CPU multiplies float32 in full whatever precision JAX is asked for. To see what another machine
would make of the same program, the program's jaxpr is evaluated here with its products' operands,
or all of its values, rounded as that machine rounds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from waveglow_jax.jaxprs import evaluate, plainly

Bits = tuple[int, int]
"""Exponent and mantissa bits of a floating-point format, the hidden one not counted."""

BFLOAT16, FLOAT16, TF32 = (8, 7), (5, 10), (8, 10)


@dataclass(frozen=True)
class Precision:
    """How the flow is computed.

    stream: dtype of the flow's arrays, parameters and log-determinants. products: `dtype` of WN's
    networks. operands: the format to which both operands of every product are rounded (emulated);
    split: each as a sum of two such numbers, three products of the four. values: the format to
    which parameters, inputs and every result are rounded (emulated; sums run in float32).
    significand: its bits, the hidden one counted, for bits lost.
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
    """x rounded to nearest, ties to even, in a format that its own dtype holds."""
    return jax.lax.reduce_precision(x, *bits)


def emulated(function: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    """The function of arrays (pytrees of them) as that precision would compute it.

    Without an emulation it is the function itself. What runs inside a loop of XLA's (scan, while)
    or of LAPACK's is rounded only as it comes out.
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
