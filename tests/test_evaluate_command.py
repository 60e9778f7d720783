"""`musiclm evaluate`: gin files, folders of other systems, resumed generation, the report."""

import json
import pathlib
import re

import gin
import miniature
import musiccaps_folder
import numpy as np
import pytest
import record_folders
import soundfile

from musiclm_jax import gin_configs
from musiclm_jax.evaluation import clips
from musiclm_jax.generation import generate
from musiclm_jax.launch import evaluate

FOLDER = pathlib.Path(gin_configs.__path__[0])
SILENT_REFERENCE = musiccaps_folder.IDS[2]
OWN = ("--gin.EMBEDDERS=('mulan', 'vggish')", f"--gin.BUNDLE='{miniature.path()}'")


@pytest.fixture(autouse=True)
def forget_gin(monkeypatch):
    monkeypatch.delenv("MUSICLM_VGGISH", raising=False)
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    musiccaps = musiccaps_folder.write(base / "musiccaps")
    soundfile.write(musiccaps / "clips" / f"{SILENT_REFERENCE}.wav", np.zeros(16_000), 16_000)
    return {"evaluate.gin": record_folders.audio_folder(base / "records"), "evaluate_musiccaps.gin": musiccaps}


def write_clips(folder, ids):
    folder.mkdir()
    for number, name in enumerate(ids):
        soundfile.write(folder / f"{name}.wav", miniature.tone(1) * (1 + number) / 10, 24_000)
    return folder


def report(folder):
    content = json.loads((folder / "report.json").read_text())
    return content, {row["system"]: {f["metric"]: f for f in row["figures"]} for row in content["systems"]}


@pytest.mark.parametrize(
    "file, ids",
    [("evaluate.gin", [f"test{i}" for i in range(6)]), ("evaluate_musiccaps.gin", musiccaps_folder.IDS)],
)
def test_a_folder_of_another_system_is_scored_and_all_bindings_are_used(file, ids, data, tmp_path, capsys):
    generated = write_clips(tmp_path / "riffs", ids[:-1])
    (generated / f"{ids[-2]}.wav").write_bytes(b"RIFF")
    soundfile.write(generated / f"{ids[0]}.wav", np.zeros(24_000), 24_000)
    output = tmp_path / "report"
    arguments = [f"--gin_file={file}", f"--output={output}", f"--generated={generated}", *OWN]
    assert evaluate.main([*arguments, f"--gin.DATA_DIR='{data[file]}'"]) == 0
    used = set(gin.config._OPERATIVE_CONFIG)
    unused = {what for what in gin.config._CONFIG if what not in used and what[1] != "gin.macro"}
    assert not unused, "bound, but never read"

    content, figures = report(output)
    assert list(figures) == ["riffs", "real clips", "codec round trip", "shuffled captions", "noise"]
    own = figures["riffs"]
    assert set(own) == {"FAD", "MCC"} and own["FAD"]["embedder"] == own["MCC"]["embedder"] == "mulan"
    assert (own["MCC"]["clips"], own["MCC"]["asked"]) == (len(ids) - 2, len(ids))
    assert own["MCC"]["estimate"]["low"] <= own["MCC"]["estimate"]["value"] <= own["MCC"]["estimate"]["high"]
    assert figures["shuffled captions"]["FAD"]["estimate"] == own["FAD"]["estimate"]
    assert len(content["systems"][0]["by_clip"]["MCC mulan"]) == len(ids) - 2
    assert content["clips"]["missing"] == [ids[-1]] and content["clips"]["silent"] == [ids[0]]
    assert list(content["clips"]["broken"]) == [ids[-2]]
    remarks = "\n".join(content["remarks"])
    for part in (
        f"1 clips are missing: {ids[-1]}",
        "1 clips cannot be read",
        f"1 clips are silent (they are scored): {ids[0]}",
        "no figures from vggish: $MUSICLM_VGGISH is not set",
        "embeddings for 8 dimensions: biased upwards",
    ):
        assert part in remarks
    if file == "evaluate_musiccaps.gin":
        assert "references: 5 of 7 captions have a clip" in remarks
        assert f"1 reference clips are silent (they are scored): {SILENT_REFERENCE}" in remarks
    else:
        assert "reference clips are silent" not in remarks
    out = capsys.readouterr().out
    assert "| FAD | mulan | riffs | " in out and "no figures from vggish" in out

    page = (output / "report.html").read_text()
    assert "another data set" in page and "<td class=number>13.4</td>" in page
    assert page.count("<audio") == 2 * (len(ids) - 2), "each readable clip next to its reference"
    assert not re.search(r'(src|href)="(?!data:)', page), "the page loads nothing"


def test_clips_are_generated_once_and_kept(data, tmp_path, monkeypatch):
    made = []

    def stand_in(bundle, prompts, request, progress):
        assert request.seconds == 1.0
        for prompt in prompts:
            made.append(prompt)
            yield generate.GeneratedMusic(miniature.tone(1), {}, 0.0, prompt, request.seed, 0)

    monkeypatch.setattr(clips, "pieces", stand_in)
    arguments = [f"--output={tmp_path}", *OWN, "--gin.evaluate.seconds=1.0", "--gin.evaluate.controls=('noise',)"]
    arguments += [f"--gin.DATA_DIR='{data['evaluate.gin']}'", "--gin.LIMIT=4"]
    assert evaluate.main(arguments) == 0
    assert len(made) == 4 and len(list((tmp_path / "clips").glob("*.wav"))) == 4
    first, _ = report(tmp_path)
    assert evaluate.main(arguments) == 0
    assert len(made) == 4 and report(tmp_path)[0] == first
    with pytest.raises(ValueError, match=r"was made with other settings \(seed\)"):
        evaluate.main([*arguments, "--gin.evaluate.seed=1"])


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--gin.EMBEDDERS=('ears',)", "there is no embedder 'ears'"),
        ("--gin.EMBEDDERS=('vggish',)", r"none of the embedders vggish can be used: no figures from vggish: \$MUSICLM"),
        ("--gin.evaluate.controls=('sine',)", "evaluate.controls has sine: use real, codec"),
        ("--gin.evaluate.task='jazz'", "evaluate.task is 'jazz', expected a task"),
        ("--generated=/nowhere", "/nowhere is not a folder"),
        ("--output=/dev/null/report", "cannot write to /dev/null/report"),
        ("--gin.corpus_task.split='dev'", "split is 'dev': expected train, validation, test"),
    ],
)
def test_bad_input_is_reported_before_any_work(argument, message, data, tmp_path):
    arguments = [f"--output={tmp_path}", *OWN, f"--gin.DATA_DIR='{data['evaluate.gin']}'", argument]
    with pytest.raises(ValueError, match=message):
        evaluate.main(arguments)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("evaluate*.gin")))
def test_every_file_documents_what_it_scores_how_and_at_what_cost(name):
    header = re.match(r"(#.*\n)+", (FOLDER / name).read_text()).group(0)
    assert f"musiclm evaluate --gin_file={name}" in header and "Cost: " in header
