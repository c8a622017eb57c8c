"""Converts mels or recordings to speech: python synthesize.py INPUT... -o DIR [-w WEIGHTS]"""

from waveglow_jax.interrupts import program


def run() -> int:
    from waveglow_jax.cli import run_single

    return run_single("synthesize")


if __name__ == "__main__":
    program(run)
