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


def lower_train_step(
    config: Config, total_steps: int, devices: Sequence[Any], state: Any, batch: dict[str, Any]
) -> Any:
    """`parallel_train_step` lowered for devices that need not be there, from shapes alone."""
    return parallel_train_step(config, total_steps, devices).lower(state, batch)


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
    """Raises UserError if the devices do not divide the batch."""
    batch = config.train.batch_size
    if batch % n_devices:
        raise UserError(
            f"train_config.batch_size {batch} is not divided by the {n_devices} devices: "
            f"take {batch // n_devices * n_devices or n_devices} or "
            f"{(batch // n_devices + 1) * n_devices} (--train.batch_size N)"
        )
