"""Trains a voice: python train.py CONFIG.json --data DIR_OR_LIST --output RUN"""

from waveglow_jax.interrupts import program


def run() -> int:
    from waveglow_jax.cli import run_single

    return run_single("train")


if __name__ == "__main__":
    program(run)
