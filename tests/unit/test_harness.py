"""Adapter for lm-evaluation-harness: batched requests of each type equal those for single texts."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn about each other
    from gru_lm.integrations.lm_eval import GruLM, encode_pair, generation_options

from gru_lm.commands.load import LoadedModel, load_model
from gru_lm.errors import UsageError
from gru_lm.evaluation.conventions import lm_eval as by_lm_eval
from gru_lm.generation.choice import Choice
from gru_lm.generation.prompt import read_prompt
from gru_lm.generation.sampling import complete
from gru_lm.text.tokenizer import train_tokenizer
from gru_lm.training.directory import find

EXAMPLE = Path(__file__).parents[2] / "examples" / "lm_eval"
TEXTS = ["the cat sat\non the mat", "", "Ünïcode wörds, too: zebra!\n" * 30, "a"]


@pytest.fixture(scope="module")
def opened(trained: Path) -> LoadedModel:
    return load_model(find(trained, print))


@pytest.fixture(scope="module")
def harness(trained: Path) -> GruLM:
    return GruLM(str(trained), batch_size=3)


def asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def distributions(opened: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities before each token of one text, in a single pass."""
    read = torch.tensor([[opened.tokenizer.newline_id, *tokens[:-1]]])
    with torch.inference_mode():
        return opened.model.log_probs(read, opened.model.initial_state(1))[0][0].double()


def alone(opened: LoadedModel, text: str, *, skipped: int = 0) -> float:
    tokens = opened.tokenizer.encode_text(text)
    if not tokens:
        return 0.0
    found = distributions(opened, tokens)[range(len(tokens)), tokens]
    return float(found[skipped:].sum())


def test_rolling_is_each_text_alone(harness: GruLM, opened: LoadedModel) -> None:
    found = harness.loglikelihood_rolling([asked(text) for text in TEXTS])
    assert found == pytest.approx([alone(opened, text) for text in TEXTS], rel=1e-6)


def test_loglikelihood_is_the_end_of_each_text_alone(harness: GruLM, opened: LoadedModel) -> None:
    pairs = [
        ("the c", "at sat"),
        ("", "mat"),
        ("the cat", ""),
        ("", ""),
        (TEXTS[2], " ü"),
        ("x", "y"),
    ]
    best = "the "
    for _ in range(4):  # a greedy continuation
        tokens = opened.tokenizer.encode_text(best)
        following = distributions(opened, [*tokens, 0])[-1].argmax()
        best += opened.tokenizer.surface(int(following)).decode()
    pairs.append(("the ", best.removeprefix("the ")))
    found = harness.loglikelihood([asked(*pair) for pair in pairs])
    for (context, continuation), (log_prob, greedy) in zip(pairs, found, strict=True):
        skipped = len(opened.tokenizer.encode_text(context))  # characters
        assert log_prob == pytest.approx(
            alone(opened, context + continuation, skipped=skipped), rel=1e-5, abs=1e-9
        )
        tokens = opened.tokenizer.encode_text(context + continuation)
        best_tokens = distributions(opened, tokens).argmax(1).tolist() if continuation else []
        assert greedy == (best_tokens[skipped:] == tokens[skipped:])
    assert found[-1][1]
    assert not all(greedy for _, greedy in found)


def test_a_token_across_the_border_is_the_continuations() -> None:
    words = train_tokenizer("word", lambda: ["the cat sat on the mat\n" * 3])
    assert [encode_pair(words, *pair)[1] for pair in _cuts("the cat sat")] == [
        *(0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3)
    ]
    pieces = train_tokenizer("bpe", lambda: ["the cät sat on the mat\n" * 50])
    text = "the cät sat\n"
    for context, continuation in _cuts(text):
        tokens_N, border = encode_pair(pieces, context, continuation)
        assert tokens_N.tolist() == pieces.encode_text(text)
        ends = np.cumsum([len(pieces.surface(token)) for token in tokens_N])
        assert border == sum(end <= len(context.encode()) for end in ends)


def _cuts(text: str) -> list[tuple[str, str]]:
    return [(text[:at], text[at:]) for at in range(len(text) + 1)]


def test_generation_is_that_of_complete(harness: GruLM, opened: LoadedModel) -> None:
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 5, "seed": 3, "max_gen_toks": 12}
    found = harness.generate_until(
        [
            asked("the ", {"until": ["\n"], "max_gen_toks": 20}),
            asked("the ", sampling),
            asked("a ", {"until": " ", "temperature": 0.9, "do_sample": False, "max_gen_toks": 9}),
            asked("the ", sampling),
        ]
    )

    def own(prompt: str, **options: Any) -> list[str]:
        tokens = read_prompt(opened.tokenizer, prompt)
        return [made.text for made in complete(opened.model, opened.tokenizer, tokens, **options)]

    greedy = Choice(temperature=0)
    drawn = own("the ", samples=2, length=12, seed=3, choice=Choice(temperature=0.8, top_k=5))
    assert drawn[0] != drawn[1]
    assert found == [
        *own("the ", length=20, choice=greedy, stop_strings=["\n"]),
        drawn[0],
        *own("a ", length=9, choice=greedy, stop_strings=[" "]),
        drawn[1],
    ]


def test_what_cannot_be_done_is_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="num_beams"):
        generation_options({"until": [], "num_beams": 4})
    with pytest.raises(UsageError, match="batch_sise"):
        GruLM.create_from_arg_string(f"run={trained},batch_sise=2")
    with pytest.raises(UsageError, match="no run given"):
        GruLM.create_from_arg_obj({}, {"device": "cpu"})
    with pytest.raises(UsageError, match="batch_size 0"):
        GruLM(trained, batch_size=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_harness_finds_what_we_find(
    trained: Path, opened: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    shutil.copytree(EXAMPLE, tmp_path / "task")
    monkeypatch.chdir(tmp_path / "task")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = simple_evaluate(
        model="gru-lm",
        model_args=f"run={trained},batch_size=2",
        batch_size=1,
        device="cuda:0",  # the default of its command line
        tasks=["gru_lm_documents"],
        task_manager=TaskManager(include_path=".", include_defaults=False),
    )["results"]["gru_lm_documents"]
    lines = Path("documents.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 2
    ours = by_lm_eval(
        nats=-math.fsum(alone(opened, text) for text in texts),
        words=sum(len(re.split(r"\s+", text)) for text in texts),
        bytes=sum(len(text.encode()) for text in texts),
    )
    for name, value in ours._asdict().items():
        assert found[f"{name},none"] == pytest.approx(value, rel=1e-6)
