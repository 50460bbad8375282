"""One path of one environment, on one set: finds parameters, or makes an image, and takes the time.

It needs NumPy and what it measures, so that it also runs in the environments of peers, which do not
agree on NumPy. A question is JSON on standard input: ``path``, ``file``, ``parameters`` (the true
ones), and ``output``, where an image goes. The last line of standard output is JSON: ``seconds`` of
one core, and ``parameters`` of a calibration; or ``error``.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

#: Of quantEM's search: it is told so much, and neither is in the middle.
TRIALS, OFF, TURNED = 200, 1.15, 7.0


def _dataset(question: dict[str, Any]) -> tuple[Any, Any]:
    import libertem.api

    ctx = libertem.api.Context.make_with("inline")
    return ctx, ctx.load("npy", path=question["file"])


def calibrate(question: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make a run of this package's: nothing is told but energy, step and semiangle."""
    import libertem_parallax

    ctx, dataset = _dataset(question)
    names = ("energy", "scan_sampling", "semiangle_cutoff")
    told = {name: question["parameters"][name] for name in names}

    def run() -> dict[str, Any]:
        calibration = libertem_parallax.calibrate(ctx, dataset, **told)
        return {"parameters": dict(calibration.parameters)}

    return run


def image(question: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make a run of this package's image, from the frames on."""
    import libertem_parallax

    ctx, dataset = _dataset(question)
    name = question["path"].replace(" ", "_")
    parameters = {**question["parameters"], "image": name}
    udf = libertem_parallax.ParallaxUDF.from_parameters(shape=tuple(dataset.shape), **parameters)

    def run() -> dict[str, Any]:
        results = ctx.run_udf(dataset, udf)
        key = name if name in results else "reconstruction"
        np.save(question["output"], results[key].data)
        return {}

    return run


def direct(question: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make a run of direct ptychography by this package, from the frames on."""
    import libertem_parallax
    from libertem_parallax import ParallaxUDF, StackUDF
    from libertem_parallax.weak_object import with_rim

    ctx, dataset = _dataset(question)
    shape, parameters = tuple(dataset.shape), question["parameters"]

    def run() -> dict[str, Any]:
        udf = ParallaxUDF.from_parameters(shape=shape, **parameters)
        lit = with_rim(udf.params.geometry).plan.lookup >= 0
        filling = StackUDF.for_dataset(dataset, lit, limit=sys.maxsize)
        ctx.run_udf(dataset, filling)
        np.save(question["output"], libertem_parallax.direct_phase(filling.stack, parameters))
        return {}

    return run


def _quantem(question: dict[str, Any], rotation: float, aberrations: dict[str, float]) -> Any:
    """Give quantEM the frames, columns in order, and the beam's true center."""
    import torch
    from quantem.core.datastructures import Dataset4d
    from quantem.diffractive_imaging import DirectPtychography

    torch.set_num_threads(1)
    parameters = question["parameters"]
    frames = np.load(question["file"]).astype(np.float32)
    center = list(parameters.get("center", [n // 2 for n in frames.shape[2:]]))
    if parameters.get("detector_flip_cols"):
        frames = np.ascontiguousarray(frames[..., ::-1])
        center[1] = frames.shape[3] - 1 - center[1]
    volts = parameters["energy"]
    wavelength = 12.264259661 / np.sqrt(volts * (1 + 0.978475597e-6 * volts))  # Å
    reciprocal = [step * 1e-3 / wavelength for step in parameters["angular_sampling"]]
    dataset = Dataset4d.from_array(
        frames,
        sampling=(*parameters["scan_sampling"], *reciprocal),
        units=("A", "A", "A^-1", "A^-1"),
    )
    return DirectPtychography.from_dataset4d(
        dataset,
        energy=volts,
        semiangle_cutoff=parameters["semiangle_cutoff"],
        aberration_coefs=aberrations,
        rotation_angle=rotation,
        force_fitted_origin=tuple(center),
        verbose=False,
    )


def quantem_wiener(question: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make a run of quantEM's Wiener image of all bright-field pixels."""
    parameters = question["parameters"]
    rotation = float(np.rad2deg(parameters.get("rotation_angle", 0.0)))

    def run() -> dict[str, Any]:
        made = _quantem(question, rotation, dict(parameters["aberration_coefs"]))
        made.reconstruct(deconvolution_kernel="wiener", verbose=False)
        np.save(question["output"], np.asarray(made.corrected_bf))
        return {}

    return run


def quantem_search(question: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make a run of quantEM's search and its fit by gradients.

    It is told center, angular sampling, order of the columns, the sign of the defocus and half of
    it, and the rotation to 20°.
    """
    import optuna
    from quantem.diffractive_imaging.direct_ptychography import OptimizationParameter

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parameters = question["parameters"]
    defocus = parameters["aberration_coefs"]["C10"] * OFF
    turned = float(np.rad2deg(parameters.get("rotation_angle", 0.0))) + TURNED

    def run() -> dict[str, Any]:
        made = _quantem(question, turned, {"C10": defocus})
        kernel = {"deconvolution_kernel": "obf", "verbose": False}
        ranges = {
            "C10": sorted((0.5 * defocus, 1.5 * defocus)),
            "C12": (0.0, 0.3 * abs(defocus)),
            "phi12": (-np.pi / 2, np.pi / 2),
        }
        made.optimize_hyperparameters(
            {name: OptimizationParameter(*ends) for name, ends in ranges.items()},
            OptimizationParameter(turned - 20, turned + 20),
            n_trials=TRIALS,
            sampler=optuna.samplers.TPESampler(seed=0),
            **kernel,
        )
        made.fit_hyperparameters_gradient((*ranges, "rotation_angle"), **kernel)
        state = made.hyperparameter_state
        aberrations = {name: float(x) for name, x in state.current_aberrations().items()}
        rotation = float(np.deg2rad(state.current_rotation_angle()))
        return {"parameters": {"aberration_coefs": aberrations, "rotation_angle": rotation}}

    return run


def py4dstem_shifts(question: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make a run of py4DSTEM's alignment, and take parameters from its shifts by least squares.

    Its own fit does not find the order of the columns; here it need not.
    """
    import py4DSTEM

    parameters = question["parameters"]
    step, angle = parameters["scan_sampling"][0], parameters["angular_sampling"][0]

    def run() -> dict[str, Any]:
        cube = py4DSTEM.DataCube(np.load(question["file"]).astype(np.float32))
        cube.calibration.set_R_pixel_size(step)
        cube.calibration.set_R_pixel_units("A")
        cube.calibration.set_Q_pixel_size(angle)
        cube.calibration.set_Q_pixel_units("mrad")
        aligned = py4DSTEM.process.phase.Parallax(
            energy=parameters["energy"], datacube=cube, verbose=False, object_padding_px=(32, 32)
        )
        aligned.preprocess(plot_average_bf=False, edge_blend=2, threshold_intensity=0.9)
        aligned.reconstruct(
            progress_bar=False, plot_aligned_bf=False, plot_convergence=False, reset=True,
            regularize_shifts=True,
        )  # fmt: skip
        angles = np.asarray(aligned._probe_angles)
        shifts = np.asarray(aligned._xy_shifts) * step
        ones = np.ones((len(angles), 1))
        # What it shifts by, over angles.
        matrix = np.linalg.lstsq(np.hstack([angles, ones]), shifts, rcond=None)[0][:2].T
        return {"parameters": from_matrix(matrix)}

    return run


def from_matrix(matrix: Any) -> dict[str, Any]:
    """Take defocus, astigmatism, rotation and order of columns from shift over angle, (2, 2)."""
    flip = bool(np.linalg.det(matrix) < 0)  # |C10| > C12
    matrix = matrix @ np.diag([1.0, -1.0 if flip else 1.0])
    left, sizes, right = np.linalg.svd(matrix)
    gradient = -(left * sizes) @ left.T  # underfocus
    turn = -left @ right
    astigmatism = complex(gradient[0, 0] - gradient[1, 1], 2 * gradient[0, 1]) / 2
    return {
        "aberration_coefs": {
            "C10": float(np.trace(gradient) / 2),
            "C12": abs(astigmatism),
            "phi12": float(np.angle(astigmatism) / 2),
        },
        "rotation_angle": float(np.arctan2(turn[1, 0], turn[0, 0])),
        "detector_flip_cols": flip,
    }


PATHS: dict[str, Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "calibrate": calibrate,
    "quantEM search": quantem_search,
    "py4DSTEM": py4dstem_shifts,
    "phase flip": image,
    "phase": image,
    "direct": direct,
    "quantEM Wiener": quantem_wiener,
}

#: Those that compile when they first run, which is not timed.
COMPILED = ("calibrate", "phase flip", "phase", "direct")


def main() -> None:
    """Answer one question."""
    warnings.simplefilter("ignore")
    question = json.loads(sys.stdin.read())
    run = PATHS[question["path"]](question)
    try:
        if question["path"] in COMPILED:
            run()
        start = time.process_time()
        answer = run()
        answer["seconds"] = time.process_time() - start
    except Exception as error:  # a peer that fails is a result
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(f"\n{json.dumps(answer, default=np.ndarray.tolist)}\n")


if __name__ == "__main__":
    main()
