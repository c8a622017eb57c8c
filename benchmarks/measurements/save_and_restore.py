"""Measures a checkpoint, which process 0 writes while the other processes wait: bytes and seconds.

    python benchmarks/measurements/save_and_restore.py [--config nvidia256] [--work FOLDER]

It saves a state with random moments (those before a first step are zeros, which compress to
nothing), verifies its checksums and restores it, as a run does, and prints one JSON line. The bytes
that each other process receives at the start of a run are those of the state. The seconds depend on
this machine's disk and cores.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="nvidia256")
    parser.add_argument("--work", type=Path, help="folder for the run (default: a new one)")
    arguments = parser.parse_args()

    import jax
    import numpy as np

    from waveglow_jax.config import load_config
    from waveglow_jax.flow.waveglow import init
    from waveglow_jax.training.checkpoints import Checkpoints, Plateau, Progress
    from waveglow_jax.training.step import init_state
    from waveglow_jax.weights.moments import Moments

    config = load_config(arguments.config)
    params = init(jax.random.key(0), config)
    noise = [random_like(params, seed) for seed in (1, 2)]
    state = init_state(config, params, Moments(1, *noise))
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        run = Path(folder)
        with Checkpoints(run, config) as checkpoints:
            began, cpu = time.monotonic(), time.process_time()
            checkpoints.save(state, Progress(Plateau(), 0, None), None)
            saving = time.monotonic() - began, time.process_time() - cpu
        written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        began, cpu = time.monotonic(), time.process_time()
        with Checkpoints(run, config) as checkpoints:  # verifies the checksums
            restored, _ = checkpoints.restore(0)
        restoring = time.monotonic() - began, time.process_time() - cpu
    same = jax.tree.all(jax.tree.map(np.array_equal, state, restored))
    figures = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "bytes_on_disk": written,
        "saving_wall_and_cpu_seconds": [round(each, 1) for each in saving],
        "restoring_wall_and_cpu_seconds": [round(each, 1) for each in restoring],
        "same_to_the_bit": bool(same),
    }
    print(json.dumps(figures))
    return 0 if same else 1


def random_like(tree: Any, seed: int) -> Any:
    import jax
    import numpy as np

    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), tree)


if __name__ == "__main__":
    sys.exit(main())
