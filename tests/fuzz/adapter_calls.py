"""One valid call of every public callable of the adapters; without the library that it needs a test is skipped."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advcontrast import adapters, attacks, evaluation, functional, models, surgery
from tests.fuzz.calls import (
    Call,
    call,
    card,
    dual,
    images,
    labels,
    learner,
    linear,
    network,
    pgd,
    rows,
    seeded,
)
from tests.fuzz.pool import Anything

ADAPTERS = sorted(file.stem for file in Path(adapters.__path__[0]).glob("[!_]*.py"))


def adapter(name: str) -> Any:
    return pytest.importorskip(f"advcontrast.adapters.{name}", exc_type=ImportError)


def lit() -> Any:
    kind = adapter("lightning").LightningLearner
    module = kind(learner(), optimizer=partial(torch.optim.SGD, lr=0.1), schedule=lambda step: 0.5**step)
    module.log_dict = Anything  # without a Trainer it warns
    return module


def encoder() -> nn.Module:
    return models.resnet18(0, width=2)


def hub() -> Any:
    return adapter("hub").HubEncoder("resnet18", width=2)


def saved_hub(folder: Path) -> str:
    hub().save_pretrained(folder / "saved")
    return str(folder / "saved")


def hub_without_connection() -> Any:
    kind = adapter("hub").HubEncoder
    mixin = kind.__mro__[2]

    class Nowhere(mixin):
        def push_to_hub(self, *_: Any, **__: Any) -> str:
            return "nowhere"

    return type("HubEncoder", (kind, Nowhere), {})("resnet18", width=2)


def timm_network() -> Any:
    return pytest.importorskip("timm").create_model("test_resnet", num_classes=2)


def classified() -> attacks.ClassificationObjective:
    return attacks.ClassificationObjective(linear().eval(), labels())


def foreign(objective: attacks.ClassificationObjective) -> Call:
    theirs = pytest.importorskip("torchattacks").FGSM(objective.model)
    attack = adapter("torchattacks").TorchattacksAttack(theirs)
    return call(attack, objective=objective, x=images(), generator=seeded())


def of_numbered(z: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return functional.nt_xent(*z[numbers.argsort(stable=True)].unflatten(0, (-1, 2)).unbind(1))


def foolbox_attack() -> Any:
    return pytest.importorskip("foolbox").attacks.LinfFastGradientAttack()


about = dict.fromkeys(("link", "name", "authors", "dataset", "venue", "architecture"), "ours")
half = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))

CALLS: dict[str, Callable[[Path], Call]] = {
    "adapters.foolbox.as_foolbox_model": lambda _: call(
        adapter("foolbox").as_foolbox_model, model=dual(), branch="adv", bounds=(0.0, 1.0)
    ),
    "adapters.foolbox.FoolboxAttack": lambda _: call(
        adapter("foolbox").FoolboxAttack, attack=foolbox_attack(), eps=0.1
    ),
    "adapters.foolbox.FoolboxAttack.__call__": lambda _: call(
        adapter("foolbox").FoolboxAttack(foolbox_attack(), 0.1), objective=classified(), x=images(), generator=seeded()
    ),
    "adapters.hub.HubEncoder": lambda _: call(
        adapter("hub").HubEncoder, name="resnet18", branch="adv", normalize=half, width=2, small_images=True
    ),
    "adapters.hub.HubEncoder.from_encoder": lambda _: call(
        adapter("hub").HubEncoder.from_encoder,
        encoder=surgery.convert_to_dual_bn(encoder()),
        name="resnet18",
        branch="adv",
        width=2,
        small_images=True,
    ),
    "adapters.hub.HubEncoder.forward": lambda _: call(hub(), x=images()),
    "adapters.hub.HubEncoder.from_pretrained": lambda folder: call(
        partial(adapter("hub").HubEncoder.from_pretrained, saved_hub(folder)), map_location="cpu", branch=None
    ),
    "adapters.hub.HubEncoder.save_pretrained": lambda folder: call(
        hub().save_pretrained, save_directory=folder / "new", config=None, model_card_kwargs={"license": "mit"}
    ),
    "adapters.hub.HubEncoder.push_to_hub": lambda _: call(
        hub_without_connection().push_to_hub, repo_id="a/b", config=None, model_card_kwargs={"license": "mit"}
    ),
    "adapters.hub.HubEncoder.generate_model_card": lambda _: call(
        hub().generate_model_card, result=evaluation.ResultCard(**card()), license="mit"
    ),
    "adapters.lightning.LightningLearner": lambda _: call(
        adapter("lightning").LightningLearner,
        learner=learner(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=lambda step: 0.5**step,
    ),
    "adapters.lightning.LightningLearner.training_step": lambda _: call(
        lit().training_step, batch=(images(), labels()), _=0, stage="train"
    ),
    "adapters.lightning.LightningLearner.validation_step": lambda _: call(
        lit().validation_step, batch=(images(), labels()), index=0
    ),
    "adapters.lightning.LightningLearner.configure_optimizers": lambda _: call(lit().configure_optimizers),
    "adapters.losses.PairsAsLabels": lambda _: call(adapter("losses").PairsAsLabels, loss=of_numbered),
    "adapters.losses.PairsAsLabels.forward": lambda _: call(
        adapter("losses").PairsAsLabels(of_numbered), z1=rows(), z2=rows()
    ),
    "adapters.losses.TrainOnlyMemoryBank": lambda _: call(
        adapter("losses").TrainOnlyMemoryBank, loss=nn.CosineSimilarity(), model=network()
    ),
    "adapters.losses.TrainOnlyMemoryBank.forward": lambda _: call(
        adapter("losses").TrainOnlyMemoryBank(nn.CosineSimilarity(), network()), z1=rows(), z2=rows()
    ),
    "adapters.robustbench.robustbench_model_info": lambda _: call(
        adapter("robustbench").robustbench_model_info,
        figures={"TA": 0.8, "AA": 0.5},
        eps=0.1,
        **about,
        additional_data=False,
    ),
    "adapters.robustbench.export_plain": lambda _: call(
        adapter("robustbench").export_plain, model=dual(), images=images(), branch="adv", normalize=half
    ),
    "adapters.timm.from_timm": lambda _: call(adapter("timm").from_timm, model=timm_network()),
    "adapters.timm.save_timm": lambda folder: call(
        adapter("timm").save_timm,
        model=surgery.convert_to_dual_bn(timm_network()),
        folder=folder / "network",
        branch="adv",
        size=32,
        labels=("cat", "dog"),
    ),
    "adapters.torchattacks.AsTorchattack": lambda _: call(
        adapter("torchattacks").AsTorchattack, attack=pgd(), model=dual(), branch="adv"
    ),
    "adapters.torchattacks.AsTorchattack.__call__": lambda _: call(
        adapter("torchattacks").AsTorchattack(pgd(), dual(), "adv"),
        images=images(),
        labels=labels(),
        generator=seeded(),
    ),
    "adapters.torchattacks.TorchattacksAttack": lambda _: call(
        adapter("torchattacks").TorchattacksAttack, attack=pytest.importorskip("torchattacks").FGSM(linear())
    ),
    "adapters.torchattacks.TorchattacksAttack.__call__": lambda _: foreign(classified()),
}
