"""Tokenizers: ids, vocabularies, decoding, foreign models, and training in a child process."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gru_lm.errors import InputError, Stopped, UsageError
from gru_lm.text import tokenizer_encoders as encoders
from gru_lm.text import tokenizer_model as models
from gru_lm.text import tokenizer_training as training
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, read_tokenizer, train_tokenizer

PROSE = "the cat sat on the mat,\nthe dog ran to the end of it\n" * 200


def train(kind: str, text: str, vocab_size: int | None = None) -> Tokenizer:
    return train_tokenizer(kind, lambda: [text], vocab_size=vocab_size)


def decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    decoder = tokenizer.decoder()
    return "".join(map(decoder.push, tokens)) + decoder.flush()


def foreign(lines: list[str], **options: Any) -> bytes:
    """A model as a user might have trained it with SentencePiece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


def test_char_ids() -> None:
    char = train("char", "abba\ncab")
    assert char.vocab_size == 3 + 256 + 1 + 3
    assert (char.unknown_id, char.end_id, char.newline_id) == (0, 1, 2)
    pieces = [char.piece(token) for token in range(char.vocab_size)]
    assert pieces[:5] == ["<unk>", "</s>", r"\n", "<0x00>", "<0x01>"]
    assert pieces[259:] == ["▁", "a", "b", "c"]
    assert char.encode_text("a\nd c") == [260, 2, 3 + ord("d"), 259, 262]


def test_char_keeps_the_most_frequent_and_the_space() -> None:
    char = train("char", "aaabbc d", vocab_size=261)
    assert [char.piece(token) for token in range(259, char.vocab_size)] == ["▁", "a"]
    assert decoded(char, char.encode_text("dab c")) == "dab c"


def test_sentencepieces_own_sign_is_spelled_in_bytes() -> None:
    char = train("char", "a ▁ b")
    assert char.encode_text("▁") == [3 + 0xE2, 3 + 0x96, 3 + 0x81]


def test_byte_table() -> None:
    byte = train("byte", "ignored")
    assert (byte.vocab_size, byte.end_id, byte.newline_id) == (257, 256, 10)
    assert (byte.unknown_id, byte.data, byte.lossless) == (None, b"", True)
    assert byte.encode_text("é\n") == [0xC3, 0xA9, 10]
    pieces = [byte.piece(token) for token in (*b"a \t\n\r\\", 0, 0x7F, 0xC3, 256)]
    assert pieces == ["a", "▁", r"\t", r"\n", r"\r", r"\\", "<0x00>", "<0x7F>", "<0xC3>", "</s>"]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram"])
def test_lone_surrogates_become_replacement_characters(kind: str) -> None:
    tokenizer = train(kind, PROSE)
    assert decoded(tokenizer, tokenizer.encode_text("a\udce9b \ud800")) == "a�b �"


def test_word_with_a_literal_unknown_keeps_every_word() -> None:
    word = train("word", "a a b <unk>\nb a c\n")
    assert [word.piece(token) for token in range(word.vocab_size)] == [
        *("<unk>", "</s>", r"\n"),
        *("▁a", "▁b", "▁c"),
    ]
    assert word.encode_text("c  a\tx <unk>\n\nb") == [5, 3, 0, 0, 2, 2, 4]
    assert not word.lossless


def test_word_without_one_learns_the_unknown_from_words_seen_once() -> None:
    word = train("word", "a a b b once\n")
    assert word.vocab_size == 3 + 2
    assert word.encode_text("once a") == [0, 3]


def test_word_keeps_the_most_frequent() -> None:
    word = train("word", "a a a b b c c <unk>", vocab_size=5)
    assert word.encode_text("a b c") == [3, 4, 0]


def test_word_text() -> None:
    word = train("word", "the cat <unk>\n")
    tokens = word.encode_text("the  cat\n the dog\n")
    assert decoded(word, tokens) == "the cat\nthe <unk>\n"
    assert word.surface(tokens[0]) == b" the"
    assert word.surface(word.unknown_id or 0) == b" <unk>"
    assert decoded(word, [3, word.end_id, 3]) == "catcat"


def test_words_that_no_model_can_hold_are_unknown() -> None:
    awkward = ["▁", "a▁b", "▅", "a\0b", "x" * 129, "y" * 5000, "z" * 200_000]
    word = train("word", " ".join(awkward * 2) + " <unk> fine")
    assert word.vocab_size == 3 + 1
    assert word.encode_text(" ".join(awkward)) == [0] * len(awkward)
    assert word.encode_text("fine") == [3]


@pytest.mark.parametrize("step", [1, 2, 7])
def test_word_training_does_not_depend_on_the_pieces(step: int) -> None:
    text = "the cat <unk> sat \n on the\tmat"
    cut = train_tokenizer("word", lambda: [text[i : i + step] for i in range(0, len(text), step)])
    assert cut.data == train("word", text).data


def test_word_counting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_MAX_COUNTED_WORDS", 10)
    pieces = [f"word{number} the " for number in range(100)]
    word = train_tokenizer("word", lambda: pieces)
    assert word.vocab_size == 3 + 1
    pairs = [f"word{number} word{number} the the the " for number in range(1000)]
    word = train_tokenizer("word", lambda: pairs)
    assert word.vocab_size <= 3 + 10
    assert word.piece(3) == "▁the"
    endless = ["x" * 200 + str(number) + " the the " for number in range(100)]
    assert train_tokenizer("word", lambda: endless).vocab_size == 3 + 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_subword_ids_and_default_size(kind: str) -> None:
    tokenizer = train(kind, PROSE)
    characters = len(set(PROSE) - {"\n"})
    assert (tokenizer.unknown_id, tokenizer.end_id, tokenizer.newline_id) == (0, 1, 2)
    assert characters + 259 < tokenizer.vocab_size
    assert tokenizer.vocab_size <= training.default_vocab_size(characters + 259, len(PROSE))
    assert len(tokenizer.encode_text(PROSE)) < len(PROSE)
    assert tokenizer.piece(3 + 0x41) == "<0x41>"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_size_asked_for(kind: str) -> None:
    syllables = ["ba", "di", "ku", "lo", "min", "sta"]
    text = "\n".join(
        map(" ".join, itertools.permutations(map("".join, itertools.permutations(syllables, 2)), 2))
    )
    assert train(kind, text, vocab_size=285).vocab_size == 285


@pytest.mark.parametrize(
    ("kind", "size", "least"),
    [("char", 3, 260), ("word", 3, 4), ("bpe", 262, 263), ("unigram", 262, 263)],
)
def test_too_small_a_vocabulary_names_the_least(kind: str, size: int, least: int) -> None:
    with pytest.raises(UsageError) as caught:
        train(kind, "abc abc\n", vocab_size=size)
    assert f"at least {least}" in str(caught.value.hint)
    train(kind, "abc abc\n", vocab_size=least)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_vocabulary_names_the_largest(kind: str) -> None:
    text = "hello world, hello there\n" * 3
    with pytest.raises(UsageError) as caught:
        train(kind, text, vocab_size=5000)
    largest = int(str(caught.value.hint).split("at most ")[1].split(",")[0])
    assert train(kind, text, vocab_size=largest).vocab_size == largest


@pytest.mark.parametrize("kind", ["char", "word", "bpe", "unigram", "byte"])
def test_a_vocabulary_past_every_limit(kind: str) -> None:
    with pytest.raises(UsageError):
        train(kind, PROSE, vocab_size=10**9)


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe", "unigram"])
@pytest.mark.parametrize("text", ["", "\n", "\0", "\r\n▁▅", "a", " ", "ab\n" * 5])
def test_tiny_texts(kind: str, text: str) -> None:
    tokenizer = train(kind, text)
    if tokenizer.lossless:
        assert decoded(tokenizer, tokenizer.encode_text(text + " b")) == text + " b"
    else:
        tokenizer.encode_text(text)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        train("unigam", "a")
    assert "did you mean unigram?" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_lines_that_sentencepiece_would_leave_out(kind: str) -> None:
    tokenizer = train(kind, "ab▅éf" * 20 + "ö" * 70_000)
    pieces = {tokenizer.piece(token) for token in range(tokenizer.vocab_size)}
    assert {"a", "é", "ö"} <= pieces


def test_a_large_text_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAMPLE_CHARACTERS", 10_000)
    lines = [f"{number}\n" for number in range(100_000, 120_000)]
    total = 7 * len(lines)
    kept = [int(line) for line in training._spread(lambda: lines, total, 10_000)]
    assert abs(7 * len(kept) - 10_000) < 20
    gaps = {later - former for former, later in itertools.pairwise(kept)}
    assert gaps == {14} or max(gaps) - min(gaps) <= 1
    whole = "".join(lines)
    assert kept == [int(line) for line in training._spread(lambda: [whole], total, 10_000)]
    assert train("bpe", whole).vocab_size > 259
    sampled = train_tokenizer("bpe", lambda: [whole], characters=5_000)
    assert sampled.vocab_size > 259
    assert sampled.data != train("bpe", whole).data


SCRIPT = """
import sys
from gru_lm.text.tokenizer import train_tokenizer
text = "the cat sat on the mat,\\nthe dog ran to the end of it\\n" * 200
step = int(sys.argv[1])
for kind in ("char", "byte", "bpe", "unigram", "word"):
    pieces = lambda: (text[start : start + step] for start in range(0, len(text), step))
    print(kind, train_tokenizer(kind, pieces).fingerprint)
print("torch" in sys.modules)
"""


def test_fresh_processes_train_the_same_bytes() -> None:
    def run(step: int, threads: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", SCRIPT, str(step)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    first = run(1000, "1")
    assert first == run(77, "2")
    assert first.count("\n") == 6
    assert first.endswith("False\n")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_stop_ends_the_child(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path)!r}, 'pid').write_text("
        "str(os.getpid()))\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(training, "_CHILD", child)
    pid = tmp_path / "pid"

    def stop() -> None:
        if pid.exists() and pid.read_text():
            raise Stopped(2)

    began = time.monotonic()
    with pytest.raises(Stopped):
        train_tokenizer(kind, lambda: [PROSE], vocab_size=None, stop=stop)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.abort()", "signal 6"),
        ("import sys; sys.exit('native: it broke')", "it broke"),
        ("raise SystemExit(7)", "its exit code is 7"),
        ("print('no model')", "not a SentencePiece model"),
    ],
)
def test_a_child_that_fails(
    code: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(training, "_CHILD", tmp_path / "child.py")
    with pytest.raises(InputError) as caught:
        train("bpe", PROSE)
    assert why in str(caught.value.why)


def test_the_childs_own_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(training._CHILD), '{"model_type": "bpe", "vocab_size": 5}'],
        input=b"abc\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"Vocabulary size" in done.stderr
    assert done.stdout == b""


def test_decoder_holds_bytes_back() -> None:
    decoder = train("byte", "").decoder()
    assert [decoder.push(token) for token in "é€".encode()] == ["", "é", "", "", "€"]
    assert decoder.push(0xE2) == ""
    assert decoder.push(ord("a")) == "�a"
    assert decoder.push(0xE2) == ""
    assert decoder.flush() == "�"
    assert decoder.push(ord("b")) == "b"


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram", "word"])
def test_loading_gives_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = train(kind, PROSE)
    again = load_tokenizer(kind, tokenizer.data)
    assert again.data == tokenizer.data
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_text(PROSE) == tokenizer.encode_text(PROSE)
    if kind != "byte":
        path = tmp_path / "my.model"
        path.write_bytes(tokenizer.data)
        assert read_tokenizer(path).fingerprint == tokenizer.fingerprint


def test_kinds_have_different_fingerprints() -> None:
    assert len({train(kind, PROSE).fingerprint for kind in ("char", "byte", "bpe", "word")}) == 4


def test_a_usual_foreign_model_is_taken_as_it_is() -> None:
    data = foreign(PROSE.splitlines(), vocab_size=40, hard_vocab_limit=False)
    tokenizer = load_tokenizer("unigram", data)
    assert not tokenizer.lossless
    assert tokenizer.newline_id == tokenizer.end_id == 2
    tokens = tokenizer.encode_text("the  cat\n\nsat")
    assert decoded(tokenizer, tokens) == "the cat\n\nsat"
    assert decoded(tokenizer, tokenizer.encode_text("the Q")) == "the �"


def test_a_foreign_model_with_bytes_ends_lines_with_one() -> None:
    data = foreign(
        ["abc cab"] * 9,
        model_type="bpe",
        vocab_size=265,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )
    tokenizer = load_tokenizer("bpe", data)
    assert tokenizer.lossless
    assert tokenizer.piece(tokenizer.newline_id) == "<0x0A>"
    assert tokenizer.end_id != tokenizer.newline_id
    assert decoded(tokenizer, tokenizer.encode_text("▁a\n b")) == "▁a\n b"


def test_a_model_without_an_end_of_line_is_refused() -> None:
    data = foreign(PROSE.splitlines(), vocab_size=40, hard_vocab_limit=False, eos_id=-1)
    with pytest.raises(InputError, match="refused") as caught:
        load_tokenizer("unigram", data)
    assert "--end-piece" in str(caught.value.hint)
    data = foreign(
        PROSE.splitlines(),
        vocab_size=40,
        hard_vocab_limit=False,
        eos_id=-1,
        user_defined_symbols=["\n"],
    )
    tokenizer = load_tokenizer("unigram", data)
    assert tokenizer.end_id == tokenizer.newline_id


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"PK\x03\x04" * 100])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.model"):
        read_tokenizer(path)


def test_encoding_streams() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "the cat\n"

    for kind in ("char", "byte", "bpe", "word"):
        tokenizer = train(kind, PROSE)
        assert next(tokenizer.encode(endless()))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_MOST_REMEMBERED", 5)
    tokenizer = train("bpe", PROSE)
    encoder = tokenizer.encoder
    assert isinstance(encoder, encoders.WordwiseEncoder)
    text = " ".join(map(str, range(500))) + "\n" + "x" * 50 + "  y" * 30
    assert decoded(tokenizer, tokenizer.encode_text(text)) == text
    assert 0 < len(encoder._units) <= 5
    assert 0 < len(encoder._after_space) <= 5


LOSSLESS = {
    "vocab_size": 300,
    "hard_vocab_limit": False,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize(
    ("kind", "options", "shortcut"),
    [
        ("bpe", {}, encoders.WordwiseEncoder),
        ("bpe", {"split_by_whitespace": False}, encoders.PieceEncoder),
        ("bpe", {"treat_whitespace_as_suffix": True}, encoders.PieceEncoder),
        ("bpe", {"user_defined_symbols": ["t c"]}, encoders.PieceEncoder),
        ("bpe", {"byte_fallback": False}, encoders.PieceEncoder),
        ("char", {}, encoders.CharEncoder),
        ("char", {"user_defined_symbols": ["the"]}, encoders.PieceEncoder),
        ("char", {"user_defined_symbols": ["h"]}, encoders.CharEncoder),
        ("char", {"user_defined_symbols": [" "]}, encoders.PieceEncoder),
        ("char", {"control_symbols": ["h"]}, encoders.PieceEncoder),
        ("char", {"byte_fallback": False}, encoders.PieceEncoder),
    ],
)
def test_shortcuts_are_taken_where_they_lead_to_the_same(
    kind: str, options: dict[str, Any], shortcut: type[encoders.Encoder]
) -> None:
    data = foreign(["the cat sat on the mat"] * 20, model_type=kind, **LOSSLESS | options)
    tokenizer = load_tokenizer(kind, data)
    assert type(tokenizer.encoder) is shortcut
    model = models.checked(data)
    plain = encoders.PieceEncoder(
        model, data, newline_id=tokenizer.newline_id, lossless=tokenizer.lossless
    )
    for text in ("the cat sat  on\n the mat", "h \u2581t c ", "at the t cat\tthe"):
        assert tokenizer.encode_text(text) == plain.encode(text).tolist()
