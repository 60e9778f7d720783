"""Fuzzes what people write or other programs export: stories, prompts, tables, JSON Lines, settings, gin bindings."""

import csv
import io
import json
import math

import fuzzing
import gin
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musiclm_jax.data import settings, text_files
from musiclm_jax.evaluation.listening_test import answers, read_captions
from musiclm_jax.generation import prompts
from musiclm_jax.launch import train
from musiclm_jax.tasks import musiccaps_builder

STORY = b"0:00 jazz\n0:15: slow rock\n\n# a comment\n1:00 a fiddle\n1:02:03.5 silence\n"
PROMPTS = "a jig\r\n\u00e9t\u00e9, jazz;rock\n\n".encode("utf-16")
TABLE = b"""\
ytid,start_s,end_s,aspect_list,audioset_positive_labels,caption,author_id,is_balanced_subset,is_audioset_eval
-0Gj8-vB1q4,30,40,"['low quality', 'sad']","/m/0140xf,/m/02cjck","Soft, ""sad"" music",4,False,True
-0SdAVK79lg,30.0,40,[],/m/0155w,"Guitar
and bass",0,True,False
"""
TABLES = [TABLE, TABLE.replace(b",", b";"), TABLE.replace(b"\n", b"\r\n"), TABLE.decode().encode("utf-16")]
ANSWER = (
    b'{"id": "1", "a": "x", "b": "y", "answer": 3, "listener": "", "caption": "c", "seconds": 1.5, "time": "now"}\n'
)
CAPTIONS = b'{"id": "1", "caption": "a jig"}\n{"ytid": "2", "caption": ["a", "b"]}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


TIMES = st.from_regex(r"(\d{1,3}:){0,3}\d{0,4}(\.\d*)?", fullmatch=True)


@fuzzing.examples(60)
@given(
    fuzzing.damaged([STORY])
    | st.lists(st.tuples(TIMES | st.text(), st.sampled_from(["jazz", "a b", "."])), max_size=4).map(
        lambda lines: "\n".join(" ".join(line) for line in lines).encode(errors="surrogatepass")
    )
)
@example(b"0:00 jazz\n" + b"9" * 400 + b" rock")
def test_stories(folder, content):
    path = folder / "story.txt"
    path.write_bytes(content)
    found = fuzzing.outcome(lambda: prompts.parse_story(text_files.read(path)))
    if not isinstance(found, Exception):
        starts = [section.start for section in found.sections]
        assert starts[0] == 0 and starts == sorted(starts) and all(map(math.isfinite, starts)) and str(found)


@fuzzing.examples(50)
@given(fuzzing.damaged([STORY, PROMPTS, b"a jig\n"]) | st.text().map(str.encode))
def test_prompt_files(folder, content):
    path = folder / "prompts.txt"
    path.write_bytes(content)
    found = fuzzing.outcome(text_files.lines, path, named=path)
    if not isinstance(found, Exception):
        assert all(line == line.strip() != "" for line in found)
        stories = fuzzing.outcome(prompts.as_stories, found)
        if not isinstance(stories, Exception):
            prompts.language_warnings(stories)


@fuzzing.examples(40)
@given(st.lists(st.text() | st.from_regex(r"\w*:[\d.e+-]*", fullmatch=True), max_size=3))
@example(["jazz:nan", "rock:1"])
@example(["jazz:1e999"])
def test_mixes(weighted):
    found = fuzzing.outcome(prompts.parse_mix, weighted)
    if not isinstance(found, Exception):
        assert all(0 <= weight < math.inf for weight in found.sections[0].weights)


CELLS = st.sampled_from(
    [
        "",
        "inf",
        "nan",
        "1e400",
        "-1",
        "99999999999",
        "[1]",
        "['a'",
        "{}",
        "()",
        "[" * 300,
        "-" * 5000 + "1",
        "TRUE",
        '"',
    ]
)


@fuzzing.examples(60)
@given(
    fuzzing.damaged(TABLES)
    | st.lists(CELLS | st.text(max_size=5), min_size=9, max_size=9).map(
        lambda cells: TABLE.split(b"\n")[0] + b"\n" + row(cells).encode(errors="replace")
    )
)
@example(TABLE.replace(b"30,", b"inf,", 1))
@example(TABLE.replace(b"30,", b"99999999999,", 1))
@example(TABLE.replace(b"[]", b"[" * 5000))
@example(TABLE.replace(b"[]", b"-" * 99_999 + b"1"))
@example(TABLE.replace(b",4,", b",9999999999999999999,"))
def test_tables_of_musiccaps(folder, content):
    path = folder / "captions.csv"
    path.write_bytes(content)
    found = fuzzing.outcome(musiccaps_builder.read_captions, path, named=path)
    if not isinstance(found, Exception):
        for own in found[0]:
            assert own["ytid"] and own["caption"] and all(isinstance(aspect, str) for aspect in own["aspects"])
            assert all(-(2**31) <= own[name] < 2**31 for name in ("start_s", "end_s", "author_id")), "int32 in TFDS"
    fuzzing.outcome(read_captions, path, named=path)


def row(cells):
    """Returns a row of a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


@fuzzing.examples(60)
@given(
    fuzzing.damaged([ANSWER, CAPTIONS, ANSWER * 2])
    | fuzzing.VALUES.map(lambda value: json.dumps(value).encode())
    | st.builds(lambda name, value: json.dumps(json.loads(ANSWER) | {name: value}).encode(), st.text(), fuzzing.VALUES)
    | st.builds(
        lambda name, value: json.dumps(json.loads(ANSWER) | {name: value}).encode(),
        st.sampled_from(list(json.loads(ANSWER))),
        fuzzing.VALUES,
    )
)
@example(b"[" * 100_000)
def test_answers_and_captions_in_json_lines(folder, content):
    path = folder / "answers.jsonl"
    path.write_bytes(content)
    found = fuzzing.outcome(answers.read, path, named=path)
    if not isinstance(found, Exception):
        answers.compare(found)
    fuzzing.outcome(read_captions, path, named=path)


@fuzzing.examples(30)
@given(fuzzing.VALUES.map(json.dumps).map(str.encode) | st.binary(max_size=20))
@example(b"[]")
@example(b"[" * 100_000)
def test_settings_of_a_folder(folder, content):
    (folder / settings.FILE).write_bytes(content)
    fuzzing.outcome(settings.check_settings, folder, {"files": {"a": 1}, "captions": 0}, "remove it", named=folder)


NAMES = st.sampled_from(
    "BATCH_SIZE TRAIN_STEPS DATA_DIR train.learner train.task train.batch_size train.mesh StageLearner.config "
    "OptimizerConfig.schedule TransformerConfig.d_model coarse_stage.seconds coarse_task.data_dir a/b.c".split()
)
GIN_VALUES = (
    fuzzing.VALUES.map(repr)
    | st.sampled_from(["@train()", "@train", "%X", "%BATCH_SIZE", "@StageLearner()", "@a/b()", "'x", "[", "{", "(1,"])
    | st.sampled_from(
        ["-" * 5000 + "1", "[" * 300, "{[]: 1}", "{{}}", "{1: {2}}", "1+2j", "b'a'", "...", "'\\x'", "\0"]
    )
    | st.text(max_size=8)
)


@fuzzing.examples(25)
@given(st.builds("{}={}".format, NAMES | st.text(max_size=6), GIN_VALUES))
@example("BATCH_SIZE=" + "-" * 99_999 + "1")
@example("BATCH_SIZE=" + "[" * 9_999)
def test_bindings(binding):
    bindings = ["DATA_DIR='tokens'", "TRAIN_STEPS=1000", binding]

    def run():
        train.parse_gin(["coarse_tiny.gin"], bindings)
        with train.one_line_errors(bindings):
            return train.Run(**gin.get_bindings("train"))

    try:
        fuzzing.outcome(run)
    finally:
        gin.clear_config()


@fuzzing.examples(20)
@given(fuzzing.damaged([b"include 'coarse_tiny.gin'\nBATCH_SIZE = 4\ntrain.learner = @StageLearner()\n# a comment\n"]))
def test_gin_files(folder, content):
    path = folder / "own.gin"
    path.write_bytes(content)
    try:
        fuzzing.outcome(train.parse_gin, [str(path)], [])
    finally:
        gin.clear_config()
