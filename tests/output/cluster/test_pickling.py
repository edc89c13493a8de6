"""Planned tensors in another process: the same values, and code that is the same or refused."""

from functools import partial
from threading import Lock

import pytest

from surgeon import surgery
from surgeon.base.errors import CheckpointError, PlanError
from surgeon.lazy import Scratch
from surgeon.lazy.random import truncated_normal
from surgeon.output.cluster import pickling
from surgeon.output.cluster.pickling import packed, unpacked
from surgeon.recipe import OPS
from tests.network import evaluated, example_bench


def both(bench, *steps):
    """The values of a plan's tensors, and of what was sent and received."""
    with surgery.opened(bench.recipe(*steps), str(bench.input), bench.models) as opened:
        tensors = opened.plan.tensors
        received = unpacked(packed(tensors, "all"))
        for name, tensor in tensors.items():
            yield (name, *(evaluated(one, 64, Scratch()) for one in (tensor, received[name])))
    pickling.close_inputs()


@pytest.mark.slow
def test_every_op_computes_the_same_after_it_was_sent(tmp_path):
    for op in OPS.values():
        (tmp_path / op.name).mkdir()
        bench = example_bench(tmp_path / op.name, op.name)
        for name, expected, found in both(bench, {"op": op.name, **op.example}):
            assert found == expected, f"{op.name}: {name}"


def adder(amount):
    def recurse(depth):
        return amount if depth == 0 else 1 + recurse(depth - 1)

    return recurse, lambda x=2: x + amount


def test_functions_inside_of_functions_keep_what_they_enclose():
    recurse, add = unpacked(packed(adder(5), "functions"))
    assert (recurse(3), add(), add(1)) == (8, 7, 6)


def test_code_that_differs_on_a_worker_is_refused(monkeypatch):
    sent = packed(truncated_normal(-1.0, 1.0), "a sampler")
    other = compile("def sample():\n  def sample(): 0", "", "exec")
    monkeypatch.setattr(pickling, "_codes", lambda module: [other] * 100)
    with pytest.raises(CheckpointError, match=r"surgeon\.lazy\.random is other code"):
        unpacked(sent)


def test_what_cannot_be_sent_is_named():
    with pytest.raises(PlanError, match="shard 3: cannot be sent to workers"):
        packed(partial(print, Lock()), "shard 3")


def test_an_input_that_changed_meanwhile_is_refused(bench):
    import torch

    bench.given({"x": torch.ones(3)})
    with surgery.opened(bench.recipe(), str(bench.input), {}) as opened:
        sent = packed(opened.plan.tensors, "x")
    bench.given({"x": torch.ones(300)})
    with pytest.raises(CheckpointError, match="is another file here"):
        unpacked(sent)
