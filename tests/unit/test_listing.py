"""Lists are split by the keys of their records: nothing depends on the order, and nothing leaks."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.errors import InputError, Stopped
from gru_lm.signals import never, unheard
from gru_lm.text.listing import PLACES, Listing, place, survey_records
from gru_lm.text.parts import ListPart, ListSources, Texts, excerpt, open_texts
from gru_lm.text.record_keys import among, digest_of, keys_of, read_keys, write_keys
from gru_lm.text.records import Form
from gru_lm.text.sources import open_documents

SHARES = (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10))
LINE = Form(unit="line")


def names(count: int, seed: int = 0) -> list[str]:
    """Records with repeats, in no order."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdeo", k=rng.randint(1, 7))) for _ in range(count)]


def write(path: Path, records: list[str]) -> Path:
    path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
    return path


def listing(*paths: Path, form: Form = LINE) -> Listing:
    documents = open_documents([str(path) for path in paths])
    return survey_records(documents, form, stop=never, progress=unheard)


def split(*paths: Path, form: Form = LINE) -> Texts:
    sources = ListSources(listing(*paths, form=form), None, None)
    return sources.split(SHARES, at_line_ends=False, stop=never)


def records_of(part: object) -> list[str]:
    assert isinstance(part, ListPart)
    return [
        text for document in part.documents for block in document.blocks() for text in block.texts
    ]


def sides(texts: Texts) -> list[list[str]]:
    return [records_of(part) for part in (texts.train, texts.valid, texts.test)]


def test_equal_records_are_never_parted(tmp_path: Path) -> None:
    records = names(5000)
    parted = sides(split(write(tmp_path / "list.txt", records)))
    assert max(Counter(records).values()) > 20
    assert sorted(record for side in parted for record in side) == sorted(records)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not set(parted[a]) & set(parted[b])


@pytest.mark.parametrize("order", [sorted, lambda records: records[::-1], set])
def test_the_order_of_a_list_is_nothing(tmp_path: Path, order: object) -> None:
    records = names(800)
    other = list(order(records))  # type: ignore[operator]
    if order is set:  # nor is the number of repeats
        parted = [sorted(set(side)) for side in sides(split(write(tmp_path / "a.txt", records)))]
    else:
        parted = [sorted(side) for side in sides(split(write(tmp_path / "a.txt", records)))]
    assert [sorted(side) for side in sides(split(write(tmp_path / "b.txt", other)))] == parted


def test_records_keep_their_order_within_a_side(tmp_path: Path) -> None:
    records = names(800)
    for side in sides(split(write(tmp_path / "list.txt", records))):
        assert side == [record for record in records if record in set(side)]


def test_a_list_that_grows_keeps_every_record_on_its_side(tmp_path: Path) -> None:
    before, added = names(900), names(900, seed=1)
    small = sides(split(write(tmp_path / "small.txt", before)))
    whole = sides(
        split(write(tmp_path / "large.txt", random.Random(2).sample(before + added, 1800)))
    )
    for side_before, side_after in zip(small, whole, strict=True):
        assert set(side_before) <= set(side_after)


def test_several_files_are_one_list(tmp_path: Path) -> None:
    records = names(600)
    whole = split(write(tmp_path / "whole.txt", records))
    first, second = (
        write(tmp_path / "1.txt", records[:250]),
        write(tmp_path / "2.txt", records[250:]),
    )
    parted = split(first, second)
    assert sides(parted) == sides(whole)
    assert [len(part.documents) for part in (parted.train, parted.valid)] == [2, 2]
    assert parted.fingerprints == whole.fingerprints


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(0, 60))
def test_shares_are_ranges_of_places(numbers: list[int], tenths: int) -> None:
    """A larger share holds all that a smaller one holds; together they are the list."""
    keys_N = keys_of(map(str, numbers))
    whole = Listing((), LINE, keys_N, keys_N, np.ones(len(keys_N), np.uint32), (0,), 0, 0, "")
    border = place(Fraction(tenths, 60))
    low_N, high_N = whole.between(0, border), whole.between(border, PLACES)
    assert (low_N ^ high_N).all()
    assert (low_N <= whole.between(0, place(Fraction(min(60, tenths + 7), 60)))).all()
    assert not whole.between(border, border).any()


def test_shares_are_met(tmp_path: Path) -> None:
    different = [f"record {number}" for number in range(20_000)]
    found = [len(side) for side in sides(split(write(tmp_path / "list.txt", different)))]
    # Three standard deviations of a binomial distribution of 20,000 draws.
    assert found == pytest.approx([16_000, 2_000, 2_000], abs=170)


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 10), Fraction(1)])
def test_all_and_nothing(tmp_path: Path, share: Fraction) -> None:
    whole = listing(write(tmp_path / "list.txt", names(50)))
    assert whole.between(0, place(share)).sum() + whole.between(place(share), PLACES).sum() == 50
    assert whole.between(0, place(Fraction(1))).all()
    assert not whole.between(PLACES, PLACES).any()


def test_a_group_stays_together(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [(rng.randrange(300), record) for record in names(3000)]
    path = tmp_path / "list.csv"
    path.write_text("name,family\n" + "".join(f"{name},f{family}\n" for family, name in rows))
    parted = split(path, form=Form(unit="row", field="name", group="family"))
    family_sides: dict[str, set[int]] = {}
    for side, part in enumerate((parted.train, parted.valid, parted.test)):
        assert isinstance(part, ListPart)
        for document in part.documents:
            for block in document.blocks(["family"]):
                for family in block.columns["family"]:
                    family_sides.setdefault(family, set()).add(side)
    assert len(family_sides) == 300
    assert all(len(found) == 1 for found in family_sides.values())
    assert Counter(side for found in family_sides.values() for side in found)[0] > 200
    # Without the group, the same rows are split by their texts.
    alone = sides(split(path, form=Form(unit="row", field="name")))
    assert not set(alone[0]) & set(alone[1])


@given(st.integers(1, 400))
def test_an_excerpt_of_a_list(characters: int) -> None:
    keys_N = keys_of(f"name {number % 23}" for number in range(60))
    sizes_N = np.arange(60, dtype=np.uint32) % 5 + 2
    whole = Listing((), LINE, keys_N, keys_N, sizes_N, (0, 60), 0, 0, "")
    mask_N = whole.between(0, place(Fraction(7, 10)))
    narrow_N = whole.narrowed(mask_N, characters)
    assert (narrow_N <= mask_N).all()
    places = keys_N[narrow_N]
    total = int(sizes_N[narrow_N].sum())
    assert total <= characters or len(set(places.tolist())) == 1
    # They are the lowest places: no record between is left out, and a further one would not fit.
    left = keys_N[mask_N & ~narrow_N]
    assert not len(left) or places.max() < left.min()
    if len(left):
        following = int(sizes_N[mask_N & (keys_N == left.min())].sum())
        assert total + following > characters
    assert (narrow_N == whole.narrowed(mask_N, characters)).all()
    order = np.random.default_rng(0).permutation(60)
    shuffled = Listing((), LINE, keys_N[order], keys_N[order], sizes_N[order], (0, 60), 0, 0, "")
    assert (shuffled.narrowed(mask_N[order], characters) == narrow_N[order]).all()


def test_an_excerpt_is_that_of_any_order(tmp_path: Path) -> None:
    records = names(700)
    found = []
    for order in (records, sorted(records)):
        part = split(write(tmp_path / "list.txt", order)).train
        small = excerpt(part, 500, stop=never)
        assert small.characters <= 500
        assert small.characters == sum(len(record) + 1 for record in records_of(small))
        assert small.fingerprint != part.fingerprint
        found.append(sorted(records_of(small)))
    assert found[0] == found[1]
    assert excerpt(part, part.characters, stop=never) is part


def test_what_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("anna\r\n\r\n  \r\nbo\rb\r\nÄnne".encode())
    whole = listing(path)
    assert whole.characters_N.tolist() == [5, 5, 5]
    assert (whole.empty, whole.returns, whole.starts) == (2, 1, (0, 3))
    assert whole.keys_N.tolist() == keys_of(["anna", "bo\rb", "Änne"]).tolist()
    assert (
        whole.fingerprint
        == listing(write(tmp_path / "other.txt", ["anna", "bo\rb", "Änne"])).fingerprint
    )
    assert (
        whole.fingerprint
        != listing(write(tmp_path / "other.txt", ["bo\rb", "anna", "Änne"])).fingerprint
    )


def test_separate_files_replace_their_share(tmp_path: Path) -> None:
    records = names(300)
    whole = write(tmp_path / "list.txt", records)
    valid = write(tmp_path / "valid.txt", ["zz", records[0]])
    sources = open_texts(
        [str(whole)],
        valid=str(valid),
        test=None,
        encoding="utf-8",
        form=LINE,
        stdin=None,
        stop=never,
        progress=unheard,
        note=unheard,
    )
    assert isinstance(sources, ListSources)
    parted = sources.split(
        (Fraction(9, 10), Fraction(1, 10), Fraction(0)), at_line_ends=True, stop=never
    )
    assert records_of(parted.train) == records
    assert records_of(parted.valid) == ["zz", records[0]]
    assert not parted.test.characters
    assert len(sources.keys()) == 302


def test_a_survey_can_be_stopped_and_refuses_long_lines(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped(2)

    path = write(tmp_path / "list.txt", names(20))
    with pytest.raises(Stopped):
        survey_records(open_documents([str(path)]), LINE, stop=stop, progress=unheard)
    write(path, ["short", "x" * 1_000_001])
    with pytest.raises(InputError, match=r"line 2: a record of more than 1,000,000 characters"):
        listing(path)


def test_keys_are_pinned_and_told_apart(tmp_path: Path) -> None:
    """Splits made by one version hold in the next."""
    assert keys_of(["emma", ""]).tolist() == [13909374125247890610, 15609433297986593719]
    keys_N = keys_of(names(500))
    write_keys(tmp_path / "keys", np.unique(keys_N))
    table = read_keys(tmp_path / "keys", digest_of(np.unique(keys_N)))
    assert table is not None
    assert table.tolist() == sorted(set(keys_N.tolist()))
    assert among(keys_N, table).all()
    assert not among(keys_of(["Zacharias", "emma"]), table).any()
    assert not among(keys_N, table[:0]).any()


@pytest.mark.parametrize("kept", [0, 7, 8, 79, 80])
def test_a_damaged_table_of_keys_is_none(tmp_path: Path, kept: int) -> None:
    keys_N = np.unique(keys_of(names(10)))
    write_keys(tmp_path / "keys", keys_N)
    data = (tmp_path / "keys").read_bytes()
    assert len(data) == 80
    (tmp_path / "keys").write_bytes(data[:kept] + data[kept + 1 :] + data[:1] * (kept < 80))
    table = read_keys(tmp_path / "keys", digest_of(keys_N))
    assert (table is not None) == (kept == 80)
    assert read_keys(tmp_path / "no such", digest_of(keys_N)) is None
    assert read_keys(tmp_path / "keys", "None") is None
