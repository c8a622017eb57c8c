"""Trains a voice: python train.py CONFIG.json --data DIR_OR_LIST --output RUN"""

import sys

from waveglow_jax.cli import run_single

if __name__ == "__main__":
    sys.exit(run_single("train"))
