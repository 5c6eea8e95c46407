import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from mona.draw import by_turns, lot


def test_a_lot_is_the_hash_of_seed_and_name() -> None:
    assert lot(3, "ab:7") == hashlib.sha256(b"3:ab:7").digest()


@given(
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 6), min_size=1),
    seed=st.integers(0, 9),
    shuffled=st.randoms(use_true_random=False),
)
def test_groups_take_turns_whatever_the_order(
    sizes: dict[str, int], seed: int, shuffled: random.Random
) -> None:
    entries = [(g, f"{g}{i}", (g, i)) for g, size in sizes.items() for i in range(size)]
    drawn = by_turns(entries, seed)
    shuffled.shuffle(entries)
    assert by_turns(entries, seed) == drawn
    assert sorted(drawn) == sorted(thing for _, _, thing in entries)
    # No group has had a turn more than another that still has something left.
    for n in range(len(drawn) + 1):
        taken = {g: sum(group == g for group, _ in drawn[:n]) for g in sizes}
        most = max(taken.values())
        assert all(most - count <= 1 for g, count in taken.items() if count < sizes[g])
    # What leaves a group of one leaves the others' order as it was.
    others = [entry for entry in entries if entry[0] != drawn[0][0]]
    assert by_turns(others, seed) == [thing for thing in drawn if thing[0] != drawn[0][0]]
