"""Rows of a state where they are: what is done to some of its places is what is done to copies of them."""

import torch

from helpers import assert_same_state, text_ids, tiny_model
from infinitevl.streaming.feeding import take_text


@torch.inference_mode()
def test_some_rows_in_their_places():
    model = tiny_model(dtype=torch.float64)
    pool, rows = model.allocate_state(4), [2, 0]
    take_text(model, pool, [text_ids(n).tolist() for n in (5, 40, 3, 9)])
    expected, copies = pool.fork(), pool.take(rows)
    tokens = [text_ids(7).tolist(), text_ids(2).tolist()]
    logits = take_text(model, copies, tokens)
    copies.open_video(torch.tensor([True, False]))
    expected.put(rows, copies)
    here = pool.at(torch.tensor([2, -1, 0, -1]))
    assert here.batch_size == 4
    found = take_text(model, here, [tokens[0], [], tokens[1], [1]])
    here.open_video(torch.tensor([True, True, False, True]))
    assert torch.allclose(found[[0, 2]], logits)
    assert_same_state(pool, expected, 1e-10)
