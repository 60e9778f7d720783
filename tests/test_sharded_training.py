"""Sharded training equals unsharded training, on every mesh of {data, fsdp, tensor} with eight devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import sharded_steps


def compare(meshes):
    """Returns the errors of five steps on meshes of eight devices, see sharded_steps.py."""
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    command = [sys.executable, str(pathlib.Path(sharded_steps.__file__)), *(",".join(map(str, m)) for m in meshes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [tuple(report["mesh"]) for report in reports] == meshes, done.stderr
    for report in reports:
        assert report["loss"] < 1e-4 and report["gradient"] < 1e-4 and report["params"] < 1e-3, report


def test_a_mesh_with_all_three_axes_matches_one_device():
    compare([(2, 2, 2)])


@pytest.mark.slow
def test_every_mesh_of_eight_devices_matches_one_device():
    assert len(sharded_steps.MESHES) == 10
    compare(sharded_steps.MESHES)
