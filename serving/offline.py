"""A process that reaches no other machine, whatever the libraries in it would like to ask or report."""

import ipaddress
import socket
import sys
from collections.abc import Collection, Sequence
from typing import Any


def stay_offline(own: Collection[str] = ()) -> None:
    """From now on this process reaches this machine alone: any other address raises PermissionError.

    own: names of this machine, besides localhost. There is no way back. Python's own sockets are meant, which
    Gradio and the hub's client use; code in C that opens sockets by itself isn't seen.
    """
    known = {*own, *(str(each[4][0]) for name in own for each in socket.getaddrinfo(name, None))}

    def watch(event: str, arguments: Sequence[Any]) -> None:
        match event:
            case "socket.connect" | "socket.sendto" | "socket.sendmsg":
                address = arguments[1]
                host = address[0] if isinstance(address, tuple) else None  # else a Unix socket
            case "socket.getaddrinfo" | "socket.gethostbyname":
                host = arguments[0]
            case _:
                return
        if host is not None and not _is_here(host, known):
            raise PermissionError(f"the page asks nothing of the network, so it doesn't reach {host!r}")

    sys.addaudithook(watch)


def _is_here(host: str | bytes, known: Collection[str]) -> bool:
    name = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    if name in ("", "localhost") or name in known:
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False
