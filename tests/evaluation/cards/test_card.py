"""Result cards: fields, refusals, and files in which every change is found."""

import base64
import errno
import hashlib
import json
import math
import random
import re
import shutil
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import advcontrast
from advcontrast import PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast.data import ImageSet
from advcontrast.evaluation.accuracy import Accuracy, accuracy
from advcontrast.evaluation.cards.card import ResultCard
from advcontrast.evaluation.cards.provenance import revision, versions

N = 21
COMMIT = "0123456789" * 4


def bits(*wrong, n=N):
    """Return verdicts that are right but on the images named."""
    correct = torch.ones(n, dtype=torch.bool)
    correct[list(wrong)] = False
    return correct


def verdicts():
    return {
        "TA": [bits(1, 2), bits(2)],
        "RA": [bits(1, 2, 3, 8, 20), bits(2, 3, 4)],
        "AA": [bits(1, 2, 3, 8, 9, 20), bits(2, 5, 6)],
    }


def card(**changes):
    """Return a card with something in each field."""
    fields = {
        "name": "DS",
        "verdicts": verdicts(),
        "seeds": [0, 7],
        "data": "CIFAR-10 test",
        "fingerprint": "ab" * 32,
        "dtype": "float32",
        "branch": "adv",
        "attacks": {"RA": PGDAttack(steps=20, restarts=2), "AA": {"type": "AutoAttack", "eps": 8 / 255}},
        "settings": {"protocol": "SLF", "epochs": 25, "lr": 0.01, "steps": (1, 2), "nothing": None, "on": True},
        "versions": {"torch": "2.10"},
        "revision": COMMIT,
        "curves": {"PGD": SimpleNamespace(parameter="eps", values=(0, 0.5), accuracies=(1, 0.25))},
        "corruptions": {"fog": 0.5, "snow": 1},
        "label_free": {"effective rank": 37.5},
        "alarms": [SimpleNamespace(name="zero gradients", raised=True, reason="12%", figures={"zero": 0.12})],
    }
    return ResultCard(**{**fields, **changes})


@pytest.fixture
def path(tmp_path):
    """The file of a card."""
    card().write(tmp_path / "card.json")
    return tmp_path / "card.json"


def edited(path, edit):
    """Change the JSON, and seal it again as an author would who knows how."""
    document = json.loads(path.read_text())
    del document["seal"]
    edit(document)
    document["seal"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))
    return path


# Fields


def test_accuracies_are_the_means_of_the_verdicts():
    assert card().results["RA"].accuracies == (16 / 21, 18 / 21)


def test_mean_and_sample_standard_deviation_are_those_of_the_standard_library():
    result = card().results["AA"]
    assert result.mean == pytest.approx(statistics.mean(result.accuracies), rel=1e-15)
    assert result.std == pytest.approx(statistics.stdev(result.accuracies), rel=1e-15)


def test_one_run_has_no_standard_deviation():
    result = card(verdicts={"TA": [bits(1, n=4)]}, seeds=[0]).results["TA"]
    assert result == ((0.75,), 0.75, None)
    assert result.percent() == "75.00"


def test_equal_runs_have_a_standard_deviation_of_zero():
    assert card(verdicts={"TA": [bits(1), bits(2)]}).results["TA"].std == 0


def test_percent_shows_mean_and_deviation():
    # Values 1/2 and 1 have the mean 3/4 and the deviation sqrt(2)/4.
    result = card(verdicts={"TA": [bits(0, n=2), bits(n=2)]}).results["TA"]
    assert result.percent() == "75.00 ± 35.36"


def test_images_are_counted():
    assert card().images == N


def test_repr_shows_name_and_results():
    one = card(verdicts={"RA": [bits(0, 1, n=4)], "TA": [bits(1, n=4)]}, seeds=[3])
    assert repr(one) == "ResultCard('DS' on 4 images: RA 50.00%, TA 75.00%)"


def test_all_settings_of_an_attack_are_noted():
    expected = {
        "type": "PGDAttack",
        "eps": 8 / 255,
        "step_size": 2 / 255,
        "steps": 20,
        "norm": "linf",
        "random_start": True,
        "bounds": [0.0, 1.0],
        "restarts": 2,
        "minimize": False,
    }
    assert card().attacks["RA"] == expected


def test_attacks_inside_attacks_are_noted():
    @dataclass
    class Both:
        parts: tuple

    noted = card(attacks={"RA": Both((PGDAttack(steps=3),)), "AA": "AutoAttack"}).attacks["RA"]
    assert noted["type"] == "Both"
    assert noted["parts"][0]["steps"] == 3


def test_only_what_an_attack_was_made_with_is_noted():
    @dataclass
    class Counting:
        eps: float = 0.5
        calls: int = field(default=0, init=False)

    assert card(attacks={"RA": Counting(), "AA": "AutoAttack"}).attacks["RA"] == {"type": "Counting", "eps": 0.5}


def test_verdicts_are_copied():
    given = verdicts()
    one = card(verdicts=given)
    given["TA"][0].fill_(False)
    assert one == card()


def test_cards_that_differ_in_one_verdict_are_not_equal():
    other = verdicts()
    other["TA"][0][1] = True
    assert card(verdicts=other) != card()
    assert hash(card()) == hash(card())


def test_card_is_not_equal_to_something_else():
    assert card() != "card"


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_figure_of_an_alarm_that_is_not_finite_is_stored_as_none(figure):
    alarm = SimpleNamespace(name="randomised", raised=True, reason="", figures={"difference": figure})
    assert card(alarms=[alarm]).alarms[0].figures == {"difference": None}


# Cards of results of evaluations


def from_verdicts(**fields):
    found = {"TA": [Accuracy(bits(1))], "RA": [Accuracy(bits(1, 2))]}
    settings = {"seeds": [0], "data": "d", "fingerprint": "0" * 64, "attacks": {"RA": PGDAttack()}}
    return ResultCard.from_verdicts("DS", found, **{**settings, **fields})


def test_from_verdicts_takes_accuracies():
    one = from_verdicts()
    assert torch.equal(one.verdicts["RA"][0], bits(1, 2))
    assert (one.name, one.data, one.dtype) == ("DS", "d", "float32")


def test_from_verdicts_notes_versions_and_revision():
    one = from_verdicts()
    assert one.versions == versions()
    assert one.revision == revision()


def test_from_verdicts_keeps_what_is_passed():
    one = from_verdicts(revision=COMMIT, versions={"torch": "1"}, dtype=torch.float64, branch="clean")
    assert (one.revision, one.versions, one.dtype, one.branch) == (COMMIT, {"torch": "1"}, "float64", "clean")


@pytest.mark.parametrize("name", ["adv", "radius_8", "Ü", "adv and clean", None])
def test_from_verdicts_keeps_the_branch_of_the_results(tmp_path, name):
    found = {"TA": [Accuracy(bits(1), branch=name)], "RA": [Accuracy(bits(1, 2), branch=name)]}
    settings = {"seeds": [0], "data": "d", "fingerprint": "0" * 64, "attacks": {"RA": PGDAttack()}}
    one = ResultCard.from_verdicts("DS", found, **settings)
    one.write(tmp_path / "card.json")
    assert ResultCard.read(tmp_path / "card.json").branch == one.branch == name


def test_branch_of_a_dual_network_reaches_the_card():
    network = convert_to_dual_bn(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12)), branches=("clean", "weak", "strong")
    )
    images = ImageSet(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4).long(), tuple("abcdefghijkl"))
    with bn_branch(network, "strong"):
        found = accuracy(network, images.batches(2))
    assert ResultCard.from_verdicts("DS", {"TA": [found]}, seeds=[0], data=images).branch == "strong"


@pytest.mark.parametrize("extra", [{}, {"branch": "clean"}])
def test_from_verdicts_refuses_results_of_two_branches(extra):
    found = {"TA": [Accuracy(bits(1), branch="adv")]}
    if not extra:
        found["PGD-7"] = [Accuracy(bits(1, 2), branch="clean")]
    with pytest.raises(ValueError, match="ResultCard: expected results of one branch"):
        ResultCard.from_verdicts("DS", found, seeds=[0], data="d", fingerprint="0" * 64, **extra)


def test_from_verdicts_refuses_a_branch_that_is_not_a_name():
    with pytest.raises(TypeError, match="ResultCard: expected branch"):
        from_verdicts(branch=["adv"])


def test_from_verdicts_takes_an_image_set():
    images = ImageSet(torch.arange(N * 12).view(N, 3, 2, 2).byte(), torch.zeros(N).long(), ("cat", "dog"))
    one = from_verdicts(data=images, fingerprint=None)
    assert (one.data, one.fingerprint) == (f"{N} images [3, 2, 2] of 2 classes", images.fingerprint())
    with pytest.raises(ValueError, match="ResultCard: expected no fingerprint"):
        from_verdicts(data=images)
    with pytest.raises(ValueError, match=re.escape("ResultCard: expected verdicts on the 2 images of data")):
        from_verdicts(data=images.subset(torch.arange(2)), fingerprint=None)


def test_from_verdicts_asks_for_the_fingerprint_of_named_data():
    with pytest.raises(TypeError, match="ResultCard: expected fingerprint"):
        from_verdicts(fingerprint=None)


def test_cards_of_earlier_versions_are_read():
    folder = Path(__file__).parents[3] / "examples" / "cifar" / "results" / "evaluation"
    assert {ResultCard.read(path).branch for path in folder.glob("*/cards/*.json")} == {"clean", "adv", None}


def test_from_verdicts_refuses_bare_tensors():
    message = "ResultCard: expected verdicts['TA'][0]"
    with pytest.raises(TypeError, match=re.escape(message)):
        ResultCard.from_verdicts("DS", {"TA": [bits()]}, seeds=[0], data="d", fingerprint="0" * 64)


def test_results_of_an_nvidia_gpu_note_cuda_cudnn_and_that_tf32_is_off(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU of a test")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    found = versions("cuda")
    assert found["device"] == "GPU of a test"
    assert found["tf32"] == "off"
    assert found.keys() >= {"cuda", "cudnn"}


def test_versions_name_the_software():
    found = versions()
    assert found["advcontrast"] == advcontrast.__version__
    assert found["torch"] == torch.__version__
    assert found["device"] == f"cpu, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


# The revision of the code


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_revision_is_the_commit(repository):
    git(repository, "tag", "-a", "v1", "-m", "a tag")
    assert revision(repository) == git(repository, "rev-parse", "HEAD")


def test_revision_of_changed_code_is_dirty(repository):
    (repository / "code.py").write_text("2")
    assert revision(repository) == git(repository, "rev-parse", "HEAD") + "-dirty"


def test_results_that_are_not_committed_do_not_make_the_code_dirty(repository):
    (repository / "card.json").write_text("{}")
    assert revision(repository) == git(repository, "rev-parse", "HEAD")


def test_revision_is_one_that_a_card_takes(repository):
    (repository / "code.py").write_text("2")
    assert card(revision=revision(repository)).revision.endswith("-dirty")


def test_no_revision_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision(tmp_path) is None


def test_no_revision_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert revision() is None


def test_no_revision_when_git_takes_too_long(monkeypatch):
    def slow(*_, timeout, **__):
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    assert revision() is None


# The file


def test_read_returns_what_was_written(path):
    assert ResultCard.read(path) == card()


@pytest.mark.parametrize("name", ["attacks", "settings", "curves", "corruptions", "label_free", "alarms", "seeds"])
def test_every_field_survives(path, name):
    assert getattr(ResultCard.read(path), name) == getattr(card(), name)


def test_verdicts_survive_bit_by_bit(path):
    read = ResultCard.read(path)
    assert list(read.verdicts) == ["AA", "RA", "TA"]
    for metric, runs in verdicts().items():
        assert torch.equal(torch.stack(read.verdicts[metric]), torch.stack(runs))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_any_number_of_images_survives(tmp_path, n):
    correct = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    card(verdicts={"TA": [correct]}, seeds=[0]).write(tmp_path / "c")
    assert torch.equal(ResultCard.read(tmp_path / "c").verdicts["TA"][0], correct)


def test_empty_sections_survive(tmp_path):
    one = ResultCard(
        name="a", verdicts={"TA": [bits()]}, seeds=[2**64 - 1], data="d", fingerprint="0" * 64, dtype="float32"
    )
    one.write(tmp_path / "c")
    assert ResultCard.read(tmp_path / "c") == one


def test_equal_cards_are_equal_files(tmp_path, path):
    backwards = dict(reversed(verdicts().items()))
    card(verdicts=backwards, corruptions={"snow": 1.0, "fog": 0.5}).write(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_everything_in_the_file_is_sorted(path):
    document = json.loads(path.read_text())
    for part in (document, document["results"], document["attacks"]["RA"], document["settings"]):
        assert list(part) == sorted(part)


def test_card_is_sorted_before_it_is_written():
    assert list(card().verdicts) == ["AA", "RA", "TA"]


def test_file_holds_what_a_reader_needs(path):
    document = json.loads(path.read_text())
    assert document["data"] == {"name": "CIFAR-10 test", "sha256": "ab" * 32, "images": N}
    assert document["results"]["RA"]["accuracies"] == [16 / 21, 18 / 21]
    assert document["attacks"]["RA"]["step_size"] == 2 / 255
    assert (document["seeds"], document["dtype"], document["revision"]) == ([0, 7], "float32", COMMIT)


def test_verdicts_are_packed_eight_a_byte_and_hashed(tmp_path):
    card(verdicts={"TA": [bits(0, 9, n=10)]}, seeds=[0]).write(tmp_path / "c")
    (found,) = json.loads((tmp_path / "c").read_text())["results"]["TA"]["verdicts"]
    packed = bytes([0b01111111, 0b10000000])
    assert found == {"bits": base64.b64encode(packed).decode(), "sha256": hashlib.sha256(packed).hexdigest()}


def test_write_replaces_and_leaves_nothing_else(path):
    card(name="other").write(path)
    assert ResultCard.read(path).name == "other"
    assert [file.name for file in path.parent.iterdir()] == ["card.json"]


def test_write_replaces_the_file_in_one_step(path):
    with path.open() as reader:
        card(name="other").write(path)
        assert '"DS"' in reader.read()


def test_interrupted_write_keeps_the_old_card(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=rf"^ResultCard: expected to write {re.escape(str(path))}, got .*\(errno 28\)"):
        card(name="other").write(path)
    assert ResultCard.read(path) == card()
    assert [file.name for file in path.parent.iterdir()] == ["card.json"]


def test_a_card_may_be_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    card().write("~/c")
    assert (tmp_path / "c").is_file()
    assert ResultCard.read("~/c") == card()


def test_writing_leaves_the_global_random_state_alone(tmp_path):
    before, python_before = torch.get_rng_state(), random.getstate()
    card().write(tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


# Damaged and forged files


def refuses(path, message):
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        ResultCard.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[1, 2", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b'{"a":' * 100_000, "expected JSON"),
        (b'"card"', "expected an advcontrast result card"),
        (b'{"format": "advcontrast checkpoint"}', "expected an advcontrast result card"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "c"
    path.write_bytes(content)
    refuses(path, f"ResultCard.read: {message}")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_other_versions_are_refused(path, version):
    edited(path, lambda document: document.update(version=version))
    refuses(path, f"ResultCard.read: expected version to be 1, got {version!r}.")


def test_truncated_files_are_refused(path):
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 97):
        path.write_bytes(content[:length])
        refuses(path, "ResultCard.read: ")


def test_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        ResultCard.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name",
    [
        *("name", "seeds", "dtype", "branch", "attacks", "settings", "versions", "revision", "corruptions"),
        *("label_free", "data", "results", "curves", "alarms"),
    ],
)
def test_missing_fields_are_named(path, name):
    edited(path, lambda document: document.pop(name))
    refuses(path, f"ResultCard.read: expected the entries of a card, got KeyError: {name!r}")


# Images 1 and 2 of 21 are wrong; three bits of the last byte lie behind the last image.
FLIPPED = base64.b64encode(bytes([0b10111111, 0xFF, 0b11111000])).decode()
LOOSE = base64.b64encode(bytes([0b10011111, 0xFF, 0b11111001])).decode()


def set_at(*keys, value):
    def edit(document):
        *path, last = keys
        for key in path:
            document = document[key]
        document[last] = value

    return edit


def loose(document):
    """Set a bit behind the last image, and hash it."""
    digest = hashlib.sha256(base64.b64decode(LOOSE)).hexdigest()
    document["results"]["TA"]["verdicts"][0] = {"bits": LOOSE, "sha256": digest}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_at("version", value=True), "seal to follow from the rest"),
        (set_at("version", value=1.0), "seal to follow from the rest"),
        (set_at("extra", value=1), "extra, seal to follow from the rest"),
        (set_at("extra", value=None), "seal to follow from the rest"),
        (set_at("data", "extra", value=1), "data, seal to follow from the rest"),
        (set_at("data", value=[]), "the entries of a card, got TypeError"),
        (set_at("data", value={"name": "d", "sha256": "0" * 64}), "the entries of a card, got KeyError: 'images'. "),
        (set_at("data", "images", value=21.0), "the entries of a card, got TypeError"),
        (set_at("data", "images", value=True), "results, seal to follow from the rest"),
        (set_at("data", "images", value=25), "data, results, seal to follow from the rest"),
        (set_at("data", "images", value=10**19), "data, results, seal to follow from the rest"),
        (set_at("results", value=3), "the entries of a card, got AttributeError"),
        (set_at("results", "RA", value=3), "the entries of a card, got TypeError"),
        (set_at("results", "RA", "verdicts", 0, value=""), "the entries of a card, got TypeError"),
        (set_at("results", "TA", "verdicts", 0, "bits", value=5), "the entries of a card, got TypeError"),
        (set_at("results", "TA", "verdicts", 0, "bits", value="?"), "the entries of a card, got "),
        (set_at("results", "TA", "verdicts", 0, "bits", value="é"), "the entries of a card, got ValueError"),
        (set_at("results", "TA", "verdicts", 0, "bits", value=FLIPPED), "results, seal to follow from the rest"),
        (set_at("results", "TA", "verdicts", 1, "sha256", value=None), "results, seal to follow from the rest"),
        (loose, "results, seal to follow from the rest"),
        (set_at("results", "TA", "accuracies", 1, value=1.0), "results, seal to follow from the rest"),
        (set_at("results", "TA", "accuracies", value=[0.9]), "results, seal to follow from the rest"),
        (set_at("results", "TA", "mean", value=0.93), "results, seal to follow from the rest"),
        (set_at("results", "TA", "std", value=None), "results, seal to follow from the rest"),
        (set_at("corruptions", "fog", value=1), "seal to follow from the rest"),
    ],
)
def test_changed_files_are_refused_and_the_place_is_named(path, edit, message):
    edited(path, edit)
    refuses(path, f"ResultCard.read: expected {message}")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_at("name", value=3), "name "),
        (set_at("data", "images", value=0), "verdicts['AA'][0] "),
        (set_at("results", "RA", "verdicts", value={}), "verdicts['RA'] "),
        (set_at("curves", value=0), "curves "),
        (set_at("curves", "PGD", value=0), "curves['PGD'] "),
        (set_at("alarms", value={}), "alarms "),
        (set_at("alarms", 0, value={}), "alarms[0] "),
        (set_at("settings", "lr", value=math.nan), "settings['lr'] "),
        (set_at("settings", "lr", value=10**4000), "settings['lr'] "),
        (set_at("alarms", 0, "figures", "zero", value="0"), "alarms[0].figures['zero'] "),
        (set_at("branch", value="the adv"), "branch "),
        (set_at("seeds", value="07"), "seeds "),
        (set_at("seeds", value=[0, 1.5]), "seeds[1] "),
        (set_at("seeds", value=[0, 0]), "seeds "),
        (set_at("data", "sha256", value="AB" * 32), "fingerprint "),
        (set_at("revision", value="main"), "revision "),
        (set_at("settings", value=None), "settings "),
        (set_at("settings", "", value=None), "each name in settings to be a string that is not empty, got ''. "),
        (set_at("versions", "torch", value=2), "versions['torch'] "),
        (set_at("corruptions", "fog", value=1.5), "corruptions['fog'] "),
        (set_at("corruptions", "fog", value=10**19), "corruptions['fog'] "),
        (set_at("corruptions", "fog", value=None), "corruptions['fog'] "),
        (set_at("label_free", "rank", value=True), "label_free['rank'] "),
        (set_at("curves", "PGD", "accuracies", value=[1.0]), "curves['PGD'] "),
        (set_at("curves", "PGD", "values", 0, value="0"), "curves['PGD'].values[0] "),
        (set_at("curves", "PGD", "parameter", value="lr"), "curves['PGD'].parameter "),
        (set_at("alarms", 0, "raised", value=1), "alarms[0].raised "),
        (set_at("alarms", 0, "reason", value=1), "alarms[0].reason "),
        (set_at("alarms", 0, "figures", value=[]), "alarms[0].figures "),
        (set_at("attacks", "RA", value=None), "attacks "),
    ],
)
def test_invalid_fields_in_a_file_are_refused_and_named(path, edit, message):
    edited(path, edit)
    refuses(path, f"ResultCard: expected {message}")


def test_overflowing_number_is_refused(path):
    path.write_text(path.read_text().replace("37.5", "1e999"))
    refuses(path, "ResultCard: expected label_free['effective rank']")


def test_deep_settings_are_refused(path):
    deep = 0
    for _ in range(40):
        deep = [deep]
    edited(path, set_at("settings", "deep", value=deep))
    refuses(path, "ResultCard: expected settings['deep']")


def test_any_other_change_breaks_the_seal(path):
    path.write_text(path.read_text().replace('"DS"', '"D5"'))
    refuses(path, "ResultCard.read: expected seal to follow from the rest")


def test_seal_is_required(path):
    document = json.loads(path.read_text())
    del document["seal"]
    path.write_text(json.dumps(document))
    refuses(path, "ResultCard.read: expected seal")


def test_spaces_do_not_matter(path):
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert ResultCard.read(path) == card()


def test_damaged_bytes_give_the_card_or_a_value_error(path):
    original, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(1000):
        content = bytearray(original)
        for _ in range(chance.choice([1, 1, 1, 2, 8])):
            at = chance.randrange(len(content))
            action = chance.choice(["replace", "flip", "insert", "delete", "digit"])
            if action == "replace":
                content[at] = chance.randrange(256)
            elif action == "flip":
                content[at] ^= 1 << chance.randrange(8)
            elif action == "insert":
                content[at:at] = chance.choice([b"[", b"{", b"0", b'"', b"e9", b",", b"-", b"null", b"\\u"])
            elif action == "delete":
                del content[at : at + chance.randrange(1, 40)]
            else:
                content[at] = chance.choice(b"0123456789")
        path.write_bytes(content)
        try:
            assert ResultCard.read(path) == card()
        except ValueError:
            refused += 1
    assert refused > 800


# Invalid fields

TWICE = {"TA": [bits(1), bits(2)]}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": " "}, ValueError, "expected name"),
        ({"name": None}, TypeError, "expected name"),
        ({"verdicts": {}}, ValueError, "expected verdicts"),
        ({"verdicts": [bits()]}, TypeError, "expected verdicts"),
        ({"verdicts": {3: [bits()]}}, TypeError, "expected each name"),
        (
            {"verdicts": {"TA": bits()}},
            TypeError,
            "expected verdicts['TA']",
        ),
        (
            {"verdicts": {"TA": [[True]]}},
            TypeError,
            "expected verdicts['TA'][0]",
        ),
        (
            {"verdicts": {"TA": [bits().float()]}},
            TypeError,
            "expected verdicts['TA'][0]",
        ),
        (
            {"verdicts": {"TA": [bits()[:0], bits()]}},
            ValueError,
            "expected verdicts['TA'][0]",
        ),
        (
            {"verdicts": {"TA": [bits()[None], bits()]}},
            ValueError,
            "expected verdicts['TA'][0]",
        ),
        (
            {"verdicts": {"TA": [bits()]}},
            ValueError,
            "expected verdicts['TA'] on 21 images",
        ),
        (
            {"verdicts": {"TA": [bits(), bits(n=20)]}},
            ValueError,
            "expected verdicts['TA'] on 21 images",
        ),
        (
            {"verdicts": {**TWICE, "fog": []}},
            ValueError,
            "expected verdicts['fog'] on 21 images",
        ),
        (
            {"verdicts": {**TWICE, "RA": [bits(1), bits(1)]}},
            ValueError,
            "expected verdicts['RA'][1]",
        ),
        (
            {"verdicts": {**TWICE, "AA": [bits(), bits(2)]}},
            ValueError,
            "expected verdicts['AA'][0]",
        ),
        (
            {"verdicts": {"RA": [bits(1, 2), bits()], "AA": [bits(3), bits()]}},
            ValueError,
            "expected verdicts['AA'][0]",
        ),
        (
            {"attacks": {"RA": "PGD"}},
            ValueError,
            "expected attacks",
        ),
        ({"attacks": {"RA": {}, "AA": "a"}}, ValueError, "expected attacks"),
        ({"seeds": []}, ValueError, "expected seeds"),
        (
            {"seeds": [0, -1]},
            ValueError,
            "expected seeds[1]",
        ),
        (
            {"seeds": [0, 2**64]},
            ValueError,
            "expected seeds[1]",
        ),
        ({"fingerprint": "12"}, ValueError, "expected fingerprint"),
        ({"fingerprint": "0" * 65}, ValueError, "expected fingerprint"),
        ({"revision": COMMIT + "\n"}, ValueError, "expected revision"),
        ({"revision": "x"}, ValueError, "expected revision"),
        ({"branch": "a-b"}, ValueError, "expected branch"),
        ({"branch": 1}, TypeError, "expected branch"),
        (
            {"settings": {"lr": math.nan}},
            ValueError,
            "expected settings['lr']",
        ),
        (
            {"settings": {"model": [torch.nn.ReLU()]}},
            TypeError,
            "expected settings['model'][0]",
        ),
        ({"settings": {"attack": PGDAttack}}, TypeError, "expected settings['attack']"),
        ({"settings": {"n": 10**400}}, ValueError, "expected settings['n']"),
        (
            {"corruptions": {"fog": 57.0}},
            ValueError,
            "expected corruptions['fog']",
        ),
        ({"label_free": {"rank": math.inf}}, ValueError, "expected label_free['rank']"),
        (
            {"curves": {"PGD": {"parameter": "eps"}}},
            TypeError,
            "expected curves['PGD']",
        ),
        (
            {"curves": {"PGD": SimpleNamespace(parameter="eps", values=[], accuracies=[])}},
            ValueError,
            "expected curves['PGD']",
        ),
        (
            {"alarms": ["zero gradients"]},
            TypeError,
            "expected alarms[0]",
        ),
    ],
)
def test_wrong_fields(changes, error, message):
    with pytest.raises(error, match=re.escape(f"ResultCard: {message}")):
        card(**changes)


def test_settings_that_contain_themselves():
    settings = {}
    settings["self"] = settings
    with pytest.raises(ValueError, match=re.escape(" to nest at most 16 deep, got more. Leave the rest out.")):
        card(settings=settings)
