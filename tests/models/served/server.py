"""A small OpenAI-compatible server that answers by a rule, and misbehaves where it is told to."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """A response other than a completion."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False
    """Whether the connection is closed before the body's end."""
    hang_s: float = 0.0
    """Before it is sent."""


def refusal(status: int, message: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}})
    return Reply(status, body, headers)


def parts_of(body: dict) -> list[dict]:
    (message,) = body["messages"]
    return message["content"]


def text_of(body: dict) -> str:
    return parts_of(body)[-1]["text"]


def num_images(body: dict) -> int:
    return sum(part["type"] == "image_url" for part in parts_of(body))


def letter(body: dict, place: int = 0) -> str:
    """An answer that depends on the question, the number of frames and the seed alone."""
    key = repr((text_of(body), num_images(body), body.get("seed", 0) + place))
    return "AB"[hashlib.sha256(key.encode()).digest()[0] % 2]


def completion(body: dict, texts: list[str] | None = None, **choice: object) -> str:
    """JSON of a response."""
    if texts is None:
        texts = [f"<answer>{letter(body, i)}</answer>" for i in range(body.get("n", 1))]
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        | choice
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 5 * len(texts), "total_tokens": 0}
    return json.dumps({"object": "chat.completion", "choices": choices, "usage": usage})


class FakeServer:
    """Serves one model, ``tiny``; set the attributes to let it misbehave.

    For the question that a policy asks when it is loaded, `rule` is not called.
    """

    def __init__(self) -> None:
        self.rule: Callable[[dict, int], Reply | str | None] = lambda body, index: None
        """From a request and its number to what is sent; None for a completion by `letter`."""
        self.models: list[str] | None = ["tiny", "tiny-large"]
        self.key: str | None = None
        self.check: Reply | None = None
        """What the check is answered with."""
        self.bodies: list[dict] = []
        """Of all requests but the check."""
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if (denied := server.denied(self.headers)) is not None:
                    self.reply(denied)
                elif server.models is None:
                    self.reply(Reply(404, "<html>nothing here</html>"))
                else:
                    found = [{"id": name, "object": "model"} for name in server.models]
                    self.reply(Reply(body=json.dumps({"object": "list", "data": found})))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(server.denied(self.headers) or server.answer(body))

            def reply(self, reply: Reply):
                time.sleep(reply.hang_s)
                data = reply.body.encode()
                with suppress(OSError):  # nobody waits any more
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("Content-Length", str(len(data) + 10 * reply.is_cut))
                    self.end_headers()
                    self.wfile.write(data)
                if reply.is_cut:
                    self.close_connection = True

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            # the default of 5 lets connections drop where more begin at once on a busy machine
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def denied(self, headers) -> Reply | None:
        given = headers.get("Authorization")
        if self.key is None or given == f"Bearer {self.key}":
            return None
        return refusal(401, f"Incorrect API key provided: {given}")

    def answer(self, body: dict) -> Reply:
        if body["model"] not in (self.models or ["tiny"]):
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if "What is this?" in text_of(body):
            return self.check or Reply(body=completion(body, ["grey"]))
        with self._lock:
            index = len(self.bodies)
            self.bodies.append(body)
        found = self.rule(body, index)
        if found is None:
            found = completion(body)
        return Reply(body=found) if isinstance(found, str) else found

    def close(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving():
    server = FakeServer()
    try:
        yield server
    finally:
        server.close()
