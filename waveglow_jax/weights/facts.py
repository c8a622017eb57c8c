"""Describes weights and reports what looks wrong about them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.errors import escaped
from waveglow_jax.flow.steps import COUPLING, conditioner_of
from waveglow_jax.weights.weights import Weights

# |det W| of trained flows stays within about a decade of 1, that of the initial rotations; a
# float32 inverse loses as many digits as the condition number has.
_WIDE_DETERMINANT = 1e3
_ILL_CONDITIONED = 1e4


def report(weights: Weights) -> dict[str, Any]:
    """A JSON-ready report: kind, generation, description, training, notes, hyper-parameters,
    number of parameters, |det W| and condition numbers (float64) of the 1x1 convolutions, and
    `suspicious`, one sentence per problem."""
    flows = weights.params["flows"]
    determinants, conditions = determinants_and_conditions(flows)
    return {
        "kind": weights.kind,
        "generation": weights.generation,
        "description": weights.config.description,
        "training": weights.training,
        "notes": list(weights.notes),
        "waveglow_config": dataclasses.asdict(weights.config.waveglow),
        "sampling_rate": weights.config.data.sampling_rate,
        "hop_length": weights.config.data.hop_length,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights.params)),
        "determinants": determinants,
        "condition_numbers": conditions,
        "suspicious": suspicious_matrices(determinants, conditions)
        + _suspicious_layers(flows, weights.config),
    }


def determinants_and_conditions(flows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """|det W| and the condition number of each flow's 1x1 convolution, in float64."""
    convs = [np.asarray(flow["conv"], np.float64) for flow in flows]
    determinants = [float(abs(np.linalg.det(w))) for w in convs]
    # The condition number of a singular W is infinite, which JSON cannot represent.
    largest = np.finfo(np.float64).max
    return determinants, [float(min(np.linalg.cond(w), largest)) for w in convs]


def suspicious_matrices(determinants: Sequence[float], conditions: Sequence[float]) -> list[str]:
    """One sentence for each W whose |det W| or condition number is unusual for a trained flow."""
    found = []
    for k, (determinant, condition) in enumerate(zip(determinants, conditions, strict=True)):
        if not 1 / _WIDE_DETERMINANT < determinant < _WIDE_DETERMINANT:
            found.append(f"flow {k}: |det W| is {determinant:.3g}, far from a rotation's 1")
        if not condition < _ILL_CONDITIONED:
            found.append(f"flow {k}: W's condition number is {condition:.3g}: float32 loses digits")
    return found


def _suspicious_layers(flows: list[dict[str, Any]], config: Config) -> list[str]:
    faults = conditioner_of(config).faults
    of_flows = [faults(flow[COUPLING.name]) for flow in flows]
    return [f"flow {k}: {fault}" for k, found in enumerate(of_flows) for fault in found]


def as_text(found: dict[str, Any]) -> str:
    """The report as text, one fact per line."""
    glow = found["waveglow_config"]
    wn = glow["WN_config"]
    residual, skip = wn["n_channels"], wn["n_skip_channels"] or wn["n_channels"]
    determinants, conditions = found["determinants"], found["condition_numbers"]
    lines = [
        found["kind"],
        *([f"layers: {found['generation']}"] if found["generation"] else []),
        *([escaped(found["description"])] if found["description"] else []),
        f"{found['parameters'] / 1e6:.2f} million parameters",
        f"{glow['n_flows']} flows in groups of {glow['n_group']}, {glow['n_early_size']} channels "
        f"leave every {glow['n_early_every']} flows; WN {wn['n_layers']} layers, {residual} "
        f"residual and {skip} skip channels, kernel {wn['kernel_size']}",
        f"{glow['n_mel_channels']} mel bins, hop {found['hop_length']}, "
        f"{found['sampling_rate']} Hz, conditioning by {glow['conditioning']}"
        + (", mel whitening" if glow["mel_whitening"] else ""),
        f"|det W| {min(determinants):.4g} to {max(determinants):.4g}, condition numbers up to "
        f"{max(conditions):.4g}",
        *(f"{key.replace('_', ' ')}: {value}" for key, value in found["training"].items()),
        *found["notes"],
        *(f"suspicious: {sentence}" for sentence in found["suspicious"]),
    ]
    return "\n".join(lines)
