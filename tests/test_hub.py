"""Bundles from the Hugging Face Hub, from a server on this machine that answers like the hub."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from typing import ClassVar

import miniature
import pytest

import musiclm_jax
from musiclm_jax import bundles

pytest.importorskip("huggingface_hub")
COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the miniature bundle as repository band/mini, with a file that is none of a bundle."""

    files = {path.name: path.read_bytes() for path in miniature.path().iterdir()} | {"training.bin": b"checkpoint"}
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/models/band/mini/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif self.path.startswith("/api/models/band/mini"):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "band/mini", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self.answer(200, json.dumps(about | {"downloads": 0, "likes": 0}).encode())
        elif (name := self.path.removeprefix(f"/band/mini/resolve/{COMMIT}/")) in self.files:
            self.answer(200, self.files[name])
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status, body, headers=()):
        self.send_response(status)
        of_file = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for name, value in {**of_file, "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(hub, home, program):
    """Runs a program in a process of its own, since huggingface_hub reads the environment when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_bundle_of_the_hub_is_downloaded_once(hub, tmp_path):
    program = "import musiclm_jax; print(musiclm_jax.load('hf://band/mini').bundle.sha256)"
    first = run(hub, tmp_path, program)
    assert first.stdout.split() == [bundles.load(miniature.path()).sha256], first.stderr
    got = [request for request in Hub.asked if request.startswith("GET") and "/resolve/" in request]
    assert any("coarse.safetensors" in request for request in got)
    assert not any("training.bin" in request for request in got), "only the bundle's files"
    Hub.asked.clear()
    assert run(hub, tmp_path, program).stdout == first.stdout
    assert not any(request.startswith("GET") and "/resolve/" in request for request in Hub.asked)


def command(*arguments):
    return f"import sys; from musiclm_jax.launch import main; sys.exit(main.main({[*map(str, arguments)]}))"


def test_the_commands_take_it(hub, tmp_path):
    arguments = ["piano", "--bundle=hf://band/mini", "--seconds=0", f"--output={tmp_path / 'piano.wav'}"]
    done = run(hub, tmp_path, command("generate", *arguments))
    assert done.returncode == 2 and "seconds is 0" in done.stderr, done.stderr


@pytest.mark.parametrize("address", ["hf://band/none", "hf://band/mini"])
def test_what_cannot_be_downloaded_is_one_line(hub, tmp_path, address):
    there = hub if address.endswith("none") else "http://127.0.0.1:9"  # nobody answers at the second
    done = run(there, tmp_path, command("generate", "x", "--bundle", address, "--output", tmp_path / "x.wav"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"bundle {address}: cannot be downloaded" in done.stderr


@pytest.mark.parametrize("address", ["hf://", "hf://band", "hf://a/b/c", "hf://band/mini@"])
def test_wrong_addresses_are_refused(address):
    with pytest.raises(bundles.BundleError, match="expected hf://OWNER/NAME"):
        musiclm_jax.load(address)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(bundles.BundleError, match=r"pip install 'musiclm_jax\[hub\]'"):
        musiclm_jax.load("hf://band/mini")
