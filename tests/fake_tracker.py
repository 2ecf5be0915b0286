"""A server that speaks as much of wandb's protocol as a run needs, and can fall silent."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List

ACCOUNT = {"id": "1", "entity": "me", "username": "me", "email": "me@here", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "2", "name": "project", "entity": {"id": "3", "name": "me"}}
RUN = {"id": "4", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0, "project": PROJECT}


class FakeTracker:
    """While entered, listens at `address` and keeps in `history` the rows that runs send.

    Args:
        is_silent_after_start: once it knows a run, it takes requests and answers none.
    """

    def __init__(self, is_silent_after_start: bool = False) -> None:
        self.history: List[Dict[str, Any]] = []
        self._is_silent_after_start = is_silent_after_start
        self._knows_a_run = False
        self._closed = threading.Event()
        tracker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = tracker.answer(self.path, body)
                with contextlib.suppress(ConnectionError):  # who asked has given up
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeTracker":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> bytes:
        if self._is_silent_after_start and self._knows_a_run:
            self._closed.wait()
        if path == "/graphql":
            return json.dumps({"data": self._data_of(json.loads(body))}).encode()
        if path.endswith("/file_stream"):
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"content": []})
            self.history += [json.loads(line) for line in sent["content"]]
        return b"{}"

    def _data_of(self, request: Dict[str, Any]) -> Dict[str, Any]:
        query, variables = request["query"], request.get("variables", {})
        if "upsertBucket" in query:
            self._knows_a_run = True
            return {"upsertBucket": {"bucket": RUN, "inserted": True}}
        if "viewer" in query:
            return {"viewer": ACCOUNT}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/files"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "4", "uploadHeaders": [], "files": files}}
        return {}
