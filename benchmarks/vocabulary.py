"""Row 6: adaptive against full softmax for a large word vocabulary: speed, and loss in perplexity.

Two layers of 200 units with tied embeddings of size 200, as in PyTorch's word_language_model example.
The full softmax is measured as in PyTorch (all logits at once) and in slices as in gru-lm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear

from benchmarks.report import Row
from benchmarks.timing import Timings, Work
from benchmarks.whole import BATCH, STEPS, training
from gru_lm.model.devices import choose_backend
from gru_lm.model.heads import choose_cutoffs
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.regularize import Regularization
from gru_lm.text.dataset import make_tokenizer
from gru_lm.text.parts import open_texts
from gru_lm.text.store import build_store, unigram_counts

SIZE = ("--layers", "2", "--width", "200", "--embed", "200", "--tied", "--tokenizer", "word")


class StockHead(torch.nn.Module):
    """Replaces FullSoftmax with plain PyTorch functions, which compute all logits at once."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head
        self.embed = head.embed

    def loss(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        weight_VH, bias_V = self.head.embedding, self.head.bias
        return cross_entropy(linear(hidden_NH, weight_VH, bias_V), targets_N)


def steps(tokens: np.ndarray, counts_V: np.ndarray, *, head: str) -> Work:
    """A training step with the softmax `head`: stock, full or adaptive."""
    cutoffs = choose_cutoffs(torch.from_numpy(counts_V), embed=200) if head == "adaptive" else ()
    config = ModelConfig(
        cell="gru",
        vocab_size=len(counts_V),
        layers=2,
        width=200,
        embed=200,
        tied=True,
        cutoffs=cutoffs,
    )
    model = LanguageModel(
        config,
        regularization=Regularization(dropout=0.2, input_dropout=0.2),
        backend=choose_backend(torch.device("cpu")),
    )
    model.head.set_unigram(torch.from_numpy(counts_V))
    if head == "stock":
        model.head = StockHead(model.head)
    reports = training(model, tokens)
    return lambda: next(reports)


def rows(train: str, valid: str) -> Iterator[Row]:
    texts = open_texts(
        [train],
        valid=valid,
        test=None,
        encoding="utf-8",
        stdin=None,
        stop=lambda: None,
        progress=lambda _: None,
        note=lambda _: None,
    ).split((1, 0, 0), at_line_ends=True, stop=lambda: None)
    tokenizer = make_tokenizer("word", texts.train, vocab_size=None, stop=lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(texts.train.documents, tokenizer, directory=Path(folder), key="words")
        counts_V = unigram_counts(store, tokenizer.vocab_size)
        heads = ("stock", "full", "adaptive")
        timings = Timings({head: steps(store.tokens, counts_V, head=head) for head in heads})
        rate = {head: BATCH * STEPS / timings.seconds(head) for head in heads}
        for head, name, bar in (("stock", "PyTorch's full", 5), ("full", "our own full", None)):
            ratio = timings.ratio("adaptive", head)
            label = f"adaptive over {name} softmax, V={len(counts_V):,}: tokens/s"
            details = {"tokens_per_second": rate, "quartiles": [ratio.low, ratio.high]}
            yield Row("6", label, ratio.median, bar=bar, details=details)
        perplexity = {}
        for softmax in ("full", "adaptive"):
            command = [sys.executable, "-m", "gru_lm", "train", train, "--valid", valid, *SIZE]
            command += [
                "--epochs",
                "1",
                "--softmax",
                softmax,
                "--out",
                f"{folder}/{softmax}",
                "--json",
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            perplexity[softmax] = json.loads(done.stdout)["valid"]["perplexity"]
    label = "perplexity after an epoch, adaptive over full"
    worse = perplexity["adaptive"] / perplexity["full"]
    yield Row("6", label, worse, bar=1.03, most=True, details={"perplexity": perplexity})
