"""lm-evaluation-harness on a run: `python -m gru_lm.harness --model gru-lm --model_args run=RUN ...`.

Needs the extra `lm-eval`, and alone imports it. Importing this module registers the model `gru-lm`
with the harness. Knows its three kinds of requests, and no tasks. Invariants: every text starts where
`gru-lm eval` starts one, the newline token fed to the zero state, and is one stream without windows;
answers come in the order of the requests, and batches change none of them beyond rounding.

Shapes: N tokens, n of a slice, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gru_lm.commands.load import load_model
from gru_lm.errors import EnvironmentProblem, GruLmError, UsageError, unknown_name
from gru_lm.evaluation.scoring import OfDistribution, Tokens, score
from gru_lm.evaluation.spelling import Charges
from gru_lm.evaluation.texts import FASTEST
from gru_lm.generation.choice import Choice
from gru_lm.generation.prompt import read_prompt
from gru_lm.generation.sampling import complete
from gru_lm.reporting import console
from gru_lm.text.tokenizer import Tokenizer
from gru_lm.text.tokenizer_encoders import clean
from gru_lm.training import directory as run_directory

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ModuleNotFoundError as error:
    missing = EnvironmentProblem(
        "the harness needs the package lm-eval",
        why=str(error),
        hint="pip install 'gru-lm[lm-eval]'",
    )
    if __name__ != "__main__":
        raise missing from error
    console.error(missing.message, why=missing.why, hint=missing.hint)
    sys.exit(missing.exit_code)

ARGUMENTS = ("run", "device", "threads", "batch_size")
# The harness's names for fields of Choice; `seed` is an option of `complete`.
CHOICES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical",
    "repetition_penalty": "repetition_penalty",
}

_log = logging.getLogger(__name__)


@register_model("gru-lm")
class GruLM(LM):  # type: ignore[misc]
    """A run, as lm-evaluation-harness wants its models.

    run: a run directory or a checkpoint. batch_size: texts that are scored side by side; None or
    "auto" is what is fast. Raises what opening a run raises, and UsageError.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        self._batch = _batch(batch_size)
        # The harness reads a name that is made of digits as a number.
        checkpoint = run_directory.find(Path(str(run)), _log.warning)
        loaded = load_model(checkpoint, device=device, threads=threads)
        self._model, self._text = loaded.model, loaded.tokenizer
        self._device = loaded.device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> GruLM:
        """From --model_args, which win over `additional_config`: --batch_size and --device.

        Those are always set, so the harness's own way would give a name twice; its command line
        says cuda:0 to whoever says nothing, which is "auto" here.
        """
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if given.get("device") == "cuda:0":
            given["device"] = "auto"
        given |= arg_dict
        for name in given:
            if name not in ARGUMENTS:
                raise unknown_name("model argument", name, ARGUMENTS)
        if "run" not in given:
            raise UsageError("which run?", hint="--model_args run=RUN")
        return cls(**given)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> GruLM:
        """The same from "run=RUN,device=cpu"."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer_name(self) -> str:
        """What tells this tokenizer from others, in the name of a file of cached requests."""
        return f"gru-lm-{self._text.kind}-{self._text.fingerprint[:16]}"

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): ln p of the continuation, and whether it is greedy.

        Both are encoded as one text. Tokens that end after the border are the continuation's, so one
        that straddles it counts as a whole. Greedy: each is the most probable one where it stands.
        """
        coded = [encode_pair(self._text, *request.args) for request in requests]
        # Texts of one length side by side waste nothing; the longest first shows what memory it takes.
        order = sorted(range(len(coded)), key=lambda at: -len(coded[at][0]))
        sequences = ((at, [coded[at][0]]) for at in order)
        answers = [(0.0, True)] * len(coded)
        for at, log_probs_N, best_N in self._score(sequences, of_distribution=_best):
            tokens_N, border = coded[at]
            greedy = bool((best_N[border:] == tokens_N[border:]).all())
            answers[at] = (float(log_probs_N[border:].sum()), greedy)
            self.cache_hook.add_partial("loglikelihood", requests[at].args, answers[at])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each (text,): ln p of all of it, as one stream, without the end of a document.

        What tokens do not tell of a text is charged, as in `gru-lm eval`.
        """
        charges = Charges(self._text)
        answers = [0.0] * len(requests)

        def tokens(at: int, text: str) -> Iterator[Tokens]:
            for covering, charged_N in charges.of(self._text.encode_covering([text])):
                answers[at] -= float(charged_N.sum())
                yield covering.tokens_N

        sequences = ((at, tokens(at, *request.args)) for at, request in enumerate(requests))
        for at, log_probs_N, _ in self._score(sequences):
            answers[at] += float(log_probs_N.sum())
            self.cache_hook.add_partial("loglikelihood_rolling", requests[at].args, answers[at])
        return answers

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Of each (context, options): the text that follows, up to a stop string.

        Greedy unless `do_sample` or a temperature above 0 says otherwise. Equal requests are
        samples of one context that differ. Raises UsageError for options that mean nothing here.
        """
        alike: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args, sort_keys=True), []).append(at)
        answers = [""] * len(requests)
        for places in alike.values():
            context, options = requests[places[0]].args
            samples = complete(
                self._model,
                self._text,
                read_prompt(self._text, context),
                samples=len(places),
                **generation_options(options),
            )
            for at, sample in zip(places, samples, strict=True):
                answers[at] = sample.text
                self.cache_hook.add_partial("generate_until", requests[at].args, sample.text)
        return answers

    def _score(
        self,
        sequences: Iterable[tuple[int, Iterable[Tokens]]],
        of_distribution: OfDistribution | None = None,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Of each sequence that has tokens: its number, their ln p [N], the first extra figure [N]."""
        batch, chunk = FASTEST["stream"]
        portions = score(
            self._model,
            sequences,
            newline_id=self._text.newline_id,
            batch=self._batch or batch,
            chunk=chunk,
            of_distribution=of_distribution,
        )
        for number, parts in groupby(portions, key=attrgetter("document")):
            found = list(parts)
            extra_N = np.concatenate([part.extra_NX[:, :1] for part in found]).ravel()
            yield number, np.concatenate([part.log_probs_N for part in found]), extra_N


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, int]:
    """The tokens of context + continuation as one text, [N], and how many of them are the context's."""
    parts = list(tokenizer.encode_covering([context + continuation]))
    if not parts:
        return np.empty(0, np.int32), 0
    tokens_N = np.concatenate([part.tokens_N for part in parts])
    ends_N = np.cumsum(np.concatenate([part.sizes_N2[:, 0] for part in parts]))
    starts_N = np.concatenate(([0], ends_N[:-1]))
    border = len(clean(context).encode())
    return tokens_N, int(((ends_N <= border) & (starts_N < border)).sum())


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `complete` for a request's generation_kwargs. Raises UsageError."""
    given = dict(normalize_gen_kwargs(dict(options)))
    chosen: dict[str, Any] = {"length": given.pop("max_gen_toks")}
    stops = [stop for stop in given.pop("until") if stop]
    sampled = given.pop("do_sample")
    if "seed" in given:
        chosen["seed"] = int(given.pop("seed"))
    for name in given:
        if name not in CHOICES:
            raise unknown_name(
                "generation option", name, [*CHOICES, "seed", "until", "max_gen_toks"]
            )
    if not sampled:
        given["temperature"] = 0.0
    choice = Choice(**{CHOICES[name]: value for name, value in given.items()})
    return chosen | {"choice": choice, "stop_strings": stops}


def _best(log_probs_nV: Tensor) -> Tensor:
    """The most probable token of each distribution [n, 1]; float32 holds every token number exactly."""
    return log_probs_nV.argmax(1, keepdim=True).to(torch.float32)


def _batch(given: int | str | None) -> int | None:
    if given is None or str(given).startswith("auto"):
        return None
    try:
        batch = int(given)
    except ValueError:
        batch = 0
    if batch < 1:
        raise UsageError(f"batch_size {given} is out of range", hint="it is auto, or 1 or more")
    return batch


def main() -> int:
    """The harness's own command line, which then knows the model; returns the exit code."""
    try:
        cli_evaluate()
    except GruLmError as error:
        console.error(error.message, why=error.why, hint=error.hint)
        return error.exit_code
    return 0
