"""``demo``: a simulated specimen, reconstructed, next to the truth."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from .messages import messages_only
from .options import overwrite_option
from .outputs import propose
from .run import by, image_pixel_size, make_udf, report, run
from .specimen import (
    check_folder,
    correlation,
    describe_simulation,
    placing,
    resample,
    save_parameters,
    write_overview,
)


@click.command(short_help="Simulate a specimen and reconstruct it.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("libertem-parallax-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for pictures, data and parameters; created where it does not exist.",
)
@overwrite_option
def demo(output: Path, overwrite: bool) -> None:
    """Simulate protein shells in ice, reconstruct them, and show the result next to the truth.

    Takes seconds (longer the first time, when code is compiled). The data and parameters are
    kept, to go on with `libertem-parallax reconstruct`.
    """
    import h5py
    from libertem.api import Context
    from tqdm import tqdm

    from ..parameters import Parameters
    from ..show.pictures import blur
    from ..simulate import simulate

    frames_path, picture_path = output / "frames.h5", output / "demo.png"
    dose = 30.0
    try:
        check_folder(output, ["demo.png"], overwrite)
        simulation = simulate(
            dose=dose, seed=1, progress=partial(tqdm, desc="Simulating", unit=" rows")
        )
        # LiberTEM compiles for seconds before it first reads a .npy file, but not for HDF5.
        with placing(output, overwrite) as made, h5py.File(made / "frames.h5", "w") as file:
            file["frames"] = simulation.frames
        given = {k: v for k, v in simulation.parameters.items() if k != "shape"}
        parameters = Parameters(**given)
        params_path = save_parameters(parameters, output)
    except OSError as error:
        raise click.ClickException(f"--output: cannot write to {output}: {error}") from error

    with messages_only(), Context.make_with("threads") as ctx:
        dataset = ctx.load("hdf5", path=frames_path, ds_path="/frames")
        udf = make_udf(dataset.shape, parameters.replace(image=("parallax", "phase_flip", "phase")))
        click.echo("Reconstructing", err=True)
        run(ctx, dataset, udf)
        # The second run is the one to be timed: there is nothing to compile any more.
        results, speed = run(ctx, dataset, udf)
    parallax, flipped, phase = (results[name] for name in ("parallax", "phase_flip", "phase"))
    plan = udf.params.geometry.plan
    rows, cols = plan.pixels.T
    bright_field = simulation.frames[..., rows, cols].mean(axis=-1)

    sigma = 6.0
    scan_sampling, pixel_size = parameters["scan_sampling"], image_pixel_size(udf)
    truth = blur(resample(simulation.truth, flipped.shape), pixel_size, sigma)
    parallax, flipped = (blur(image, pixel_size, sigma) for image in (parallax, flipped))
    bright_field = blur(bright_field, scan_sampling, sigma)
    blurred = f"blurred by {sigma / 10:g} nm"
    write_overview(
        picture_path,
        [
            (title, note, image, size)
            for title, note, image, size in (
                ("Mean bright field", blurred, bright_field, scan_sampling),
                ("Parallax", blurred, parallax, pixel_size),
                ("Parallax, phase-flipped", blurred, flipped, pixel_size),
                ("Phase image", "as it is", phase, pixel_size),
                ("True phase of the specimen", blurred, truth, pixel_size),
            )
        ],
    )

    report(
        *describe_simulation(parameters, plan, dose),
        ("Reconstructed", speed),
        ("", f"parallax with and without phase flip, and phase, {by(flipped.shape)} pixels"),
        (
            "Correlation",
            f"{correlation(phase, truth):.2f} of the phase image with the truth, blurred by "
            f"{sigma / 10:g} nm",
        ),
        ("", f"{correlation(flipped, truth):.2f} of the phase-flipped image, blurred as well"),
        ("", f"{correlation(parallax, truth):.2f} without phase flip: the contrast is inverted"),
        ("Pictures", str(picture_path)),
        ("Data", f"{frames_path}, {params_path}"),
    )
    propose("Try next", frames_path, params_path, "image.png", ["phase"], "--image", "phase")
