"""Optional outputs of `eval`: each recomputed from the per-token table or by hand."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gru_lm.commands.eval.options import Outputs
from gru_lm.commands.eval.run import evaluate
from gru_lm.commands.load import load_model
from gru_lm.errors import InputError, UsageError
from gru_lm.training.directory import find
from tests.conftest import TINY, Program, words
from tests.inside import error, inside

WORD = [option if option != "char" else "word" for option in TINY]
TEXT = "the cat sat\n\non the zebra mat\nwho knows? the\n"


@pytest.fixture(scope="module")
def of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny word model."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "text.txt").write_text(words(3_000))
    inside(folder, "train", folder / "text.txt", "--out", folder / "run", "--steps", 5, *WORD)
    return folder / "run"


def tokens_of(path: Path) -> list[dict[str, str]]:
    header, *rows = (row.split("\t") for row in path.read_text(encoding="utf-8").splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def measured(
    run: Path, tmp_path: Path, text: str, **options: Any
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    (tmp_path / "text.txt").write_text(text)
    outputs = Outputs(per_token=tmp_path / "out.tsv", **options)
    result = evaluate(run, [str(tmp_path / "text.txt")], outputs=outputs)
    return result, tokens_of(tmp_path / "out.tsv")


def test_srilm_and_kenlm_recomputed_from_the_table(of_words: Path, tmp_path: Path) -> None:
    srilm, rows = measured(of_words, tmp_path, TEXT, convention="srilm")
    kenlm = measured(of_words, tmp_path, TEXT, convention="kenlm")[0]["as"]
    log10 = [-float(row["surprisal_bits"]) * math.log10(2) for row in rows]
    unknown = [row["unknown"] == "1" for row in rows]
    ends = [row["piece"] == "\\n" for row in rows]
    blank = [end and (place == 0 or ends[place - 1]) for place, end in enumerate(ends)]
    assert (sum(unknown), sum(ends), sum(blank), len(rows)) == (1, 4, 1, 14)

    kept = [lp for lp, u, b in zip(log10, unknown, blank, strict=True) if not u and not b]
    found = srilm["as"]
    assert found["logprob"] == pytest.approx(sum(kept), rel=1e-6)
    assert found["ppl"] == pytest.approx(10 ** (-sum(kept) / (10 - 1 + 3)), rel=1e-6)
    assert found["ppl1"] == pytest.approx(10 ** (-sum(kept) / (10 - 1)), rel=1e-6)
    assert found["text"].splitlines()[0].endswith(": 3 sentences, 10 words, 1 OOVs")

    assert kenlm["including_oovs"] == pytest.approx(10 ** (-sum(log10) / 14), rel=1e-6)
    known = [lp for lp, u in zip(log10, unknown, strict=True) if not u]
    assert kenlm["excluding_oovs"] == pytest.approx(10 ** (-sum(known) / 13), rel=1e-6)
    assert kenlm["text"].endswith("OOVs:\t1\nTokens:\t14")


def test_lm_eval_counts_words_its_way_and_no_token_between_documents(
    trained: Path, tmp_path: Path
) -> None:
    files = []
    for number, text in enumerate(["one two\n", " three  four"]):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(text)
    table = tmp_path / "out.tsv"
    outputs = Outputs(convention="lm-eval", per_token=table)
    result = evaluate(trained, [str(file) for file in files], outputs=outputs)
    bits = sum(float(row["surprisal_bits"]) for row in tokens_of(table) if row["piece"] != "</s>")
    found = result["as"]
    assert (found["words"], result["bytes"]) == (3 + 3, 20)
    assert found["bits_per_byte"] == pytest.approx(bits / 20, rel=1e-6)
    assert found["byte_perplexity"] == pytest.approx(2 ** (bits / 20), rel=1e-6)
    assert found["word_perplexity"] == pytest.approx(2 ** (bits / 6), rel=1e-6)
    assert "|bits_per_byte" in found["text"]


def test_the_interval_is_of_a_long_text_alone(trained: Path, tmp_path: Path) -> None:
    short, _ = measured(trained, tmp_path, "too short\n")
    assert short["ci95"] is None
    (tmp_path / "long.txt").write_text(words(3_000))
    result = evaluate(trained, [str(tmp_path / "long.txt")])
    low, high = result["ci95"]
    assert low < result["bits_per_byte"] < high < 1.1 * low


def test_baselines(trained: Path, tmp_path: Path) -> None:
    result, rows = measured(trained, tmp_path, words(300), baselines=True)
    found = {row["name"]: row for row in result["baselines"]}
    assert list(found) == ["uniform", "unigram", "bz2", "lzma"]
    opened = load_model(find(trained, print))
    uniform = math.log(opened.tokenizer.vocab_size)
    assert found["uniform"]["nats_per_token"] == pytest.approx(uniform)
    assert found["unigram"]["bits_per_byte"] < found["uniform"]["bits_per_byte"]
    assert result["tokens"] == len(rows)


def test_adapted_rows_stand_beside_the_plain_figures(trained: Path, tmp_path: Path) -> None:
    plain, _ = measured(trained, tmp_path, "so so so so so so so so\n" * 20)
    again, _ = measured(
        trained, tmp_path, "so so so so so so so so\n" * 20, cache={"weight": 0.3}, dynamic="sgd"
    )
    assert again["nats"] == plain["nats"]
    cache, dynamic = again["adapted"]
    assert (cache["name"], dynamic["name"]) == ("cache", "dynamic sgd")
    assert cache["settings"] == {"window": 2000, "theta": 0.1, "weight": 0.3}
    for row in (cache, dynamic):
        assert row["tokens"] == plain["tokens"]
        assert row["bits_per_byte"] < plain["bits_per_byte"]
    with pytest.raises(InputError, match="training text is too short to compute gradients"):
        evaluate(trained, [str(tmp_path / "text.txt")], outputs=Outputs(dynamic="rms"))


def test_pairs_are_judged_alone_or_beside_a_text(trained: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        '{"sentence_good": "the cat sat", "sentence_bad": "tqe czt szt", "UID": "x"}\n'
    )
    alone = json.loads(inside(Path.cwd(), "eval", trained, "--pairs", pairs, "--json").out)
    assert set(alone) == {"gru_lm", "pairs", "checkpoint", "device", "caveats"}
    assert (alone["pairs"]["pairs"], alone["pairs"]["paradigms"][0]["name"]) == (1, "x")
    shown = inside(Path.cwd(), "eval", trained, "--pairs", pairs).out
    assert shown.startswith("paradigm\taccuracy\t95 % interval\tpairs\nx\t")
    pairs.write_text('{"sentence_good": "the cat sat"}\n')
    with pytest.raises(InputError, match=r"pairs\.jsonl.*line 1"):
        evaluate(trained, outputs=Outputs(pairs=pairs))


def test_lines_are_answered_as_they_come(trained: Path, program: Program, tmp_path: Path) -> None:
    lines = [line for line in words(60).split("\n") if line][:6]
    with subprocess.Popen(
        [sys.executable, "-m", "gru_lm", "eval", trained, "-", "--per-line", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"line\ttokens\tnats\n"
        process.stdin.write(f"{lines[0]}\n".encode())
        process.stdin.flush()
        answers = [process.stdout.readline()]  # before the next line is sent
        ill = "".join(f"{line}\n" for line in lines[1:]).encode() + b"na\xefve\n"
        rest, errors = process.communicate(ill, timeout=60)
        answers += rest.splitlines(keepends=True)
    assert process.returncode == 3
    assert b"standard input, line 7: not utf-8" in errors
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    table = tmp_path / "lines.tsv"
    evaluate(trained, [str(tmp_path / "text.txt")], mode="line", outputs=Outputs(per_line=table))
    expected = [row.split("\t") for row in table.read_text().splitlines()[1:]]
    found = [row.decode().rstrip("\n").split("\t") for row in answers]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for got, outputs in zip(found, expected, strict=True):
        assert float(got[2]) == pytest.approx(float(outputs[2]), rel=1e-5)


def test_wrong_use(trained: Path, of_words: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown convention 'srlm'"):
        evaluate(trained, outputs=Outputs(convention="srlm"))
    inside(Path.cwd(), "eval", trained, "x", "--per-line", "-", code=2)
    inside(Path.cwd(), "eval", trained, "--weight", "2", code=2)
    for options in (["--cache-theta", 1], ["--dynamic-lr", 1], ["--tune"], ["--weight", 0.5]):
        said = error(tmp_path, "eval", trained, *options, code=2)
        assert f"{options[0]}: no effect without --" in said
    for options in (["--mode", "line"], ["--json"], ["--baselines"], ["--batch", 4]):
        alone = ["eval", trained, "-", "--per-line", "-", *options]
        assert "allows no other options" in error(tmp_path, *alone, code=2)
    alone = ["eval", trained, "--pairs", "x", "--html", "x.html"]
    assert "--pairs without a FILE" in error(tmp_path, *alone, code=2)
    for encoding, said in (("utf-16", "cannot be read one by one"), ("utf-88", "unknown encoding")):
        alone = ["eval", trained, "-", "--per-line", "-", "--encoding", encoding]
        assert said in error(tmp_path, *alone, code=2)
    with pytest.raises(UsageError, match="method"):
        evaluate(trained, outputs=Outputs(dynamic="smg"))
    with pytest.raises(UsageError, match="weight"):
        evaluate(trained, outputs=Outputs(cache={"weight": 2.0}))
    for mode in ("line", "columns"):
        with pytest.raises(UsageError, match="need --mode stream"):
            evaluate(trained, mode=mode, outputs=Outputs(cache={}))


def test_tuning_on_what_is_measured_is_said(trained: Path, tmp_path: Path) -> None:
    text = (trained.parent / "text.txt").read_text(encoding="utf-8")
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(text[len(text) * 9 // 10 :], encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(text[len(text) * 9 // 10 + 1 :], encoding="utf-8")
    command = ["eval", trained, "--cache", "--tune"]
    said = "tuned on the evaluated text itself"
    measured = inside(tmp_path, *command, held_out, "--json")
    assert said in measured.err
    assert any(said in caveat for caveat in measured.json()["caveats"])
    assert said not in inside(tmp_path, *command, other).err


def test_all_that_is_written_of_a_text(trained: Path, tmp_path: Path) -> None:
    """Page, plot and tables of one command, and consistency of their figures."""
    text = words(1_500, seed=2)
    (tmp_path / "text.txt").write_text(text)
    command = ["eval", trained, "text.txt", "--html", "page.html", "--context-curve", "curve.png"]
    command += ["--per-word", "words.tsv", "--dynamic", "sgd", "--tune"]
    result = inside(tmp_path, *command, "--json").json()
    rows = tokens_of(tmp_path / "words.tsv")
    bits = result["nats"] / math.log(2)
    for column in ("surprisal_bits", "corrected_bits"):
        assert sum(float(row[column]) for row in rows) == pytest.approx(bits, rel=1e-6)
    assert [row["word"] for row in rows if row["word"] != "\\n"] == text.split()

    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = f"{result['bits_per_byte']:.9f}"[:4]  # digits supported by any interval
    assert f">{shown}" in page
    # The dashed line (whole text) lies within the range of the steps (parts of the text).
    found = re.search(r'<path d="M([^"]+)"/><path class="dash" d="M\S+ ([\d.]+)H', page)
    assert found
    heights = [float(height) for height in re.findall(r" ([\d.]+)H", found[1])]
    assert min(heights) < float(found[2]) < max(heights)

    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    curve = result["context_curve"]
    assert curve["targets"] > 0
    (row,) = result["adapted"]
    assert row["name"] == "dynamic sgd"
    best = min(row["tried"], key=lambda tried: tried["nats_per_token"])
    assert row["settings"] == best["settings"]


ARPA = """\\data\\
ngram 1=7
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.7\t</s>
-0.8\tthe\t-0.2
-1.2\tcat
-1.3\tsat
-0.9\tmat

\\2-grams:
-0.2\tthe cat
-0.4\t<s> the

\\end\\
"""


def test_ngrams_beside_a_model_of_words(of_words: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    arpa = tmp_path / "ngrams.arpa"
    arpa.write_text(ARPA)
    text = "the cat sat\nthe mat the zebra\n"
    whole, _ = measured(of_words, tmp_path, text, interpolate=arpa, weight=1.0)
    assert whole["interpolated"]["perplexity"] == pytest.approx(
        whole["ngram"]["perplexity"], rel=1e-4
    )
    none, _ = measured(of_words, tmp_path, text, interpolate=arpa, weight=0.0)
    assert none["interpolated"]["nats"] == pytest.approx(none["nats"])
    assert none["interpolated"]["bits_per_byte"] == pytest.approx(none["bits_per_byte"])
    # Tuned on the run's own validation text: no other weight is better there.
    known = sorted({"<unk>", "<s>", "</s>", *words(3_000).split()})
    rows = "".join(f"-2.0\t{word}\t0\n" for word in known)
    other = tmp_path / "other.arpa"
    counts = f"\\data\\\nngram 1={len(known)}\nngram 2=1\n"
    other.write_text(f"{counts}\n\\1-grams:\n{rows}\n\\2-grams:\n-1.0\t<s> the\n\n\\end\\\n")
    own = [
        evaluate(of_words, outputs=Outputs(interpolate=other, weight=weight))["interpolated"]
        for weight in (0.02, None, 0.5)
    ]
    assert own[1]["tuned_on_tokens"] == own[1]["tokens"]
    assert 0 < own[1]["weight"] < 1
    assert own[1]["nats"] <= min(own[0]["nats"], own[2]["nats"])
    # No shared words and no line ends: denominators are 0, which is not an error.
    blank, _ = measured(of_words, tmp_path, "zebra", interpolate=arpa, weight=1.0)
    assert blank["ngram"]["perplexity_excluding_oovs"] is None
    with pytest.raises(UsageError, match="word"):
        evaluate(trained, outputs=Outputs(interpolate=arpa))
    # The end of a document is scored by the neural model only and adds no gain.
    files = [str(tmp_path / "text.txt")] * 2
    both = evaluate(of_words, files, outputs=Outputs(interpolate=arpa, weight=0.0))
    assert both["interpolated"]["nats"] == pytest.approx(both["nats"])
    assert both["interpolated"]["tokens"] == both["tokens"]


def test_the_harness_says_what_to_install(tmp_path: Path) -> None:
    code = "import runpy, sys; sys.modules['lm_eval'] = None; "
    code += "runpy.run_module('gru_lm.integrations.lm_eval', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 5
    assert "pip install 'gru-lm[lm-eval]'" in done.stderr
    assert done.stdout == ""
