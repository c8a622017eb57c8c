"""One run in many processes: joining them, agreeing, and leaving when one of them is lost."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping, MutableMapping
from glob import glob
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from waveglow_jax.errors import UserError

JOIN_SECONDS = 300
STOP_SECONDS = 5
SAVE_SECONDS = 3600


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the run's other processes, before anything else asks JAX for a device.

    With all three given, by them; with none, by JAX's own detection if the environment is that of
    a cluster, else this process is the only one. Raises UserError if they do not find each other.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    enough_threads(os.environ)
    if any(given) and not all(given):
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    if not any(given) and not in_cluster(os.environ):
        return
    try:
        if all(given):
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                cluster_detection_method="deactivate",
                initialization_timeout=JOIN_SECONDS,
            )
        else:
            jax.distributed.initialize(initialization_timeout=JOIN_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run did not find each other ({str(error).splitlines()[0]}); "
            "start all of them with the same --coordinator HOST:PORT and --processes N, and each "
            "with its own --process 0 to N-1"
        ) from error


def enough_threads(environment: MutableMapping[str, str]) -> None:
    """Has XLA start two threads for each of the CPU devices that XLA_FLAGS asks for.

    Each device occupies a thread while it waits for the others in a collective. With one thread per
    core, as XLA has otherwise, more devices than cores wait for each other for ever.
    """
    flags = environment.get("XLA_FLAGS", "")
    asked = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    if asked and int(asked[1]) > (os.cpu_count() or 1):
        environment.setdefault("NPROC", str(2 * int(asked[1])))


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX should look for other processes: it is told so, and need not ask the network."""
    many = any(
        int(environment.get(count, "1")) > 1 and marker in environment
        for count, marker in (
            ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
            ("OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"),
        )
    )
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return many or kubernetes or _tpu_slice(environment)


def _tpu_slice(environment: Mapping[str, str]) -> bool:
    # libtpu alone says nothing: it also compiles for TPUs where there are none.
    if environment.get("JAX_PLATFORMS", "tpu") != "tpu":
        return False
    if "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return True
    if "TPU_WORKER_HOSTNAMES" in environment:
        return "," in environment["TPU_WORKER_HOSTNAMES"]
    chips = glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*")
    libtpu = importlib.util.find_spec("libtpu") is not None
    return bool(chips) and libtpu and "TPU_SKIP_MDS_QUERY" not in environment


def is_first() -> bool:
    """Whether this process writes the run's folder; the others need not even see it."""
    return jax.process_index() == 0


def from_first(tree: Any) -> Any:
    """The first process's arrays on every process, to the bit; the others give the same shapes."""
    if jax.process_count() == 1:
        return tree
    # As integers: a sum with zeros is to the bit then, and no -0.0 or denormal is lost.
    bits = jax.tree.map(lambda leaf: np.atleast_1d(leaf).view(np.uint32), tree)
    bits = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(
        lambda leaf, got: np.asarray(got).view(np.asarray(leaf).dtype).reshape(np.shape(leaf)),
        tree,
        bits,
    )


def text_from_first(text: str) -> str:
    """The first process's text on every process."""
    if jax.process_count() == 1:
        return text
    content = text.encode("utf-8", "surrogatepass") if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(size, b"\0"), np.uint8).astype(np.int32)
    first = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
    return first.decode("utf-8", "surrogatepass")


def check_agreed(what: str, text: str) -> None:
    """Raises UserError on every process unless the text is the same on all of them."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), np.uint32
    )
    digests = multihost_utils.process_allgather(digest)
    other = np.flatnonzero((digests != digests[0]).any(axis=1))
    if other.size:
        raise UserError(
            f"{what} of process {other[0]} is not that of process 0; start every process with the "
            "same command on the same files"
        )


def all_stopped(where: str) -> bool:
    """Whether every process has got the signal and is at this place of the run, within seconds.

    Then all may leave it; else they must go on until they meet in a step.
    """
    if jax.process_count() == 1:
        return True
    return _meet(f"stopped in {where}", STOP_SECONDS)


def wait_for_all() -> None:
    """Returns when every process has come here: none is torn down while another still saves."""
    if jax.process_count() > 1:
        _meet("end of the run", SAVE_SECONDS)


def _meet(where: str, seconds: int) -> bool:
    """Whether all processes came within so many seconds, by the coordinator: no device is asked,
    which may be at work for others."""
    import orbax.checkpoint as ocp

    try:
        ocp.multihost.get_barrier_sync_fn()(key=where, timeout_ms=1000 * seconds)
    except jax.errors.JaxRuntimeError:
        return False
    return True
