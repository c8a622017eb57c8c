"""Reference numbers of the original, and the files its weights came in."""

import json
from pathlib import Path

import numpy as np

from waveglow_jax.config import Config, config_from_dict
from waveglow_jax.weights.release import read_weights

DATA = Path(__file__).parent / "data"
CASES = DATA / "cases"  # files as they are found in the wild, one folder per kind
CHECKPOINTS = sorted(DATA.glob("*.pt"))


def golden_config() -> Config:
    return config_from_dict(
        {"waveglow_config": json.loads((DATA / "golden_config.json").read_text())}
    )


def golden_params() -> dict:
    return read_weights(DATA / "statedict_unfused_zip.pt").params


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def close(ours, theirs, relative):
    theirs = np.asarray(theirs)
    error = np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs))
    assert error <= relative, f"off by {error:.2e} of the largest value"
