"""Pre-train an encoder without labels: ACL in its four modes, SimCLR (mode S2S), later methods, the baseline Selfie.

    python examples/cifar/pretrain.py --mode DS --out runs/DS                     # CIFAR-10, downloaded into ./data
    python examples/cifar/pretrain.py --mode DS --preset fast --amp bf16 --out runs/DS-fast
    python examples/cifar/pretrain.py --method deacl --teacher runs/S2S/final.safetensors --out runs/DeACL
    torchrun --nproc-per-node=2 examples/cifar/pretrain.py --mode DS --out runs/DS    # docs/guides/scale.rst has more

Presets: ``code`` has the settings of the authors' code, ``paper`` those of their text (SimCLR's head and crop, and
its optimizer, which excludes norms and biases), ``fast`` a tenth of the epochs with three longer attack steps instead
of five; ``selfie`` is the baseline with the settings of its authors. The other presets use cheaper attacks for as
many epochs: ``few`` takes three longer steps, ``single`` one step from a random start, ``warm`` one step from the
perturbations of the last batch, ``free`` no step besides the training step, with each batch four times in a row,
``progressive`` one, three and then five. The cost of a preset is printed before it runs; ``docs/guides/speed.rst``
has the loss of accuracy. With ``--method``, ``--preset paper`` has the optimizer (Adam in place of AdamW), its
settings, batch size, epochs and attack steps of that method's paper, and ``fast`` fewer epochs. Crops, colours and
the radius are those of ACL. Methods that learn from a teacher take a standard encoder, such as one of ``--mode S2S``.
``--method rcs`` is ACL on a coreset: a fifth of the images, selected every 20 epochs. The classes of ``--method
tecoa`` are clusters of the features of the teacher. ``--method dynaclpp`` is DynACL followed by LP-AFT on ten
clusters of its features; the printed cost does not include LP-AFT.

All images of ``--data`` are used, without labels. With ``--stream PATH`` those below PATH are used instead; they need
not fit into memory or have classes, and ``--data`` is only for the linear classifier. The card has
the losses of the last epoch, and TA and RA of a linear classifier on the frozen encoder, through the adversarial norms
if there are two sets. Wall time and accuracy at full size have not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from _common.attacks import CHEAPER, evaluation_of, mean_cost
from _common.classifiers import linear_probe, with_apgd
from _common.flags import Common, flag, start
from _common.images import load, streamed
from _common.load_models import BATCH, network_of
from _common.methods import METHODS, batch_of, optimizer_of, prepared, presets
from _common.run_folder import begin, say
from advcontrast import PGDAttack
from advcontrast.engine import fit
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.norm import DualNorm
from advcontrast.optim import WarmupCosine
from advcontrast.surgery import convert_sync_batchnorm
from baselines.selfie import RECIPE as SELFIE

CODE = {"epochs": 1000, "batch_size": 512}
PAPER = {**CODE, "lr": 2.0, "head": "simclr", "min_area": 0.08, "spare_norms": True}
FAST = {**CODE, "epochs": 100, "attack_steps": 3, "attack_step": 0.5}
PRESETS = {"code": CODE, "paper": PAPER, "fast": FAST, "selfie": SELFIE}
PRESETS |= {name: {**CODE, **changes} for name, changes in CHEAPER.items()} | presets()


@dataclass(kw_only=True)
class Settings(Common):
    """Flags of pre-training; their defaults are those of the authors' code."""

    method: str = flag("acl", "method of pre-training", *METHODS)
    teacher: str = flag("", "final.safetensors of a standard encoder, or the name of one of the package, to learn from")
    mode: str = flag("DS", "streams of ACL, or the baseline Selfie", "S2S", "A2A", "A2S", "DS", "selfie")
    norms: str = flag("auto", "batch norms; auto: dual for A2S and DS, as in the paper", "auto", "single", "dual")
    sync_norms: bool = flag(False, "batch norms of all processes together, on accelerators")
    head: str = flag("acl", "projection head", "acl", "simclr")
    optimizer: str = flag("lars", "optimizer; nesterov: SGD with its momentum", "lars", "sgd", "nesterov", "adam")
    lr: float = flag(5.0, "peak learning rate, not scaled by anything")
    weight_decay: float = flag(1e-6, "weight decay")
    spare_norms: bool = flag(False, "LARS: no decay and no adaptation for norms and biases")
    warmup: int = flag(10, "epochs of warm-up, at most a tenth of all")
    temperature: float = flag(0.5, "temperature of NT-Xent")
    strength: float = flag(1.0, "strength of the augmentation, from 0 to 1")
    min_area: float = flag(0.1, "smallest area of a crop, as a fraction")
    attack: str = flag("pgd", "how the attack spends its steps", "pgd", "warm", "free", "progressive")
    replays: int = flag(1, "times that each batch is trained on in a row, for the free attack")
    attack_steps: int = flag(5, "steps of the attack")
    attack_step: float = flag(0.25, "length of an attack step, as a fraction of the radius")
    stream: str = flag("", "folder of images, flat or nested, to read while training on them instead of --data's")
    unreadable: str = flag("raise", "files of --stream that are not images", "raise", "skip")
    apgd: int = flag(0, "steps of Auto-PGD on the difference of logits ratio, on the test images; 0 for none")
    passes: float = flag(0.0, "forward passes per image of the whole run, which then sets the epochs; 0 for --epochs")
    monitor: int = flag(0, "validation images for the accuracy of nearest neighbours after each epoch; 0 for none")
    workers: int = flag(4, "worker processes of each process, which read --stream")


def main(settings: Settings) -> None:
    """Pre-train, and write the encoder with its head."""
    images = load(settings)
    select, share = METHODS[settings.method].select, METHODS[settings.method].share
    if select is not None and settings.stream:
        expected, remedy = "a method that trains on all images", "Leave out --stream"
        raise ValueError(f"--method: expected {expected} in each epoch, got {settings.method}. {remedy}.")
    data = streamed(settings, images.size) if settings.stream else images.everything.x
    parts, learner = prepared(settings, images, len(data))
    if settings.passes:
        cost = share * mean_cost(learner, batch_of(parts), parts.steps)
        settings = replace(settings, epochs=max(1, round(settings.passes / cost)))
        torch.manual_seed(settings.seed)
        parts, learner = prepared(settings, images, len(data))
    device, steps = images.everything.x.device, parts.steps
    if settings.sync_norms:
        if device.type == "cpu" and dist.is_initialized():
            expected = "an accelerator, as SyncBatchNorm does not train on a CPU"
            raise ValueError(f"--sync-norms: expected {expected}, got cpu. Leave the flag out, or see --device.")
        convert_sync_batchnorm(learner)
    optimizer = optimizer_of(settings, learner)
    run = begin(settings, images)
    if run is None:
        return
    cost = share * mean_cost(learner, batch_of(parts), steps)
    say(f"{settings.out}: {cost:.1f} forward passes for each image and epoch; SimCLR takes 6, ACL with PGD-5 takes 32")
    history = fit(
        learner,
        data if parts.targets is None else (data, parts.targets),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer=optimizer,
        schedule=WarmupCosine(steps, warmup=min(settings.warmup, settings.epochs // 10) * steps // settings.epochs),
        seed=settings.seed,
        evaluate=evaluation_of(settings, learner, images),
        folder=run.folder,
        select_data=None if select is None else select(parts, learner),
        save_every=settings.save_every or None,
        amp=settings.amp,
        compile=settings.compile,
        tensorboard=settings.tensorboard,
    )
    last = {name: value for name, value in history[-1].items() if name not in ("epoch", "step", "seconds", "lr")}
    if settings.monitor:
        last["knn_ra"] = [row["knn_ra"] for row in history]
    last["images_per_second"] = len(history) * len(data) / sum(row["seconds"] for row in history)
    if settings.stream:
        last["stream"] = f"ImageStream of {len(data)} samples {data.dataset.fingerprint()[:16]}"
    shipped = learner.model if settings.mode == "selfie" else learner.encoder()
    adapt = METHODS[settings.method].adapt
    if adapt is not None:
        shipped.encoder = adapt(parts, learner, run.folder / "lp-aft")
    classifier = linear_probe(shipped.encoder, parts.features, images)
    attack, test = PGDAttack(eps=settings.radius, step_size=settings.step, steps=20), list(images.test.batches(BATCH))
    verdicts = {"TA": accuracy(classifier, test), "RA": robust_accuracy(classifier, test, attack)}
    # ACL's encoders are used through either branch, those of other methods through the one that their paper ships.
    final = learner.model if settings.method == "acl" else shipped
    dual = any(isinstance(module, DualNorm) for module in final.modules())
    network = network_of(settings, norms="dual" if dual else "single", mode=settings.mode)
    training = {**last, "cost": cost}
    outcomes = with_apgd(settings, classifier, images, verdicts, {"RA": attack})
    run.finish(final, network, images.test, **outcomes, training=training)


if __name__ == "__main__":
    start(main, Settings, PRESETS)
