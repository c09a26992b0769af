"""Records drawn from a model, many at once, and judged in the order of their draws.

When a record ends, another takes its place, so that the kernel always steps many of them. Depends on a
model and a tokenizer, not on files. Invariants: draw i of a prompt depends on the seed, on the prompt's
place and on i, not on the number of parallel draws (up to rounding, as in sampling.py); memory does not
grow with the number of records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gru_lm.generation.choice import Choice
from gru_lm.generation.rows import Rows
from gru_lm.generation.selection import Record, Selection
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.tokenizer import Tokenizer

AHEAD = 1 << 13  # draws started and not yet judged, at most


def draw_records(
    model: LanguageModel,
    tokenizer: Tokenizer,
    selection: Selection,
    *,
    length: int,
    one_line: bool,
    choice: Choice | None = None,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    allow_unknown: bool = False,
    with_logprobs: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[list[Record]]:
    """Draw records that begin with the prompts of `selection`, until it needs no more.

    Yields the accepted ones in order, several at a time. A record's `stop` is as in sampling.generate,
    and so are the tokens that are never drawn; besides, no record is empty, and with `one_line` no line
    break is drawn. `check` is called before every step. Raises DivergedError if the model's
    probabilities are NaN.
    """
    rows = Rows(
        model,
        tokenizer,
        selection.prompts,
        length=length,
        one_line=one_line,
        choice=choice or Choice(),
        stop_strings=stop_strings,
        seed=seed,
        allow_unknown=allow_unknown,
        with_logprobs=with_logprobs,
        check=check,
    )
    queue = _Queue(rows, selection)
    while not selection.done:
        check()
        queue.fill()
        if kept := queue.judge(rows.step()):
            yield kept


class _Queue:
    """Draws between their start and their judgement, which follows the order of prompts and numbers."""

    def __init__(self, rows: Rows, selection: Selection) -> None:
        self._rows, self._selection = rows, selection
        self._waiting: dict[tuple[int, int], Record] = {}  # finished, by prompt and number
        self._started = {0: 0}  # draws of each prompt that is not done
        self._number = 0  # of the draw that is judged next
        self._last = 1  # the first prompt without all of its first draws

    def fill(self) -> None:
        """Start draws in the free rows: of the current prompt, then of those after it."""
        rows, selection = self._rows, self._selection
        current = selection.prompt
        held = len(self._waiting) + rows.active
        more = selection.wanted() - (self._started[current] - self._number)
        more = min(more, rows.free, AHEAD - held)
        if more > 0:
            self._start(current, more)
        # Half is left for the current prompt, whose draws may turn out to be too few.
        while self._last < len(selection.prompts):
            prompt = self._last
            held = len(self._waiting) + rows.active
            missing = selection.samples - self._started.setdefault(prompt, 0)
            if (more := min(missing, rows.free, AHEAD // 2 - held)) <= 0:
                break
            self._start(prompt, more)
            self._last += more == missing

    def _start(self, prompt: int, count: int) -> None:
        self._rows.start(prompt, self._started[prompt], count)
        self._started[prompt] += count

    def judge(self, finished: list[Record]) -> list[Record]:
        """Take in finished draws; return those that are accepted now."""
        selection = self._selection
        selection.look_up(finished)
        self._waiting |= {(record.prompt, record.number): record for record in finished}
        kept = []
        prompt = selection.prompt
        while record := self._waiting.pop((prompt, self._number), None):
            self._number += 1
            if selection.accepts(record):
                kept.append(record)
            if selection.prompt != prompt:
                self._rows.forget(prompt)
                for number in range(self._number, self._started.pop(prompt)):
                    self._waiting.pop((prompt, number), None)
                prompt, self._number = selection.prompt, 0
                self._started.setdefault(prompt, 0)
                self._last = max(self._last, prompt + 1)
        return kept
