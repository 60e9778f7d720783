"""Signals, and readers of standard output that leave: a training saves before it ends."""

import os
import re
import signal
import subprocess

import hangup
import pytest
import toy_run

from musiclm_jax.training import checkpoints, preemption

STEPS = 200


def started(folder, *before):
    """Starts a training of 200 steps of 0.1 s, which writes a checkpoint every 5."""
    return toy_run.start(folder, STEPS, 0.1, before=(*hangup.BEFORE, *before), stderr=subprocess.PIPE)


def saved_steps(folder):
    with checkpoints.open_manager(checkpoints.run_folder(folder), 3) as manager:
        return manager.all_steps()


def test_a_lost_connection_is_told_twice_and_saves(tmp_path):
    process = started(tmp_path)
    toy_run.read_until(process, f"step 7/{STEPS}")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    stopped = int(re.search(r"stopped by a signal, saved at step (\d+)", out)[1])
    assert process.returncode == 0 and "the connection is lost: saving after this step" in err
    assert 7 <= stopped < 20 and stopped in saved_steps(tmp_path)


def test_a_reader_that_leaves_saves(tmp_path):
    process = started(tmp_path)
    toy_run.read_until(process, f"step 7/{STEPS}")
    process.stdout.close()  # as `train | head` does
    err = process.stderr.read()
    process.wait(timeout=60)
    assert "nothing reads standard output any more: saving after this step" in err and "Traceback" not in err
    assert saved_steps(tmp_path)[-1] not in (STEPS, 5, 10, 15, 20)


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_an_ignored_signal_stays_ignored(monkeypatch, ignored):
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        with preemption.StopRequest() as stop:
            os.kill(os.getpid(), ignored)
            assert not stop.requested_at(1) and signal.getsignal(ignored) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested_at(2)
    finally:
        signal.signal(ignored, before)


@pytest.mark.parametrize("kind", ["file", "pipe", "read pipe"])
def test_only_a_reader_that_left_stops(monkeypatch, tmp_path, kind):
    if kind == "file":
        reader, output = None, os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    else:
        reader, output = os.pipe()
    if kind == "pipe":
        os.close(reader)
    monkeypatch.setattr(preemption, "_STDOUT", output)
    with preemption.StopRequest() as stop:
        assert stop.requested_at(1) == (kind == "pipe")
