"""Text files and tables as people's programs write them."""

import codecs

import pytest
import soundfile

from musiclm_jax.corpus import human_captions
from musiclm_jax.data import recordings, text_files
from musiclm_jax.evaluation import listening_test
from musiclm_jax.evaluation.listening_test import answers
from musiclm_jax.launch import generate, train
from musiclm_jax.tasks import musiccaps_builder

MARKED = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-32",
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
]
OTHER = ["cp1252", "utf-16-le", "cp932"]


def encoded(text, encoding):
    mark, encoding = encoding if isinstance(encoding, tuple) else (b"", encoding)
    return mark + text.encode(encoding)


@pytest.mark.parametrize("encoding", MARKED)
def test_a_mark_is_not_part_of_the_text(tmp_path, encoding):
    path = tmp_path / "prompts.txt"
    path.write_bytes(encoded("a café\r\n\n\ufeff a jig \r\n", encoding))
    assert text_files.lines(path) == ["a café", "a jig"]
    args = generate.parser().parse_args(["--prompts_file", str(path)])
    assert [str(story) for story in generate.read_prompts(args)] == ["a café", "a jig"]
    path.write_bytes(encoded("0:00 a café\r\n0:15 a jig\r\n", encoding))
    args = generate.parser().parse_args(["--story", str(path)])
    assert [str(story) for story in generate.read_prompts(args)] == ["0:00 a café 0:15 a jig"]


@pytest.mark.parametrize("encoding", OTHER)
def test_other_text_is_refused_with_the_name_of_the_file(tmp_path, encoding):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a jig\na \u00b4 \u00d7".encode(encoding))
    with pytest.raises(ValueError, match=r"prompts.txt: cannot be read as text \(.*: save it as UTF-8$"):
        text_files.read(path)


def test_captions_that_cannot_be_read_do_not_stop_a_folder(tmp_path, capsys):
    captions = {"a": "a café".encode("cp1252"), "b": "a café".encode("utf-16"), "c": b"\xef\xbb\xbfjig"}
    for name, content in captions.items():
        soundfile.write(tmp_path / f"{name}.wav", [0.1, -0.1] * 12_000, 24_000)
        (tmp_path / f"{name}.txt").write_bytes(content)
    songs = sorted(tmp_path.glob("*.wav"))
    clips = recordings.clips(songs, tmp_path, 1.0, recordings.Rejected(tmp_path))
    assert [clip["caption"] for clip in clips] == [[""], ["a café"], ["jig"]]
    said = f"left out: the captions of a.wav: {tmp_path / 'a.txt'}: cannot be read as text"
    assert capsys.readouterr().err.startswith(said)


ROWS = [("-dQ4x_aaaaa", 'A "calm" café; piano\nand long', "True"), ("abc-def_hij", "an acoustic guitar, slow", "False")]


def csv_text(separator=",", end="\n", true="True"):
    rows = ["ytid{0}caption{0}is_audioset_eval"]
    rows += [f'{name}{{0}}"{caption.replace(chr(34), chr(34) * 2)}"{{0}}{flag}' for name, caption, flag in ROWS]
    false = {"True": "False", "TRUE": "FALSE", "1": "0"}[true]
    return end.join(rows).format(separator).replace("True", true).replace("False", false)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("true", ["True", "TRUE", "1"])
def test_tables_of_any_office_program(tmp_path, separator, encoding, true):
    path = tmp_path / "musiccaps-public.csv"
    path.write_bytes(csv_text(separator, "\r\n", true).encode(encoding))
    rows, _ = musiccaps_builder.read_captions(path)
    assert [(row["ytid"], row["caption"]) for row in rows] == [row[:2] for row in ROWS]
    assert [row["is_audioset_eval"] for row in rows] == [True, False]
    assert listening_test.read_captions(path) == dict(row[:2] for row in ROWS)
    splits = {caption.instruments[0]: caption.split for caption in human_captions.read(path)}
    assert splits == {"piano": "test", "acoustic guitar": "train"}


@pytest.mark.parametrize("read", [musiccaps_builder.read_captions, listening_test.read_captions, human_captions.read])
def test_a_table_in_another_encoding_is_named(tmp_path, read):
    path = tmp_path / "musiccaps-public.csv"
    path.write_bytes(csv_text().encode("cp1252"))
    with pytest.raises(ValueError, match=r"musiccaps-public.csv: cannot be read as text \(line 2 is not UTF-8\)"):
        read(path)


def test_answers_that_an_editor_saved_are_still_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    answers.append(path, answers.Answer("a", "ours", "theirs", 1))
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert [answer.id for answer in answers.read(path)] == ["a"]


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"/nowhere/a.txt: cannot be read as text \(No such file"):
        text_files.read("/nowhere/a.txt")


@pytest.mark.parametrize(
    "content, message",
    [
        (codecs.BOM_UTF8 + b"train.total_steps = 3\n", "gin reads UTF-8 without a byte-order mark"),
        ("train.total_steps = 3\n".encode("utf-16"), "gin reads UTF-8 without a byte-order mark"),
        ("# caf\u00e9\n".encode("cp1252"), "line 1 is not UTF-8"),
    ],
)
def test_gin_files_in_other_encodings_are_named(tmp_path, content, message):
    (tmp_path / "own.gin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"own\.gin: .*{message}"):
        train.parse_gin([str(tmp_path / "own.gin")], [])
