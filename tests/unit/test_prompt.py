"""The border between a prompt and its continuation: tokens that cross it are sampled."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.generation.border import weigh
from gru_lm.generation.choice import Choice
from gru_lm.generation.prompt import Opening, read_prompt
from gru_lm.generation.sampling import complete, generate
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, read_tokenizer, train_tokenizer

STOCK = "the old house and the older horses cold hold of gold: olden, Ünïcode a".split()
CHOSEN = random.Random(0)
TEXT = "".join(CHOSEN.choice(STOCK) + " \n"[number % 9 == 8] for number in range(1500))
KINDS = ("bpe", "unigram", "char", "byte", "word")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(kind, lambda: [TEXT]) for kind in KINDS}


def model_for(tokenizer: Tokenizer, cell: str = "gru") -> LanguageModel:
    torch.manual_seed(1)
    config = ModelConfig(cell=cell, vocab_size=tokenizer.vocab_size, layers=1, width=8, embed=8)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.7, 0.7)
    return model


def log_prob(model: LanguageModel, newline_id: int, tokens: list[int]) -> float:
    inputs = torch.tensor([[newline_id, *tokens[:-1]]])
    with torch.inference_mode():
        found, _ = model.target_log_probs(inputs, torch.tensor([tokens]), model.initial_state(1))
    return float(found.double().sum())


def decoded(tokenizer: Tokenizer, tokens: Any) -> str:
    decoder = tokenizer.decoder()
    return "".join(map(decoder.push, tokens))


WORDS = st.lists(
    st.sampled_from(
        ["the", "old", "olde", "hous", "go", "c", "Ü", "猫", " ", "  ", "\n", ":", "\t"]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "byte"])
@given(text=WORDS)
def test_every_opening_and_what_may_follow_it_begin_with_the_prompt(
    kind: str, text: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    prompt = read_prompt(tokenizer, text)
    assert list(prompt.tokens) == tokenizer.encode_text(text)
    first, *others = prompt.openings
    assert first == Opening(prompt.tokens)
    for opening in others:
        assert opening.following is not None
        assert len(opening.following)
        assert decoded(tokenizer, opening.tokens) + opening.rest == text
        assert list(opening.tokens) == tokenizer.encode_text(decoded(tokenizer, opening.tokens))
        for token in opening.following.tolist():
            surface = tokenizer.surface(token).decode()
            assert surface.startswith(opening.rest)
            assert len(surface) > len(opening.rest)
    if kind in ("char", "byte"):
        assert prompt.is_plain()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize("text", ["the old ", "the ol", "the\nold", "a c", "the", "cold hold  go"])
def test_candidates_are_weighed_by_the_probability_of_all_their_tokens(
    kind: str, text: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    model, newline_id = model_for(tokenizer), tokenizer.newline_id
    prompt = read_prompt(tokenizer, text)
    border = weigh(model, newline_id, prompt.openings, never=[0], check=lambda: None)
    assert 0 not in border.tokens_C
    exact_C = [
        log_prob(model, newline_id, [*prompt.openings[opening].tokens, token])
        for opening, token in zip(border.opening_C, border.tokens_C, strict=True)
    ]
    whole = np.logaddexp.reduce(exact_C)
    np.testing.assert_allclose(border.weights_C, exact_C - whole, atol=1e-5)


def test_the_next_word_does_not_begin_with_a_second_space(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """With a model that predicts each word with its leading space, as in training."""
    tokenizer = tokenizers["bpe"]
    script = tokenizer.encode_text("the old house and")
    after = dict(zip([tokenizer.newline_id, *script], script, strict=False))

    class OneText(LanguageModel):
        def log_probs(self, tokens_BT: torch.Tensor, state_LSBH: torch.Tensor) -> Any:
            scores_BTV = torch.zeros(*tokens_BT.shape, tokenizer.vocab_size)
            for at, token in np.ndenumerate(tokens_BT.numpy()):
                scores_BTV[*at, after.get(int(token), tokenizer.newline_id)] = 30.0
            return scores_BTV.log_softmax(-1), state_LSBH

        def target_log_probs(self, tokens_BT: Any, targets_BT: Any, state_LSBH: Any) -> Any:
            found_BTV, state_LSBH = self.log_probs(tokens_BT, state_LSBH)
            return found_BTV.gather(2, targets_BT[..., None])[..., 0], state_LSBH

    config = ModelConfig(cell="rnn", vocab_size=tokenizer.vocab_size, layers=1, width=1, embed=1)
    for prompt in ("the old ", "the o", "the old ho", "the", "the old house", "t", ""):
        for sample in complete(
            OneText(config), tokenizer, read_prompt(tokenizer, prompt), samples=3, length=12
        ):
            assert (prompt + sample.text).startswith("the old house and")


@pytest.mark.parametrize(
    ("prompt", "unknown", "starts"),
    [
        ("the ol", 0, {"d", "den,", "der"}),  # beginnings of vocabulary words
        ("the old", 0, {"en,", "er", " ", "\n"}),
        ("the old ", 0, {"t", "o", "h", "a", "c", "g", "Ü", "\n"}),
        ("the\t old \t ", 0, {"t", "o", "h", "a", "c", "g", "Ü", "\n"}),
        ("zebra ", 1, {"t", "o", "h", "a", "c", "g", "Ü", "\n"}),
        ("zebra ol", 1, {"d", "den,", "der"}),
        ("ol", 0, {"d", "den,", "der"}),  # at the start of a line
        ("the\nol", 0, {"d", "den,", "der"}),
    ],
)
def test_a_words_beginning_is_completed(
    prompt: str, unknown: int, starts: set[str], tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers["word"]
    read = read_prompt(tokenizer, prompt)
    assert read.unknown == unknown
    model = model_for(tokenizer)
    found = Counter(
        sample.text for sample in complete(model, tokenizer, read, samples=60, length=1, seed=1)
    )
    assert len(found) > 1
    for text in found:
        # The end of the document has no text.
        assert not text or any(text.startswith(start) for start in starts), text
        assert "<unk>" not in text


@pytest.mark.parametrize("options", [{}, {"treat_whitespace_as_suffix": True}], ids=str)
def test_a_foreign_tokenizers_spaces_are_neither_lost_nor_doubled(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """A tokenizer that folds white space, and adds a space at one end of each line."""
    found = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=found,
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        normalization_rule_name="identity",
        user_defined_symbols=["\n"],
        **options,
    )
    (tmp_path / "foreign.model").write_bytes(found.getvalue())
    tokenizer = read_tokenizer(tmp_path / "foreign.model")
    model = model_for(tokenizer)
    for prompt in ("the old", "the old ", "the  old  ", "the"):
        read = read_prompt(tokenizer, prompt)
        for sample in complete(model, tokenizer, read, samples=20, length=1, seed=2):
            if prompt[-1].isspace():
                assert not sample.text.startswith(" ")
            elif options and sample.text:  # each of its pieces ends or continues a word
                whole = prompt + sample.text
                assert whole.startswith(("the old ", "the olde", "the old:", "the older")) or (
                    prompt == "the" and whole.startswith("the")
                )
    for prompt in ("the ol", "the old", "the old ", "th", "the old\n", ""):
        read = read_prompt(tokenizer, prompt)
        made = complete(model, tokenizer, read, samples=20, length=9, seed=2, with_logprobs=True)
        for sample in made:
            if options:  # the last space of a line is no text
                pieces = "".join(piece for _, piece, _ in sample.logprobs).replace("</s>", "")
                told = pieces.replace("\\n", "\n").replace("\u2581", " ")
                told = told.replace(" \n", "\n").removesuffix(" ")
                assert (prompt + sample.text).endswith(told)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_sample_after_a_border_does_not_depend_on_its_neighbours(
    kind: str, cell: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    model = model_for(tokenizer, cell)
    options: dict[str, Any] = {"length": 9, "seed": 7, "with_logprobs": True}
    options["choice"] = Choice(top_k=30, temperature=0.8, repetition_penalty=1.3)
    read = read_prompt(tokenizer, "the old h")
    together = complete(model, tokenizer, read, samples=6, **options)
    assert len({sample.text for sample in together}) > 1
    (alone,) = complete(model, tokenizer, read, **options)
    assert (alone.text, alone.tokens) == (together[0].text, together[0].tokens)
    for sample in together:
        nats = [nats for _, _, nats in sample.logprobs]
        assert len(nats) == sample.tokens
        assert sum(nats) == pytest.approx(sample.logprob, rel=1e-6)
    parts = [step.text for step in generate(model, tokenizer, read, **options)]
    assert "".join(parts) == alone.text


def test_the_log_probability_of_what_crosses_the_border_is_its_own(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["bpe"]
    model, read = model_for(tokenizer), read_prompt(tokenizer, "the old ")
    for sample in complete(model, tokenizer, read, samples=8, length=1, with_logprobs=True):
        ((token, piece, nats),) = sample.logprobs
        assert piece == tokenizer.piece(token)
        exact = [
            log_prob(model, tokenizer.newline_id, [*opening.tokens, token])
            - log_prob(model, tokenizer.newline_id, [*opening.tokens])
            for opening in read.openings
        ]
        assert min(abs(each - nats) for each in exact) < 1e-5
        assert sample.logprob == pytest.approx(nats)


def test_nothing_else_than_text_and_a_learned_end_is_drawn(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = load_tokenizer("byte", b"")
    model = model_for(tokenizer)
    with torch.no_grad():
        model.head.bias[tokenizer.end_id] = 30.0
    assert complete(model, tokenizer, length=5)[0].stop == "end"
    tokenizer.ends_documents = False  # trained on a single document
    assert {each.stop for each in complete(model, tokenizer, samples=3, length=5)} == {"length"}
    words = tokenizers["word"]
    model = model_for(words)
    with torch.no_grad():
        model.head.bias[words.unknown_id] = 30.0
    for prompt in ("", "the old", "the ", "zeb"):
        read = read_prompt(words, prompt)
        (without,) = complete(model, words, read, length=20)
        assert "<unk>" not in without.text
        (allowed,) = complete(model, words, read, length=20, allow_unknown=True)
        assert "<unk>" in allowed.text
