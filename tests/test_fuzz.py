"""Some hundred damaged files of every kind that is read; `python tests/fuzz.py --n 5000` tries more."""
from fuzz import KINDS, fuzz, report


def test_damaged_files_are_read_or_refused_in_words():
    results = fuzz(20*len(KINDS), seed=0)
    assert len(results) == 21*len(KINDS)
    assert report(results) == 0
