"""Reading ahead changes when batches are read, and nothing else."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numbered_batches
import pytest
from numbered_batches import Numbers

from sae.data import TokenBatches
from sae.data.prefetch import BATCHES_AHEAD, ReadAhead


def test_batches_are_read_before_they_are_asked_for() -> None:
    numbers = Numbers()
    ahead = ReadAhead(numbers)
    assert next(ahead)[0, 0] == 0
    assert numbers.wait_for(1 + BATCHES_AHEAD)
    assert ahead.state_dict() == {"position": 1}


def test_batches_come_in_order_with_their_places_to_the_end() -> None:
    ahead = ReadAhead(Numbers(20))
    found = [(int(batch[0, 0]), ahead.state_dict()["position"]) for batch in ahead]
    assert found == [(i, i + 1) for i in range(20)]
    assert next(ahead, None) is None
    assert ahead.num_batches == 20


def test_a_place_loses_nothing_of_what_was_read_ahead() -> None:
    ahead = ReadAhead(Numbers())
    assert ahead.state_dict() == {"position": 0}
    list(islice(ahead, 5))
    place = ahead.state_dict()
    assert [int(batch[0, 0]) for batch in islice(ahead, 12)] == list(range(5, 17))
    ahead.load_state_dict(place)
    assert ahead.state_dict() == place
    assert [int(batch[0, 0]) for batch in islice(ahead, 3)] == [5, 6, 7]


def test_an_error_is_raised_where_its_batch_was_asked_for_and_passes_over_none() -> None:
    ahead = ReadAhead(Numbers(errors={4: OSError("away")}))
    assert [int(next(ahead)[0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="away"):
        next(ahead)
    assert ahead.state_dict() == {"position": 4}
    assert [int(next(ahead)[0, 0]) for _ in range(3)] == [4, 5, 6]


def test_a_stream_read_ahead_is_the_stream() -> None:
    rows = [{"input_ids": [10 * i, 10 * i + 1]} for i in range(40)]
    direct, ahead = (TokenBatches(Stream(rows), 3, seed=0, held_out=4) for _ in range(2))
    wrapped = ReadAhead(ahead)
    for expected in direct:
        assert next(wrapped).equal(expected)
        assert wrapped.state_dict() == direct.state_dict()
        held_out = [next(each.held_out_batches()) for each in (direct, ahead)]
        assert held_out[0].equal(held_out[1])
    assert next(wrapped, None) is None


class Stream:
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)


def test_a_source_that_hangs_does_not_keep_the_process() -> None:
    program = """
import time
from numbered_batches import Numbers
from sae.data.prefetch import ReadAhead

class Hanging(Numbers):
    def __next__(self):
        if self.position == 3:
            time.sleep(600)
        return super().__next__()

ahead = ReadAhead(Hanging())
next(ahead)
print("done", flush=True)
"""
    here = Path(numbered_batches.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=here, timeout=numbered_batches.PATIENCE, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
