"""One run in many processes: joining, agreeing on inputs, exchanging data, and stopping."""

import ctypes
import hashlib
import importlib.util
import os
import re
import signal
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from glob import glob
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from waveglow_jax.errors import UserError

JOIN_SECONDS = 300
STOP_SECONDS = 5
SAVE_SECONDS = 3600
TEXT_BLOCK = 1024


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the run's other processes, before anything else asks JAX for a device.

    If all three arguments are given, they name the run's coordinator, number of processes and this
    process. If none is given, JAX's own detection joins them when the environment is a cluster's;
    otherwise this process is the only one. Raises UserError if only some are given, or if the
    processes do not find each other.
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


@contextmanager
def aborts_explained() -> Iterator[None]:
    """Within the block, an abort ends the process with one more line and exit code 75.

    Threads of XLA and of the coordinator's client abort when another process is lost, and Python
    sees no exception. JAX's own callback for this case cannot be used: it ends with std::bad_cast.
    """

    line = (
        f"error: process {jax.process_index()}: XLA has aborted (see above), most often because "
        "another process of the run was lost; start all of them again, the run goes on from its "
        "last checkpoint\n"
    ).encode()

    def end(_number: int) -> None:
        os.write(2, line)
        os._exit(os.EX_TEMPFAIL)

    # Not by Python's `signal`, whose handlers run after the C function returns: abort never does.
    # A ctypes function runs at once, in the aborting thread, as soon as that gets the GIL.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        # While the interpreter shuts down, no thread gets the GIL any more.
        set_handler(signal.SIGABRT, before)


def enough_threads(environment: MutableMapping[str, str]) -> None:
    """Makes XLA start two threads per CPU device if XLA_FLAGS asks for more devices than cores.

    Each device occupies a thread while it waits for the others in a collective. With XLA's default
    of one thread per core, more devices than cores would deadlock.
    """
    flags = environment.get("XLA_FLAGS", "")
    asked = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    if asked and int(asked[1]) > (os.cpu_count() or 1):
        environment.setdefault("NPROC", str(2 * int(asked[1])))


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX should look for other processes, decided without a query to the network."""
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
    # libtpu alone proves nothing: it also compiles for TPUs on machines that have none.
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
    """Whether this process writes the run's folder, which the others need no access to."""
    return jax.process_index() == 0


def from_first(tree: Any) -> Any:
    """The first process's arrays, bit-exact, on every process; all pass the same shapes."""
    if jax.process_count() == 1:
        return tree
    # As integers: the broadcast adds zeros, which is exact then and keeps -0.0 and denormals.
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
    # In whole blocks, so that texts of similar length need the same compiled program.
    blocks = content.ljust(-(-size // TEXT_BLOCK) * TEXT_BLOCK, b"\0")
    padded = np.frombuffer(blocks, np.uint8).astype(np.int32)
    first = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
    return first[:size].decode("utf-8", "surrogatepass")


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
    """Whether every process gets the signal and arrives at this point of the run within seconds.

    If so, all may abandon the work; otherwise they must continue until they meet in a step.
    """
    if jax.process_count() == 1:
        return True
    return _meet(f"stopped in {where}", STOP_SECONDS)


def wait_for_all(where: str) -> None:
    """Waits until every process arrives at this point of the run."""
    if jax.process_count() > 1:
        _meet(where, SAVE_SECONDS)


def _meet(where: str, seconds: int) -> bool:
    """Whether all processes arrive within `seconds`.

    The coordinator synchronises them, because the devices may be busy.
    """
    import orbax.checkpoint as ocp

    try:
        ocp.multihost.get_barrier_sync_fn()(key=where, timeout_ms=1000 * seconds)
    except jax.errors.JaxRuntimeError:
        return False
    return True
