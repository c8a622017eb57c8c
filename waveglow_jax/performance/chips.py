"""The accelerators that `preflight` knows: their peaks, their memory and their links."""

import math
import re
from dataclasses import dataclass

from waveglow_jax.errors import UserError
from waveglow_jax.performance.hlo import Collective


@dataclass(frozen=True)
class Chip:
    """One chip's bfloat16 peak in FLOP/s, clock in Hz and memory in bytes, from the vendor.

    link: bytes/s of one link in one direction; for a GPU, those of all its links in its host.
    ring: an axis of a multiple of this many TPU chips closes into a ring.
    """

    platform: str
    peak: float
    clock: float
    memory: int
    link: float
    ring: int = 0


# The clock is the peak divided by the FLOPs per cycle (two per multiply-add): v5e has 4 arrays of
# 128 x 128, and v5p has 8 of them. Google states 400 GB/s over the 4 links of a v5e and 1,200 over
# the 6 of a v5p, both directions together; NVIDIA 900 GB/s of NVLink per H100, likewise.
CHIPS = {
    "v5e": Chip("tpu", 197e12, 197e12 / (4 * 128 * 128 * 2), 16 << 30, 50e9, ring=16),
    "v5p": Chip("tpu", 459e12, 459e12 / (8 * 128 * 128 * 2), 95 << 30, 100e9, ring=4),
    "h100": Chip("cuda", 989e12, 1.98e9, 80 << 30, 450e9),
}
GPUS_PER_HOST = 8
NETWORK = 50e9
"""Bytes/s in one direction between hosts per GPU: a network card of 400 Gbit/s for each."""
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 85899345920
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The GPU description that the compiler needs, with the vendor's figures for the SXM form."""


def gpu_hosts(gpus: int) -> tuple[int, int]:
    """The number of hosts and of the GPUs in each."""
    return (1, gpus) if gpus <= GPUS_PER_HOST else (gpus // GPUS_PER_HOST, GPUS_PER_HOST)


def check_topology(topology: str) -> None:
    """Raises UserError for a name that is none of the form v5e:2x4, v5p:2x2x1 or h100:8."""
    kind, _, shape = topology.partition(":")
    pattern = r"[1-8]|[1-9]\d{0,3}" if kind == "h100" else r"\d+x\d+(x\d+)?"
    if kind not in CHIPS or not re.fullmatch(pattern, shape):
        raise UserError(
            f"{topology}: give v5e or v5p, a colon and the chips' arrangement, such as v5e:2x4, or "
            "h100:8"
        )
    if kind == "h100" and math.prod(gpu_hosts(int(shape))) != int(shape):
        raise UserError(f"{topology}: more than 8 GPUs come in eights")


def link_seconds(found: Collective, topology: str) -> float:
    """The least time that the links need for the collectives, by arithmetic.

    Of n chips in rings, each sends (n - 1) / n of the bytes, and an all-reduce does so twice.
    Between hosts of 8 GPUs each GPU does this for its eighth of the bytes. The result leaves
    out latency, contention and the additions themselves.
    """
    kind, _, shape = topology.partition(":")
    chip, sent = CHIPS[kind], found.bytes * (2 if found.kind == "all-reduce" else 1)
    if chip.platform == "cuda":
        hosts, local = gpu_hosts(int(shape))
        inside = sent * (1 - 1 / local) / chip.link
        return inside + sent / local * (1 - 1 / hosts) / NETWORK
    sides = [int(side) for side in shape.split("x")]
    closed = [side % chip.ring == 0 for side in sides]
    if len(sides) == 3:  # a v5p's links close into rings in whole cubes of 4 x 4 x 4 only
        closed = [all(closed)] * 3
    # A ring sends in both directions. A line of chips is a ring that returns by the same links.
    speed = sum(
        chip.link * (2 if ring else 1) for side, ring in zip(sides, closed, strict=True) if side > 1
    )
    n = math.prod(sides)
    return sent * (1 - 1 / n) / speed if n > 1 else 0.0
