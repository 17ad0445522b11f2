"""The runs behind the tables and figures, and the settings of each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Flags = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Budget:
    """Number of seeds, flags for each kind of run, and the forward passes per image of a method."""

    seeds: int
    common: Flags
    pretrain: Flags
    selfie: Flags
    finetune: Flags
    few: Flags
    linear: Flags
    semi: Flags
    wide: Flags
    passes: float


SMOKE = Budget(
    seeds=1,
    common={"width": 4, "limit": 600, "test-limit": 40},
    pretrain={"epochs": 1, "batch-size": 200, "attack-steps": 1},
    selfie={"epochs": 1, "batch-size": 200, "attack-steps": 1},
    finetune={"epochs": 1, "attack-steps": 1},
    few={"epochs": 1, "attack-steps": 1, "labels": 0.1},
    linear={"epochs": 1, "attack-steps": 1},
    semi={"epochs": 1, "attack-steps": 1, "teacher-epochs": 1, "batch-size": 60},
    wide={"width": 4, "limit": 100},
    passes=10,
)
# The settings of the quickstart, for the embedded images.
SMALL = Budget(
    seeds=3,
    common={"width": 8},
    pretrain={
        "epochs": 15,
        "batch-size": 125,
        "optimizer": "adam",
        "lr": 3e-3,
        "head": "simclr",
        "temperature": 0.3,
        "strength": 0.5,
        "attack-steps": 3,
        "attack-step": 0.5,
    },
    selfie={"epochs": 15, "batch-size": 125, "optimizer": "adam", "lr": 1e-3, "attack-steps": 3, "attack-step": 0.5},
    finetune={"epochs": 4, "batch-size": 128, "milestones": "2,3", "attack-steps": 5, "lr": 0.05, "evaluate-every": 2},
    few={
        "epochs": 60,
        "batch-size": 50,
        "milestones": "40,52",
        "attack-steps": 5,
        "lr": 0.05,
        "evaluate-every": 15,
        "labels": 0.02,
    },
    linear={"epochs": 4, "batch-size": 128, "milestones": "2,3", "attack-steps": 5, "lr": 0.03, "evaluate-every": 2},
    semi={
        "epochs": 4,
        "batch-size": 90,
        "milestones": "2,3",
        "attack-steps": 5,
        "teacher-epochs": 40,
        "teacher-milestones": "20,30",
        "lr": 0.05,
        "evaluate-every": 10,
    },
    wide={"width": 8},
    passes=360,
)
# As small, with the four convolutions of the quickstart.
QUICK = replace(SMALL, common={"arch": "quickstart"}, wide={"arch": "quickstart"}, passes=150)
# Meant for one GPU and RI, S2S and DS: the settings of the paper, but for the epochs of pre-training.
HOUR = Budget(
    seeds=1,
    common={},
    pretrain={"epochs": 40},
    selfie={"preset": "selfie", "epochs": 40},
    finetune={},
    few={},
    linear={},
    semi={},
    wide={},
    passes=1280,
)
PAPER = replace(HOUR, seeds=3, pretrain={}, selfie={"preset": "selfie"}, passes=32000)
# For weeks of two CPU cores or hours of a GPU: CIFAR-10 at the cost of ten epochs of ACL with PGD-5.
MEDIUM = replace(
    SMALL,
    seeds=2,
    common={"width": 16},
    pretrain={**SMALL.pretrain, "batch-size": 256, "attack-steps": 5, "attack-step": 0.25},
    few={**SMALL.few, "labels": 0.01, "epochs": 30, "milestones": "20,26"},
    wide={"width": 16},
    passes=320,
)
BUDGETS = {"smoke": SMOKE, "quick": QUICK, "small": SMALL, "medium": MEDIUM, "hour": HOUR, "paper": PAPER}


@dataclass(frozen=True)
class Run:
    """A run of a script, with one seed.

    Attributes:
        name: name of its folder.
        script: file name without suffix.
        flags: all but the data, the seed and the folder.
        takes: name of the run whose final weights it uses, or ``None``.
        second: whether it uses the second data set.
    """

    name: str
    script: str
    flags: Flags
    takes: str | None = None
    second: bool = False


def runs_of(budget: Budget) -> dict[str, Run]:
    """Return every run, by name; a run comes after the one whose encoder it uses."""
    runs: dict[str, Run] = {}

    def add(name: str, script: str, *flags: Flags, takes: str | None = None, second: bool = False) -> None:
        merged = {key: value for part in (budget.common, *flags) for key, value in part.items()}
        runs[name] = Run(name, script, merged, takes, second)

    def pretrain(name: str, mode: str, *flags: Flags, second: bool = False) -> None:
        own = budget.selfie if mode == "selfie" else budget.pretrain
        add(f"pretrain-{name}", "pretrain", own, {"mode": mode}, *flags, second=second)

    def finetune(name: str, encoder: str | None, *flags: Flags, second: bool = False) -> None:
        source = None if encoder is None else f"pretrain-{encoder}"
        add(f"finetune-{name}", "finetune", budget.finetune, *flags, takes=source, second=second)

    wide = {"arch": "wide_resnet34_10", **budget.wide}
    for mode in ("S2S", "A2A", "A2S", "DS", "selfie"):
        pretrain(mode, mode)
        finetune(mode, mode, {"branch": "clean" if mode == "S2S" else "adv"})
    finetune("random", None)
    for mode in ("A2S", "DS"):
        pretrain(f"{mode}-single", mode, {"norms": "single"})
        finetune(f"{mode}-single", f"{mode}-single")
        finetune(f"{mode}-clean", mode, {"branch": "clean"})
    for train in ("standard", "adversarial"):
        for branch in ("clean", "adv"):
            flags = {"train": train, "branch": branch}
            add(f"linear-{train}-{branch}", "linear", budget.linear, flags, takes="pretrain-DS")
    for labels in (0.1, 0.01):
        for name, encoder, flags in (
            ("uat++", None, {"method": "uat++"}),
            ("selfie", "selfie", {}),
            ("random", None, {}),
            ("S2S", "S2S", {"branch": "clean"}),
            ("DS", "DS", {}),
        ):
            source = None if encoder is None else f"pretrain-{encoder}"
            add(f"semi{labels:g}-{name}", "semisupervised", budget.semi, flags, {"labels": labels}, takes=source)
    for name, encoder, branch in (("random", None, "adv"), ("S2S", "S2S", "clean"), ("DS", "DS", "adv")):
        source = None if encoder is None else f"pretrain-{encoder}"
        add(f"few-{name}", "finetune", {"labels": 0.01}, budget.few, {"branch": branch}, takes=source)
    for name in ("random", "selfie", "DS"):
        add(f"unforeseen-{name}", "corruptions", takes=f"finetune-{name}")
    pretrain("DS-wide", "DS", wide)
    finetune("DS-wide", "DS-wide", wide)
    finetune("random-wide", None, wide)
    for mode in ("selfie", "DS"):
        pretrain(f"{mode}-second", mode, second=True)
        finetune(f"{mode}-second", f"{mode}-second", second=True)
    finetune("random-second", None, second=True)

    half = {"passes": budget.passes * TEACHER}
    add("methods-teacher", "pretrain", budget.pretrain, {"mode": "S2S", **half})
    for name, flags in METHODS.items():
        taught = flags.get("method") in TAUGHT
        passes = budget.passes * (1 - TEACHER) if taught else budget.passes
        if name == "dynaclpp":
            passes = max(1.0, passes - LP_AFT * max(1, passes // 1280))
        takes = "methods-teacher" if taught else None
        measured = {"passes": passes, "monitor": 200, "apgd": 50}
        add(f"methods-{name}", "pretrain", budget.pretrain, flags, measured, takes=takes)
        branch = {"branch": "clean" if name == "S2S" else "adv"}
        chosen = {**branch, "apgd": 50}
        adversarial = {"train": "adversarial", "loss": "adversarial-ce"}
        add(f"methods-{name}-linear", "linear", budget.linear, adversarial, chosen, takes=f"methods-{name}")
        add(f"methods-{name}-few", "finetune", {"labels": 0.01}, budget.few, chosen, takes=f"methods-{name}")
        add(f"equal-{name}-10", "finetune", budget.few, {**branch, "labels": 0.1}, takes=f"methods-{name}")
    add("equal-random-few", "finetune", {"labels": 0.01}, budget.few)
    add("equal-random-10", "finetune", budget.few, {"labels": 0.1})
    return runs


# Methods that are compared at equal cost, and the flags that name them. A part of the cost of those that learn from a
# teacher is that of the teacher, standard SimCLR.
TAUGHT = ("advcl", "daqsdp", "deacl", "fare", "profeat", "simclip", "tecoa")
METHODS: dict[str, Flags] = {
    "S2S": {"mode": "S2S"},
    "DS": {"mode": "DS"},
    **{name: {"method": name} for name in ("air", "dynacl", "dynaclpp", "rcs", "ainfonce", "amoc")},
    **{name: {"method": name} for name in ("cfamc", "rocl", "taro")},
    **{name: {"method": name} for name in TAUGHT},
}
TEACHER = 0.4
LP_AFT = 28  # forward passes per image of the shortest stage after DynACL


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, its run, and the paper's TA and RA."""

    label: str
    run: str
    ta: float | None = None
    ra: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    rows: tuple[Row, ...]


TABLES = {
    "table1": Table(
        "Table 1: fine-tuning with all labels (TRADES)",
        (
            Row("random initialisation", "finetune-random", 79.90, 49.36),
            Row("Selfie", "finetune-selfie", 80.05, 49.83),
            Row("ACL (DS)", "finetune-DS", 82.19, 52.82),
            Row("WRN-34-10, random initialisation", "finetune-random-wide", 84.33, 55.46),
            Row("WRN-34-10, ACL (DS)", "finetune-DS-wide", 85.12, 56.72),
            Row("second data set, random initialisation", "finetune-random-second", 49.12, 23.07),
            Row("second data set, Selfie", "finetune-selfie-second", 54.63, 24.75),
            Row("second data set, ACL (DS)", "finetune-DS-second", 56.77, 28.33),
        ),
    ),
    "table2": Table(
        "Table 2: semi-supervised training",
        (
            Row("10 % labels, UAT++", "semi0.1-uat++", 70.79, 50.43),
            Row("10 % labels, Selfie", "semi0.1-selfie", 72.16, 50.37),
            Row("10 % labels, ACL's steps from random initialisation", "semi0.1-random"),
            Row("10 % labels, ACL's steps from SimCLR (S2S)", "semi0.1-S2S"),
            Row("10 % labels, ACL (DS)", "semi0.1-DS", 76.66, 51.09),
            Row("1 % labels, UAT++", "semi0.01-uat++", 41.88, 30.46),
            Row("1 % labels, Selfie", "semi0.01-selfie", 53.54, 37.75),
            Row("1 % labels, ACL's steps from random initialisation", "semi0.01-random"),
            Row("1 % labels, ACL's steps from SimCLR (S2S)", "semi0.01-S2S"),
            Row("1 % labels, ACL (DS)", "semi0.01-DS", 75.66, 50.67),
        ),
    ),
    "few": Table(
        "Few labels: TRADES fine-tuning with few labels and no pseudo-labels (not in the paper)",
        (
            Row("random initialisation (RI)", "few-random"),
            Row("SimCLR (S2S)", "few-S2S"),
            Row("ACL (DS)", "few-DS"),
        ),
    ),
    "table3": Table(
        "Table 3: modes of pre-training, fine-tuned with all labels",
        (
            Row("random initialisation (RI)", "finetune-random", 79.90, 49.36),
            Row("S2S", "finetune-S2S", 81.57, 49.97),
            Row("A2A", "finetune-A2A", 78.68, 50.12),
            Row("A2S", "finetune-A2S", 80.82, 52.11),
            Row("DS", "finetune-DS", 82.19, 52.82),
        ),
    ),
    "table4": Table(
        "Table 4: batch norms of pre-training, and the branch that is fine-tuned",
        (
            Row("A2S, single", "finetune-A2S-single", 75.15, 35.60),
            Row("A2S, clean branch", "finetune-A2S-clean", 81.54, 51.59),
            Row("A2S, adversarial branch", "finetune-A2S", 80.82, 52.11),
            Row("DS, single", "finetune-DS-single", 73.15, 40.10),
            Row("DS, clean branch", "finetune-DS-clean", 82.46, 52.36),
            Row("DS, adversarial branch", "finetune-DS", 82.19, 52.82),
        ),
    ),
    "table5": Table(
        "Table 5: linear classifier on the frozen encoder (DS)",
        (
            Row("standard training, clean branch", "linear-standard-clean", 91.02, 0.20),
            Row("standard training, adversarial branch", "linear-standard-adv", 79.76, 30.31),
            Row("adversarial training, clean branch", "linear-adversarial-clean", 82.63, 0.28),
            Row("adversarial training, adversarial branch", "linear-adversarial-adv", 74.22, 44.22),
        ),
    ),
    "equal": Table(
        "Encoders of equal cost: standard linear classifier, and fine-tuned with few and with 10 % of the labels",
        (
            *(Row(f"linear, {name}", f"methods-{name}") for name in ("S2S", "DS", "deacl")),
            Row("few labels, random initialisation", "equal-random-few"),
            *(Row(f"few labels, {name}", f"methods-{name}-few") for name in ("S2S", "DS", "deacl")),
            Row("10 % labels, random initialisation", "equal-random-10"),
            *(Row(f"10 % labels, {name}", f"equal-{name}-10") for name in ("S2S", "DS", "deacl")),
        ),
    ),
}
# A figure shows curves or bars of some runs, by label.
FIGURES = {
    "figure2": {
        "random initialisation": "unforeseen-random",
        "Selfie": "unforeseen-selfie",
        "ACL (DS)": "unforeseen-DS",
    },
    "figure3": {
        "random initialisation": "finetune-random",
        "SimCLR (S2S)": "finetune-S2S",
        "ACL (DS)": "finetune-DS",
    },
}
PARTS = (*TABLES, *FIGURES, "methods")


def needed(parts: Sequence[str], runs: Mapping[str, Run]) -> list[Run]:
    """Return the runs that some tables, figures or runs need, themselves included, in the order to run them in."""
    names = {row.run for part in parts if part in TABLES for row in TABLES[part].rows}
    names |= {name for part in parts if part in FIGURES for name in FIGURES[part].values()}
    names |= set(parts) & runs.keys()
    if "methods" in parts:
        names |= {name for name in runs if name.startswith("methods-")}
    for run in reversed(runs.values()):
        if run.name in names and run.takes is not None:
            names.add(run.takes)

    def depth(run: Run) -> int:
        return 0 if run.takes is None else 1 + depth(runs[run.takes])

    # Runs that need no other come first, so that runs side by side seldom wait for each other.
    return sorted((run for run in runs.values() if run.name in names), key=depth)
