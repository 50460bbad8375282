"""``tune``: the page in the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from .messages import messages_only, warn
from .options import Finite, acquisition_options, blur_option, parameter_option
from .parameters import check_required, read_parameters
from .run import default_gpu, has_terminal

if TYPE_CHECKING:
    from ..show.page.server import Access

#: Where the password may be, instead of in a file.
PASSWORD = "LIBERTEM_PARALLAX_PASSWORD"

_EXAMPLES = """\b
Examples:
  libertem-parallax tune scan.h5 --params scan.toml
  libertem-parallax tune scan.h5 --params scan.toml --listen 0.0.0.0 \\
      --password-file password.txt --certificate server.pem
"""


def page_options(command: Any, prefix: str = "") -> Any:
    """Add the options that say how a page is served; some with a prefix to their names."""
    for option in reversed(
        (
            click.option(
                f"--{prefix}port",
                "page_port",
                type=click.IntRange(0, 65535),
                default=8765,
                show_default=True,
                help="Where the page is served. Where that is in use, another is taken; 0 for any.",
            ),
            click.option(
                "--listen",
                metavar="ADDRESS",
                default="127.0.0.1",
                show_default=True,
                help="Address to listen on. Others can be reached from other machines, and need "
                f"a password: --password-file or {PASSWORD}.",
            ),
            click.option(
                "--password-file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="File whose first line is the password that the page asks for.  "
                f"[default: the environment variable {PASSWORD}, if there is one]",
            ),
            click.option(
                "--certificate",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                metavar="PEM",
                help="File with certificate and key, to encrypt connections.",
            ),
            click.option(
                f"--{prefix}host",
                "page_hosts",
                multiple=True,
                metavar="NAME",
                help="Further name by which browsers call this machine. Repeat it for more.",
            ),
            click.option(
                "--browser/--no-browser",
                default=None,
                help="Open the page in a browser.  [default: where there is a display]",
            ),
        )
    ):
        command = option(command)
    return command


def memory_option(command: Any) -> Any:
    """Add the option that bounds the stack."""
    return click.option(
        "--memory",
        type=Finite(min=0, min_open=True),
        metavar="GiB",
        help="Memory that the stack may take.  [default: a quarter of what is free]",
    )(command)


@click.command(short_help="Turn knobs and see the image follow, in the browser.", epilog=_EXAMPLES)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder for what is saved on the page. No file is overwritten.  "
    "[default: the current folder]",
)
@page_options
@memory_option
@acquisition_options
@parameter_option("load")
@blur_option("Blur to begin with: standard deviation of a Gaussian.  [default: 0]")
def tune(
    data: Path,
    params: Path | None,
    output: Path,
    memory: float | None,
    blur: float | None,
    browser: bool | None,
    **options: Any,
) -> None:
    """Tune the parameters of DATA, any 4D-STEM data set that LiberTEM opens, in the browser.

    The bright field of all frames is read into memory. The image then follows every knob.
    Ctrl-C ends.
    """
    check_page()
    access = read_access(options)
    parameters = read_parameters(params, options)
    check_required(parameters)

    from libertem.api import Context

    from ..show.fill import fill_stack, part_note
    from ..show.tuning import Tuning
    from .reconstruct import open_dataset

    limit = None if memory is None else int(memory * 2**30)
    gpu = default_gpu() if parameters.get("engine", "auto") == "auto" else None
    load = parameters.settings.get("load", {})
    with messages_only(), Context.make_with("threads") as ctx:
        dataset = open_dataset(ctx, data, load)
        click.echo("Reading the bright field", err=True)
        stack = fill_stack(ctx, dataset, parameters, limit, device=gpu, progress=has_terminal())
        tuning = Tuning(stack, parameters.replace(load=None))
    source = {"filetype": load.get("type", "auto"), "path": str(data), **load}
    source.pop("type", None)
    page = {"title": data.name, "folder": output, "source": source, "sigma": blur or 0.0,
            "note": part_note(stack, dataset)}  # fmt: skip
    try:
        serve_pages(tuning, access, browser=browser, **page)
    finally:
        tuning.close()


def check_page() -> None:
    """Refuse to go on where what the page is made of is not installed."""
    if find_spec("bokeh") is None:
        raise click.ClickException(
            "Bokeh cannot be found, of which the page is made. Install what it needs with: "
            "python -m pip install 'libertem-parallax[page]'"
        )


def read_page_options(options: dict[str, Any], *, page: bool) -> Access | None:
    """Take out the options for a page; None, and none of them, where none is wanted."""
    if page:
        check_page()
        return read_access(options)
    context = click.get_current_context()
    for name in ("listen", "password_file", "certificate", "page_port", "page_hosts"):
        options.pop(name)
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')}: without meaning without --page.")
    return None


def read_access(options: dict[str, Any]) -> Access:
    """Take out the options that say where pages are served, and refuse what cannot be."""
    from ..show.page.server import Access, encryption, free_port

    listen, file, certificate = (
        options.pop(name) for name in ("listen", "password_file", "certificate")
    )
    try:
        text = file.read_text(encoding="utf-8") if file else os.environ.get(PASSWORD, "")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--password-file {file}: {error}") from error
    password = text.partition("\n")[0].strip() or None
    if file and not password:
        raise click.UsageError(f"--password-file {file}: expected a password in its first line.")
    try:
        encrypted = None if certificate is None else encryption(certificate)
    except OSError as error:
        raise click.ClickException(
            f"--certificate {certificate}: expected certificate and key in PEM format: {error}"
        ) from error
    access = Access(
        options.pop("page_port"), listen, options.pop("page_hosts"), password, encrypted
    )
    if not access.protected:
        raise click.UsageError(
            f"--listen {listen}: other machines can connect there. Give a password that the page "
            f"asks for, with --password-file or as {PASSWORD}, or leave --listen out and use an "
            "SSH tunnel."
        )
    try:
        free_port(access)
    except OSError as error:
        raise click.ClickException(f"--listen {listen}: {error}") from error
    return access


def warn_of_access(access: Access, where: str) -> None:
    """Tell who can connect; warn of another port than was asked for, and without encryption."""
    from ..show.page.server import is_loopback, listens_everywhere

    if access.port not in (0, urlsplit(where).port):
        warn(f"port {access.port} is in use; the page is served on another.")
    if listens_everywhere(access.address):
        click.echo("Other machines find the page by any name or address of this one.", err=True)
    if access.encryption is None and not is_loopback(access.address):
        warn(
            "connections are not encrypted: who can listen on the network sees password and "
            "images. Give a --certificate, or use an SSH tunnel."
        )


def serve_pages(tuning: Any, access: Access, *, browser: bool | None, **page: Any) -> None:
    """Serve pages until Ctrl-C; `page` is told to each of them."""
    from ..show.page.page import Page
    from ..show.page.server import serve, url

    server = serve(lambda: Page(tuning, **page), access)
    where = url(access, server.port)
    warn_of_access(access, where)
    try:
        click.echo(f"The page is at {where} (Ctrl-C ends)")
        open_browser(where, wanted=browser)
        server.io_loop.start()
    except KeyboardInterrupt:
        click.echo(err=True)
    finally:
        server.stop()


def open_browser(url: str, *, wanted: bool | None) -> None:
    """Open a page in a browser, if that is wanted; if nothing is said, where there is a display."""
    if os.name == "nt" or sys.platform == "darwin":
        display = "SSH_CONNECTION" not in os.environ
    else:
        display = any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if display if wanted is None else wanted:
        webbrowser.open(url)
