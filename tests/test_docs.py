"""README.md and docs/: links lead somewhere, and examples do what they say."""

import contextlib
import re
import shlex
import tomllib
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import h5py
import libertem.api
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

import libertem_parallax
from libertem_parallax import ParallaxPhaseUDF, ParallaxUDF
from libertem_parallax.cli import main

ROOT = Path(__file__).parents[1]
DOCS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("[a-z]*/README.md")]
DOCS += [ROOT / "benchmarks" / "tried.md"]
USERS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

#: As the examples give them for the data of the demo.
ACQUISITION: dict[str, Any] = {
    "scan_sampling": (256 / 72, 256 / 72),
    "angular_sampling": (0.307617, 0.307617),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "aberration_coefs": {"C10": -1.5e4},
    "rotation_angle": np.deg2rad(-15),
    "upsampling_factor": 2,
}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str, containing: str = "") -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", text(page), flags=re.DOTALL)
    return [block for block in found if containing in block]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text("README.md"))}
    assert set(USERS[1:]) <= linked


def test_the_readme_is_short() -> None:
    assert len(text("README.md").split()) <= 1100
    assert text("README.md").count("![") <= 2


def test_the_readme_on_a_package_index() -> None:
    """There, what is not a full address would lead nowhere."""
    project = tomllib.loads(text("pyproject.toml"))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    readme = text("README.md")
    for rule in hook["substitutions"]:
        readme = re.sub(rule["pattern"], rule["replacement"], readme)
    links = LINK.findall(readme)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "*Four protein shells" not in readme  # the caption goes with its picture


@pytest.mark.parametrize("page", USERS, ids=lambda page: page.name)
def test_python_can_be_read(page: Path) -> None:
    for block in blocks(str(page.relative_to(ROOT)), "python"):
        compile(block, page.name, "exec")


def commands() -> Iterator[str]:
    for page in USERS:
        for block in blocks(str(page.relative_to(ROOT)), "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(r"libertem-parallax ([a-z].*)", line.partition("#")[0]):
                    yield found[1].strip()


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_are_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their options exist, and take such values."""
    monkeypatch.chdir(tmp_path)
    name, *arguments = shlex.split(command)
    for argument in arguments:
        if re.search(r"\.(h5|toml|raw|txt|pem)$", argument):
            Path(argument).parent.mkdir(exist_ok=True)
            Path(argument).write_text("", encoding="utf-8")
    context = click.Context(main)
    subcommand = main.get_command(context, name)
    assert subcommand is not None
    subcommand.make_context(name, arguments, parent=context)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Frames where `libertem-parallax demo` writes them, and its parameters."""
    monkeypatch.chdir(tmp_path)
    Path("libertem-parallax-demo").mkdir()
    frames = np.random.default_rng(0).poisson(1, (18, 20, 64, 64)).astype(np.uint8)
    with h5py.File("libertem-parallax-demo/frames.h5", "w") as file:
        file["frames"] = frames
    lines = [
        f"{name} = {list(value) if isinstance(value, tuple) else float(value)}"
        for name, value in ACQUISITION.items()
        if name not in ("aberration_coefs", "upsampling_factor")
    ]
    lines += ["upsampling_factor = 2", "[aberration_coefs]", "C10 = -1.5e4"]
    path = Path("libertem-parallax-demo/params.toml")
    path.write_text("\n".join(lines), encoding="utf-8")
    return frames


@contextlib.contextmanager
def small() -> Iterator[None]:
    """For a scan that is smaller than the shifts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "shifts of up to", UserWarning)
        yield


def reconstructed(frames: np.ndarray, cls: Any = ParallaxUDF, roi: Any = None) -> dict[str, Any]:
    with small(), libertem.api.Context.make_with("inline") as ctx:
        ds = ctx.load("memory", data=frames, sig_dims=2)
        udf = cls.from_parameters(shape=ds.shape, **ACQUISITION)
        return {name: image.data for name, image in ctx.run_udf(ds, udf, roi=roi).items()}


def run(command: str) -> None:
    with small():
        result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_readme_in_python(demo: np.ndarray) -> None:
    [code] = blocks("README.md", "python")
    names: dict[str, Any] = {"__name__": "__main__"}
    with small(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will ignore the 'mask'", UserWarning)
        exec(code, names)
    names["ctx"].close()
    expected = reconstructed(demo, ParallaxPhaseUDF)
    np.testing.assert_array_equal(names["phase"], expected["phase"])
    np.testing.assert_array_equal(names["parallax"], expected["parallax"])


def test_the_readme_on_the_command_line(demo: np.ndarray) -> None:
    [command] = re.findall(r"libertem-parallax (reconstruct .*)", text("README.md"))
    run(command)
    expected = reconstructed(demo, ParallaxPhaseUDF)["phase"]
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected)


def test_events(demo: np.ndarray) -> None:
    """The file that the example writes gives the image of the frames, in Python and by command."""
    [code] = blocks("docs/data.md", "python", "csr_array")
    names: dict[str, Any] = {}
    exec(code, names)
    expected = reconstructed(demo)["reconstruction"]
    with names["ctx"] as ctx, small():
        udf = ParallaxUDF.from_parameters(shape=names["ds"].shape, **ACQUISITION)
        image = ctx.run_udf(names["ds"], udf)["reconstruction"].data
    np.testing.assert_array_equal(image, expected)
    [command] = re.findall(r"libertem-parallax (reconstruct .*events.toml.*)", text("docs/data.md"))
    run(command)
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected)


def test_tuning_while_it_runs(demo: np.ndarray) -> None:
    """It gives the image of the late frames."""
    [code] = blocks("docs/live.md", "python", "update_parameters_experimental")
    names: dict[str, Any] = {}
    with small():
        exec(code, names)
        with libertem.api.Context.make_with("inline") as ctx:
            ds = ctx.load("memory", data=demo, sig_dims=2)
            roi = np.arange(18)[:, None].repeat(20, axis=1) >= 6
            parameters = {**ACQUISITION, "aberration_coefs": {"C10": -1.2e4}}
            udf = ParallaxUDF.from_parameters(ds.shape, **parameters)
            expected = ctx.run_udf(ds, udf, roi=roi)
    np.testing.assert_array_equal(names["image"], expected["reconstruction"].data)


def test_the_phase_image(demo: np.ndarray) -> None:
    """In Python and by command, and what is made of a stack."""
    first, second = blocks("docs/phase.md", "python")
    names: dict[str, Any] = {"prlx": libertem_parallax, "parameters": ACQUISITION}
    with small(), libertem.api.Context.make_with("inline") as ctx:
        names |= {"ctx": ctx, "ds": ctx.load("memory", data=demo, sig_dims=2)}
        exec(first + second, names)
    np.testing.assert_array_equal(names["phase"], reconstructed(demo, ParallaxPhaseUDF)["phase"])
    np.testing.assert_allclose(np.angle(names["wave"]), names["direct"], atol=0.2)
    commands = re.findall(r"^libertem-parallax (.*)$", text("docs/phase.md"), flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == [*["reconstruct"] * 3, "transfer"]
    for command in commands:
        run(command)
    np.testing.assert_allclose(tifffile.imread("phase.tif"), names["phase"], atol=1e-6)
    np.testing.assert_allclose(tifffile.imread("direct.tif"), names["direct"], atol=1e-6)
    assert tifffile.imread("series.tif").shape == (7, 36, 40)


def test_the_page_in_a_notebook(demo: np.ndarray) -> None:
    """It is served, and its parameters are those of the demo until somebody turns a knob."""
    first, second = blocks("docs/page.md", "python")
    with small(), libertem.api.Context.make_with("inline") as ctx:
        names = {"ctx": ctx, "ds": ctx.load("memory", data=demo, sig_dims=2)}
        exec(first, names)
        page: Any = names["page"]
        assert f'<iframe src="{page.url}"' in page._repr_html_()
        with urllib.request.urlopen(page.url) as answer:
            assert b"bokeh" in answer.read()
        exec(second, names)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(page.url)
    np.testing.assert_array_equal(names["image"], reconstructed(demo)["reconstruction"])
    assert libertem_parallax.load_parameters("tuned.toml")["aberration_coefs"] == {"C10": -1.5e4}
