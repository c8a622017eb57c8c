"""Traverses JAX's programs: evaluates them step by step, and finds the programs inside a step.

All code that depends on how JAX's versions represent jaxprs is in this file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

Rule = Callable[[JaxprEqn, list[Any]], list[Any]]
"""Computes the results of one step (equation) from the values of its inputs."""


def evaluate(program: ClosedJaxpr, values: Sequence[Any], rule: Rule) -> list[Any]:
    """The program's outputs for these inputs; the rule computes each step.

    Steps that no output depends on are skipped. A rule that does not change a step returns
    `plainly(eqn, values, rule)`.
    """
    jaxpr = program.jaxpr
    wanted, needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            needed.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    known = dict(zip(inputs, [*program.consts, *values], strict=True))

    def value(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else known[v]

    for eqn in reversed(needed):
        results = rule(eqn, [value(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, results, strict=True))
    return [value(v) for v in jaxpr.outvars]


def plainly(eqn: JaxprEqn, values: list[Any], rule: Rule) -> list[Any]:
    """The results that JAX itself would give; the rule applies inside calls and branches.

    Loops (scan, while) and other steps that hold a program run as they are.
    """
    if eqn.primitive.name == "cond":
        return _branch(eqn.params["branches"], values, rule)
    called = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
    if isinstance(called, ClosedJaxpr) and eqn.primitive.name != "scan":
        return evaluate(called, values, rule)
    results = eqn.primitive.bind(*values, **eqn.params)
    return results if eqn.primitive.multiple_results else [results]


def _branch(branches: Sequence[ClosedJaxpr], values: list[Any], rule: Rule) -> list[Any]:
    index, *operands = values
    if isinstance(index, int):
        return evaluate(branches[index], operands, rule)

    def evaluated(branch: ClosedJaxpr) -> Callable[..., list[Any]]:
        return lambda *operands: evaluate(branch, operands, rule)

    return jax.lax.switch(index, [evaluated(branch) for branch in branches], *operands)


def scan_inputs(eqn: JaxprEqn) -> tuple[int, int]:
    """The number of a scan's inputs that are constants, and of those that are carried."""
    if "ft_in" in eqn.params:  # since JAX 0.11
        constants, carries, _ = eqn.params["ft_in"].unpack()
        return len(constants), len(carries)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def programs_inside(eqn: JaxprEqn) -> list[Any]:
    """The jaxprs, closed or not, among a step's parameters."""
    return [
        part
        for value in eqn.params.values()
        for part in (value if isinstance(value, tuple) else (value,))
        if hasattr(part, "eqns") or hasattr(part, "jaxpr")
    ]


def equations(program: Any) -> Sequence[Any]:
    """The steps of a jaxpr, closed or not."""
    return getattr(program, "jaxpr", program).eqns
