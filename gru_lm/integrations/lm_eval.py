"""Adapter for lm-evaluation-harness: `python -m gru_lm.harness --model gru-lm --model_args run=RUN ...`.

Requires the extra `lm-eval`, which only this module imports; importing it registers the model `gru-lm`
with the harness. Implements the three request types; tasks are the harness's. Invariants: every text
starts as in `gru-lm eval`, from the zero state and the newline token, and is scored as one stream
without windows; results are in the order of the requests and do not depend on batching, except for
rounding.

Shapes: N tokens, n tokens of a slice, V vocabulary.
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
        "lm-evaluation-harness is not installed",
        why=str(error),
        hint="pip install 'gru-lm[lm-eval]'",
    )
    if __name__ != "__main__":
        raise missing from error
    console.error(missing.message, why=missing.why, hint=missing.hint)
    sys.exit(missing.exit_code)

ARGUMENTS = ("run", "device", "threads", "batch_size")
# Generation options of the harness -> fields of Choice; `seed` is an option of `complete`.
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
    """A run as a model for lm-evaluation-harness.

    run: a run directory or checkpoint. batch_size: number of texts scored in parallel; None or "auto"
    selects a fast one. Raises InputError for an unusable run, UsageError for invalid arguments and
    EnvironmentProblem for an unavailable device.
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
        # The harness converts names made of digits to numbers.
        checkpoint = run_directory.find(Path(str(run)), _log.warning)
        loaded = load_model(checkpoint, device=device, threads=threads)
        self._model, self._text = loaded.model, loaded.tokenizer
        self._device = loaded.device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> GruLM:
        """Create the model from --model_args and `additional_config` (--batch_size and --device).

        --model_args take precedence; the harness's own implementation would pass such arguments twice.
        Its default device, cuda:0, is mapped to "auto". Raises UsageError for unknown arguments.
        """
        arguments = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if arguments.get("device") == "cuda:0":
            arguments["device"] = "auto"
        arguments |= arg_dict
        for name in arguments:
            if name not in ARGUMENTS:
                raise unknown_name("model argument", name, ARGUMENTS)
        if "run" not in arguments:
            raise UsageError("no run given", hint="--model_args run=RUN")
        return cls(**arguments)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> GruLM:
        """Create the model from a string such as "run=RUN,device=cpu"."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer_name(self) -> str:
        """Unique name of the tokenizer, used by the harness in cache file names."""
        return f"gru-lm-{self._text.kind}-{self._text.fingerprint[:16]}"

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p of the continuation, and whether it is greedy.

        Both are encoded as one text. Tokens that end after the boundary belong to the continuation, so
        a token that straddles it counts as a whole. Greedy: every token is the most probable one.
        """
        encoded = [encode_pair(self._text, *request.args) for request in requests]
        # Sorted by length to avoid padding; longest first, so that running out of memory shows early.
        order = sorted(range(len(encoded)), key=lambda at: -len(encoded[at][0]))
        sequences = ((at, [encoded[at][0]]) for at in order)
        answers = [(0.0, True)] * len(encoded)
        for at, log_probs_N, best_N in self._score(sequences, of_distribution=_best):
            tokens_N, boundary = encoded[at]
            greedy = bool((best_N[boundary:] == tokens_N[boundary:]).all())
            answers[at] = (float(log_probs_N[boundary:].sum()), greedy)
            self.cache_hook.add_partial("loglikelihood", requests[at].args, answers[at])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """For each (text,): ln p of the whole text as one stream, without an end-of-document token.

        What the tokens do not determine is charged, as in `gru-lm eval`.
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
        """For each (context, options): the generated continuation, up to a stop string.

        Greedy unless `do_sample` or a temperature above 0 is given. Identical requests get different
        samples. Raises UsageError for unknown options.
        """
        groups: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args, sort_keys=True), []).append(at)
        answers = [""] * len(requests)
        for group in groups.values():
            context, options = requests[group[0]].args
            samples = complete(
                self._model,
                self._text,
                read_prompt(self._text, context),
                samples=len(group),
                **generation_options(options),
            )
            for at, sample in zip(group, samples, strict=True):
                answers[at] = sample.text
                self.cache_hook.add_partial("generate_until", requests[at].args, sample.text)
        return answers

    def _score(
        self,
        sequences: Iterable[tuple[int, Iterable[Tokens]]],
        of_distribution: OfDistribution | None = None,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each non-empty sequence: its number, ln p of its tokens [N], first extra column [N]."""
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
            chunks = list(parts)
            extra_N = np.concatenate([part.extra_NX[:, :1] for part in chunks]).ravel()
            yield number, np.concatenate([part.log_probs_N for part in chunks]), extra_N


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, int]:
    """Encode context + continuation as one text: its tokens [N], and how many belong to the context."""
    parts = list(tokenizer.encode_covering([context + continuation]))
    if not parts:
        return np.empty(0, np.int32), 0
    tokens_N = np.concatenate([part.tokens_N for part in parts])
    ends_N = np.cumsum(np.concatenate([part.sizes_N2[:, 0] for part in parts]))
    starts_N = np.concatenate(([0], ends_N[:-1]))
    boundary = len(clean(context).encode())
    return tokens_N, int(((ends_N <= boundary) & (starts_N < boundary)).sum())


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a request's generation_kwargs to options of `complete`.

    Raises UsageError for unknown or invalid options.
    """
    remaining = dict(normalize_gen_kwargs(dict(options)))
    converted: dict[str, Any] = {"length": remaining.pop("max_gen_toks")}
    stops = [stop for stop in remaining.pop("until") if stop]
    sampled = remaining.pop("do_sample")
    if "seed" in remaining:
        converted["seed"] = int(remaining.pop("seed"))
    for name in remaining:
        if name not in CHOICES:
            raise unknown_name(
                "generation option", name, [*CHOICES, "seed", "until", "max_gen_toks"]
            )
    if not sampled:
        remaining["temperature"] = 0.0
    choice = Choice(**{CHOICES[name]: value for name, value in remaining.items()})
    return converted | {"choice": choice, "stop_strings": stops}


def _best(log_probs_nV: Tensor) -> Tensor:
    """The most probable token of each distribution, [n, 1]; float32 represents token ids exactly."""
    return log_probs_nV.argmax(1, keepdim=True).to(torch.float32)


def _batch(given: int | str | None) -> int | None:
    if given is None or str(given).startswith("auto"):
        return None
    try:
        batch = int(given)
    except ValueError:
        batch = 0
    if batch < 1:
        raise UsageError(f"batch_size {given} is invalid", hint="--batch_size auto, or 1 or more")
    return batch


def main() -> int:
    """Run the harness's own command line with the model registered; return the exit code."""
    try:
        cli_evaluate()
    except GruLmError as error:
        console.error(error.message, why=error.why, hint=error.hint)
        return error.exit_code
    return 0
