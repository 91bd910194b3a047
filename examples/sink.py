#!/usr/bin/env python3
"""A sink that prints each event that it receives: python3 examples/sink.py [PORT [ADDRESS]]

It accepts every event. A real sink stores an event before it answers, and recognises a repeated one by ce-source and ce-id.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.headers.get("ce-subject", "no conversation")
        line = f"{self.headers['ce-type']} {self.headers['ce-id']} for {subject}"
        # In one piece, because other threads print too.
        sys.stdout.write(f"{line}\n{json.dumps(data, indent=2)}\n")
        sys.stdout.flush()
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    ThreadingHTTPServer((address, port), Sink).serve_forever()
