"""Targets of processes that share a batch, against those of one process that has all of it."""

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.functional import normalize

from pretrain.learning.targets import Centre, Cosines, sinkhorn_knopp
from pretrain.model.heads import Projection
from tests.support.training import in_processes

ROWS, PROTOTYPES, TEMPERATURE = 20, 41, 0.05
PADDED = (4, 15, 16, 17)  # more in one process than in the other
MOST = (PROTOTYPES, 3 * PROTOTYPES, 10**9)


def teacher():
    rng = np.random.default_rng(0)
    vectors, prototypes = (torch.from_numpy(rng.normal(size=(n, 6))) for n in (ROWS, PROTOTYPES))
    return Projection(normalize(vectors, dim=-1), normalize(prototypes, dim=-1))


def slow_sinkhorn(scores, rows):
    """Caron et al. 2020, listing of appendix A, for some of the rows; the others stay 0."""
    q = np.zeros(scores.shape)
    q[rows] = np.exp(scores[rows] / TEMPERATURE)
    for _ in range(3):
        q /= q.sum(0)
        q[rows] /= q[rows].sum(1, keepdims=True)
    return q


def slow_centre(scores, rows):
    shifted = np.exp((scores - 0.1 * scores[rows].mean(0)) / TEMPERATURE)
    return shifted / shifted.sum(1, keepdims=True)


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/meeting", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    vectors, prototypes = teacher()
    scores, own = (vectors @ prototypes.T).numpy(), slice(10 * rank, 10 * rank + 10)
    for padded in ((), PADDED):
        counts = np.array([row not in padded for row in range(ROWS)])
        valid = torch.from_numpy(counts[own].astype(float)) if padded else None
        for most in MOST:
            cosines = Cosines(Projection(vectors[own], prototypes), most)
            centre = Centre(PROTOTYPES).double()
            centre.update(cosines, valid)
            for made, wanted in (
                (sinkhorn_knopp(cosines, TEMPERATURE, valid), slow_sinkhorn(scores, counts)),
                (centre(cosines, TEMPERATURE), slow_centre(scores, counts)),
            ):
                found = torch.cat([made.of(part)[0] for part in cosines.parts()]).numpy()
                assert np.allclose(found[counts[own]], wanted[own][counts[own]], rtol=1e-9, atol=1e-14)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_make_the_targets_of_one(tmp_path):
    in_processes(_one_of_two, str(tmp_path))
