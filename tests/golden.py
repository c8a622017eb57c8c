"""Reference numbers of the original, and its weights in our parameter tree."""

import json
from pathlib import Path

import numpy as np

from waveglow_jax.config import Config, config_from_dict

DATA = Path(__file__).parent / "data"


def golden_config() -> Config:
    return config_from_dict(
        {"waveglow_config": json.loads((DATA / "golden_config.json").read_text())}
    )


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def golden_params() -> dict:
    weights = expected("golden_weights.npz")
    config = golden_config()
    return {
        "upsample": {
            "kernel": weights["upsample.weight"].transpose(2, 0, 1),
            "bias": weights["upsample.bias"],
        },
        "flows": [
            {"conv": weights[f"convinv.{k}.conv.weight"][:, :, 0], "wn": _wn(weights, k, config)}
            for k in range(config.waveglow.n_flows)
        ],
    }


def _wn(weights: dict[str, np.ndarray], k: int, config: Config) -> dict:
    def layer(name: str) -> dict:
        prefix = f"WN.{k}.{name}."
        return {
            "v": weights[prefix + "weight_v"].transpose(2, 1, 0),
            "g": weights[prefix + "weight_g"][:, 0, 0],
            "bias": weights[prefix + "bias"],
        }

    wn = {"start": layer("start")}
    for i in range(config.waveglow.WN.n_layers):
        for ours, original in (
            ("in_layer", "in_layers"),
            ("cond_layer", "cond_layers"),
            ("res_skip_layer", "res_skip_layers"),
        ):
            wn[f"{ours}_{i}"] = layer(f"{original}.{i}")
    wn["end"] = {
        "kernel": weights[f"WN.{k}.end.weight"].transpose(2, 1, 0),
        "bias": weights[f"WN.{k}.end.bias"],
    }
    return wn
