"""The way of a batch through the library is short and does not climb."""

from benchmarks.evidence import walk

# An objective of a learner that is called by its attack, and methods of torch.nn.Module that a norm overrides.
BY_DESIGN = {"strategies/step.py:value", "norm/dual_norm.py:_apply", "norm/dual_norm.py:__setattr__"}


def test_a_step_crosses_few_files_and_calls_no_higher_floor():
    found = walk.walk()
    assert len([name for name in found.step if walk.floor(name) > 0]) <= 18
    assert {"engine/run.py", "strategies/acl.py", "optim/lars.py"} <= found.step.keys()
    assert {called for _, called in found.upwards} <= BY_DESIGN
