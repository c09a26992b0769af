"""The planner's choices for settings that are not given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.config import LARGEST
from gru_lm.config_layers import settings
from gru_lm.errors import InputError, UsageError
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import SMALL
from gru_lm.planning.model import (
    BASE_RATES,
    BPTT,
    CELL_RATES,
    DECAY,
    LEAST_DROPOUT,
    MEMORY_EPOCHS,
    MOST_DECAY,
    MOST_EPOCHS,
    MOST_PIECES_FULL,
    STREAMS,
    STREAMS_TIED,
    TRIALS,
    WEIGHTS_PER_SECOND,
    Plan,
    plan_budget,
    plan_like,
    plan_model,
)
from gru_lm.planning.text import (
    LEAST_CHARACTERS,
    LEAST_USED,
    LEAST_VALIDATED,
    MARGIN,
    MOST_CHARACTERS_FOR_CHAR,
    VALIDATION_SHARE,
    plan_characters,
    plan_tokenizer,
    plan_valid_characters,
)


def plan(
    text: int = 1_000_000, /, device: str = "cpu", vocab_size: int = 300, **given: Any
) -> Plan:
    return plan_model(
        plan_budget(settings(given)), tokens=text, vocab_size=vocab_size, device=device
    )


def test_five_minutes_unless_a_budget_is_given() -> None:
    assert plan_budget(settings({})).minutes == 5
    for name in ("minutes", "epochs", "steps", "tokens"):
        chosen = plan_budget(settings({name: 3}))
        assert getattr(chosen, name) == 3
        assert [chosen.minutes, chosen.epochs, chosen.steps, chosen.tokens].count(None) == 3


def test_the_tokenizer_follows_the_size_of_the_text() -> None:
    assert plan_tokenizer(settings({}), characters=MOST_CHARACTERS_FOR_CHAR) == "char"
    assert plan_tokenizer(settings({}), characters=MOST_CHARACTERS_FOR_CHAR + 1) == "bpe"
    assert plan_tokenizer(settings({"tokenizer": "word"}), characters=10**9) == "word"
    assert plan_tokenizer(settings({}), characters=LEAST_CHARACTERS) == "char"
    with pytest.raises(InputError, match=f"too short: {LEAST_CHARACTERS - 1} characters") as caught:
        plan_tokenizer(settings({}), characters=LEAST_CHARACTERS - 1)
    assert f"at least {LEAST_CHARACTERS}" in str(caught.value.why)


def test_what_is_given_is_kept() -> None:
    given = {
        "layers": 3, "width": 7, "embed": 5, "tied": True, "softmax": "full", "dropout": 0.25,
        "batch": 2, "bptt": 3, "lr": 0.125, "weight_decay": 0.0, "residual": False,
        "precision": "float32", "optimizer": "sgd", "weight_drop": 0.0, "epochs": 7.0, "beta2": 0.5,
    }  # fmt: skip
    assert plan(cell="lstm", **given) == Plan(cell="lstm", **given)
    assert plan(lr=0).lr == 0


@given(
    tokens=st.integers(1, 10**9),
    vocab_size=st.integers(2, 300_000),
    device=st.sampled_from(["cpu", "cuda"]),
    minutes=st.one_of(st.none(), st.floats(0.01, 1000)),
)
def test_every_text_gets_a_plan_that_fits_it(
    tokens: int, vocab_size: int, device: str, minutes: float | None
) -> None:
    made = plan(tokens, device, vocab_size, minutes=minutes or 5.0)
    assert made.softmax == ("adaptive" if vocab_size > MOST_PIECES_FULL[device] else "full")
    assert 1 <= made.batch * made.bptt <= tokens
    assert made.lr > 0
    assert 0 <= made.dropout < 1
    assert made.tied == (made.softmax == "adaptive" or vocab_size > 4096)


def test_a_small_text_gets_a_small_model_and_a_much_repeated_one_dropout() -> None:
    assert plan(10_000).width < plan(1_000_000).width
    assert plan(1_000_000, "cuda").width > plan(1_000_000).width
    assert plan(epochs=1).dropout == 0
    assert plan(epochs=8).dropout == 0
    assert plan(epochs=20).dropout > 0
    assert plan(epochs=50).dropout > plan(epochs=20).dropout
    assert plan(epochs=8, vocab_size=20_000).dropout > 0, "words overfit sooner"
    planned = {plan(epochs=epochs / 4).dropout for epochs in range(4, 100)}
    assert all(dropout == 0 or dropout >= LEAST_DROPOUT for dropout in planned)


def test_a_larger_model_learns_a_text_by_heart_sooner() -> None:
    size = {"layers": 1, "epochs": 60}
    assert plan(width=512, **size).dropout > plan(width=192, **size).dropout > 0


def test_the_rate_of_a_tied_matrix_falls_with_the_steps() -> None:
    def rate(steps: int, **given: Any) -> float:
        return plan(vocab_size=20_000, width=256, steps=steps, **given).lr

    assert rate(100) == rate(1000) > rate(4000) > rate(10_000)
    assert rate(256_000) == pytest.approx(rate(4000) / 2, rel=1e-3)
    assert rate(100, tied=False) == rate(10_000, tied=False)
    assert rate(10_000, lr=0.25) == 0.25


def test_each_cell_has_a_rate_of_its_own() -> None:
    """At equal width, the LSTM's rate is higher, by the factor measured with benchmarks/rates.py."""
    rates = {cell: plan(cell=cell, width=256, steps=1000).lr for cell in CELLS}
    assert rates["gru"] == BASE_RATES["muon"]
    assert rates["lstm"] == pytest.approx(CELL_RATES["lstm"] * rates["gru"])
    assert plan(cell="lstm", lr=0.25).lr == 0.25
    gru, lstm = (plan(cell=cell, optimizer="sgd", width=256) for cell in ("gru", "lstm"))
    assert gru.lr == lstm.lr


def test_where_time_counts_a_large_matrix_is_moved_less_often_while_text_is_new() -> None:
    few, many = STREAMS["cpu"], STREAMS_TIED["cpu"]
    words = {"vocab_size": 20_000, "minutes": 1}
    assert plan(8_000_000, **words).batch == many
    assert plan(100_000, **words).batch == few, "seen often"
    assert plan(8_000_000, minutes=1).batch == few, "characters"
    assert plan(8_000_000, vocab_size=20_000, tokens=1_000_000).batch == few
    assert plan(8_000_000, **words, batch=7).batch == 7
    short = plan(5_000, **words, tokens=1000)
    assert short.batch <= 5_000 / (4 * short.bptt), "few where there is little text"


def test_the_streams_follow_the_measured_speed() -> None:
    """At half the assumed speed, 2 minutes are 1.2 epochs instead of 2.4."""
    words: dict[str, Any] = {"tokens": 2_000_000, "vocab_size": 20_000, "device": "cpu"}

    def planned(share: float) -> tuple[Plan, float]:
        speeds: dict[tuple[int, int], float] = {}

        def speed(plan: Plan) -> float:
            found = share * WEIGHTS_PER_SECOND["cpu"] / plan.weights(words["vocab_size"])
            speeds[plan.layers, plan.width] = found
            return found

        chosen = settings({"minutes": 2, "layers": 1, "width": 192})
        made = plan_model(chosen, **words, speed=speed)
        seen = made.tokens(chosen, tokens=words["tokens"], per_second=speeds[1, 192], elapsed=0.0)
        return made, seen / words["tokens"]

    for share in (0.25, 0.5, 1.0, 2.0):
        made, epochs = planned(share)
        assert made.batch == (48 if epochs <= 2 else 24), epochs
    assert {planned(share)[0].batch for share in (0.5, 2.0)} == {24, 48}


def test_a_text_is_not_seen_more_often_than_helps() -> None:
    assert plan(1_000, minutes=60).epochs == MOST_EPOCHS
    assert plan(10**8, minutes=1).epochs is None
    assert plan(1_000, minutes=60, epochs=500).epochs == 500
    assert plan(1_000, minutes=60, steps=10**9).epochs is None
    words = {"vocab_size": 20_000, "width": 64, "layers": 1}
    long, same = plan(10_000, minutes=60, **words), plan(10_000, epochs=MOST_EPOCHS, **words)
    assert (long.lr, long.weight_decay) == (same.lr, same.weight_decay), (
        "planned for the tokens it sees"
    )


def test_embeddings_get_the_same_dropout_but_where_they_are_read_from_a_table() -> None:
    assert plan(vocab_size=SMALL, dropout=0.2).input_dropout == 0
    assert plan(vocab_size=SMALL + 1, dropout=0.2).input_dropout == 0.2
    assert plan(vocab_size=SMALL + 1, dropout=0.2, input_dropout=0.0).input_dropout == 0
    assert plan(vocab_size=SMALL, input_dropout=0.4).input_dropout == 0.4


def test_recurrent_weights_are_dropped_where_embeddings_cannot_be() -> None:
    assert plan(vocab_size=SMALL, epochs=50).weight_drop > 0
    assert plan(vocab_size=SMALL + 1, epochs=50).weight_drop == 0
    assert plan(vocab_size=SMALL + 1, epochs=50).input_dropout > 0
    assert plan(vocab_size=SMALL, epochs=50, dropout=0).weight_drop == 0
    assert plan(vocab_size=SMALL, epochs=50, dropout=0, weight_drop=0.5).weight_drop == 0.5


def test_what_is_seen_often_is_learnt_less_by_heart() -> None:
    assert plan(epochs=1).beta2 > plan(epochs=5).beta2
    assert plan(epochs=5, beta2=0.75).beta2 == 0.75


def test_a_tied_matrix_remembers_as_many_epochs_whatever_the_rate_and_the_text() -> None:
    for tokens in (2_000_000, 8_000_000):
        for lr in (0.002, 0.005):
            made = plan(tokens, minutes=5, lr=lr, tied=True)
            steps = 1 / (made.lr * made.weight_decay)
            assert steps * made.batch * made.bptt == pytest.approx(MEMORY_EPOCHS * tokens, rel=0.01)
    assert plan(2000, minutes=5, tied=True).weight_decay == MOST_DECAY
    assert plan(2000, minutes=5).weight_decay == plan(8_000_000, minutes=5).weight_decay == DECAY
    assert plan(minutes=5, tied=True, weight_decay=0.25).weight_decay == 0.25
    assert plan(minutes=5, tied=True, lr=0.0).weight_decay == DECAY


def test_what_multiplies_the_decay_by_the_rate_gets_little_of_it() -> None:
    for name in ("sgd", "nt-asgd"):
        made = plan(optimizer=name)
        assert made.lr * made.weight_decay < 1e-4


def test_many_pieces_get_an_adaptive_softmax_unless_told_otherwise() -> None:
    assert plan(vocab_size=33_000).softmax == "adaptive"
    assert plan(vocab_size=33_000, softmax="full").softmax == "full"
    assert plan(vocab_size=33_000, tied=False).softmax == "full"
    few = plan(vocab_size=300, softmax="adaptive")
    assert (few.softmax, few.tied) == ("adaptive", True)


def test_a_run_begun_from_another_keeps_its_softmax() -> None:
    model = {"cell": "gru", "layers": 1, "width": 8, "embed": 8, "tied": True,
             "residual": False, "cutoffs": [3, 9]}  # fmt: skip
    assert plan_like(settings({}), model).softmax == "adaptive"
    assert plan_like(settings({"softmax": "adaptive"}), model).softmax == "adaptive"
    assert plan_like(settings({}), {**model, "cutoffs": []}).softmax == "full"
    with pytest.raises(UsageError, match="--softmax full cannot be combined with --from"):
        plan_like(settings({"softmax": "full"}), model)


def sizes(**given: Any) -> list[int]:
    return [plan(10**9, minutes=m, **given).weights(300) for m in (0.1, 1, 10, 100, 600)]


@pytest.mark.parametrize("cell", CELLS)
def test_more_time_gets_a_larger_model(cell: str) -> None:
    found = sizes(cell=cell)
    assert found == sorted({*found})
    assert max(sizes(cell=cell, width=100)) == sizes(cell=cell, width=100, layers=2)[0]


def test_a_faster_machine_gets_a_larger_model_and_its_speed_is_tried() -> None:
    found = []
    for weights_per_second in (1e9, 1e10, 1e11, 1e12):
        tried: list[Plan] = []

        def speed(plan: Plan, rate: float = weights_per_second, tried: list[Plan] = tried) -> float:
            tried.append(plan)
            return rate / plan.weights(300)

        chosen = planned = plan_model(
            settings({"minutes": 3}), tokens=10**9, vocab_size=300, device="cpu", speed=speed
        )
        assert 1 <= len(tried) <= TRIALS
        assert (chosen.layers, chosen.width) in [(one.layers, one.width) for one in tried]
        found.append(planned.weights(300))
    assert found == sorted({*found})


@given(rates=st.lists(st.floats(1, 1e7), min_size=TRIALS, max_size=TRIALS))
def test_any_measured_speeds_give_a_plan_that_was_tried(rates: list[float]) -> None:
    tried: list[Plan] = []

    def speed(plan: Plan) -> float:
        tried.append(plan)
        return rates[len(tried) - 1]

    chosen = plan_model(
        settings({"minutes": 3}), tokens=10**6, vocab_size=300, device="cpu", speed=speed
    )
    assert (chosen.layers, chosen.width) in [(one.layers, one.width) for one in tried]


def test_speed_is_not_tried_where_time_does_not_count() -> None:
    def speed(plan: Plan) -> float:
        raise AssertionError

    chosen = settings({"steps": 1000})
    by_steps = plan_model(chosen, tokens=10**6, vocab_size=300, device="cpu", speed=speed)
    assert by_steps == plan(steps=1000)
    assert by_steps.weights(300) <= plan(minutes=5).weights(300)


def test_complete_settings_hold_their_plan() -> None:
    made = plan(minutes=7, cell="lstm", tied=True)
    assert Plan.of(settings({"minutes": 7}, dataclasses.asdict(made))) == made


SPEED: dict[str, Any] = {"device": "cpu", "characters_per_token": 4.0}
HUGE = 10**10


def part(whole: int = HUGE, /, **given: Any) -> int | None:
    return plan_characters(settings(given), characters=whole, **SPEED)


def valid_part(whole: int = HUGE, /, **given: Any) -> int | None:
    return plan_valid_characters(settings(given), characters=whole, **SPEED)


def test_no_more_text_is_used_than_the_budget_can_use() -> None:
    one, four = part(minutes=1), part(minutes=4)
    assert one
    assert four == pytest.approx(2 * one), "the model grows as well as the text"
    assert part(minutes=1, tokens=2_000_000) == pytest.approx(2_000_000 * 4 * MARGIN)
    assert part(steps=9_000, batch=10, bptt=50) == pytest.approx(9_000 * 500 * 4 * MARGIN)
    assert part(steps=10, minutes=600) == LEAST_USED
    both = part(steps=9_000, minutes=600)  # a budget in minutes may use more streams
    assert both == pytest.approx(9_000 * STREAMS_TIED["cpu"] * BPTT * 4 * MARGIN)
    assert part(10_000_000, minutes=1) is None, "all of a smaller text"
    assert part(LEAST_USED, tokens=1) is None


def test_epochs_alone_mean_the_whole_text_and_what_is_asked_for_is_kept() -> None:
    assert part(epochs=1) is valid_part(epochs=1) is None
    assert part(epochs=1, minutes=1) == part(minutes=1)
    assert part(epochs=1, characters=7) == 7
    assert part(minutes=1, characters=2 * HUGE) == 2 * HUGE
    assert valid_part(minutes=1, valid_characters=7) == 7


def test_validations_take_little_beside_the_training() -> None:
    for budget in ({"minutes": 40}, {"tokens": 10**8}):
        most = part(**budget)
        assert most
        assert valid_part(**budget) == pytest.approx(most / MARGIN * 3 * VALIDATION_SHARE, abs=2)
    for small in ({"minutes": 0.01}, {"steps": 1}, {"tokens": 1}):
        assert valid_part(**small) == LEAST_VALIDATED * 4
        assert valid_part(LEAST_VALIDATED * 4, **small) is None


@pytest.mark.parametrize("name", ["minutes", "epochs", "steps", "tokens"])
def test_the_largest_budget_has_a_plan_and_a_larger_one_is_refused(name: str) -> None:
    most: float = 1e6 if name in ("minutes", "epochs") else LARGEST
    assert plan(**{name: most}).lr > 0
    assert (part(10**8, **{name: most}), valid_part(10**8, **{name: most})) == (None, None)
    with pytest.raises(UsageError, match=f"--{name} must be at most"):
        plan(**{name: most * 2})


def test_without_minutes_the_plan_does_not_depend_on_the_time_that_is_gone() -> None:
    for budget in ({"epochs": 1}, {"steps": 1000}, {"tokens": 10**6}):
        late = plan_model(
            settings(budget), tokens=10**6, vocab_size=300, device="cpu", elapsed=1000.0
        )
        assert late == plan(**budget)


def test_batches_larger_than_the_text_are_refused() -> None:
    with pytest.raises(InputError, match="too short: 100 tokens"):
        plan(100, batch=10, bptt=11)
    assert plan(110, batch=10, bptt=11).batch == 10
    assert plan(100, batch=50).bptt == 2


def test_budgets_in_steps_tokens_and_epochs_are_counted_in_steps() -> None:
    made = plan(1000, batch=5, bptt=10)
    for budget, steps in (
        ({"steps": 7}, 7),
        ({"tokens": 101}, 3),
        ({"epochs": 1.5}, 30),
        ({"epochs": 10, "steps": 7}, 7),
        ({"minutes": 1}, None),
    ):
        assert made.total_steps(settings(budget), tokens=1000) == steps
