"""Processes share an evaluation: every run is watched by one of them."""

from infinitevl.evaluation.plan import Plan, runs
from infinitevl.evaluation.sharing import gathered, rank_and_count, share


def test_every_run_is_watched_once_and_in_order():
    todo = runs(Plan(), 16, grows=False)
    for count in (1, 2, 4, 100):
        shares = [share(todo, rank, count) for rank in range(count)]
        assert sum(map(len, shares)) == len(todo)
        assert all(sum(run in mine for mine in shares) == 1 for run in todo)
        assert all([run for run in todo if run in mine] == mine for mine in shares)


def test_shares_are_even():
    todo = runs(Plan(), 16, grows=False)
    work = [sum(run.work for run in share(todo, rank, 4)) for rank in range(4)]
    assert max(work) < 1.1 * min(work)


def test_a_process_alone_does_it_all():
    assert rank_and_count() == (0, 1)
    assert gathered("mine") == ["mine"]
