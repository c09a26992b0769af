"""Pieces that stay whole: the setting, training around them, prompts that end inside one, tables."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest

from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation.spelling import Charges, count_spacing
from gru_lm.evaluation.tables import PerToken, PerWord, details
from gru_lm.evaluation.texts import measure
from gru_lm.generation.border import weigh
from gru_lm.generation.prompt import read_prompt
from gru_lm.generation.sampling import complete
from gru_lm.text.pieces import LARGEST_FILE, MOST_PIECES, listed, read, spelled
from gru_lm.text.segments import LONGEST
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.unit import test_parallel
from tests.unit.test_foreign_tokenizers import made
from tests.unit.test_parallel import BLOCKS
from tests.unit.test_prompt import decoded, log_prob, model_for
from tests.unit.test_scoring import Text
from tests.unit.test_tables import rows_of

WHOLE = ["Cl", "Br", "[nH]", "[C@@H]", "@@", "ClC"]
ATOMS = ["C", "c", "N", "O", "Cl", "Br", "[nH]", "[C@@H]", "(", ")", "=", "1", "@@"]
CHOSEN = random.Random(0)
SMILES = "".join(CHOSEN.choice(ATOMS) + "\n" * (number % 8 == 7) for number in range(1600))
KINDS = ("char", "byte", "bpe", "unigram", "word")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(kind, lambda: [SMILES], whole=WHOLE) for kind in KINDS}


def shown(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.piece(token) for token in tokenizer.encode_text(text)]


@pytest.mark.parametrize(
    ("setting", "pieces"),
    [
        ("Cl,Br,@@,<title>", ("Cl", "Br", "@@", "<title>")),
        ("Cl", ("Cl",)),
        ("Cl,Br,Cl", ("Cl", "Br")),
        (r'/,\,"a,b"," ","""",a"b', ("/", "\\", "a,b", " ", '"', 'a"b')),
        (" the, cat", (" the", " cat")),
        ('".txt"', (".txt",)),
        ("<unk>,</s>,<0x41>", ("<unk>", "</s>", "<0x41>")),
        ("x" * 256, ("x" * 256,)),
    ],
)
def test_a_list(setting: str, pieces: tuple[str, ...]) -> None:
    assert read(setting) == pieces
    assert listed(spelled(pieces)) == pieces
    assert spelled(()) == ""


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("", "piece 1 is empty"),
        ("Cl,,Br", "piece 2 is empty"),
        ("Cl,", "piece 2 is empty"),
        ("a\u2581b", "write a space instead"),
        ("Cl,a\tb", r"piece 2 contains the unprintable character U\+0009"),
        ("a\nb", "unprintable|quotation"),
        ("Cl,\u200d", "U\\+200D"),
        ("\ud800", "U\\+D800"),
        ('"a', "in quotation marks"),
        ('"a"b', "in quotation marks"),
        ("x" * 257, "longer than 256"),
        (",".join(map(str, range(MOST_PIECES + 1))), "at most 32,768"),
    ],
)
def test_a_list_that_is_malformed(setting: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        listed(setting)
    with pytest.raises(UsageError) as caught:
        read(setting)
    assert caught.value.why
    assert "--pieces FILE" in str(caught.value.hint)
    assert len(caught.value.message) < 150


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pieces.txt"
    path.write_bytes('\ufeffCl\r\na,b\n the\n"\né\nCl'.encode())
    assert read(str(path)) == ("Cl", "a,b", " the", '"', "é")
    other = tmp_path / "vocabulary"
    other.write_text("Br\n", encoding="utf-8")
    assert read(str(other)) == ("Br",)
    assert read(str(tmp_path)) == (str(tmp_path),), "a folder is no file of pieces"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the pieces in"),
        (b"", "line 1: the piece is empty"),
        (b"Cl\n\nBr\n", "line 2: the piece is empty"),
        (b"Cl\na\tb\n", r"line 2: the piece contains the unprintable character U\+0009"),
        ("Cl\n▁the\n".encode(), "line 2: the piece contains ▁"),
        (b"Cl\n\xe9\n", "not UTF-8"),
        (b"x" * 300, "longer than 256"),
        (b"x\n" * LARGEST_FILE, "larger than 1,048,576 bytes"),
        ("".join(f"{n}\n" for n in range(MOST_PIECES + 1)).encode(), "at most 32,768"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "pieces.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read(str(path))
    assert "pieces.txt" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_molecules(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    assert shown(tokenizer, "Cl[C@@H][nH]Br") == ["Cl", "[C@@H]", "[nH]", "Br"]
    assert shown(tokenizer, "ClCCl@@\n@@") == ["ClC", "Cl", "@@", r"\n", "@@"]
    assert tokenizer.whole == tuple(WHOLE)
    first = tokenizer.vocab_size - len(WHOLE)
    assert [tokenizer.piece(first + number) for number in range(len(WHOLE))] == WHOLE
    others = [tokenizer.surface(token).decode(errors="replace") for token in range(first)]
    assert not [each for each in others if any(piece in each for piece in WHOLE)]
    if tokenizer.lossless:
        tokens = tokenizer.encode_text(SMILES)
        assert decoded(tokenizer, tokens) == SMILES
        assert decoded(tokenizer, tokenizer.encode_text("▁Cl é")) == "▁Cl é"


def test_words_end_at_a_piece() -> None:
    text = "a <title>A house</title> of a house <title>A house</title>\n"
    word = train_tokenizer("word", lambda: [text], whole=["<title>", "</title>"])
    tokens = shown(word, "a<title>house</title>\n<title> A other")
    assert tokens == ["▁a", "<title>", "▁house", "</title>", r"\n", "<title>", "▁A", "<unk>"]
    told = decoded(word, word.encode_text("<title>house</title>"))
    assert told == "<title> house </title>"


@pytest.mark.parametrize("kind", KINDS)
def test_loading_gives_the_same_tokenizer(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    again = load_tokenizer(kind, tokenizer.data, whole=tokenizer.whole)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_text(SMILES) == tokenizer.encode_text(SMILES)
    others = [load_tokenizer(kind, tokenizer.data, whole=whole) for whole in ([], ["ClB"], ["Cl"])]
    assert len({tokenizer.fingerprint, *(each.fingerprint for each in others)}) == 4


def test_whole_pieces_are_refused_for_a_model_that_folds_text() -> None:
    with pytest.raises(InputError, match="refused"):
        load_tokenizer("unigram", made("unigram"), whole=["Cl"])


@pytest.mark.parametrize(
    ("kind", "least"),
    [("char", 3 + 256 + 1 + 6), ("word", 3 + 1 + 6), ("bpe", 3 + 256 + 10 + 6), ("byte", 257 + 6)],
)
def test_the_vocabulary_counts_them(kind: str, least: int) -> None:
    text = SMILES + "unseen"
    whole = [*WHOLE[:5], "<never>"]
    with pytest.raises(UsageError) as caught:
        train_tokenizer(kind, lambda: [text], whole=whole, vocab_size=least - 1 - (kind == "bpe"))
    said = f"{caught.value.hint} {caught.value.why}"
    if kind == "byte":
        assert "6 whole pieces" in said
    else:
        least = int(said.split("at least ")[1].split(",", maxsplit=1)[0])
    tokenizer = train_tokenizer(kind, lambda: [text], whole=whole, vocab_size=least)
    assert tokenizer.vocab_size == least
    assert tokenizer.piece(least - 1) == "<never>"
    if kind == "bpe":
        with pytest.raises(UsageError, match="impossible") as caught:
            train_tokenizer(kind, lambda: [text], whole=whole, vocab_size=5000)
        largest = int(str(caught.value.hint).split("at most ")[1].split(",")[0])
        assert train_tokenizer(
            kind, lambda: [text], whole=whole, vocab_size=largest
        ).vocab_size == (largest)


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram", "word"])
def test_training_does_not_depend_on_the_parts_of_the_text(kind: str) -> None:
    parts = [SMILES[at : at + 3] for at in range(0, len(SMILES), 3)]
    cut = train_tokenizer(kind, lambda: parts, whole=WHOLE)
    assert cut.data == train_tokenizer(kind, lambda: [SMILES], whole=WHOLE).data


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_nothing_but_pieces(kind: str) -> None:
    tokenizer = train_tokenizer(kind, lambda: ["ClBrCl" * 9], whole=["Cl", "Br"])
    assert shown(tokenizer, "BrCl") == ["Br", "Cl"]


def test_worker_processes_keep_them_whole() -> None:
    tokenizer = train_tokenizer("bpe", lambda: ["a b c\n" * 20], whole=["a b", "é", "c"])
    assert test_parallel.encoded(tokenizer, 2) == test_parallel.encoded(tokenizer, 1)
    assert tokenizer.vocab_size - 3 in test_parallel.encoded(tokenizer, 2)[0]
    assert len(test_parallel.encoded(tokenizer, 2)) == len(BLOCKS)


PROMPTS = ["CC", "C1=C[n", "NCl", "[C@@", "@", "(C)", "", "O\n["]


def test_a_piece_may_begin_anywhere_in_a_long_line(tokenizers: dict[str, Tokenizer]) -> None:
    text = "x" * (LONGEST - 1) + "[nH"
    _, opening = read_prompt(tokenizers["bpe"], text).openings
    assert opening.rest == "[nH"
    assert opening.following is not None
    assert [tokenizers["bpe"].piece(token) for token in opening.following] == ["[nH]"]


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram"])
def test_a_prompt_that_ends_inside_a_piece_is_weighed_exactly(
    kind: str, text: str, tokenizers: dict[str, Tokenizer]
) -> None:
    """Against every token that may cross the border, after every beginning of the prompt."""
    tokenizer = tokenizers[kind]
    model, newline_id = model_for(tokenizer), tokenizer.newline_id
    border = weigh(
        model, newline_id, read_prompt(tokenizer, text).openings, never=[0], check=lambda: None
    )
    exact: dict[tuple[int, ...], float] = {}
    for at in range(max(0, len(text) - 6), len(text) + 1):
        before, rest = tokenizer.encode_text(text[:at]), text[at:].encode()
        crossing = [
            token
            for token in range(1, tokenizer.vocab_size)
            if tokenizer.surface(token).startswith(rest) and tokenizer.surface(token) != rest
        ]
        if at == len(text):
            crossing = list(range(1, tokenizer.vocab_size))
        for token in crossing:
            exact[*before, token] = log_prob(model, newline_id, [*before, token])
    found = {
        (*border.openings[opening].tokens, token): weight
        for opening, token, weight in zip(
            border.opening_C.tolist(), border.tokens_C.tolist(), border.weights_C, strict=True
        )
    }
    assert set(found) == set(exact)
    whole = np.logaddexp.reduce(list(exact.values()))
    for tokens, weight in found.items():
        assert weight == pytest.approx(exact[tokens] - whole, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_begun_by_the_prompt_is_ended_by_the_sample(
    kind: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    model = model_for(tokenizer)
    token = tokenizer.encode_text("[nH]")[0]
    model.head.bias.data[token] = 60.0
    for prompt, rest in (("[", "nH]"), ("[n", "H]"), ("N\n[nH", "]")):
        for sample in complete(
            model, tokenizer, read_prompt(tokenizer, prompt), samples=5, length=1, seed=1
        ):
            assert sample.text == rest


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "word"])
def test_tables_show_a_piece_as_itself(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    text = Text("a", "NCl Br[nH]\nClN\n")
    files = io.BytesIO(), io.BytesIO()
    per_token = PerToken(files[0], tokenizer, [text])
    per_word = PerWord(files[1], tokenizer, [text])
    (counts,) = measure(
        model_for(tokenizer),
        tokenizer,
        [text],
        tables=[per_token, per_word],
        of_distribution=details(tokenizer),
    )
    per_word.finish()
    rows = [row[2] for row in rows_of(files[0])[1:]]
    assert [row for row in rows if row in WHOLE] == ["Cl", "Br", "[nH]", "Cl"]
    words = [row[4] for row in rows_of(files[1])[1:]]
    assert [word for word in words if word not in (r"\n", "</s>")] == ["NCl", "Br[nH]", "ClN"]
    at = [(row[6], row[7]) for row in rows_of(files[0])[1:] if row[2] in ("Cl", "[nH]")]
    assert at == [("1", "1"), ("1", "6"), ("2", "11")]
    assert (counts.bytes, counts.characters) == (15, 15)


def test_words_are_charged_for_the_white_space_that_a_piece_lacks() -> None:
    text = "a <b>house</b> of\n" * 30
    tokenizer = train_tokenizer("word", lambda: [text], whole=["<b>", "</b>"])
    tokenizer = tokenizer.with_spacing(count_spacing(tokenizer, [Text("a", text)]))

    def charged(line: str) -> float:
        found = Charges(tokenizer).of(tokenizer.encode_covering([line]))
        return float(sum(nats.sum() for _, nats in found))

    usual, spaced = charged("a <b>house</b> of\n"), charged("a <b> house </b> of\n")
    assert tokenizer.encode_text("a<b>house</b> of") == tokenizer.encode_text("a <b> house </b> of")
    assert 0 < usual < 4
    assert 0 < spaced < 4
    assert charged("a\t<b>house</b> of\n") > usual + 3
    assert np.isfinite(charged("</b></b>  <b>\u3000"))
