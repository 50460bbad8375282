"""Curves as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..curves import Transfer
    from ..series import Series

__all__ = ["sharpness_figure", "transfer_figure"]


def transfer_figure(curves: Transfer) -> Any:
    """Draw contrast transfer against spatial frequency.

    Parameters
    ----------
    curves
        By `libertem_parallax.transfer`.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved by ``savefig``, or shown by a notebook.
    """
    # A figure without pyplot draws with Agg: it needs no display and leaves no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    q = curves.frequency * 10  # 1/nm
    axes.plot(q, curves.sin_chi, color="0.8", label="sin χ")
    axes.plot(q, curves.parallax, label="parallax")
    axes.plot(q, curves.phase_flip, label="phase flip")
    axes.plot(q, curves.phase, label="phase")
    for at, text in (
        (curves.semiangle * 10, "semiangle"),
        (curves.nyquist * 10, "limit of the scan"),
    ):
        if at <= q[-1] * 1.02:
            axes.axvline(at, color="0.5", lw=0.8, ls="--")
            axes.text(
                at, 1.02, text, ha="center", va="bottom", transform=axes.get_xaxis_transform()
            )
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(
        xlim=(0, q[-1]), ylim=(-1.05, 1.05), xlabel="spatial frequency in 1/nm", ylabel="contrast"
    )
    axes.legend(loc="lower right")
    return figure


def sharpness_figure(series: Series) -> Any:
    """Draw sharpness against defocus, with its maximum marked.

    Parameters
    ----------
    series
        By `libertem_parallax.defocus_series`.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved by ``savefig``, or shown by a notebook.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(series.defocus / 10, series.sharpness, marker="o", ms=3, label="images")
    best = series.sharpest / 10
    axes.axvline(best, color="0.5", ls="--", lw=0.8, label=f"sharpest, at {best:.4g} nm")
    axes.legend()
    axes.set(xlabel="defocus in nm", ylabel="sharpness (noise of counts is 1)")
    return figure
