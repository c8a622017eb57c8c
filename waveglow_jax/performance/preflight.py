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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One chip's bfloat16 peak in FLOP/s, clock in Hz and memory in bytes, from the vendor."""

    platform: str
    peak: float
    clock: float
    memory: int


# The clock is the peak divided by the FLOPs per cycle (two per multiply-add): v5e has 4 arrays of
# 128 x 128, and v5p has 8 of them.
CHIPS = {
    "v5e": Chip("tpu", 197e12, 197e12 / (4 * 128 * 128 * 2), 16 << 30),
    "v5p": Chip("tpu", 459e12, 459e12 / (8 * 128 * 128 * 2), 95 << 30),
    "h100": Chip("cuda", 989e12, 1.98e9, 80 << 30),
}
EXTRAS = {"tpu": "tpu", "cuda": "cuda12"}
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
    none.
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
    collective_count: int
    collective_bytes: int
    estimated_seconds: float | None
    estimated_samples_per_second: float | None
    share_of_peak: float | None
    heaviest: tuple[Operation, ...]

    @property
    def needed_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.output_bytes

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

    kind, _, shape = topology.partition(":")
    pattern = r"[1-8]|[1-9]\d{0,3}" if kind == "h100" else r"\d+x\d+(x\d+)?"
    if kind not in CHIPS or not re.fullmatch(pattern, shape):
        raise UserError(
            f"--topology {topology}: give v5e or v5p, a colon and the chips' arrangement, such as "
            "v5e:2x4, or h100:8"
        )
    chip, arguments = CHIPS[kind], {}
    if kind == "h100":
        hosts, local = (1, int(shape)) if int(shape) <= 8 else (int(shape) // 8, 8)
        if hosts * local != int(shape):
            raise UserError(f"--topology {topology}: more than 8 GPUs come in eights")
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
    collectives: list[float] = []
    for line, times in instructions(text):
        if found := re.search(r'"estimated_cycles":"(\d+)"', line):
            by_line[_source(line)].append(times * int(found[1]) / chip.clock)
        found = re.search(r"= (.*?) (?:all|reduce-scatter|collective)[\w-]*\(", line)
        if found and "-done(" not in line:
            collectives.append(times * _bytes(found[1]))
    seconds = sum(map(sum, by_line.values())) or None
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
        collective_count=len(collectives),
        collective_bytes=int(sum(collectives)),
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


def instructions(text: str) -> Iterator[tuple[str, int]]:
    """Yields every executed instruction of an HLO module and how often it runs.

    The trip counts of the loops around an instruction determine how often it runs.
    """
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
                condition, body = (
                    re.findall(rf"{name}=%?([\w.-]+)", line)[0] for name in ("condition", "body")
                )
                yield from walk(body, times * _trips(line, bodies.get(condition, [])))
            elif inner := re.search(
                r" (?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.-]+)", line
            ):
                yield from walk(inner[1], times)

    yield from walk(entry, 1)


def _trips(loop: str, condition: list[str]) -> int:
    """The trip count of a loop: from the compiler, or else the constant that the loop counts up to.

    Returns 1 if neither is known.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(known[1])
    text = "\n".join(condition)
    if end := re.search(r"ROOT .* compare\(\S+, %?([\w.-]+)\), direction=LT", text):
        constant = re.search(rf"%?{re.escape(end[1])} = s32\[\]\S* constant\((\d+)\)", text)
        return int(constant[1]) if constant else 1
    return 1


def _source(line: str) -> str:
    """The place in our code that an instruction comes from, one name for all layers of a kind."""
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
    ]
    seconds, rate = result.estimated_seconds, result.estimated_samples_per_second
    if seconds is None or rate is None:
        return "\n".join([*lines, "this compiler gives no estimate of time"])
    lines += [
        "the compiler's estimate, not a measurement: "
        f"{1e3 * seconds:.1f} ms, {rate / 1e6:.2f} million samples/s, "
        f"{result.share_of_peak:.0%} of the bfloat16 peak",
        "",
        "| operation | fusions | ms (estimate) |",
        "| --- | --- | --- |",
        *(f"| {o.name} | {o.count} | {1e3 * o.seconds:.2f} |" for o in result.heaviest),
    ]
    return "\n".join(lines)
