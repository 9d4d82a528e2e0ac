"""The door of a server: what clients may reach of the SuperLink, over TLS.

A SuperLink has one port for clients, for whoever starts runs, and for apps. The front forwards the
first kind of requests, from the keys of the registry, and answers 404 to all others. It is
uvicorn and httpx, which Flower brings and builds on itself: neither holds a body, both wait for
the slower side.
"""

import base64
import binascii
import json
import logging
import re
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from bhfl.remote.allowance import Allowance, TooManyBytesError
from bhfl.remote.bounded import HEAD_SECONDS, Bounded
from bhfl.remote.flower import listening, needs_flower
from bhfl.remote.keys import ServerKeys
from bhfl.remote.registry import Registry
from bhfl.remote.supervised import Running

if TYPE_CHECKING:
    import httpx
    import uvicorn

_log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

FLEET = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
"""The paths that are forwarded, as they came: nothing in them can be read as another path."""
MOST_BYTES = 2**30
"""Bytes of a request's body at most. Flower cuts what clients send into pieces of a few MB."""
MOST_HEAD = 2**16
"""Bytes of a request's head at most: one without an end is read before anybody is known."""
_OF_ONE_HOP = {
    b"connection",
    b"host",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
"""Headers that are between two machines and go no further."""
_KEY_HEADER = b"flwr-public-key"
_TIME_HEADER = b"flwr-timestamp"
_SIGNATURE_HEADER = b"flwr-signature"
MOST_SKEW = 300.0
"""Seconds by which a client's clock may differ: a SuperLink takes older signatures for stolen."""
_NOT_REGISTERED = 2004
"""What Flower answers where a SuperNode may not join."""


class Front(Running):
    """A server of TLS that forwards requests of registered clients to a SuperLink.

    Args:
        keys: The server's files. The SuperLink must have a certificate of the same authority.
        registry: The clients that have a key; others are not forwarded.
        superlink: ``HOST:PORT`` of the SuperLink.
        host: The address to listen at; ``0.0.0.0`` are all of this machine.
        port: The port to listen at; 0 takes a free one.
        most_bytes: The bytes of a request's body at most.
        head_seconds: What a connection has until the head of its first request is there.

    Raises:
        ImportError: Flower is not installed.
        OSError: The port is in use.
        ValueError: The address or the port is none.
    """

    def __init__(  # noqa: PLR0913
        self,
        keys: ServerKeys,
        registry: Registry,
        superlink: str,
        host: str,
        port: int,
        most_bytes: int = MOST_BYTES,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        needs_flower()
        self._keys = keys
        self._registry = registry
        self._superlink = superlink
        self.allowance = Allowance(most_bytes)
        """What clients may bring."""
        clients = len(registry.clients)
        self._socket = Bounded(listening(host, port, "port"), clients, head_seconds)
        self.port = int(self._socket.getsockname()[1])
        """The port that it listens at."""
        self.bytes_up: Counter[int] = Counter()
        """Bytes of bodies that came from each client, by its position in the fleet."""
        self.bytes_down: Counter[int] = Counter()
        """Bytes of bodies that went to each client."""
        self._server = self._uvicorn()
        self._client: httpx.AsyncClient | None = None
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [self._socket]},
            name="bhfl-front",
            daemon=True,
        )

    def _uvicorn(self) -> "uvicorn.Server":
        import uvicorn

        return uvicorn.Server(
            uvicorn.Config(
                self._answer,
                ssl_certfile=self._keys.certificate,
                ssl_keyfile=self._keys.private,
                interface="asgi3",
                # httptools holds a head of any length; uvloop would not ask `Bounded`
                http="h11",
                h11_max_incomplete_event_size=MOST_HEAD,
                loop="asyncio",
                log_config=None,
                lifespan="off",
                # what is worth to be told is told here; strangers may send what they like
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ws="none",
                # clients keep a connection for seconds between two requests
                timeout_keep_alive=75,
            )
        )

    def start(self) -> Self:
        """Begin to answer."""
        # who comes before the thread has begun waits
        self._socket.listen(1024)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End, and give the port back."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(1.0)
            # idle connections are not waited for
            self._server.force_exit = True
            self._thread.join(10.0)
        self._socket.close()

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self._socket.heard(scope["client"])
        try:
            await self._answered(scope, receive, send)
        except ConnectionResetError:
            return
        except Exception as error:
            # uvicorn cuts the connection, so that nobody takes half an answer for a whole one
            _log.warning("an answer of %s broke off: %r", scope.get("path"), error)
            raise

    async def _answered(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["method"] == "POST" and not scope["query_string"]
        if not asks or not FLEET.fullmatch(scope["raw_path"]):
            return await _turn_away(send, 404, "not found")
        client = self._client_of(scope["headers"])
        if client is None:
            return await _turn_away(send, 412, "the key of this client is not in the registry")
        headers = dict(scope["headers"])
        if not self._has_signed(client, headers):
            return await _turn_away(send, 401, "this client has not signed its time by its key")
        if abs(skew := _skew(headers)) > MOST_SKEW:
            told = f"the clock of this client differs from the server's by {skew:+.0f} s"
            return await _say(send, 412, told)
        try:
            # what is said to come is refused before it does
            length = headers.get(b"content-length", b"")
            said = int(length) if length.isdigit() else 0
            self.allowance.check(client, scope["raw_path"], said, said)
            await self._forward(scope, client, receive, send)
        except TooManyBytesError as error:
            await _say(send, 413, str(error))

    def _client_of(self, headers: list[tuple[bytes, bytes]]) -> int | None:
        """The client whose key a request names."""
        named = [value for name, value in headers if name == _KEY_HEADER]
        try:
            one = self._registry.of_key.get(base64.b64decode(b"".join(named), validate=True))
        except binascii.Error:
            return None
        return None if one is None else one.client

    def _has_signed(self, client: int, headers: dict[bytes, bytes]) -> bool:
        """Whether a request is of the client that it names. The SuperLink looks too, but when it
        has the whole body, which would count as the client's by then.
        """
        try:
            signature = base64.b64decode(headers[_SIGNATURE_HEADER], validate=True)
            return self._registry.clients[client].has_signed(headers[_TIME_HEADER], signature)
        except (KeyError, binascii.Error):
            return False

    async def _forward(
        self, scope: dict[str, Any], client: int, receive: Receive, send: Send
    ) -> None:
        import httpx

        body = _Body(receive, partial(self.allowance.count, client, scope["raw_path"]))
        inner = self._inner()
        request = inner.build_request(
            "POST",
            f"https://{self._superlink}{scope['raw_path'].decode()}",
            headers=[pair for pair in scope["headers"] if pair[0] not in _OF_ONE_HOP],
            content=body.parts(),
        )
        begun = False
        down = 0
        try:
            answer = await inner.send(request, stream=True)
            try:
                begun = True
                await send(_head(answer))
                async for part in answer.aiter_raw():
                    down += len(part)
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            if begun:
                raise
            await _say(send, 502, f"the SuperLink does not answer: {type(error).__name__}")
        finally:
            self.bytes_up[client] += body.length
            self.bytes_down[client] += down

    def _inner(self) -> "httpx.AsyncClient":
        """The connections to the SuperLink, made in the thread that uses them."""
        import httpx

        if self._client is None:
            context = ssl.create_default_context(cafile=self._keys.ca)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._client = httpx.AsyncClient(
                verify=context, timeout=60.0, limits=limits, trust_env=False
            )
        return self._client


class _Body:
    """A request's body, part by part as it comes.

    Args:
        receive: Waits for the next part.
        count: Is told the length so far, and that of the last part.
    """

    def __init__(self, receive: Receive, count: Callable[[int, int], None]) -> None:
        self._receive = receive
        self._count = count
        self.length = 0

    async def parts(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client went away")
            part = message.get("body", b"")
            self.length += len(part)
            self._count(self.length, len(part))
            more = message.get("more_body", False)
            if part:
                yield part


def _skew(headers: dict[bytes, bytes]) -> float:
    """Seconds by which a client's clock is ahead; 0 where what it says is no time."""
    try:
        said = datetime.fromisoformat(headers[_TIME_HEADER].decode("ascii"))
        return (said - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        # the SuperLink refuses it, as it does a time without a zone
        return 0.0


def _head(answer: "httpx.Response") -> dict[str, Any]:
    headers = [(name.lower(), value) for name, value in answer.headers.raw]
    return {
        "type": "http.response.start",
        "status": answer.status_code,
        "headers": [pair for pair in headers if pair[0] not in _OF_ONE_HOP],
    }


async def _turn_away(send: Send, status: int, text: str) -> None:
    """Say why a stranger is not served, whose connection ends with that."""
    await _say(send, status, text, (b"connection", b"close"))


async def _say(send: Send, status: int, text: str, *more: tuple[bytes, bytes]) -> None:
    """Answer by a status and a reason, in the form in which SuperNodes read reasons."""
    body = json.dumps({"code": _NOT_REGISTERED, "detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += more
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
