"""Random generators that depend only on what is drawn: never on the process, the batch or the order of work."""

import numpy as np
import torch


def noise_generator(*numbers: int) -> torch.Generator:
    """The random generator that belongs to these integers, such as (seed, number of the image).

    Other integers give another generator. Negative ones count as their remainder of 2^32.
    """
    words = np.random.SeedSequence([number % 2**32 if number < 0 else number for number in numbers])
    return torch.Generator().manual_seed(int(words.generate_state(1, np.uint64)[0]))
