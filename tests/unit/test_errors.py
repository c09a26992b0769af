"""The exception hierarchy and its exit codes; the signal flag."""

from __future__ import annotations

import os
import signal

import pytest

from gru_lm import errors
from gru_lm.errors import GruLmError, Stopped, nearest, unknown_name
from gru_lm.signals import WATCHED, StopFlag, watch_signals


def test_exit_codes() -> None:
    codes = {
        kind.__name__: kind("x").exit_code
        for kind in (
            errors.UsageError,
            errors.InputError,
            errors.DivergedError,
            errors.EnvironmentProblem,
        )
    }
    assert list(codes.values()) == [2, 3, 4, 5]
    assert Stopped(signal.SIGTERM).exit_code == 143
    assert Stopped(signal.SIGINT).exit_code == 130
    assert Stopped(signal.SIGHUP).exit_code == 129
    assert issubclass(Stopped, GruLmError)


def test_nearest() -> None:
    assert nearest("lsmt", ["gru", "lstm"]) == "lstm"
    assert nearest("transformer", ["gru", "lstm"]) is None
    assert unknown_name("cell", "xyz", ["gru", "lstm"]).hint == "known: gru, lstm"


def test_signal_is_recorded_and_raised_at_the_next_check() -> None:
    with watch_signals() as flag:
        flag.check()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):  # the flag stays set for later checks
            with pytest.raises(Stopped) as caught:
                flag.check()
            assert caught.value.signum == signal.SIGHUP, "the first signal wins"


def test_second_interrupt_raises_immediately() -> None:
    with watch_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored_and_ignored_signals_stay_ignored() -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = [signal.getsignal(signum) for signum in WATCHED]
        with watch_signals() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            flag.check()
            assert signal.getsignal(signal.SIGTERM) == flag.handle
        assert [signal.getsignal(signum) for signum in WATCHED] == before
    finally:
        signal.signal(signal.SIGHUP, old)


def test_handler_only_sets_the_flag() -> None:
    flag = StopFlag()
    flag.handle(signal.SIGINT, None)
    assert vars(flag) == {"signum": signal.SIGINT}
