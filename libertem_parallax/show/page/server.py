"""Serves pages, with all that browsers need: nothing comes from other hosts."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.server.auth_provider import AuthProvider
from bokeh.server.server import Server
from jinja2 import Template
from tornado.web import RequestHandler

from .page import Page

__all__ = [
    "LOOPBACK",
    "PORT",
    "Access",
    "Background",
    "encryption",
    "free_port",
    "is_loopback",
    "listens_everywhere",
    "serve",
    "url",
]

_FOLDER = Path(__file__).parent

#: Of the loopback device: nobody else can connect.
LOOPBACK = "127.0.0.1"

PORT = 8765

_USER = "libertem-parallax"

#: To listen on all devices of the machine.
_EVERYWHERE = ("0.0.0.0", "::")


class Access(NamedTuple):
    """Where pages are served, and to whom."""

    port: int = PORT  #: another is taken where that is in use
    address: str = LOOPBACK  #: of the device to listen on
    hosts: tuple[str, ...] = ()  #: further names by which browsers call this machine
    password: str | None = None  #: to be asked for
    encryption: ssl.SSLContext | None = None

    @property
    def protected(self) -> bool:
        """Whether nobody can connect from elsewhere without the password."""
        return bool(self.password) or is_loopback(self.address)


def encryption(certificate: Path) -> ssl.SSLContext:
    """Read certificate and key from a file in PEM format, to encrypt connections.

    Raises
    ------
    OSError
        If it cannot be read, or has no such things.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def serve(make: Callable[[], Page], access: Access = Access()) -> Any:  # noqa: B008 - immutable
    """Serve pages; call ``.io_loop.start()`` of what is returned.

    Parameters
    ----------
    make
        Makes a page for each window that opens.
    access
        Where, and to whom.

    Returns
    -------
    bokeh.server.server.Server
        Its ``port`` says where it is.

    Raises
    ------
    ValueError
        If other machines can connect there without a password.
    OSError
        If nothing can listen there.
    """
    if not access.protected:
        raise ValueError(f"{access.address} can be reached from elsewhere: expected a password.")
    template = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))

    def show(document: Any) -> None:
        document.template = template
        make().add_to(document)

    options: dict[str, Any] = {}
    if access.password:
        options |= {
            "auth_provider": _Password(access.password),
            "cookie_secret": secrets.token_hex(),
        }
    if access.encryption is not None:
        options["http_server_kwargs"] = {"ssl_options": access.encryption}
    port = free_port(access)
    names = {*access.hosts, access.address, "localhost", LOOPBACK} | _names(access.address)
    server = Server(
        {"/": Application(FunctionHandler(show))},
        port=port,
        address=access.address,
        allow_websocket_origin=[f"{_bracketed(name)}:{port}" for name in sorted(names)],
        **options,
    )
    server.start()
    return server


class Background:
    """Serves pages from a thread of its own.

    Parameters
    ----------
    make, access
        See `serve`.

    Raises
    ------
    OSError
        If nothing can listen there.
    """

    def __init__(self, make: Callable[[], Page], access: Access) -> None:
        self._server: Any = None
        self._problem: BaseException | None = None
        started = threading.Event()

        def run() -> None:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            try:
                self._server = serve(make, access)
                self._server.io_loop.add_callback(started.set)
                self._server.io_loop.start()
                self._server.stop()
                self._server.io_loop.close()
            # Told where it was started.
            except Exception as error:
                self._problem = error
                loop.close()
            finally:
                started.set()

        self.thread = threading.Thread(target=run, name="page", daemon=True)
        self.thread.start()
        started.wait()
        if self._problem is not None:
            raise OSError(f"the page cannot be served: {self._problem}") from self._problem
        self.url = url(access, self.server.port)  #: where it is

    @property
    def server(self) -> Any:
        """Bokeh's."""
        return self._server

    def close(self) -> None:
        """End it; windows that are open show what they have."""
        if self.thread.is_alive():
            self._server.io_loop.add_callback(self._server.io_loop.stop)
            self.thread.join(5)


def url(access: Access, port: int) -> str:
    """Tell where to find pages that are served there: from other machines, if these may come."""
    host = access.address
    if host in _EVERYWHERE:
        host = access.hosts[0] if access.hosts else _addresses(host)[0]
    return f"http{'s' if access.encryption else ''}://{_bracketed(host)}:{port}/"


def free_port(access: Access) -> int:
    """Find a port that is free: the one that is asked for, or any.

    Raises
    ------
    OSError
        If nothing can listen on the address.
    """
    family = socket.AF_INET6 if ":" in access.address else socket.AF_INET
    problem = None
    for number in (access.port, 0):
        with socket.socket(family, socket.SOCK_STREAM) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind((access.address, number))
                free.listen(1)
            except OSError as error:
                problem = error
            else:
                port: int = free.getsockname()[1]
                return port
    assert problem is not None
    raise problem


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _names(address: str) -> set[str]:
    """Names of this machine, if it can be reached from others."""
    if is_loopback(address):
        return set()
    names = {socket.gethostname(), socket.getfqdn()}
    if address in _EVERYWHERE:
        names |= set(_addresses(address))
    for name in list(names):
        try:
            names |= {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
        except OSError:
            continue
    return names


def listens_everywhere(address: str) -> bool:
    """Whether an address stands for all of this machine's."""
    return address in _EVERYWHERE


def _addresses(everywhere: str) -> list[str]:
    """Addresses of this machine: first the one by which it reaches others, last loopback."""
    family, example, loopback = (
        (socket.AF_INET6, "2001:db8::1", "::1")
        if ":" in everywhere
        else (socket.AF_INET, "192.0.2.1", LOOPBACK)
    )
    devices = psutil.net_if_addrs().values()
    found = [of.address.partition("%")[0] for all_of in devices for of in all_of
             if of.family == family and not is_loopback(of.address)]  # fmt: skip
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect((example, 9))  # nothing is sent
        found.insert(0, way.getsockname()[0])
    return [*found, loopback]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Password(AuthProvider):
    """Asks for one password."""

    def __init__(self, password: str) -> None:
        page = (_FOLDER / "login.html").read_text(encoding="utf-8")

        class Login(RequestHandler):
            def get(self) -> None:
                self.set_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
                self.write(page)

            def post(self) -> None:
                given = self.get_body_argument("password", "")
                if hmac.compare_digest(given.encode(), password.encode()):
                    secure = self.request.protocol == "https"
                    self.set_signed_cookie(
                        "user", _USER, expires_days=None, httponly=True, samesite="Strict",
                        secure=secure,
                    )  # fmt: skip
                    self.redirect("/")
                else:
                    self.set_status(403)
                    self.write(page.replace("<!--wrong-->", "<p>That is not the password.</p>"))

        self._login = Login
        super().__init__()

    @property
    def get_user(self) -> Callable[[Any], Any]:
        """Whoever has given the password."""
        return lambda handler: handler.get_signed_cookie("user")

    @property
    def login_url(self) -> str:
        """Where it is asked for."""
        return "/login"

    @property
    def login_handler(self) -> type[RequestHandler]:
        """What asks for it."""
        return self._login

    @property
    def get_login_url(self) -> None:
        """Not in use."""
        return

    @property
    def get_user_async(self) -> None:
        """Not in use."""
        return

    @property
    def logout_url(self) -> None:
        """Not in use: the browser forgets when it is closed."""
        return

    @property
    def logout_handler(self) -> None:
        """Not in use."""
        return
