"""The branch is a mode of the whole model, for a while or for good."""

import threading

import pytest
import torch
from torch import nn

from advcontrast import bn_branch, checkpoint_context_fn, convert_to_dual_bn, set_bn_branch
from advcontrast.norm.recomputation import History

SWITCHES = [bn_branch, set_bn_branch]


def network():
    return convert_to_dual_bn(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4))))


def branches(model):
    return [model[1].branch, model[2][0].branch]


def test_every_norm_is_on_the_branch_inside_the_context():
    model = network()
    with bn_branch(model, "adv"):
        assert branches(model) == ["adv", "adv"]


def test_every_norm_gets_back_its_own_branch():
    model = network()
    model[1].branch = "adv"
    with bn_branch(model, "clean"):
        assert branches(model) == ["clean", "clean"]
    assert branches(model) == ["adv", "clean"]


def test_contexts_nest():
    model = network()
    with bn_branch(model, "adv"):
        with bn_branch(model, "clean"):
            assert branches(model) == ["clean", "clean"]
        assert branches(model) == ["adv", "adv"]


def test_contexts_may_overlap():
    model = network()
    first, second = bn_branch(model, "adv"), bn_branch(model[2], "clean")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert branches(model) == ["clean", "clean"]
    second.__exit__(None, None, None)
    assert branches(model) == ["clean", "clean"]


def test_of_overlapping_contexts_the_one_in_use_decides():
    model = network()
    set_bn_branch(model, "adv")
    first, second = bn_branch(model, "clean"), bn_branch(model, "clean")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert branches(model) == ["clean", "clean"]
    second.__exit__(None, None, None)
    assert branches(model) == ["adv", "adv"]


@pytest.mark.parametrize("place", range(4))
def test_an_interrupt_at_either_edge_of_the_context_restores_every_norm(place, monkeypatch):
    switch, left = History.switch, [place]

    def interrupted(history, branch):
        left.append(left.pop() - 1)
        if left == [-1]:
            raise KeyboardInterrupt
        switch(history, branch)

    model = network()
    monkeypatch.setattr(History, "switch", interrupted)
    with pytest.raises(KeyboardInterrupt), bn_branch(model, "adv"):
        pass
    assert branches(model) == ["clean", "clean"]
    with bn_branch(model, "adv"):
        pass
    assert branches(model) == ["clean", "clean"]


def test_an_exception_ends_the_context():
    model = network()
    with pytest.raises(KeyError), bn_branch(model, "adv"):
        raise KeyError
    assert branches(model) == ["clean", "clean"]


def test_a_closed_generator_ends_the_context():
    def steps(model):
        with bn_branch(model, "adv"):
            yield

    model = network()
    generator = steps(model)
    next(generator)
    assert branches(model) == ["adv", "adv"]
    generator.close()
    assert branches(model) == ["clean", "clean"]


def test_a_context_does_nothing_before_it_is_entered():
    model = network()
    context = bn_branch(model, "adv")
    model[1].branch = "adv"
    with context:
        pass
    assert branches(model) == ["adv", "clean"]


def test_a_context_decorates_a_function_for_all_its_calls():
    model = network()
    decorated = bn_branch(model, "adv")(lambda: branches(model))
    assert [decorated(), decorated()] == [["adv", "adv"]] * 2


def test_part_of_a_network_can_be_switched():
    model = network()
    with bn_branch(model[2], "adv"):
        assert branches(model) == ["clean", "adv"]


def test_a_norm_itself_can_be_switched():
    norm = convert_to_dual_bn(nn.BatchNorm1d(4))
    with bn_branch(norm, "adv"):
        assert norm.branch == "adv"


def test_set_bn_branch_stays():
    model = network()
    set_bn_branch(model, "adv")
    assert branches(model) == ["adv", "adv"]


def test_modes_and_branches_are_independent():
    model = network()
    set_bn_branch(model, "adv")
    model.eval().train()
    assert branches(model) == ["adv", "adv"]


def test_a_compiled_wrapper_is_seen_through():
    model = network()
    with bn_branch(torch.compile(model), "adv"):
        assert branches(model) == ["adv", "adv"]


def test_data_parallel_is_seen_through():
    model = network()
    with bn_branch(nn.DataParallel(model), "adv"):
        assert branches(model) == ["adv", "adv"]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    ("branch", "error", "message"),
    [
        ("foo", ValueError, r"expected branch to be one of 'clean', 'adv', got 'foo'\. Choose one of the 2\.$"),
        ("CLEAN", ValueError, r"expected branch to be one of 'clean', 'adv', got 'CLEAN'\. Did you mean 'clean'\.$"),
        (None, TypeError, r"expected branch to be one of 'clean', 'adv', got NoneType\. Pass branch as a string\.$"),
        (("clean", "adv"), TypeError, r"expected branch to be one of 'clean', 'adv', got tuple\. Pass branch as a str"),
    ],
)
def test_a_bad_branch_is_refused_before_anything_changes(switch, branch, error, message):
    model = network()
    model[1].branch = "adv"
    with pytest.raises(error, match=f"^{switch.__name__}: {message}"):
        switch(model, branch)
    assert branches(model) == ["adv", "clean"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_model_without_dual_norms_is_refused(switch):
    message = (
        rf"^{switch.__name__}: expected a model with dual batch norms, found none in Sequential\. "
        r"Call convert_to_dual_bn\(model\) first\.$"
    )
    with pytest.raises(ValueError, match=message):
        switch(nn.Sequential(nn.BatchNorm1d(4)), "adv")


@pytest.mark.parametrize(
    "function", [lambda m: bn_branch(m, "adv"), lambda m: set_bn_branch(m, "adv"), checkpoint_context_fn]
)
def test_anything_but_a_module_is_refused(function):
    with pytest.raises(TypeError, match=r"expected model to be an nn\.Module, got str\. Pass the network itself\.$"):
        function("resnet18")


def test_two_models_in_two_threads_do_not_see_each_others_branch():
    models = {"clean": network(), "adv": network()}
    start, seen = threading.Barrier(2), {"clean": set(), "adv": set()}

    def work(branch):
        for _ in range(20):
            with bn_branch(models[branch], branch):
                start.wait(10)
                seen[branch].update(branches(models[branch]))
                start.wait(10)

    threads = [threading.Thread(target=work, args=(branch,)) for branch in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"clean": {"clean"}, "adv": {"adv"}}


def test_threads_that_share_a_model_share_its_branch():
    model, seen = network(), []
    with bn_branch(model, "adv"):
        thread = threading.Thread(target=lambda: seen.extend(branches(model)))
        thread.start()
        thread.join()
    assert seen == ["adv", "adv"]
