"""Rows 7 and 8: sampling one stream against a loop over torch.nn.GRU, 64 streams against one. Records.

The loop is the straightforward implementation: one step of the same model per token, with the same
weights, temperature and threads, a multinomial draw, and every token decoded. The model is untrained, so
it generates letters at their frequency in English; the end of the document has probability 0.

Records are names of 7 letters on average, which end with a probability of 1/8 at each token. They are
measured against the kernel alone: drawing as many tokens in a batch that never changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Row
from benchmarks.timing import Timings
from gru_lm.generation.choice import Choice
from gru_lm.generation.records import draw_records
from gru_lm.generation.rows import MOST
from gru_lm.generation.sampling import complete
from gru_lm.generation.selection import Selection
from gru_lm.model.devices import choose_backend
from gru_lm.model.heads import FullSoftmax
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.native.step import NativeStepper
from gru_lm.text.sources import open_documents
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

WIDTHS = (128, 256, 512)
EMBED = 128
STREAMS = 64
LENGTH = 500  # tokens of a single stream, the default of `gru-lm sample`
SHORT = 100  # tokens of each of the 64 streams, to keep rounds short
TEMPERATURE = 0.9
NAMES = 5000  # in a round
LETTERS = 7  # of a name, on average


def model_of(width: int, counts_V: torch.Tensor, never: int) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", vocab_size=len(counts_V), layers=1, width=width, embed=EMBED)
    model = LanguageModel(config, backend=choose_backend(torch.device("cpu"))).eval()
    model.set_unigram(counts_V)
    assert isinstance(model.head, FullSoftmax)
    with torch.no_grad():
        model.head.bias[never] = -50.0
    return model


class Loop:
    """nn.GRU, one step per token, with the weights of `model`."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        V, H = model.config.vocab_size, model.config.width
        head = model.head
        assert isinstance(head, FullSoftmax)
        assert head.weight is not None
        self.tokenizer = tokenizer
        self.embedding = torch.nn.Embedding(V, EMBED, _weight=head.embedding.detach())
        self.gru = torch.nn.GRU(EMBED, H)
        self.gru.load_state_dict(model.recurrent.layers[0].state_dict())
        self.output = torch.nn.Linear(H, V)
        self.output.load_state_dict({"weight": head.weight, "bias": head.bias})

    @torch.inference_mode()
    def __call__(self, streams: int, length: int) -> list[str]:
        decoders = [self.tokenizer.decoder() for _ in range(streams)]
        texts: list[list[str]] = [[] for _ in decoders]
        tokens_N = torch.full((streams,), self.tokenizer.newline_id)
        h_1NH = torch.zeros(1, streams, self.gru.hidden_size)
        for _ in range(length):
            out_1NH, h_1NH = self.gru(self.embedding(tokens_N)[None], h_1NH)
            log_probs_NV = (self.output(out_1NH[0]) / TEMPERATURE).log_softmax(-1)
            tokens_N = torch.multinomial(log_probs_NV.exp(), 1)[:, 0]
            for token, decoder, text in zip(tokens_N.tolist(), decoders, texts, strict=True):
                text.append(decoder.push(token))
        return ["".join(text) for text in texts]


def rows(text: Path) -> Iterator[Row]:
    document = open_documents([str(text)])[0]
    tokenizer = train_tokenizer("char", document.pieces)
    tokens = np.array([i for ids in tokenizer.encode(document.pieces()) for i in ids])
    counts_V = torch.from_numpy(np.bincount(tokens, minlength=tokenizer.vocab_size))
    choice = Choice(temperature=TEMPERATURE)
    for width in WIDTHS:
        model = model_of(width, counts_V, tokenizer.end_id)
        loop = Loop(model, tokenizer)

        def ours(samples: int, length: int, model: LanguageModel = model) -> int:
            completed = complete(model, tokenizer, samples=samples, length=length, choice=choice)
            return sum(len(sample.text) for sample in completed)

        assert ours(2, 50) > 90, "samples do not end early"
        timings = Timings(
            {
                "loop": lambda loop=loop: loop(1, LENGTH),
                "one": lambda ours=ours: ours(1, LENGTH),
                "many": lambda ours=ours: ours(STREAMS, SHORT),
                "loop of many": lambda loop=loop: loop(STREAMS, SHORT),
            }
        )
        size = {"loop": LENGTH, "one": LENGTH, "many": STREAMS * SHORT}
        size["loop of many"] = STREAMS * SHORT
        rates = {name: tokens / timings.seconds(name) for name, tokens in size.items()}
        details = {"width": width, "tokens_per_second": rates}
        one = timings.ratio("one", "loop")
        many = timings.ratio("many", "one", per_call=STREAMS * SHORT / LENGTH)
        both = timings.ratio("many", "loop of many")
        if width < WIDTHS[-1]:
            figures = f"one/loop {one}, {STREAMS}/one {many}, {STREAMS}/loop of {STREAMS} {both}"
            yield Row("", f"sampling, H {width}: {figures}", details=details)
            continue
        label = f"sampling one stream over a loop of nn.GRU, H={width}"
        yield Row("7", label, one.median, bar=3.0, details=details)
        yield Row("8", f"sampling {STREAMS} streams over one, H={width}", many.median, bar=20.0)
        yield Row("", f"{STREAMS} streams over a loop of {STREAMS} streams: {both}")


def records() -> Iterator[Row]:
    """Names a second from a model of 2 x 128, and their share of the kernel's speed."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = train_tokenizer("char", lambda: [alphabet + "\n"])
    counts_V = torch.zeros(tokenizer.vocab_size)
    counts_V[tokenizer.encode_text(alphabet)] = LETTERS / len(alphabet)
    counts_V[tokenizer.end_id] = 1
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", vocab_size=len(counts_V), layers=2, width=128, embed=32)
    model = LanguageModel(config, backend=choose_backend(torch.device("cpu"))).eval()
    model.set_unigram(1e6 * counts_V)

    def drawn(**asked: bool) -> int:
        """Draw names and write them to a string; returns the number of tokens."""
        selection = Selection([""], NAMES, listed_M=np.arange(100_000, dtype=np.uint64), **asked)
        tokens, text = 0, []
        for batch in draw_records(model, tokenizer, selection, length=1000, one_line=True):
            text += [record.text + "\n" for record in batch]
            tokens += sum(record.tokens for record in batch)
        assert "".join(text).count("\n") == NAMES
        return tokens

    tokens = drawn()
    assert 0.8 < tokens / NAMES / (LETTERS + 1) < 1.3, "names of about this many letters"
    never = sorted({*range(len(counts_V))} - {*tokenizer.encode_text(alphabet)})
    uniform_N1 = np.random.default_rng(0).random((MOST, 1))

    def kernel() -> None:
        stepper = NativeStepper(model, model.initial_state(MOST))
        last_N = np.zeros(MOST, np.int64)
        for _ in range(tokens // MOST):
            last_N = stepper.sample(last_N, uniform_N1, never=never[:2])[0][:, -1]

    timings = Timings(
        {"kernel": kernel, "names": drawn, "new": lambda: drawn(unique=True, novel=True)}
    )
    rates = {name: NAMES / timings.seconds(name) for name in ("names", "new")}
    details = {"names_per_second": rates, "tokens_per_name": tokens / NAMES}
    label = "names, gru 2x128, over as many tokens of the kernel"
    yield Row("", label, timings.ratio("names", "kernel").median, details=details)
    figures = f"{rates['names']:,.0f} a second; unique and novel {rates['new']:,.0f}"
    yield Row("", f"names of {tokens / NAMES - 1:.1f} letters: {figures}")
