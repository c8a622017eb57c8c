"""What a program would take on accelerators that are not there, from their own compiler.

XLA's TPU compiler runs on a CPU: it gives the memory a chip needs, the operations, the collectives,
and its own estimate of every fusion's cycles. The estimate is the compiler's, not a measurement:
it knows no contention, no host and no input pipeline.
"""

import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError

EXTRA = "pip install 'waveglow-jax[tpu-preflight]'"


@dataclass(frozen=True)
class Chip:
    """Of one chip: bfloat16 peak in FLOP/s, clock in Hz, memory in bytes; from the vendor."""

    peak: float
    clock: float
    memory: int


# The clock is the peak over the multiply-adds a cycle: v5e has 4 arrays of 128 x 128, v5p 8 such.
CHIPS = {
    "v5e": Chip(197e12, 197e12 / (4 * 128 * 128 * 2), 16 << 30),
    "v5p": Chip(459e12, 459e12 / (8 * 128 * 128 * 2), 95 << 30),
}


@dataclass(frozen=True)
class Operation:
    """What several fusions of one source line take together, a step and chip."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Preflight:
    """Of one program on one topology. Bytes, FLOPs and seconds are those of one chip and step;
    seconds and samples/s are the compiler's estimates."""

    topology: str
    device_kind: str
    devices: int
    task: str
    batch: int
    samples: int
    compile_seconds: float
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    memory_bytes: int
    flops: float
    collective_count: int
    collective_bytes: int
    estimated_seconds: float
    estimated_samples_per_second: float
    share_of_peak: float
    heaviest: tuple[Operation, ...]

    @property
    def needed_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.output_bytes

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.memory_bytes


def prepare_environment() -> None:
    """To be called before JAX is imported: the host is a CPU, and no TPU is looked for."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # It warns at length that it is on no TPU machine.
    for name in ("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def preflight_training(config: Config, topology: str) -> Preflight:
    """The real training step over all chips of the topology, `train_config.batch_size` together.

    Raises UserError for an unknown topology, a batch the chips do not divide, or a compiler that is
    missing.
    """
    import jax
    import numpy as np

    from waveglow_jax.training.parallel import check_batch, lower_train_step
    from waveglow_jax.training.step import init_state

    chip, devices = _devices(topology)
    check_batch(config, len(devices))
    state = jax.eval_shape(lambda: init_state(config))
    share = config.train.batch_size // len(devices)
    clip = config.data.segment_length + config.data.filter_length
    batch = {
        "clips": jax.ShapeDtypeStruct((len(devices), share, clip), np.float32),
        "index": jax.ShapeDtypeStruct((len(devices), share), np.int32),
    }
    lowered = lower_train_step(config, config.train.steps, devices, state, batch)
    samples = config.train.batch_size * config.data.segment_length
    return _compiled(lowered, chip, devices, topology, "train", config.train.batch_size, samples)


def preflight_synthesis(
    config: Config, topology: str, batch: int, seconds: float, dtype: str
) -> Preflight:
    """The reverse pass of `batch` utterances of so many seconds, on one chip of the topology."""
    import jax
    import jax.numpy as jnp

    from waveglow_jax.flow.waveglow import init, inverse_prepared, prepare_inverse

    chip, devices = _devices(topology)
    placed = jax.sharding.SingleDeviceSharding(devices[0])

    def on_chip(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed)

    params = jax.eval_shape(lambda: prepare_inverse(init(jax.random.key(0), config)))
    hop, group = config.data.hop_length, config.waveglow.n_group
    frames = math.ceil(seconds * config.data.sampling_rate / hop)

    def reverse(params: Any, z: Any, mel: Any) -> Any:
        return inverse_prepared(params, config, z, mel, dtype=jnp.dtype(dtype))[0]

    lowered = jax.jit(reverse).lower(
        jax.tree.map(lambda leaf: on_chip(*leaf.shape), params),
        on_chip(batch, frames * hop // group, group),
        on_chip(batch, frames, config.waveglow.n_mel_channels),
    )
    samples = batch * frames * hop
    return _compiled(lowered, chip, devices[:1], topology, "synthesize", batch, samples)


def _devices(topology: str) -> tuple[Chip, list[Any]]:
    import jax
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise UserError(
            f"--topology {topology}: give {' or '.join(CHIPS)}, a colon and the chips' arrangement,"
            " such as v5e:2x4"
        )
    try:
        found = topologies.get_topology_desc(topology, "tpu")
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError, RuntimeError) as error:
        if "not installed" in str(error):
            raise UserError(f"the TPU compiler is not installed: {EXTRA}") from None
        why = " ".join(str(error).split())[:200]
        raise UserError(f"--topology {topology}: not known to the compiler ({why})") from None
    return CHIPS[kind], list(found.devices)


def _compiled(
    lowered: Any, chip: Chip, devices: list[Any], topology: str, task: str, batch: int, samples: int
) -> Preflight:
    began = time.monotonic()
    compiled = lowered.compile()
    compile_seconds = time.monotonic() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    flops = float(compiled.cost_analysis()["flops"])
    by_line: dict[str, list[float]] = defaultdict(list)
    collectives: list[float] = []
    for line, times in instructions(text):
        if found := re.search(r'"estimated_cycles":"(\d+)"', line):
            by_line[_source(line)].append(times * int(found[1]) / chip.clock)
        found = re.search(r"= (.*?) (?:all|reduce-scatter|collective)[\w-]*\(", line)
        if found and "-done(" not in line:
            collectives.append(times * _bytes(found[1]))
    seconds = sum(map(sum, by_line.values()))
    heaviest = sorted(
        (Operation(name, len(parts), sum(parts)) for name, parts in by_line.items()),
        key=lambda operation: -operation.seconds,
    )
    return Preflight(
        topology=topology,
        device_kind=devices[0].device_kind,
        devices=len(devices),
        task=task,
        batch=batch,
        samples=samples,
        compile_seconds=compile_seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        # What is donated comes back in the same place.
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory_bytes=chip.memory,
        flops=flops,
        collective_count=len(collectives),
        collective_bytes=int(sum(collectives)),
        estimated_seconds=seconds,
        estimated_samples_per_second=samples / seconds,
        share_of_peak=flops / seconds / chip.peak,
        heaviest=tuple(heaviest[:12]),
    )


def instructions(text: str) -> Iterator[tuple[str, int]]:
    """Every instruction of an HLO module that is run, and how often: loops by their trip counts."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = found[2]
            bodies[name] = []
            entry = name if found[1] else entry
        elif line.startswith(" ") and name:
            bodies[name].append(line)

    def walk(computation: str, times: int) -> Iterator[tuple[str, int]]:
        for line in bodies.get(computation, ()):
            yield line, times
            if " while(" in line:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
                body = re.search(r"body=%?([\w.-]+)", line)
                yield from walk(body[1], times * int(trips[1] if trips else 1))
            elif inner := re.search(
                r" (?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.-]+)", line
            ):
                yield from walk(inner[1], times)

    yield from walk(entry, 1)


def _source(line: str) -> str:
    """Where in our code an instruction comes from, layers of one kind together."""
    named = re.search(r'op_name="([^"]*)"', line)
    kind = re.sub(r"[\d.]+$", "", line.split("=")[0].strip().removeprefix("ROOT ").lstrip("%"))
    if not named:
        return kind
    parts = [part for part in named[1].split("/") if not re.match(r"(jit|pjit|shmap|pmap)\b", part)]
    return re.sub(r"\d+", "#", "/".join(parts[-3:])) or kind


def _bytes(shapes: str) -> int:
    sizes = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s8": 1}
    return sum(
        sizes.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def as_json(result: Preflight) -> dict[str, Any]:
    return {**asdict(result), "needed_bytes": result.needed_bytes, "fits": result.fits}


def as_text(result: Preflight) -> str:
    """A report for a person, in Markdown."""
    mib = 1 << 20
    verdict = "fits" if result.fits else "DOES NOT FIT"
    lines = [
        f"{result.task} on {result.topology} ({result.devices} x {result.device_kind}), batch "
        f"{result.batch}: {result.samples:,} samples; compiled in {result.compile_seconds:.0f} s",
        f"{verdict}: {result.needed_bytes / mib:,.0f} of {result.memory_bytes / mib:,.0f} MiB a "
        f"chip (arguments {result.argument_bytes / mib:,.0f}, temporary "
        f"{result.temporary_bytes / mib:,.0f}, new outputs {result.output_bytes / mib:,.0f})",
        f"{result.flops / 1e12:.3f} TFLOP a chip; {result.collective_count} collectives of "
        f"{result.collective_bytes / mib:,.1f} MiB together",
        "the compiler's estimate, not a measurement: "
        f"{1e3 * result.estimated_seconds:.1f} ms, "
        f"{result.estimated_samples_per_second / 1e6:.2f} million samples/s, "
        f"{result.share_of_peak:.0%} of the bfloat16 peak",
        "",
        "| operation | fusions | ms (estimate) |",
        "| --- | --- | --- |",
        *(f"| {o.name} | {o.count} | {1e3 * o.seconds:.2f} |" for o in result.heaviest),
    ]
    return "\n".join(lines)
