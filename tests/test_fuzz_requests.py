"""Fuzzes the listening test's server: any request is answered or refused, names of other machines are refused."""

import json
import socket
import threading

import fuzzing
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musiclm_jax.data import audio
from musiclm_jax.evaluation.listening_test import answers, make_trials, server

ANSWER = {"number": 0, "answer": 3, "seconds": 1.5}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server of 3 pairs; its attribute `failed` lists what its threads raised."""
    base = tmp_path_factory.mktemp("systems")
    for name in ("a", "b"):
        (base / name).mkdir()
        for clip in range(3):
            audio.write(base / name / f"{clip}.wav", np.sin(np.arange(2_400) / 10).astype(np.float32) / 2)

    class Watched(server.Server):
        failed = ()

        def handle_error(self, request, client_address):
            import traceback

            self.failed += (traceback.format_exc(),)

    with Watched(make_trials(base / "a", base / "b"), base / "answers.jsonl") as watched:
        threading.Thread(target=watched.serve_forever, args=(0.01,), daemon=True).start()
        yield watched
        watched.shutdown()


def replies(running, content):
    """Sends bytes, closes that direction, and returns all that comes back."""
    with socket.create_connection(running.server_address, timeout=fuzzing.SECONDS) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while block := connection.recv(65_536):
                received += block
        except ConnectionError:  # it was refused before all was sent
            return b""
    return received


def request(line="GET /state HTTP/1.1", host="localhost", headers=(), body=b""):
    text = "\r\n".join([line, *([] if host is None else [f"Host: {host}"]), *headers]) + "\r\n\r\n"
    return text.encode("latin-1", "replace") + body


def answer(fields, length=None):
    body = json.dumps(fields).encode() if not isinstance(fields, bytes) else fields
    headers = ["Content-Type: application/json", f"Content-Length: {len(body) if length is None else length}"]
    return request("POST /answers HTTP/1.1", headers=headers, body=body)


LINES = st.builds(
    "{} {} {}".format,
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "__init__"]) | st.text(max_size=4),
    st.sampled_from(
        ["/", "/state", "/answers", "/clips/0/a.wav", "/clips/9/a.wav", f"/clips/{'9' * 5000}/b.wav", "//x"]
    ),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/\u00b2.1", ""]),
)
HEADERS = st.lists(
    st.sampled_from(
        ["Expect: 100-continue", "Connection: keep-alive", "Transfer-Encoding: chunked", "Host: x", ": ", "x"]
    )
    | st.text(max_size=8).map("Content-Type: {}".format)
    | st.text(max_size=8).map("Content-Length: {}".format),
    max_size=4,
)
FIELDS = st.builds(
    lambda name, value: ANSWER | {name: value}, st.sampled_from(["number", "answer", "seconds", "x"]), fuzzing.VALUES
)
LENGTHS = st.none() | st.sampled_from(["0", "-1", "99999999999", "9" * 5000, "1e3", "", "\u00b2"]) | st.integers(0, 60)


@fuzzing.examples(80)
@given(
    st.builds(request, LINES, st.just("localhost"), HEADERS, st.binary(max_size=20))
    | st.builds(answer, FIELDS | fuzzing.VALUES | st.binary(max_size=20), LENGTHS)
    | fuzzing.damaged([answer(ANSWER), request()])
    | st.binary(max_size=60)
)
@example(answer(ANSWER | {"number": 10**400}))
@example(answer(ANSWER | {"seconds": float("inf")}))
@example(answer(ANSWER | {"number": float("inf")}))
@example(answer(b"[" * 9_999))
@example(request(f"GET /clips/{'9' * 5000}/b.wav HTTP/1.1"))
@example(request(headers=[f"X-{number}: a" for number in range(200)]))
@example(request("GET /" + "a" * 70_000 + " HTTP/1.1"))
def test_any_request_is_answered_or_refused(running, content):
    before = len(answers.read(running.output)) if running.output.exists() else 0
    received = replies(running, content)
    assert not running.failed, running.failed[-1]
    assert not received or received.startswith((b"HTTP/1.1 ", b"<!DOCTYPE", b"<!doctype", b"{", b"RIFF")), received[:80]
    known = answers.read(running.output) if running.output.exists() else []
    assert len(known) in (before, before + 1) and all(0 <= own.seconds <= server.MAX_SECONDS for own in known)


OTHERS = st.sampled_from(
    "evil.example|evil.example:8765|localhost.evil.example|127.0.0.1.evil.example|localhost@evil.example|127.0.0.2|"
    "0.0.0.0|[::]|::1|2130706433|:8765|localhost, evil.example|localhost:x|".split("|")
)
OWN = ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8765", "[::1]:80"]


@fuzzing.examples(40)
@given(OTHERS | st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20), LINES)
@example("evil.example", "GET /state HTTP/1.1")
@example(None, "GET /clips/0/a.wav HTTP/1.0")
def test_names_of_other_machines_are_refused(running, host, line):
    received = replies(running, request(line, host))
    assert not running.failed, running.failed[-1]
    assert b" 200 " not in received.split(b"\r\n")[0] and b'"trials"' not in received and b"RIFF" not in received


@pytest.mark.parametrize("host", OWN)
def test_names_of_this_machine_are_served(running, host):
    assert replies(running, request("GET /state HTTP/1.1", host)).startswith(b"HTTP/1.1 200 ")
    # A second name would be read by others than the first.
    assert replies(running, request("GET /state HTTP/1.1", host, ["Host: evil.example"])).startswith(b"HTTP/1.1 403 ")
