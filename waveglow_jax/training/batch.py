"""The batch of clips: the reader makes it, the devices share it, and a step takes it."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """R clips of a global batch of B. An array that is not needed is None.

    clips: `[R, segment + context]` float32, a training clip with half an FFT of its recording on
    either side. index: `[R]` the clips' places in the global batch. mel: `[R, F, M]`, where the
    recordings come with mels. weight: `[R]`, 0 for clips that only fill up a validation batch.
    unreadable: `[R]` the number of the recording that the clip replaces because it could not be
    read, -1 for none. notes: `{name: [R]}`, which no step reads: their sums over all devices are
    added to the step's metrics, so that processes exchange information at no extra cost.
    """

    clips: Any
    index: Any
    mel: Any = None
    weight: Any = None
    unreadable: Any = None
    notes: Any = None
