"""Data parallelism over all devices: the only file that says pmap.

The state is replicated and has no device axis; a batch's arrays are `[devices, B / devices, ...]`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.training.step import TrainState, train_step, validation_step

AXIS = "devices"
Batch = dict[str, np.ndarray]


def parallel_train_step(
    config: Config, total_steps: int, devices: Sequence[jax.Device]
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step` over the devices. The state that goes in is donated: use the one returned."""
    check_batch(config, len(devices))
    return jax.pmap(
        lambda state, batch: train_step(state, batch, config, total_steps, AXIS),
        AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def parallel_validation_step(
    config: Config, devices: Sequence[jax.Device]
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """`validation_step` over the devices."""
    return jax.pmap(
        lambda params, batch: validation_step(params, batch, config, AXIS),
        AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
    )


def replicate(state: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of the state on every device, laid out as the step returns it: compiled once."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def split(batch: Batch, n_devices: int) -> Batch:
    """Every array `[B, ...] -> [devices, B / devices, ...]`."""
    return {k: v.reshape(n_devices, -1, *v.shape[1:]) for k, v in batch.items()}


def check_batch(config: Config, n_devices: int) -> None:
    """Raises UserError if the devices, and the parts of their shares, do not divide the batch."""
    train = config.train
    batch, parts = train.batch_size, train.gradient_accumulation
    unit = n_devices * parts
    if batch % unit:
        each = f", {parts} parts each (train_config.gradient_accumulation)" if parts > 1 else ""
        raise UserError(
            f"train_config.batch_size {batch} is not divided by the {n_devices} devices{each}: "
            f"take {batch // unit * unit or unit} or {(batch // unit + 1) * unit} "
            "(--train.batch_size N)"
        )
