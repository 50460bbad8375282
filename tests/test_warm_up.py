"""What is done before an acquisition, so that it need not wait."""

import pickle

import libertem.api
import numpy as np
from helpers import PARAMETERS

from libertem_parallax import ParallaxPhaseUDF
from libertem_parallax.live import warm_up
from libertem_parallax.udf import StackUDF


def test_workers_are_sent_neither_images_nor_frames(monkeypatch):
    """Those of a large scan are gigabytes, of which each of them would have a copy."""
    shape = (64, 64, 24, 25)
    with libertem.api.Context.make_with("threads", cpus=1) as ctx:
        frames = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint16), shape)
        ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=1)
        udf = ParallaxPhaseUDF.from_parameters(**{**PARAMETERS, "shape": shape})
        udf = udf.keeping(StackUDF.for_dataset(ds).selection)
        sent, run = [], ctx.executor.run_each_worker
        monkeypatch.setattr(
            ctx.executor,
            "run_each_worker",
            lambda task: (sent.append(pickle.dumps(task)), run(task)),
        )
        warm_up(ctx, udf, np.dtype("uint16"))
    assert [len(task) < 200_000 for task in sent] == [True]
