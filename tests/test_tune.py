"""`tune` in Python: without a browser."""

from __future__ import annotations

import pytest
from libertem.api import Context
from tuned import FRAMES, PARAMETERS

import libertem_parallax as prlx
from libertem_parallax.show import notebook


@pytest.fixture
def ctx():
    with Context.make_with("inline") as ctx:
        yield ctx


@pytest.fixture
def dataset(ctx):
    return ctx.load("memory", data=FRAMES, sig_dims=2)


def test_pages_side_by_side(ctx, dataset, tmp_path):
    given = {**PARAMETERS, "shape": dataset.shape, "image": "parallax"}
    page = prlx.tune(ctx, dataset, given, folder=tmp_path)
    assert page.parameters == PARAMETERS.replace(image="parallax")
    other = prlx.tune(ctx, dataset, PARAMETERS, port=int(page.url.split(":")[2].strip("/")))
    assert other.url != page.url  # as that port is in use
    assert other.url in repr(other)
    for each in (page, other, other):  # again does no harm
        each.close()
    assert not any(tmp_path.iterdir())


def test_what_is_wrong_is_told(ctx, dataset, monkeypatch):
    with pytest.raises(ValueError, match="semiangle_cutoff"):
        prlx.tune(ctx, dataset, PARAMETERS.replace(semiangle_cutoff=None))
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'libertem-parallax\[page\]'"):
        prlx.tune(ctx, dataset, PARAMETERS)
