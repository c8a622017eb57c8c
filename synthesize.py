"""Mels or recordings in, speech out: python synthesize.py INPUT... -o DIR [-w WEIGHTS]"""

import sys

from waveglow_jax.cli import run_single

if __name__ == "__main__":
    sys.exit(run_single("synthesize"))
