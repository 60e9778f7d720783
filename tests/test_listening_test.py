"""The listening test: pairs are blind, answers are saved at once, wins and Wilcoxon's test match known results."""

import http.client
import io
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
import wave

import numpy as np
import pytest
import scipy.stats

from musiclm_jax.data import audio
from musiclm_jax.evaluation.listening_test import answers, make_trials, read_captions
from musiclm_jax.evaluation.listening_test.answers import Answer, compare, signed_rank
from musiclm_jax.evaluation.listening_test.server import Server, equally_loud
from musiclm_jax.launch import listen, main

IDS = [f"clip-{number}" for number in range(12)]


def tone(hz, gain=0.4, seconds=0.5):
    return (gain * np.sin(2 * np.pi * hz * np.arange(round(24_000 * seconds)) / 24_000)).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two systems: `low` plays 200 Hz, `high` plays 900 Hz more quietly; each has one clip that the other lacks."""
    base = tmp_path_factory.mktemp("systems")
    for name, sound, more in (("low", tone(200), "alone-1"), ("high", tone(900, 0.1), "alone-2")):
        (base / name).mkdir()
        for clip in [*IDS, more]:
            audio.write(base / name / f"{clip}.wav", sound)
    return base / "low", base / "high"


@pytest.fixture
def serve(tmp_path):
    """Starts servers, which stop at the end of the test."""
    running = []

    def start(trials, output=tmp_path / "answers.jsonl", listener=""):
        server = Server(trials, output, listener)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def get(server, path):
    with urllib.request.urlopen(server.url.rstrip("/") + path, timeout=10) as answer:
        return answer.headers, answer.read()


def post(server, content, kind="application/json"):
    """Posts an answer; returns (status, content)."""
    body = json.dumps(content).encode()
    request = urllib.request.Request(server.url + "answers", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_pairs_share_an_id_and_come_in_random_order_with_random_sides(folders):
    trials = make_trials(*folders)
    assert sorted(trial.id for trial in trials) == sorted(IDS), "clips of only one system are left out"
    assert [trial.id for trial in trials] != sorted(IDS)
    sides = [trial.systems for trial in trials]
    low, high = map(str, folders)
    assert set(sides) == {(low, high), (high, low)}
    for trial in trials:
        for system, path in zip(trial.systems, trial.paths, strict=True):
            assert str(path.parent) == system and path.stem == trial.id
    assert make_trials(*folders) == trials and make_trials(*folders, seed=1) != trials


def test_captions_of_musiccaps_and_of_a_corpus(tmp_path, folders):
    table = tmp_path / "captions.csv"
    table.write_text('ytid,caption\nx1,"a slow, sad song"\n')
    lines = tmp_path / "metadata.jsonl"
    lines.write_text('{"id": "x1", "caption": ["a slow song", "sad"]}\n')
    assert read_captions(table) == {"x1": "a slow, sad song"} and read_captions(lines) == {"x1": "a slow song"}
    with pytest.raises(ValueError, match="12 of 12 ids have no caption, such as clip-0"):
        make_trials(*folders, read_captions(table))
    captions = {name: f"about {name}" for name in IDS}
    assert all(trial.caption == f"about {trial.id}" for trial in make_trials(*folders, captions))


def test_the_page_reveals_neither_systems_nor_ids_and_loads_nothing_remote(folders, serve):
    server = serve(make_trials(*folders, {name: "a tone" for name in IDS}))
    headers, page = get(server, "/")
    _, state = get(server, "/state")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in page
    content = json.loads(state)
    assert content["trials"] == [{"number": number, "caption": "a tone"} for number in range(12)]
    for told in ("low", "high", *IDS):
        assert told not in json.dumps(content["trials"])


def test_clips_of_a_pair_are_played_equally_loud(folders, serve):
    trials = make_trials(*folders)
    server = serve(trials)
    for side, system in zip("ab", trials[0].systems, strict=True):
        _, content = get(server, f"/clips/0/{side}.wav")
        with wave.open(io.BytesIO(content)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (24_000, 1, 12_000)
            clip = np.frombuffer(file.readframes(12_000), "<i2") / 32767
        assert np.sqrt(np.mean(clip**2)) == pytest.approx(0.1 / np.sqrt(2), rel=0.01)
        loudest = np.argmax(np.abs(np.fft.rfft(clip))) * 2
        assert loudest == (200 if system.endswith("low") else 900)
    for path in ("/clips/12/a.wav", "/clips/0/c.wav", "/clips/0/../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server, path)


def test_levels_stay_within_full_scale_and_silence_stays_silent():
    first, second = equally_loud([tone(200, 2.0), tone(200, 1.0)])
    assert np.abs(first).max() == pytest.approx(1, abs=1e-3) and np.abs(second).max() == pytest.approx(1, abs=1e-3)
    silent, other = equally_loud([np.zeros(100, np.float32), tone(200)])
    assert not silent.any() and np.array_equal(other, tone(200))


def test_an_answer_is_on_disk_at_once_and_the_test_resumes_from_there(folders, serve, tmp_path):
    trials, output = make_trials(*folders, {name: "ein Ton, größer" for name in IDS}), tmp_path / "answers.jsonl"
    server = serve(trials)
    assert post(server, {"number": 3, "answer": 5, "seconds": 8.26}) == (200, {"answered": 1})
    [kept] = answers.read(output)
    assert (kept.id, kept.a, kept.b, kept.answer) == (trials[3].id, *trials[3].systems, 5)
    assert (kept.caption, kept.seconds) == ("ein Ton, größer", 8.3) and kept.time.endswith("+00:00")
    # Anything else is refused, and the file stays unchanged.
    assert post(server, {"number": 3, "answer": 1})[0] == 409
    assert post(server, {"number": 12, "answer": 1})[0] == 409
    assert post(server, {"number": 4, "answer": 6})[0] == 409
    for content in ({"number": 4}, {"number": "x", "answer": 1}, [1], {"number": 4, "answer": "NaN"}):
        assert post(server, content)[0] == 400
    assert post(server, {"number": 4, "answer": 1}, "text/plain")[0] == 404, "a page of another site could send this"
    assert answers.read(output) == [kept]
    # Another server with the same file resumes, even with other sides; another listener starts from the beginning.
    again = serve(make_trials(*folders, seed=1))
    assert again.answered == 1 and len(json.loads(get(again, "/state")[1])["trials"]) == 11
    assert serve(trials, listener="somebody").answered == 0


def test_a_file_that_cannot_be_written_is_reported_and_the_pair_stays_open(folders, serve, tmp_path):
    server = serve(make_trials(*folders), tmp_path / "nowhere" / "answers.jsonl")
    status, content = post(server, {"number": 0, "answer": 1})
    assert status == 500 and "cannot be written" in content["error"] and server.answered == 0


def said(preferences, listener=""):
    """Returns answers about systems x and y, from -2 (x is much better) to 2, with x as A and as B in turn."""
    return [
        Answer(f"{i}", "x", "y", 3 + value, listener) if i % 2 else Answer(f"{i}", "y", "x", 3 - value, listener)
        for i, value in enumerate(preferences)
    ]


def test_wins_are_counted_for_systems_not_for_sides():
    [found] = compare(said([-2, -1, -1, 0, 1, 2, -2, 0]))
    assert found.systems == ("x", "y") and found.counts == (2, 2, 2, 1, 1)
    assert found.wins == (4, 2) and found.ties == 2 and found.clips == 8
    assert found.mean == pytest.approx(-3 / 8)


def test_the_last_answer_counts_and_each_clip_is_tested_once():
    first, second = said([-1, -1, -1, -1, -1], "ann"), said([-2, -2, -1, -1, -1], "bob")
    changed = said([2], "ann")  # about clip 0
    [found] = compare(first + second + changed)
    assert sum(found.counts) == 10 and found.listeners == 2 and found.clips == 5
    # Means over listeners: 0, -1.5, -1, -1, -1. Four are not 0, all negative: 2 of 2^4 sign patterns are as extreme.
    assert found.statistic == 0 and found.p_value == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    "differences, statistic, p_value",
    [
        ([-2, -1, -1, -2, -1], 0, 2 / 32),  # all of one sign: 2 of 2^5
        ([1, 1, 2, -1], 2, 8 / 16),  # ranks 2, 2, 4, 2: 1 + 3 sign patterns give a sum of 0 or 2, on either side
        ([1, 0, 0, 1, 2, -1], 2, 8 / 16),  # zero differences are dropped
        ([1, -1], 1.5, 1.0),
        ([0, 0, 0], 0, 1.0),
    ],
)
def test_signed_ranks_against_counting_by_hand(differences, statistic, p_value):
    assert signed_rank(np.array(differences)) == pytest.approx((statistic, p_value))


def test_signed_ranks_of_many_pairs_against_the_formula():
    # 20 of 1 and 10 of -2 among zeros: ranks 10.5 and 25.5, so W = min(210, 255).
    statistic, p_value = signed_rank(np.array([1] * 20 + [-2] * 10 + [0] * 7))
    n, ties = 30, (20**3 - 20) + (10**3 - 10)
    variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48
    z = (210 - n * (n + 1) / 4) / np.sqrt(variance)
    assert statistic == 210 and p_value == pytest.approx(2 * scipy.stats.norm.cdf(z))


def run(capsys, *arguments):
    code = main.main(["listen", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setitem(main.COMMANDS, "listen", ("musiclm_jax.launch.listen", "compare two systems by ear"))


def test_results_of_files(capsys, tmp_path):
    for name, own in (("one", said([-2] * 4 + [1])), ("two", [Answer("0", "x", "z", 3)])):
        for answer in own:
            answers.append(tmp_path / name, answer)
    code, out, _ = run(capsys, "--results", tmp_path / "one", tmp_path / "two")
    assert code == 0
    assert "x against y: 5 answers about 5 clips\n" in out and "x against z: 1 answers about 1 clips\n" in out
    assert "wins of x: 4 of 5" in out and "wins of y: 1 of 5" in out and "x is much better     4\n" in out
    assert "mean answer: -1.40" in out and "W = 1, p = 0.125 (two-sided)" in out


def test_bad_input_is_one_line(capsys, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(Server, "serve_forever", lambda _: pytest.fail("this should have been refused before"))
    low, high = folders
    empty, broken, twice = (tmp_path / name for name in ("empty", "broken", "twice"))
    for folder in (empty, broken, twice):
        folder.mkdir()
    (broken / "clip-0.wav").write_bytes(b"RIFF and then nothing")
    for extension in ("wav", "flac"):
        audio.write(twice / f"clip-0.{extension}", tone(200))
    audio.write(tmp_path / "elsewhere.wav", tone(200))
    damaged = tmp_path / "damaged.jsonl"
    answers.append(damaged, Answer("0", "x", "y", 3))
    damaged.write_text(damaged.read_text() + '{"id": "0", "a": "x"')
    out = tmp_path / "out.jsonl"
    for arguments, message in [
        ((), "--a, --b, --output missing"),
        (("--a", low, "--b", tmp_path / "no", "--output", out), "no is not a folder"),
        (("--a", low, "--b", empty, "--output", out), "empty contains no sound files"),
        (("--a", low, "--b", tmp_path, "--output", out), "share no id"),
        (("--a", low, "--b", low, "--output", out), "give two folders"),
        (("--a", low, "--b", broken, "--output", out), "clip-0.wav: not a sound file that can be read"),
        (("--a", low, "--b", twice, "--output", out), "clip-0.flac and clip-0.wav"),
        (("--a", low, "--b", high, "--output", tmp_path / "no" / "out"), "there is no folder"),
        (("--a", low, "--b", high, "--output", "/proc/answers.jsonl"), "/proc/answers.jsonl: cannot write into /proc"),
        (("--a", low, "--b", high, "--output", out, "--pairs", 99), "the folders share 12 ids"),
        (("--a", low, "--b", high, "--output", out, "--captions", tmp_path / "no.csv"), "no such captions file"),
        (("--a", low, "--b", high, "--output", damaged, "--port", 0), "damaged.jsonl, line 2: not a listening test's"),
        (("--a", low, "--b", high, "--output", out, "--port", 70_000), "port is 70000: give 1 to 65535"),
        (("--results", damaged), "damaged.jsonl, line 2: not a listening test's answer"),
        (("--results", tmp_path / "no.jsonl"), "no such answers file"),
        (("--results", damaged, "--a", low), "remove --a, --b and --output"),
    ]:
        code, _, err = run(capsys, *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, (arguments, err)
    assert not out.exists()


def test_a_port_in_use_is_one_line(capsys, folders, serve, tmp_path):
    port = serve(make_trials(*folders)).server_address[1]
    code, _, err = run(capsys, "--a", folders[0], "--b", folders[1], "--output", tmp_path / "o", "--port", port)
    assert code == 2 and err.count("\n") == 1 and f"port {port} is in use: choose another" in err


def test_the_command_serves_until_it_is_interrupted(capsys, folders, tmp_path, monkeypatch):
    def interrupted(server):
        server.record(0, 4, 1.0)
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(Server, "serve_forever", interrupted)
    monkeypatch.setattr(listen.webbrowser, "open", opened.append)
    output = tmp_path / "answers.jsonl"
    code, out, err = run(capsys, "--a", folders[0], "--b", folders[1], "--output", output, "--port", 0, "--pairs", 3)
    assert code == 0 and "3 pairs, 0 answered" in out and "1 of 3 pairs answered" in err
    assert len(opened) == 1 and opened[0] in out and len(answers.read(output)) == 1


class Browser:
    """Headless Chromium, driven over WebDriver."""

    def __init__(self, width):
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in self.driver.stdout:
            if "started successfully on port" in line:
                self.port = int(line.split()[-1].rstrip("."))
                break
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--window-size=1000,900"]
        options += ["--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": options}}
        self.session = ""
        self.session = "/session/" + self.call("", {"capabilities": {"alwaysMatch": wanted}}, "/session")["sessionId"]
        # Chromium's windows are at least 500 pixels wide, but the page's width can be overridden.
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})

    def call(self, command, content, base=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        path = (self.session if base is None else base) + command
        connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
        found = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def open(self, url):
        self.call("/url", {"url": url})

    def press(self, key):
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def script(self, text):
        return self.call("/execute/sync", {"script": f"return {text}", "args": []})

    def wait(self, text):
        end = time.monotonic() + 30
        while not self.script(text):
            assert time.monotonic() < end, f"never true: {text}; page: {self.script('document.body.innerText')}"
            time.sleep(0.05)

    def close(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("DELETE", self.session)
            connection.getresponse().read()
        finally:
            self.driver.terminate()
            self.driver.wait()


@pytest.fixture
def browser():
    opened = Browser(400)
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))),
    reason="Chromium and its driver are not installed (apt install chromium chromium-driver)",
)
def test_a_whole_test_with_the_keyboard_alone_at_400_pixels(folders, serve, tmp_path, browser):
    enter, output = "\ue007", tmp_path / "answers.jsonl"
    server = serve(make_trials(*folders, {name: f"a text about {name}" for name in IDS})[:2])
    browser.open(server.url)
    browser.wait("!document.querySelector('.clip button').disabled")
    assert browser.script("window.innerWidth") == 400
    assert browser.script("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
        "nothing overflows horizontally"
    )
    assert browser.script("document.activeElement.innerText.includes('Play clip A')")
    browser.press("4")
    assert browser.script("document.querySelector('#scale input:checked') === null"), "both must be played first"
    for number, key in enumerate(("4", "1")):
        browser.wait(f"document.querySelector('#place').innerText === 'Pair {number + 1} of 2'")
        browser.wait("[...document.querySelectorAll('.clip button')].every(button => !button.disabled)")
        for letter in "ab":
            browser.press(letter)
            browser.wait(f"clips['ab'.indexOf('{letter}')].heard")
        assert browser.script("clips[0].audio.paused"), "one clip at a time"
        browser.wait("!document.querySelector('#scale input').disabled")
        browser.press(key)
        assert browser.script("document.activeElement.value") == key
        outline = "getComputedStyle(document.querySelector('#scale input:checked + span')).outlineStyle"
        assert browser.script(outline) == "solid", "the focus is visible"
        browser.press(enter)
        browser.wait(f"document.querySelector('#progress').value === {(number + 1) / 2}")
        assert [answer.answer for answer in answers.read(output)] == [4, 1][: number + 1]
    browser.wait("document.body.innerText.includes('All pairs are answered')")
    # The server has stopped: check what the page says.
    browser.open(serve(server.trials, tmp_path / "other.jsonl").url)
    browser.wait("!document.querySelector('.clip button').disabled")
    browser.script("window.fetch = () => Promise.reject(new Error('no server'))")
    for key in ("a", "b"):
        browser.press(key)
        browser.wait(f"clips['ab'.indexOf('{key}')].heard")
    browser.press("2")
    browser.press(enter)
    browser.wait("document.querySelector('#message').innerText.includes('was not saved: no server')")
