"""A run on 256 chips: every clip is read by one host, and the order is that of one machine."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_training import tiny_config

from waveglow_jax.training.dataset import Recording

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks/measurements"))
from loader_hosts import faults_of, fits, read_by, rows_of  # noqa: E402


def recordings_of(lengths: list[int]) -> tuple[Recording, ...]:
    return tuple(Recording(Path(f"{n}.wav"), length) for n, length in enumerate(lengths))


LENGTHS = np.random.default_rng(0).integers(500, 40_000, 400).tolist()


@pytest.mark.parametrize(
    ("hosts", "chips", "per_chip", "lengths"),
    [
        (64, 4, 1, LENGTHS[:131]),
        (32, 8, 2, LENGTHS[:400]),
        (8, 8, 3, LENGTHS[:97]),
        (64, 4, 1, LENGTHS[:5]),  # fewer recordings than hosts, and several epochs per batch
        (64, 4, 1, [600]),  # one, shorter than a clip
    ],
)
def test_hosts_read_every_clip_of_an_epoch_once(hosts, chips, per_chip, lengths):
    batch = hosts * chips * per_chip
    config, recordings = tiny_config(batch_size=batch, seed=7), recordings_of(lengths)
    in_an_epoch = fits(recordings, config)
    steps = max(2, -(-2 * sum(in_an_epoch) // batch))
    reads = [
        read_by(recordings, config, rows_of(host, hosts, chips, batch), steps)
        for host in range(hosts)
    ]
    assert {len(read) for read in reads} == {steps * batch // hosts}
    assert faults_of(reads, in_an_epoch) == []
    alone = read_by(recordings, config, range(batch), steps)
    assert sorted(clip for read in reads for clip in read) == sorted(alone)


def test_a_lost_or_repeated_clip_is_a_fault():
    reads = [[(0, 0), (2, 1)], [(1, 1), (3, 0)]]
    assert faults_of(reads, [1, 1]) == []
    assert faults_of(reads, [2, 1]) == [
        "epoch 0: not every recording occurs as often as clips fit into it"
    ]
    assert faults_of([reads[0], [(1, 1), (2, 0)]], [1, 1]) == [
        "1 positions are read twice, 0 are missing"
    ]
    assert faults_of([reads[0], reads[1][1:]], [1, 1]) == [
        "0 positions are read twice, 1 are missing"
    ]
