"""The launch scripts: output, commands and errors, with fakes of gcloud, kubectl, sbatch and musiclm."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
GIN = ["--gin.DATA_DIR='gs://bucket/my tokens'", "--gin.NOTE='$HOME $$ $(date) `date` \\ & \"*\" é __IMAGE__ END'"]
TRAINING = ["train", "--gin_file=semantic.gin", "--gin_file=my size.gin", "--model_dir=/data/run 1", *GIN]
TPU = ["--name=tpu", "--zone=zone"]

# Each way to launch: its script, its mode and its required options.
WAYS = {
    "local": ("local.sh", [], TRAINING[1:]),
    "slurm": (
        "slurm.sh",
        [],
        ["--nodes=2", "--gpus_per_node=4", "--cpus_per_task=8", "--time=1-00:00:00", *TRAINING[1:]],
    ),
    "gke": (
        "gke.sh",
        [],
        [
            *("--name=run", "--context=cluster", "--image=registry/image:1", "--claim=disk", "--accelerator=tpu-kind"),
            *("--topology=2x2x4", "--chips_per_host=4", "--slices=3"),
            *TRAINING[1:],
        ],
    ),
    "tpu_create": ("tpu_vm.sh", ["create"], [*TPU, "--accelerator_type=kind-16", "--runtime_version=software"]),
    "tpu_train": ("tpu_vm.sh", ["train"], [*TPU, *TRAINING[1:]]),
    "tpu_stop": ("tpu_vm.sh", ["stop"], TPU),
}
RECORDER = """#!/bin/sh
printf '%s\\036' "${0##*/}" "$@" >>"$RECORD"
printf '\\035' >>"$RECORD"
case ${0##*/} in sbatch | kubectl) cat >>"$RECORD.stdin" ;; esac
"""
# Ends on a signal as a training does: it logs the signal and exits without an error.
TRAINER = """#!/bin/sh
printf '%s\\036' "${0##*/}" "$@" >>"$RECORD"
printf '\\035' >>"$RECORD"
trap 'echo stopped by a signal TERM; exit 0' TERM
trap 'echo stopped by a signal INT; exit 0' INT
echo started with MUSICLM_DISTRIBUTED="$MUSICLM_DISTRIBUTED"
for i in $(seq 400); do sleep 0.05; done
"""


class Machine:
    """A PATH with fakes of the programs that scripts call, and a record of the calls."""

    def __init__(self, folder):
        self.folder, self.bin, self.record = folder, folder / "bin", folder / "record"
        self.bin.mkdir()
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "HOME": str(folder),
        }
        self.environment.pop("MUSICLM_DISTRIBUTED", None)
        for name in ("musiclm", "gcloud", "kubectl", "sbatch", "srun", "scontrol", "git", "mkdir"):
            self.fake(name, RECORDER)

    def fake(self, name, content):
        (self.bin / name).write_text(content)
        (self.bin / name).chmod(0o755)

    def run(self, *command, stdin=""):
        command = [str(word) for word in command]
        return subprocess.run(
            command, env=self.environment, input=stdin, capture_output=True, text=True, cwd=self.folder, timeout=30
        )

    def start(self, *command):
        # As in a terminal: processes started in the background ignore Ctrl-C, and the script would, too.
        heed = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
        )
        program = shutil.which(str(command[0]))
        return subprocess.Popen(
            [sys.executable, "-c", heed, program, *map(str, command[1:])],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def launch(self, way, *more):
        script, mode, options = WAYS[way]
        return self.run(LAUNCH / script, *mode, *options, *more)

    def called(self):
        """Returns and clears the recorded commands; also returns the last standard input."""
        text = self.record.read_text() if self.record.exists() else ""
        stdin = pathlib.Path(f"{self.record}.stdin")
        given = stdin.read_text() if stdin.exists() else ""
        self.record.unlink(missing_ok=True)
        stdin.unlink(missing_ok=True)
        return [command.split("\036")[:-1] for command in text.split("\035")[:-1]], given


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def commands(dry_run):
    """Parses printed commands to lists of words; also returns the text between << and END."""
    head, _, rest = dry_run.partition(" <<'END'\n")
    return [shlex.split(line) for line in head.splitlines()], rest.removesuffix("END\n")


def until(condition):
    """Waits until a condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "script", ["options.sh", "xla_flags.sh", "local.sh", "gpus.sh", "slurm.sh", "gke.sh", "tpu_vm.sh"]
)
def test_script_is_sound(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", LAUNCH / script], check=True)


@pytest.mark.parametrize("way", WAYS)
def test_help_names_every_option(machine, way):
    script, mode, options = WAYS[way]
    done = machine.run(LAUNCH / script, *mode, "--help")
    assert done.returncode == 0 and done.stderr == "" and f"launch/{script}" in done.stdout
    for option in [*options, "--dry_run"]:
        assert option.split("=")[0].split(".")[0] in done.stdout
    assert "set -euo" not in done.stdout and machine.called()[0] == []


@pytest.mark.parametrize("way", WAYS)
def test_dry_run_prints_what_would_run(machine, way):
    printed = machine.launch(way, "--dry_run")
    assert printed.returncode == 0 and printed.stderr == ""
    assert machine.called()[0] == []
    real = machine.launch(way)
    assert real.returncode == 0, real.stderr
    called, stdin = machine.called()
    assert (called, stdin) == commands(printed.stdout)
    # Running the printed text in a shell does the same.
    assert machine.run("sh", stdin=printed.stdout).returncode == 0
    assert machine.called() == (called, stdin)


@pytest.mark.parametrize("way", WAYS)
def test_missing_options_are_one_line(machine, way):
    script, mode, options = WAYS[way]
    names = sorted({option.split("=")[0] for option in options if not option.startswith("--gin.")})
    for name in names:
        rest = [option for option in options if option.split("=")[0] != name]
        for given in (rest, [*rest, f"{name}="]):
            done = machine.run(LAUNCH / script, *mode, *given)
            assert done.returncode == 2 and done.stdout == ""
            assert done.stderr.startswith(f"launch/{script}: ") and done.stderr.count("\n") == 1
            assert f"missing: {name} (" in done.stderr
    done = machine.run(LAUNCH / script, *mode)
    assert done.returncode == 2 and all(name in done.stderr for name in names)
    assert machine.called()[0] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["--colour=red", "--gin_file", "--gin.=3", "--gin.NAME", "word", ""])
def test_unknown_options_are_one_line(machine, way, option):
    done = machine.launch(way, option)
    assert done.returncode == 2 and done.stdout == "" and machine.called()[0] == []
    assert f"unknown option '{option}'" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "way, option, message",
    [
        ("local", "--restarts=many", "--restarts is 'many', expected a whole number"),
        ("slurm", "--nodes=0", "--nodes is '0', expected a whole number of 1 or more"),
        ("slurm", "--save_seconds=2m", "--save_seconds is '2m'"),
        ("gke", "--topology=16", "--topology is '16', expected chips as AxB or AxBxC"),
        ("gke", "--chips_per_host=3", "the 16 chips of --topology=2x2x4 do not divide"),
        ("gke", "--model_dir=/tmp/run", "expected a folder below /data"),
        ("gke", "--gin.A='\n'", "has a line break"),
        ("tpu_train", "--spot", "train: unknown option '--spot'"),
        ("tpu_stop", "--model_dir=/data/run", "stop: unknown option"),
    ],
)
def test_wrong_values_are_one_line(machine, way, option, message):
    done = machine.launch(way, option)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "" and machine.called()[0] == []


def test_tpu_vm_needs_a_mode(machine):
    for arguments, given in (([], ""), (["--zone=zone"], "--zone=zone"), (["delete"], "delete")):
        done = machine.run(LAUNCH / "tpu_vm.sh", *arguments)
        assert done.returncode == 2
        assert f"the first argument is '{given}', expected create, train or stop" in done.stderr


def test_local_runs_the_training(machine):
    done = machine.launch("local")
    assert done.returncode == 0 and machine.called()[0] == [["musiclm", *TRAINING]]


@pytest.mark.parametrize("code, runs", [(0, 1), (1, 3), (2, 1), (139, 3)])
def test_local_restarts_after_a_crash(machine, code, runs):
    machine.fake("musiclm", f"{RECORDER}exit {code}\n")
    done = machine.launch("local", "--restarts=2", "--pause=0")
    assert done.returncode == code and len(machine.called()[0]) == runs
    assert done.stderr.count("restart ") == runs - 1 and ("used up" in done.stderr) == (runs == 3)


def test_local_continues_after_one_crash(machine):
    machine.fake("musiclm", RECORDER + 'test -e "$HOME/crashed" || { touch "$HOME/crashed"; exit 1; }\n')
    done = machine.launch("local", "--pause=0")
    assert done.returncode == 0 and machine.called()[0] == [["musiclm", *TRAINING]] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_signals_and_does_not_restart(machine, number):
    machine.fake("musiclm", TRAINER)
    process = machine.start(LAUNCH / "local.sh", *TRAINING[1:])
    assert process.stdout.readline() == "started with MUSICLM_DISTRIBUTED=\n"
    # A terminal sends Ctrl-C to its whole process group; the training must get it only once, so it has its own group.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and len(machine.called()[0]) == 1
    assert output.count(f"stopped by a signal {number.name.removeprefix('SIG')}") == 1


def test_local_does_not_restart_a_killed_training(machine):
    machine.fake("musiclm", "#!/bin/sh\necho started\nexec sleep 20\n")
    process = machine.start(LAUNCH / "local.sh", *TRAINING[1:], "--pause=0")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and "restart" not in output


def test_local_stops_while_it_waits_to_restart(machine):
    machine.fake("musiclm", f"{RECORDER}exit 1\n")
    process = machine.start(LAUNCH / "local.sh", *TRAINING[1:], "--pause=60")
    assert "restart 1 of 3 in 60 s" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode != 0 and len(machine.called()[0]) == 1


def test_slurm_job(machine):
    called, script = commands(machine.launch("slurm", "--sbatch=--partition=a b", "--dry_run").stdout)
    assert called[0] == ["mkdir", "-p", "/data/run 1"]
    options = {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8", "--time=1-00:00:00"}
    options |= {"--signal=TERM@120", "--requeue", "--partition=a b", "--output=/data/run 1/slurm-%j.log"}
    assert called[1][0] == "sbatch" and options <= set(called[1])
    [line] = [line for line in script.splitlines() if line.startswith("srun ")]
    words = shlex.split(line)
    assert words[words.index("musiclm") :][: len(TRAINING) + 1] == ["musiclm", *TRAINING]
    assert "export MUSICLM_DISTRIBUTED=1\n" in script


def gpu_flags(machine):
    printed = machine.run("bash", "-c", f"source {LAUNCH / 'xla_flags.sh'}; with_xla_gpu_flags").stdout
    return printed.split()


def test_jaxlib_knows_the_flags_for_gpus(machine):
    """An unknown flag in XLA_FLAGS ends the process when the first program is compiled."""
    machine.environment.pop("XLA_FLAGS", None)
    flags = gpu_flags(machine)
    assert len(flags) == len(set(flags)) >= 5
    start = [sys.executable, "-c", "import jaxlib.xla_client as client; client.make_cpu_client(); print('fine')"]
    for tried, known in ((flags, True), ([*flags, "--xla_gpu_no_such_flag=true"], False)):
        done = subprocess.run(start, env=os.environ | {"XLA_FLAGS": " ".join(tried)}, capture_output=True, text=True)
        assert (done.stdout == "fine\n") == known, done.stderr


def test_slurm_job_has_the_flags_for_gpus_and_those_of_the_user_last(machine):
    machine.environment["XLA_FLAGS"] = "--own='a b'"
    _, script = commands(machine.launch("slurm", "--dry_run").stdout)
    machine.fake("srun", '#!/bin/sh\nprintf %s "$XLA_FLAGS $XLA_PYTHON_CLIENT_MEM_FRACTION"\n')
    ours = gpu_flags(machine)[:-2]
    machine.environment.pop("XLA_FLAGS")
    assert machine.run("bash", "-c", script).stdout == " ".join([*ours, "--own='a b'", "0.92"])


GPUS = ["--gpus=2", *TRAINING[1:]]
TOLD = 'printf \'%s\' "$XLA_FLAGS" >"$RECORD.flags"\n'


def nvidia_smi(machine, *lines, code=0):
    machine.fake("nvidia-smi", "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")


def test_all_gpus_of_a_machine_train_with_the_flags(machine):
    machine.fake("musiclm", RECORDER + TOLD)
    nvidia_smi(machine, "580.95.05", "580.95.05")
    machine.environment.pop("XLA_FLAGS", None)
    done = machine.run(LAUNCH / "gpus.sh", *GPUS)
    assert done.returncode == 0 and machine.called()[0] == [["musiclm", *TRAINING]], done.stderr
    flags = pathlib.Path(f"{machine.record}.flags")
    assert flags.read_text().split() == gpu_flags(machine)
    flags.unlink()
    printed = machine.run(LAUNCH / "gpus.sh", *GPUS, "--dry_run").stdout
    assert machine.called()[0] == [] and not flags.exists()
    assert machine.run("sh", stdin=printed).returncode == 0
    assert machine.called()[0] == [["musiclm", *TRAINING]] and flags.read_text().split() == gpu_flags(machine)


@pytest.mark.parametrize(
    "lines, code, options, message",
    [
        (["580.1"] * 2, 0, TRAINING[1:], "--gpus is '', expected a whole number of 1 or more"),
        (["580.1"] * 4, 0, GPUS, "--gpus is 2, but nvidia-smi finds 4: set --gpus=4 or choose another machine"),
        (["470.82.01"] * 2, 0, GPUS, "the driver is 470.82.01, but CUDA 12 needs 525 or newer: update it"),
        (["no devices were found", "more"], 6, GPUS, "nvidia-smi cannot talk to the driver: no devices were found"),
        (None, 0, GPUS, "there is no nvidia-smi: this machine has no NVIDIA driver"),
    ],
)
def test_gpus_that_are_not_there_are_one_line(machine, lines, code, options, message):
    if lines is not None:
        nvidia_smi(machine, *lines, code=code)
    elif shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    done = machine.run(LAUNCH / "gpus.sh", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert machine.called()[0] == []


def test_the_help_of_gpus(machine):
    done = machine.run(LAUNCH / "gpus.sh", "--help")
    assert done.returncode == 0 and "--gpus " in done.stdout and "set -euo" not in done.stdout


@pytest.mark.parametrize(
    "output, code, requeued",
    [("done: step 9 of 9", 0, False), ("stopped by a signal, saved at step 5", 0, True), ("stopped by a", 3, False)],
)
def test_slurm_job_is_requeued_only_if_it_was_stopped(machine, output, code, requeued):
    _, script = commands(machine.launch("slurm", "--dry_run").stdout)
    machine.fake("srun", f"{RECORDER}echo '{output}'\nexit {code}\n")
    machine.environment["SLURM_JOB_ID"] = "77"
    done = machine.run("bash", "-c", script)
    called, _ = machine.called()
    assert done.returncode == code and output in done.stdout
    assert called[0][0] == "srun" and called[0][-len(TRAINING) :] == TRAINING
    assert called[1:] == ([["scontrol", "requeue", "77"]] if requeued else [])


def manifest(machine, *more):
    yaml = pytest.importorskip("yaml")
    _, text = commands(machine.launch("gke", *more, "--dry_run").stdout)
    return yaml.safe_load(text)


def test_gke_manifest(machine):
    jobset = manifest(machine, "--restarts=5", "--service_account=robot", "--command=python -m musiclm")
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "run"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 5
    [slices] = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (3, 4, 4)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-kind",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 300
    assert pod["serviceAccountName"] == "robot"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
    [container] = pod["containers"]
    assert container["image"] == "registry/image:1" and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"name": "MUSICLM_DISTRIBUTED", "value": "1"} in container["env"]
    # Kubernetes reads $$ as $.
    assert [word.replace("$$", "$") for word in container["args"]] == ["python", "-m", "musiclm", *TRAINING]


def pod_command(machine):
    container = manifest(machine)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    return container["command"] + [word.replace("$$", "$") for word in container["args"]]


@pytest.mark.parametrize("code", [0, 1])
def test_gke_pod_ends_as_its_training(machine, code):
    machine.fake("musiclm", f"{RECORDER}exit {code}\n")
    assert machine.run(*pod_command(machine)).returncode == code
    assert machine.called()[0] == [["musiclm", *TRAINING]]


def test_gke_pod_fails_when_sigterm_stops_its_training(machine):
    command = pod_command(machine)
    machine.fake("musiclm", TRAINER)
    process = machine.start(*command)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and output == "stopped by a signal TERM\n"


def test_tpu_vm_create(machine):
    machine.launch("tpu_create", "--spot", "--project=p")
    [command] = machine.called()[0]
    assert command[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    options = {"--node-id=tpu", "--zone=zone", "--accelerator-type=kind-16", "--runtime-version=software", "--spot"}
    assert options | {"--project=p"} <= set(command[5:])


def test_tpu_vm_commands_reach_all_workers(machine):
    for way in ("tpu_train", "tpu_stop"):
        machine.launch(way)
        for command in machine.called()[0]:
            if command[0] == "gcloud":
                assert {"--zone=zone", "--worker=all"} <= set(command), command


def test_tpu_vm_trains_detached_until_it_is_stopped(machine):
    """With a fake ssh that runs the command locally; a worker's home is a folder."""
    worker = machine.folder / "worker"
    for path in (worker / ".local/bin/uv", worker / "musiclm/venv/bin/musiclm"):
        path.parent.mkdir(parents=True)
        path.write_text(TRAINER if path.name == "musiclm" else RECORDER)
        path.chmod(0o755)
    machine.fake("tar", RECORDER + "/bin/mkdir musiclm/source\n")
    machine.fake(
        "gcloud",
        f"""#!/bin/sh
test "$4" = ssh || exit 0
for command; do :; done
cd {worker} && HOME={worker} && exec bash -c "${{command#--command=}}"
""",
    )
    log = worker / "musiclm/train.log"
    assert machine.launch("tpu_train").returncode == 0
    try:
        until(lambda: log.exists() and "started" in log.read_text())
        assert log.read_text() == "started with MUSICLM_DISTRIBUTED=1\n"
        called, _ = machine.called()
        assert called[-1] == ["musiclm", *TRAINING] and [word[0] for word in called[-4:-1]] == ["tar", "uv", "uv"]

        again = machine.launch("tpu_train")
        assert again.returncode == 2 and "a training is already running here" in again.stderr
        assert machine.called()[0][-1][0] == "git"
    finally:
        stopped = machine.launch("tpu_stop")
    assert stopped.returncode == 0 and log.read_text().endswith("stopped by a signal TERM\n")
    assert "no training is running here" in machine.launch("tpu_stop").stderr
