"""The cost of a program on accelerators that this machine lacks, from the accelerators' compilers.

XLA's TPU compiler runs on a CPU. It gives the memory per chip, the collectives, and its own
estimate of every fusion's cycles. The estimate is the compiler's and not a measurement: it ignores
contention, the host and the input pipeline. The compiler for NVIDIA's GPUs gives memory and
collectives but no estimate of time. For both, this module counts the FLOPs.
"""

import math
import os
import re
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.performance.chips import (
    CHIPS,
    H100,
    Chip,
    check_topology,
    gpu_hosts,
    link_seconds,
)
from waveglow_jax.performance.hlo import Collective, collectives, instructions

EXTRAS = {"tpu": "tpu", "cuda": "cuda12"}
NOTES = ("stop", "unreadable")
"""The numbers that the processes of a run exchange with every batch."""


@dataclass(frozen=True)
class Operation:
    """The total time of all fusions of one source line, per step and chip."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Preflight:
    """The cost of one program on one topology. Bytes, FLOPs and seconds are per chip and step.

    flops: those of matmuls and convolutions, including what a backward pass recomputes.
    estimated_*, share_of_peak and heaviest: the compiler's estimates, None or empty if it gives
    none. They leave the collectives out. waiting_seconds: what the collectives add that nothing
    overlaps, by arithmetic from the stated speed of the links (`link_seconds`).
    """

    topology: str
    device_kind: str
    devices: int
    task: str
    batch: int
    samples: int
    compile_seconds: float
    compile_cpu_seconds: float
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    memory_bytes: int
    flops: float
    collectives: tuple[Collective, ...]
    waiting_seconds: float
    estimated_seconds: float | None
    estimated_samples_per_second: float | None
    share_of_peak: float | None
    heaviest: tuple[Operation, ...]

    @property
    def needed_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.output_bytes

    @property
    def collective_count(self) -> int:
        return sum(found.count for found in self.collectives)

    @property
    def collective_bytes(self) -> int:
        return sum(found.bytes for found in self.collectives)

    @property
    def waiting_share(self) -> float | None:
        """The share of a step in which a chip waits for collectives; None without an estimate."""
        seconds = self.estimated_seconds
        return seconds and self.waiting_seconds / (seconds + self.waiting_seconds)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.memory_bytes


def prepare_environment() -> None:
    """Makes JAX use the CPU and look for no TPU. It must be called before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Only the compiler of libtpu is used, so several processes may load it at once.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # This silences libtpu's long warnings about not running on a TPU machine.
    for name in ("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def preflight_training(config: Config, topology: str) -> Preflight:
    """The cost of the real training step over all chips of the topology.

    `train_config.batch_size` is the batch of all chips together. Raises UserError for an unknown
    topology, a batch that the number of chips does not divide, or a missing compiler.
    """
    import jax
    import numpy as np

    from waveglow_jax.training.batch import Batch
    from waveglow_jax.training.parallel import check_batch, parallel_train_step
    from waveglow_jax.training.step import init_state

    chip, devices = _devices(topology)
    check_batch(config, len(devices))
    state = jax.eval_shape(lambda: init_state(config))
    share = config.train.batch_size // len(devices)
    batch = Batch(
        clips=jax.ShapeDtypeStruct((len(devices), share, config.clip_length), np.float32),
        index=jax.ShapeDtypeStruct((len(devices), share), np.int32),
        notes={name: jax.ShapeDtypeStruct((len(devices),), np.float32) for name in NOTES},
    )
    step = parallel_train_step(config, config.train.steps, devices)
    samples = config.train.batch_size * config.clip_samples
    size = "train", config.train.batch_size, samples
    return _compiled(step, (state, batch), chip, devices, topology, *size)


def preflight_synthesis(
    config: Config, topology: str, batch: int, seconds: float, dtype: str
) -> Preflight:
    """The cost of the reverse pass on one chip of the topology.

    batch: number of utterances. seconds: length of each.
    """
    import jax
    import jax.numpy as jnp

    from waveglow_jax.flow.waveglow import inverse_prepared, parameter_shapes, prepare_inverse

    chip, devices = _devices(topology)
    placed = jax.sharding.SingleDeviceSharding(devices[0])

    def on_chip(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed)

    params = jax.eval_shape(prepare_inverse, parameter_shapes(config))
    hop = config.data.hop_length
    frames = math.ceil(seconds * config.data.sampling_rate / hop)

    def reverse(params: Any, z: Any, mel: Any) -> Any:
        return inverse_prepared(params, config, z, mel, dtype=jnp.dtype(dtype))[0]

    shapes = (
        jax.tree.map(lambda leaf: on_chip(*leaf.shape), params),
        on_chip(batch, config.steps_of(frames), config.waveglow.n_group),
        on_chip(batch, frames, config.waveglow.n_mel_channels),
    )
    size = "synthesize", batch, batch * frames * hop
    return _compiled(jax.jit(reverse), shapes, chip, devices[:1], topology, *size)


def _devices(topology: str) -> tuple[Chip, list[Any]]:
    import jax
    from jax.experimental import topologies

    check_topology(topology)
    kind, _, shape = topology.partition(":")
    chip, arguments = CHIPS[kind], {}
    if kind == "h100":
        hosts, local = gpu_hosts(int(shape))
        arguments = {"target_config": H100, "topology": f"1x{hosts}x{local}"}
    try:
        found = topologies.get_topology_desc(topology, chip.platform, **arguments)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError, RuntimeError) as error:
        if re.search("not installed|not implemented for", str(error)):
            remedy = f"pip install 'waveglow-jax[{EXTRAS[chip.platform]}]'"
            raise UserError(
                f"the {chip.platform.upper()} compiler is not installed: {remedy}"
            ) from None
        why = " ".join(str(error).split())[:200]
        raise UserError(f"--topology {topology}: not known to the compiler ({why})") from None
    return chip, list(found.devices)


def _compiled(
    function: Any,
    shapes: tuple[Any, ...],
    chip: Chip,
    devices: list[Any],
    topology: str,
    task: str,
    batch: int,
    samples: int,
) -> Preflight:
    import jax

    flops = product_flops(jax.make_jaxpr(function)(*shapes), chip.platform)
    lowered = function.lower(*shapes)
    began, cpu = time.monotonic(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).partition("RESOURCE_EXHAUSTED: ")[2].partition("\n")[0]
        raise UserError(
            f"batch {batch} does not fit {topology}, says the compiler: {why[:200].rstrip()} Try a "
            "smaller --batch, --train.checkpoint_flows true or --train.gradient_accumulation 2"
        ) from None
    compile_seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    memory, text = compiled.memory_analysis(), compiled.as_text()
    by_line: dict[str, list[float]] = defaultdict(list)
    for line, times in instructions(text):
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            by_line[_source(line)].append(times * int(cycles[1]) / chip.clock)
    seconds = sum(map(sum, by_line.values())) or None
    found = collectives(text)
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
        compile_cpu_seconds=cpu,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        # Donated arguments and their outputs share the same memory.
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory_bytes=chip.memory,
        flops=flops,
        collectives=found,
        waiting_seconds=sum(link_seconds(each, topology) for each in found if not each.overlapped),
        estimated_seconds=seconds,
        estimated_samples_per_second=seconds and samples / seconds,
        share_of_peak=seconds and flops / seconds / chip.peak,
        heaviest=tuple(heaviest[:12]),
    )


def product_flops(jaxpr: Any, platform: str) -> float:
    """FLOPs of the matmuls and convolutions of a jaxpr; those of a loop count once per iteration.

    Of code that depends on the platform, the branch for the given platform counts. Work that is
    split over devices counts for one of them. A loop of unknown length counts as one iteration;
    none of our own matmuls is in such a loop.
    """
    from waveglow_jax.jaxprs import equations, programs_inside

    flops = 0.0
    for eqn in equations(jaxpr):
        name, params, nested = eqn.primitive.name, eqn.params, programs_inside(eqn)
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            depth = math.prod(shape[i] for i in contracted)
            flops += 2 * math.prod(eqn.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            flops += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / features
        elif name == "cond":
            of = params.get("branches_platforms") or [None] * len(nested)
            named = [
                part for part, names in zip(nested, of, strict=True) if platform in (names or ())
            ]
            other = [part for part, names in zip(nested, of, strict=True) if names is None]
            flops += max(product_flops(part, platform) for part in named or other)
        else:
            times = params["length"] if name == "scan" else 1
            flops += times * sum(product_flops(part, platform) for part in nested)
    return flops


def _source(line: str) -> str:
    """The place in our code that an instruction comes from, one name for all layers of a kind."""
    named = re.search(r'op_name="([^"]*)"', line)
    kind = re.sub(r"[\d.]+$", "", line.split("=")[0].strip().removeprefix("ROOT ").lstrip("%"))
    if not named:
        return kind
    parts = [part for part in named[1].split("/") if not re.match(r"(jit|pjit|shmap|pmap)\b", part)]
    return re.sub(r"\d+", "#", "/".join(parts[-3:])) or kind


def as_json(result: Preflight) -> dict[str, Any]:
    derived = ("needed_bytes", "fits", "collective_count", "collective_bytes", "waiting_share")
    return {**asdict(result), **{name: getattr(result, name) for name in derived}}


def as_text(result: Preflight) -> str:
    """A human-readable report, in Markdown."""
    mib = 1 << 20
    verdict = "fits" if result.fits else "DOES NOT FIT"
    lines = [
        f"{result.task} on {result.topology} ({result.devices} x {result.device_kind}), batch "
        f"{result.batch}: {result.samples:,} samples; compiled in {result.compile_seconds:.0f} s "
        f"({result.compile_cpu_seconds:.0f} s of CPU)",
        f"{verdict}: {result.needed_bytes / mib:,.0f} of {result.memory_bytes / mib:,.0f} MiB a "
        f"chip (arguments {result.argument_bytes / mib:,.0f}, temporary "
        f"{result.temporary_bytes / mib:,.0f}, new outputs {result.output_bytes / mib:,.0f})",
        f"{result.flops / 1e12:.3g} TFLOP a chip; {result.collective_count} collectives of "
        f"{result.collective_bytes / mib:,.1f} MiB together",
        *(
            f"{found.count} x {found.kind}: {found.bytes / mib:,.1f} MiB per chip, "
            f"{'overlapped with compute' if found.overlapped else 'overlapped by nothing'}"
            for found in result.collectives
        ),
    ]
    if result.collectives:
        lines.append(
            "waiting for what nothing overlaps, by arithmetic from the stated speed of the links: "
            f"{1e3 * result.waiting_seconds:.2f} ms"
        )
    seconds, rate = result.estimated_seconds, result.estimated_samples_per_second
    if seconds is None or rate is None:
        return "\n".join([*lines, "this compiler gives no estimate of time"])
    lines.append(
        "the compiler's estimate, not a measurement: "
        f"{1e3 * seconds:.1f} ms, {rate / 1e6:.2f} million samples/s, "
        f"{result.share_of_peak:.0%} of the bfloat16 peak"
    )
    if result.collectives:
        whole = seconds + result.waiting_seconds
        lines.append(
            f"with that wait: {1e3 * whole:.1f} ms, {result.samples / whole / 1e6:.2f} million "
            f"samples/s; a chip waits for {result.waiting_share:.1%} of the step"
        )
    lines += [
        "",
        "| operation | fusions | ms (estimate) |",
        "| --- | --- | --- |",
        *(f"| {o.name} | {o.count} | {1e3 * o.seconds:.2f} |" for o in result.heaviest),
    ]
    return "\n".join(lines)
