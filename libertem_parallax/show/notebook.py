"""The page in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parameters import Parameters

if TYPE_CHECKING:
    from .page.server import Background
    from .tuning import Tuning

__all__ = ["TuningPage", "tune"]

#: Height of the page in a notebook, in pixels.
_HEIGHT = 900


class TuningPage:
    """A page that is being served; a notebook shows it. Construct it by `tune`."""

    def __init__(self, tuning: Tuning, server: Background) -> None:
        self._tuning, self._server = tuning, server

    @property
    def url(self) -> str:
        """Where the page is, for any browser on this machine."""
        return self._server.url

    @property
    def parameters(self) -> Parameters:
        """As they are tuned now: for ``ParallaxUDF.from_parameters``, or to ``save``."""
        return self._tuning.parameters

    def close(self) -> None:
        """End the page, and let go of the frames."""
        self._server.close()
        self._tuning.close()

    def __repr__(self) -> str:
        """Tell where it is."""
        return f"The page is at {self.url}"

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return (
            f'<iframe src="{self.url}" width="100%" height="{_HEIGHT}" '
            'style="border: 0" allow="clipboard-write"></iframe>'
        )


def tune(
    ctx: Any,
    dataset: Any,
    parameters: Mapping[str, Any],
    *,
    folder: str | Path = ".",
    port: int = 0,
    memory: int | None = None,
    device: int | None = None,
) -> TuningPage:
    """Turn knobs and see the image follow: in the output of a notebook's cell, or a browser.

    The bright field of all frames is read into memory, and a page is served to this machine only,
    until it is closed or Python ends.

    Parameters
    ----------
    ctx
        LiberTEM's context.
    dataset
        LiberTEM's data set, with two scan and two detector axes.
    parameters
        To begin with: `Parameters`, or arguments of ``ParallaxUDF.from_parameters``.
    folder
        Where the page saves images. No file is overwritten.
    port
        Where to serve it: another is taken where that is in use; 0 for any.
    memory
        Bytes that the frames may take. Default: a quarter of the memory that is free.
    device
        Number of the GPU that adds them; None for the CPU.

    Returns
    -------
    TuningPage
        A notebook shows it. Its ``url`` says where it is, ``parameters`` how they are tuned now,
        and ``close()`` ends it.

    Raises
    ------
    ImportError
        If Bokeh is not installed, of which the page is made.
    ValueError
        If a parameter is missing or out of its range.
    OSError
        If the page cannot be served.
    """
    if find_spec("bokeh") is None:
        raise ImportError(
            "Bokeh cannot be found, of which the page is made. Install what it needs with: "
            "python -m pip install 'libertem-parallax[page]'"
        )
    from .fill import fill_stack, part_note
    from .page.page import Page
    from .page.server import Access, Background
    from .tuning import Tuning

    if not isinstance(parameters, Parameters):
        parameters = Parameters(**{k: v for k, v in parameters.items() if k != "shape"})
    stack = fill_stack(ctx, dataset, parameters, memory, device=device)
    tuning = Tuning(stack, parameters.replace(load=None), device)
    note = part_note(stack, dataset)
    try:
        server = Background(lambda: Page(tuning, folder=Path(folder), note=note), Access(port))
    except BaseException:
        tuning.close()
        raise
    return TuningPage(tuning, server)
