"""Reads mutants of checkpoints: `python tests/fuzz_torch.py [N [FILE...]]`.

The mutations are byte flips, truncation, opcode splices and false sizes, mostly in the parts that
are not tensors. Half of those of a zip are inside its pickle, with a corrected checksum, so that
they reach the machine that reads it. Each reading must end in weights or in a UserError.
"""

import io
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_machine import _OPERATIONS
from waveglow_jax.weights.nvidia import read_published

OPCODES = sorted(_OPERATIONS)
SIZES = [0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1]


@dataclass
class Outcome:
    """How the readings of many mutants ended, the CPU seconds of the longest one, and the bytes of
    memory above what the process had before."""

    endings: Counter = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0


def mutant(content: bytes, chance: random.Random) -> bytes:
    if not content.startswith(b"PK") or chance.random() < 0.5:
        return changed(content, chance)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(result, "w") as target:
        for entry in source.infolist():
            piece = source.read(entry)
            pickled = entry.filename.endswith("/data.pkl")
            target.writestr(entry.filename, changed(piece, chance) if pickled else piece)
    return result.getvalue()


def changed(content: bytes, chance: random.Random) -> bytes:
    """One to four changes of any kind."""
    data = bytearray(content)
    # The pickles lie at the start; a zip also has its directory at the end.
    places = [range(min(60_000, len(data))), range(max(0, len(data) - 30_000), len(data))]
    places += [range(len(data))]

    def place() -> int:
        return chance.choice(chance.choice(places))

    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        kind = chance.randrange(6)
        at = min(place(), len(data) - 1)
        if kind == 0:
            for _ in range(chance.choice((1, 1, 2, 8))):
                data[min(place(), len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[max(1, at) :]
        elif kind == 2:
            data[at : at + chance.choice((0, 1))] = chance.choice(OPCODES)
        elif kind == 3:
            start = place()
            piece = bytes(data[start : start + chance.choice((1, 4, 30, 300))])
            data[at : at + chance.choice((0, len(piece)))] = piece
        elif kind == 4:
            width, code = chance.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
            lie = chance.choice(SIZES) & (256**width - 1)
            data[at : at + width] = struct.pack(code, lie)
        else:
            del data[at : at + chance.choice((1, 2, 8, 100))]
    return bytes(data)


def fuzz(
    path: Path,
    count: int,
    folder: Path,
    seed: int = 0,
    read: Callable[[Path], object] = read_published,
) -> Outcome:
    """Reads `count` mutants of a file; `folder` is for the mutants."""
    content, outcome = path.read_bytes(), Outcome()
    target = folder / f"mutant_{seed}{path.suffix}"
    before = peak_memory(anew=True)
    for number in range(count):
        chance = random.Random(f"{path.name} {seed} {number}")
        target.write_bytes(mutant(content, chance))
        began = time.process_time()
        try:
            read(target)
            outcome.endings["read"] += 1
        except UserError as error:
            assert str(error).isprintable() and str(target) in str(error), error
            outcome.endings["refused"] += 1
        except Exception as error:
            outcome.endings["foreign"] += 1
            outcome.foreign.append(f"{path.name}, mutant {number}: {type(error).__name__}: {error}")
        outcome.slowest = max(outcome.slowest, time.process_time() - began)
    outcome.memory = peak_memory() - before
    return outcome


def peak_memory(anew: bool = False) -> int:
    """The peak memory of this process in bytes; with `anew`, from now on, if Linux can reset it."""
    try:
        if anew:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    from golden import CHECKPOINTS

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    names = sys.argv[2:]
    for path in [path for path in CHECKPOINTS if not names or path.name in names]:
        with tempfile.TemporaryDirectory() as folder:
            outcome = fuzz(path, count, Path(folder))
        endings = ", ".join(f"{n} {ending}" for ending, n in sorted(outcome.endings.items()))
        print(
            f"{path.name}: {count} mutants: {endings}; slowest {outcome.slowest:.3f} s of CPU, "
            f"memory {outcome.memory / 2**20:.1f} MiB for a file of "
            f"{path.stat().st_size / 2**20:.1f} MiB",
            flush=True,
        )
        for line in outcome.foreign[:10]:
            print("   ", line)


if __name__ == "__main__":
    main()
