"""Sharded training is unsharded training: every mesh of {data, fsdp, tensor} on eight devices, and what lies where."""

import json
import os
import pathlib
import subprocess
import sys

import sharded_steps


def test_every_mesh_of_eight_devices_takes_the_steps_of_one():
    assert len(sharded_steps.MESHES) == 10
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    script = pathlib.Path(sharded_steps.__file__)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [tuple(report["mesh"]) for report in reports] == sharded_steps.MESHES, done.stderr
    for report in reports:
        assert report["loss"] < 1e-4 and report["gradient"] < 1e-4 and report["params"] < 1e-3, report
