"""Sharded decoding gives the same codes as unsharded decoding."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parent / "sharded_decoding.py"


@pytest.mark.slow
def test_meshes_of_eight_devices_give_the_codes_of_one():
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    meshes = {(8, 1, 1): 1, (1, 1, 8): 8, (2, 2, 2): 4}  # mesh to number of shards of the embedding table
    command = [sys.executable, str(PROGRAM), *(",".join(map(str, mesh)) for mesh in meshes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [tuple(report["mesh"]) for report in reports] == list(meshes), done.stderr
    for report in reports:
        assert report["differing"] == [0.0, 0.0], report
        assert report["parts"] == meshes[tuple(report["mesh"])] and min(report["distinct"]) > 4, report
