"""Training on a data set that is read meanwhile."""

import re
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from advcontrast.data.decoding import UnreadableImageError
from advcontrast.data.stream import ImageStream
from advcontrast.engine.batches import DataReader
from tests.data.test_folder import empty
from tests.engine.learners import (
    Halving,
    Interrupted,
    Separable,
    acl,
    images,
    labelled,
    same,
    timeless,
    train,
    weights,
)
from tests.engine.streams import Drawn, Misbehaving, Pictures, nobody_left, trained, write
from tests.processes import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "pictures", images())


@pytest.fixture(autouse=True)
def _nobody_left():
    with nobody_left():
        yield


# The same weights.


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"batch_size": 5}, {"batch_size": 64}, {"epochs": 3}])
@pytest.mark.sample(7)
def test_a_folder_trains_as_its_tensor_does(folder, workers, settings):
    expected = trained(images(), **settings)
    assert same(trained(DataReader(ImageStream(folder, size=8), workers=workers), **settings), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_acl_trains_on_a_folder_as_on_its_tensor(folder, workers):
    expected = trained(images(), acl())
    assert same(trained(DataReader(ImageStream(folder, size=8), workers=workers), acl()), expected)


def test_a_data_set_is_read_as_by_a_reader(folder):
    expected = trained(images())
    assert same(trained(ImageStream(folder, size=8)), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_may_have_several_parts(workers):
    x, y = labelled()
    expected = trained((x, y), Separable())
    assert same(trained(DataReader(TensorDataset(x, y), workers=workers), Separable()), expected)


class Numbered(Dataset):
    def __len__(self):
        return 22

    def __getitem__(self, index):
        return [images()[index], index]


def test_numbers_become_tensors():
    assert same(trained(DataReader(Numbered(), workers=0), Separable()), trained(labelled(), Separable()))


def test_groups_work_as_with_tensors(folder):
    groups = torch.arange(22) % 2
    expected = trained(images(), groups=groups)
    assert same(trained(DataReader(ImageStream(folder, size=8), workers=1), groups=groups), expected)


def test_a_subset_can_be_read(folder):
    subset = Subset(ImageStream(folder, size=8), range(4, 16))
    assert same(trained(DataReader(subset, workers=1)), trained(images()[4:16]))


def test_random_numbers_of_a_sample_do_not_depend_on_the_workers():
    one, seen = trained(DataReader(Drawn(), workers=0))
    assert seen[:3] != seen[3:]
    for workers in (1, 2, 3):
        assert same(trained(DataReader(Drawn(), workers=workers)), (one, seen))


def test_samples_draw_something_else_in_every_epoch_and_with_every_seed():
    first, second = (trained(DataReader(Drawn(), workers=0), seed=seed)[1] for seed in (0, 1))
    values = [sorted(value for batch in batches for value in batch) for batches in (first[:3], first[3:], second[:3])]
    assert len({tuple(value) for value in values}) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["folder", "drawn"])
@pytest.mark.sample(6)
def test_resumed_at_any_step_equals_uninterrupted(folder, tmp_path, workers, stop, kind):
    def data(workers):
        return DataReader(ImageStream(folder, size=8) if kind == "folder" else Drawn(), workers=workers)

    expected, _ = trained(data(0))
    with pytest.raises(Interrupted):
        trained(data(2 - workers), folder=tmp_path, save_every=1, schedule=Halving(stop))
    assert same(trained(data(workers), folder=tmp_path)[0], expected)


def test_resuming_reads_only_what_is_left(tmp_path):
    data = Misbehaving(None, None)
    with pytest.raises(Interrupted):
        trained(DataReader(data, workers=0), folder=tmp_path, save_every=1, schedule=Halving(2))
    data.reads.zero_()
    _, seen = trained(DataReader(data, workers=0), folder=tmp_path)
    assert int(data.reads.sum()) == sum(map(len, seen))
    assert len(seen) == 4


def test_a_finished_run_reads_nothing(folder, tmp_path):
    trained(ImageStream(folder, size=8), folder=tmp_path)
    data = Misbehaving(None, None)
    data.fingerprint = ImageStream(folder, size=8).fingerprint
    data.__class__.__name__, name = "ImageStream", data.__class__.__name__
    try:
        trained(data, folder=tmp_path)
    finally:
        data.__class__.__name__ = name
    assert int(data.reads.sum()) == 0


def test_another_folder_is_another_run(folder, tmp_path):
    trained(ImageStream(folder, size=8), folder=tmp_path)
    (folder / "000.png").rename(folder / "renamed.png")
    with pytest.raises(RuntimeError, match=r"fit: expected the run that .* belongs to"):
        trained(ImageStream(folder, size=8), folder=tmp_path)


def test_reading_leaves_the_generators_alone(folder):
    first, _ = trained(images())
    second, _ = trained(DataReader(Drawn(), workers=0))
    assert same(first["random"], second["random"])


# Memory.


class Counting(Pictures):
    """Notes at each step how many samples are read and not yet trained on."""

    def __init__(self, data):
        super().__init__()
        self.data, self.ahead = data, []

    def forward(self, x):
        time.sleep(0.05)  # let the workers read as far as they go
        self.ahead.append(int(self.data.reads.sum()) - sum(map(len, self.seen)))
        return super().forward(x)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 2), (1, 1), (1, 3), (2, 2)])
@pytest.mark.sample(1)
def test_no_more_is_held_than_was_said(workers, prefetch):
    data = Misbehaving(None, None, n=240)
    learner = Counting(data)
    train(learner, DataReader(data, workers=workers, prefetch=prefetch), batch_size=4, epochs=1)
    assert 4 <= max(learner.ahead) <= (workers * prefetch + 1) * 4
    assert len(learner.seen) == 60


# Files that cannot be used.


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_named_and_the_last_checkpoint_is_good(folder, tmp_path, workers):
    empty(folder / "007.png")
    name = re.escape(repr(str(folder / "007.png")))
    with pytest.raises(UnreadableImageError, match=rf"^ImageStream: expected an image in {name}"):
        trained(DataReader(ImageStream(folder, size=8), workers=workers), folder=tmp_path, save_every=1)
    write(folder, images())
    expected, _ = trained(images())
    assert same(trained(DataReader(ImageStream(folder, size=8), workers=workers), folder=tmp_path)[0], expected)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_skipped_files_are_replaced_named_once_and_counted(folder, workers):
    empty(folder / "007.png")
    (folder / "012.png").unlink()
    (folder / "012.png").symlink_to("nowhere")
    stream = ImageStream(folder, size=8, unreadable="skip", max_unreadable_fraction=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        learner = Pictures()
        history = train(learner, DataReader(stream, workers=workers), batch_size=11)
    replaced = images()
    replaced[7], replaced[12] = replaced[8], replaced[13]
    expected = Pictures()
    train(expected, replaced, batch_size=11)
    assert same(weights(learner), weights(expected))
    assert [row["unreadable"] for row in history] == pytest.approx([2 / 22] * 2, rel=1e-6)
    named = sorted(re.search(r"(\d+)\.png", str(warning.message)).group(1) for warning in caught)
    assert named == ["007", "012"]
    assert stream.skipped == [folder / "007.png", folder / "012.png"]


def test_the_count_survives_an_interruption(folder, tmp_path):
    empty(folder / "007.png")

    def skipping():
        return DataReader(ImageStream(folder, size=8, unreadable="skip", max_unreadable_fraction=0.1), workers=0)

    with pytest.warns(UserWarning, match="skipped"):
        expected = trained(skipping())[0]
    for stop in (1, 2, 3, 4, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(Interrupted):
                trained(skipping(), folder=tmp_path / str(stop), save_every=1, schedule=Halving(stop))
            assert same(trained(skipping(), folder=tmp_path / str(stop))[0], expected)


def test_without_skipping_there_is_nothing_to_count(folder):
    learner = Pictures()
    assert "unreadable" not in train(learner, ImageStream(folder, size=8))[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_full_of_garbage_does_not_train(folder, workers):
    for path in folder.iterdir():
        path.write_text("garbage")
    learner = Pictures()
    stream = ImageStream(folder, size=8, unreadable="skip", max_unreadable_fraction=0.2)
    with pytest.raises(UnreadableImageError, match=r"expected at most 4 unreadable of 22 images in .*, got 5 in a row"):
        train(learner, DataReader(stream, workers=workers))
    assert learner.seen == []


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_ends_where_too_many_files_are_unreadable(folder, workers):
    for i in range(0, 22, 2):
        empty(folder / f"{i:03d}.png")
    stream = ImageStream(folder, size=8, unreadable="skip", max_unreadable_fraction=0.2)
    message = r"ImageStream: expected at most 4 unreadable of 22 images"
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UnreadableImageError, match=message),
    ):
        train(Pictures(), DataReader(stream, workers=workers))


# Two processes.


def streamed_on_a_rank(folder):
    data = images() if folder is None else DataReader(ImageStream(folder, size=8), workers=0)
    learner = Pictures()
    history = train(learner, data)
    return {name: value.tolist() for name, value in weights(learner).items()}, learner.seen, timeless(history)


@pytest.mark.distributed
def test_two_processes_train_on_a_folder_as_on_its_tensor(ranks, folder):
    assert ranks.run(streamed_on_a_rank, str(folder)) == ranks.run(streamed_on_a_rank, None)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_with_workers_train_on_a_folder_as_on_its_tensor(folder, tmp_path):
    script = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch
        import torch.distributed as dist
        from advcontrast.data.stream import ImageStream
        from advcontrast.engine.batches import DataReader
        from tests.engine.learners import images, same, train, weights
        from tests.engine.streams import Pictures

        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        found = []
        for data in (images(), DataReader(ImageStream({str(folder)!r}, size=8), workers=2)):
            learner = Pictures()
            train(learner, data)
            found.append((weights(learner), learner.seen))
        assert same(*found)
        dist.barrier()
        dist.destroy_process_group()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "script.py")
    assert done.returncode == 0, done.stderr


def read_on_a_rank():
    data = Misbehaving(None, None)
    learner = Pictures()
    train(learner, DataReader(data, workers=0))
    return int(data.reads.sum()), sum(map(len, learner.seen))


@pytest.mark.distributed
def test_each_process_reads_only_its_share(ranks):
    for reads, seen in ranks.run(read_on_a_rank):
        assert reads == seen == 24


def skipped_on_a_rank(folder):
    stream = ImageStream(folder, size=8, unreadable="skip", max_unreadable_fraction=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row["unreadable"] for row in train(Pictures(), DataReader(stream, workers=0), batch_size=22)]


@pytest.mark.distributed
def test_the_share_of_replaced_samples_is_that_of_all_processes(ranks, folder):
    empty(folder / "007.png")
    for shares in ranks.run(skipped_on_a_rank, str(folder)):
        assert shares == pytest.approx([1 / 22] * 2, rel=1e-6)
