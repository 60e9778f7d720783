"""Local web server for the page of a listening test; uses only Python's standard library and loads nothing remote."""

import datetime
import errno
import http.server
import importlib.resources
import io
import json
import pathlib
import re
import threading
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.data import audio as sound
from musiclm_jax.data import files
from musiclm_jax.data.samples import to_pcm16
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation.listening_test import answers as answer_file
from musiclm_jax.evaluation.listening_test.answers import SCALE, Answer
from musiclm_jax.evaluation.listening_test.trials import Trial

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")  # of this machine, in the Host header of a request
SILENT_RMS = 1e-4  # of full scale; a clip below it is left out of loudness matching
MAX_BODY = 10_000  # maximum size of an answer in bytes
MAX_SECONDS = 1e6  # time until an answer, as recorded; JSON has no infinity
# The page only exchanges clips and answers with this server.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
_CLIP = re.compile(r"/clips/(\d{1,9})/([ab])\.wav")


class Server(http.server.ThreadingHTTPServer):
    """Serves one listening test, reachable only from this machine.

    Attributes:
      trials: all pairs, in the order of the test.
      output: file for the answers; pairs that it already answers are not asked again.
      listener: name of the listener.
    """

    daemon_threads = True

    def __init__(self, trials: Sequence[Trial], output: pathlib.Path, listener: str = "", port: int = 0):
        """Opens the port.

        Raises:
          ValueError: if the port is in use or not allowed, or the output file contains anything but answers.
        """
        self.trials, self.output, self.listener = list(trials), output, listener
        known = answer_file.read(output) if output.exists() else []
        self._open = set(answer_file.unanswered(trials, known, listener))
        self._lock = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
            raise ValueError(f"port {port} {reason}: choose another, or 0 for any free port") from error
        except OverflowError as error:
            raise ValueError(f"port is {port}: give 1 to 65535, or 0 for any free port") from error

    @property
    def url(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    @property
    def answered(self) -> int:
        """Number of pairs that have an answer."""
        return len(self.trials) - len(self._open)

    def state(self) -> dict[str, Any]:
        """Returns the state for the page: the open pairs, without their ids and systems."""
        with self._lock:
            waiting = sorted(self._open)
        return {
            "total": len(self.trials),
            "scale": SCALE,
            "output": str(self.output),
            "trials": [{"number": number, "caption": self.trials[number].caption} for number in waiting],
        }

    def record(self, number: int, answer: int, seconds: float) -> None:
        """Records an answer in the output file.

        Raises:
          ValueError: if the pair or answer does not exist, or the pair is already answered.
        """
        if answer not in range(1, len(SCALE) + 1):
            raise ValueError(f"answer {answer!r}: expected 1 to {len(SCALE)}")
        with self._lock:
            if number not in self._open:
                raise ValueError(f"pair {number!r} is already answered or does not exist")
            trial = self.trials[number]
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            own = Answer(trial.id, *trial.systems, answer, self.listener, trial.caption, round(seconds, 1), now)
            answer_file.append(self.output, own)
            self._open.remove(number)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Handles one request; `server` is the `Server`."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds to wait for the rest of a request, and for the next one

    def handle_one_request(self) -> None:
        """Handles a request; a browser that left, or that sends no request, ends the connection and nothing else."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def parse_request(self) -> bool:
        """Reads the request, and refuses one for another name than this machine's.

        A page of another site may have a name that suddenly means 127.0.0.1 (DNS rebinding). Its requests carry that
        name; without this check it could read the captions and answer.
        """
        if not super().parse_request():
            return False
        host = self.headers.get_all("Host", [])
        if len(host) == 1 and re.sub(r":\d+$", "", host[0].strip().lower()) in NAMES:
            return True
        self.close_connection = True
        self._send_json(403, {"error": f"the page is {self.server.url}"})
        return False

    def do_GET(self) -> None:
        """Sends the page, the state of the test, or a clip."""
        if self.path == "/":
            page = importlib.resources.files("musiclm_jax.evaluation.listening_test").joinpath("page.html").read_bytes()
            self._send(200, "text/html; charset=utf-8", page)
        elif self.path == "/state":
            self._send_json(200, self.server.state())
        elif (match := _CLIP.fullmatch(self.path)) and int(match[1]) < len(self.server.trials):
            try:
                clips = equally_loud([sound.load(path) for path in self.server.trials[int(match[1])].paths])
            except sound.AudioError:
                # The error's message is not sent: its path would reveal the system to the listener.
                self._send_json(500, {"error": "the clip can no longer be read: check the server's files"})
                return
            self._send(200, "audio/wav", wav_bytes(clips["ab".index(match[2])]))
        else:
            self._send_json(404, {"error": f"there is no {self.path}"})

    def do_POST(self) -> None:
        """Receives an answer: {"number", "answer", "seconds"}."""
        # Other sites cannot send this content type here without a CORS preflight request.
        if self.path != "/answers" or self.headers.get_content_type() != "application/json":
            self.close_connection = True
            self._send_json(404, {"error": f"there is no {self.path} for {self.headers.get_content_type()}"})
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 < length <= MAX_BODY:
                raise ValueError(f"a body of {length} bytes")
            fields = files.from_json(self.rfile.read(length))
            number, answer = int(fields["number"]), int(fields["answer"])
            seconds = min(max(0.0, float(fields.get("seconds", 0))), MAX_SECONDS)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            self.close_connection = True
            self._send_json(400, {"error": f"not a valid answer: {error}"})
            return
        try:
            self.server.record(number, answer, seconds)
        except ValueError as error:
            self._send_json(409, {"error": str(error)})
        except OSError as error:
            self._send_json(500, {"error": f"{self.server.output} cannot be written ({error.strerror})"})
        else:
            self._send_json(200, {"answered": self.server.answered})

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self.wfile.write(content)
        except ConnectionError:  # the browser disconnected
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing, to keep the terminal clear."""


def equally_loud(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scales clips `[samples]` down to the RMS of the quietest audible one, so that louder clips have no advantage.

    It also keeps every clip within full scale.
    """
    levels = [float(np.sqrt(np.mean(np.square(clip, dtype=np.float64)))) for clip in clips]
    peaks = [max(1.0, float(np.abs(clip).max())) for clip in clips]
    heard = [level / peak for level, peak in zip(levels, peaks, strict=True) if level > SILENT_RMS]
    wanted = min(heard, default=0.0)
    return [clip * (wanted / level if level > SILENT_RMS else 1.0) for clip, level in zip(clips, levels, strict=True)]


def wav_bytes(clip: np.ndarray) -> bytes:
    """Encodes `[samples]` in [-1, 1] as a 16-bit WAV file at 24 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(to_pcm16(np.clip(clip, -1, 1)).tobytes())
    return file.getvalue()
