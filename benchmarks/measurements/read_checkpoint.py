"""Measures the time and memory to read and convert a published checkpoint of full size.

    python benchmarks/measurements/read_checkpoint.py FOLDER

It writes FOLDER/full_size.pt (676 MB: the published model's shape with 256 channels and random
numbers, as a pickled module whose convolutions hold a stale plain weight beside weight_g and
weight_v). It then reports the seconds to read only the bytes, to read the weights and to convert
them, each in a process of its own, and the peak memory of each in multiples of the file's size.
"""

import argparse
import io
import pickle
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FLOWS, LAYERS, CHANNELS, MELS, GROUP = 12, 8, 256, 80, 8


def named(module: str, name: str, kind: Any) -> Any:
    """Registers a class or function where pickle will look for PyTorch's object of that name."""
    kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    setattr(sys.modules[module], name, kind)
    return kind


def rebuild(*_arguments: Any) -> None:
    raise AssertionError("only its name is written")


FloatStorage = named("torch", "FloatStorage", type("FloatStorage", (), {}))
Conv1d = named("torch.nn.modules.conv", "Conv1d", type("Conv1d", (), {}))
ModuleList = named("torch.nn.modules.container", "ModuleList", type("ModuleList", (), {}))
WaveGlow, WN, Mixing = (
    named("glow", name, type(name, (), {})) for name in ("WaveGlow", "WN", "Invertible1x1Conv")
)
rebuild_tensor = named("torch._utils", "_rebuild_tensor_v2", rebuild)


class FakeTensor:
    """A stand-in that is pickled as PyTorch's tensors are, with a storage of its own."""

    def __init__(self, *shape: int):
        self.shape = shape

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        strides = tuple(np.cumprod([1, *self.shape[::-1]])[:-1][::-1].tolist())
        return rebuild_tensor, (FakeStorage(self), 0, self.shape, strides, False, {})


class FakeStorage:
    def __init__(self, tensor: FakeTensor):
        self.numel = int(np.prod(tensor.shape))


class Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file, 2)
        self.sizes: list[int] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, FakeStorage):
            return None
        self.sizes.append(value.numel)
        return "storage", FloatStorage, str(len(self.sizes) - 1), "cuda:0", value.numel


def module(kind: type, parameters: dict[str, Any], children: dict[str, Any], **rest: Any) -> Any:
    made = kind.__new__(kind)
    made.__dict__.update(
        {"_parameters": parameters, "_buffers": {}, "_modules": children, "training": True, **rest}
    )
    return made


def convolution(out: int, into: int, taps: int = 1, normed: bool = True, **rest: Any) -> Any:
    bias, weight = FakeTensor(out), FakeTensor(out, into, taps)
    if not normed:
        return module(Conv1d, {"weight": weight, "bias": bias}, {}, **rest)
    parameters = {"bias": bias, "weight_g": FakeTensor(out, 1, 1), "weight_v": weight}
    return module(Conv1d, parameters, {}, weight=FakeTensor(out, into, taps), **rest)


def of_list(items: list[Any]) -> Any:
    return module(ModuleList, {}, {str(i): item for i, item in enumerate(items)})


def wn(half: int) -> Any:
    children = {
        "in_layers": of_list([convolution(2 * CHANNELS, CHANNELS, 3) for _ in range(LAYERS)]),
        "res_skip_layers": of_list(
            [convolution(CHANNELS * (1 + (i < LAYERS - 1)), CHANNELS) for i in range(LAYERS)]
        ),
        "start": convolution(CHANNELS, half),
        "end": convolution(2 * half, CHANNELS, normed=False),
        "cond_layer": convolution(2 * CHANNELS * LAYERS, MELS * GROUP),
    }
    return module(WN, {}, children)


def make(path: Path) -> None:
    widths = [GROUP - 2 * (k // 4) for k in range(FLOWS)]
    mixing = [
        module(Mixing, {}, {"conv": module(Conv1d, {"weight": FakeTensor(c, c, 1)}, {})})
        for c in widths
    ]
    upsample = {"weight": FakeTensor(MELS, MELS, 1024), "bias": FakeTensor(MELS)}
    children = {
        "upsample": module(Conv1d, upsample, {}, stride=(256,)),
        "WN": of_list([wn(c // 2) for c in widths]),
        "convinv": of_list(mixing),
    }
    program = io.BytesIO()
    pickler = Pickler(program)
    pickler.dump({"model": module(WaveGlow, {}, children), "iteration": 580_000})
    chance = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("full_size/data.pkl", program.getvalue())
        for key, size in enumerate(pickler.sizes):
            numbers = 0.1 * chance.standard_normal(size, np.float32)
            archive.writestr(f"full_size/data/{key}", numbers.tobytes())


def measured(*command: str) -> tuple[float, float]:
    """Runs a process and returns its seconds and its peak memory in bytes."""
    began = time.monotonic()
    script = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, cwd=ROOT
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "full_size.pt"
    if not path.exists():
        make(path)
    size = path.stat().st_size
    script = folder / "step.py"
    steps = {
        "import everything": "import jax, waveglow_jax.weights.release",
        "read the bytes": "import sys\nwith open(sys.argv[1], 'rb') as f:\n"
        "    while f.read(1 << 22): pass",
        "read the weights": "import sys, jax\n"
        "from waveglow_jax.weights.release import read_weights\nread_weights(sys.argv[1])",
    }
    print(f"{path}: {size / 1e6:.0f} MB\n")
    print("| step | seconds | peak memory / file |\n| --- | --- | --- |")
    for name, code in steps.items():
        script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\n")
        seconds, memory = measured(str(script), str(path))
        print(f"| {name} | {seconds:.2f} | {memory / size:.2f} |", flush=True)
    for dtype in ("float32", "float16"):
        script.write_text(
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from waveglow_jax.cli import main\nsys.exit(main())\n"
        )
        target = str(folder / f"release_{dtype}")
        seconds, memory = measured(
            str(script), "convert", str(path), "-o", target, "--dtype", dtype
        )
        print(f"| convert to {dtype} | {seconds:.2f} | {memory / size:.2f} |", flush=True)
    script.unlink()


if __name__ == "__main__":
    main()
