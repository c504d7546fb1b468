"""A server that speaks OpenAI's chat protocol over HTTP on loopback, and does as it is told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "openai:gpt-4o-mini"

Behaviour = Callable[["_Handler"], None]


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    server: _Http
    request_body: dict[str, Any]

    def do_POST(self) -> None:
        self.request_body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(self.request_body)
        script = self.server.script
        (script.pop(0) if script else self.server.otherwise)(self)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def open_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()

    def send_event(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.send_data({"choices": [choice]})

    def send_data(self, fields: dict[str, Any]) -> None:
        event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def end_stream(self) -> None:
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        self.send_data({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    otherwise: Behaviour
    requests: list[dict[str, Any]]
    script: list[Behaviour]
    released: threading.Event


class OpenAIServer:
    """The running server: its address, what it was asked, and what it will do next."""

    def __init__(self, http: _Http) -> None:
        self._http = http
        self.base_url = f"http://127.0.0.1:{http.server_port}/v1"
        self.requests = http.requests
        self._script = http.script

    def will(self, *behaviours: Behaviour) -> None:
        """What it does with the next requests, one after the other."""
        self._script.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """What it does with every request that it was not told anything else about."""
        self._http.otherwise = behaviour


def texts(request: dict[str, Any], role: str) -> list[str]:
    """What was sent in a role."""
    return [message["content"] for message in request["messages"] if message["role"] == role]


def marked(text: str) -> list[tuple[str, str]]:
    """What is marked as data in a text: where it is from, and what it is."""
    found = re.finditer(r'<data (\w+) from="([^"\n]*)">\n(.*?)\n</data \1>', text, re.DOTALL)
    return [(mark[2], mark[3]) for mark in found]


@contextmanager
def serving() -> Iterator[OpenAIServer]:
    http = _Http(("127.0.0.1", 0), _Handler)
    http.otherwise = says("nothing more")
    http.requests, http.script, http.released = [], [], threading.Event()
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield OpenAIServer(http)
    finally:
        http.released.set()
        http.shutdown()
        thread.join()
        http.server_close()


def says(*pieces: str) -> Behaviour:
    """A reply in pieces."""

    def behave(handler: _Handler) -> None:
        handler.open_stream()
        for piece in pieces:
            handler.send_event({"role": "assistant", "content": piece})
        handler.send_event({}, "stop")
        handler.end_stream()

    return behave


def drips(pieces: int, seconds: float) -> Behaviour:
    """A reply of so many pieces, with a pause before each."""

    def behave(handler: _Handler) -> None:
        handler.open_stream()
        for number in range(pieces):
            time.sleep(seconds)
            handler.send_event({"role": "assistant", "content": f"{number} "})
        handler.send_event({}, "stop")
        handler.end_stream()

    return behave


def echoes(handler: _Handler) -> None:
    """A reply that tells what was said last: `re: ` and each line of it, a piece a line."""
    said = texts(handler.request_body, "user")[-1]
    says("re:", *(f" {line};" for line in said.splitlines()))(handler)


def calls(tool: str, arguments: str) -> Behaviour:
    """A request for a tool, with arguments as JSON text."""

    def behave(handler: _Handler) -> None:
        handler.open_stream()
        function = {"name": tool, "arguments": arguments}
        name = f"call_{len(handler.server.requests)}"
        call = {"index": 0, "id": name, "type": "function", "function": function}
        handler.send_event({"role": "assistant", "tool_calls": [call]})
        handler.send_event({}, "tool_calls")
        handler.end_stream()

    return behave


def fails(status: int, **headers: str) -> Behaviour:
    """An HTTP error."""

    def behave(handler: _Handler) -> None:
        body = json.dumps({"error": {"message": f"because of {status}"}}).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def refuses_and_repeats(handler: _Handler) -> None:
    """A refusal that tells the key, and all that was said."""
    told = f"{handler.headers['authorization']} {json.dumps(handler.request_body)}"
    body = json.dumps({"error": {"message": f"this key is not known: {told}"}}).encode()
    handler.send_response(401)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def stalls(handler: _Handler) -> None:
    """The beginning of a reply, and then nothing."""
    handler.open_stream()
    handler.send_event({"role": "assistant", "content": "Well"})
    handler.wfile.flush()
    handler.server.released.wait()


def hangs_up(handler: _Handler) -> None:
    """The beginning of a reply on a connection that is cut."""
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("content-length", "100000")
    handler.end_headers()
    handler.send_event({"role": "assistant", "content": "Well"})


def babbles(handler: _Handler) -> None:
    """A reply that is not JSON."""
    handler.open_stream()
    handler.wfile.write(b"data: {not json\n\n")
