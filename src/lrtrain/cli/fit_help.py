"""What `lrtrain fit --help` shows at once: one screen, without importing what trains."""

import textwrap

from lrtrain.config.recipes import names

PURPOSE = {
    "fit": "Trains a model from a YAML recipe. Settings, metrics, checkpoints: <runs>/<name>/<NNNN>.",
    "validate": "Loss, perplexity and bits per byte on held-out data, of a run's newest checkpoint.",
    "test": "Loss, perplexity and bits per byte on the test split, of a run's newest checkpoint.",
}

EXAMPLES = {
    "fit": (
        "--config quickstart --trainer.max_steps 400",
        "--config quickstart --ckpt_path last",
        "--config quickstart --name tuned --init_from runs/quickstart --data.path data/mine",
        "--config spectron_S --config parallel/fsdp --trainer.devices 8",
    ),
    "validate": ("quickstart", "runs/quickstart/0001 --trainer.limit_val_batches 50", "--config quickstart"),
    "test": ("quickstart", "runs/quickstart/0001", "--config quickstart"),
}

OPTIONS = (
    ("--config FILE", "recipe, then overlays, by file or shipped name; last wins", ""),
    ("--name NAME", "name of the run", "run"),
    ("--runs FOLDER", "folder of all runs and of the tracker", "runs"),
    ("--ckpt_path FILE|last", "to resume or evaluate; last: newest whole one", "null"),
    ("--init_from FILE", "checkpoint whose weights a new run begins with", "null"),
    ("--seed_everything N", "seed of initial weights and all random draws", "0"),
    ("--print_config", "print the settings that result as YAML, and end", ""),
    ("--print-model", "print layers, ranks, optimizers, FLOPs as a table, and end", ""),
    ("--model.decoder.width N", "model width; so depth, heads, ffn_width", "recipe"),
    ("--model.decoder.attention.rank_ratio F", "rank / input width; so mlp.rank_ratio", "recipe"),
    ("--model.optimizers.hidden CLASS", "of the projections; other: of all the rest", "recipe"),
    ("--model.optimizers.hidden.lr F", "and so every argument of the class", "recipe"),
    ("--model.schedule.warmup F", "share of steps in which the rate rises", "recipe"),
    ("--model.activation_checkpointing BOOL", "less memory, a third more computation", "false"),
    ("--data.path FOLDER", "prepared shards (lrtrain prepare)", "recipe"),
    ("--data.block_size N", "tokens of one sequence", "512"),
    ("--data.batch_size N", "sequences of one micro-batch on one device", "8"),
    ("--trainer.max_steps N", "optimizer steps; -1: until max_epochs", "-1"),
    ("--trainer.accumulate_grad_batches N", "micro-batches of one optimizer step", "1"),
    ("--trainer.gradient_clip_val F", "largest norm of the gradient", "null"),
    ("--trainer.precision NAME", "32-true, bf16-mixed, …; null: what the hardware has", "null"),
    ("--trainer.devices N", "processes of this machine", "auto"),
    ("--trainer.val_check_interval N", "micro-batches between validations", "null"),
    ("--trainer.logger false", "no tracking; null: MLflow in <runs>", "null"),
    ("--checkpoints.every_n_steps N", "optimizer steps between checkpoints", "500"),
    ("--checkpoints.keep N", "newest ones kept; -1: all", "2"),
    ("--checkpoints.asynchronous BOOL", "write them while training goes on", "true"),
    ("--checkpoints.path URL", "copy them to s3://bucket/runs; last looks there, too", "null"),
)
"""Flag with its value, meaning, default; `recipe` where the class has none, or which class is the recipe's to say."""

TRAINING = (
    *("init", "print-model", "optimizers", "schedule", "activation"),
    *("max_steps", "accumulate", "gradient", "check", "logger"),
)
"""What marks an option that validate and test take with the recipe and do nothing with."""


def asked(argv: list[str]) -> tuple[str | None, list[str]]:
    """What the user wants explained (`""` for the page, `all`, or part of a key; None for nothing), and the rest."""
    for index, argument in enumerate(argv):
        flag, _, topic = argument.partition("=")
        rest = argv[:index] + argv[index + 1 :]
        if flag == "--help-all":
            return "all", rest
        if flag in ("-h", "--help"):
            if not topic and index < len(rest) and not rest[index].startswith("-"):
                topic = rest.pop(index)
            return topic, rest
    return None, argv


def page(command: str) -> str:
    """The page of a command: what it does, examples, the options that people use, how to see the rest."""
    recipes = ", ".join(name for name in names() if "/" not in name)
    options = [
        f"  {flag:<38} {text}{f' [{default}]' if default else ''}"
        for flag, text, default in OPTIONS
        if command == "fit" or not any(mark in flag for mark in TRAINING)
    ]
    which = "--config RECIPE" if command == "fit" else "[RUN | CHECKPOINT] [--config RECIPE]"
    return "\n".join(
        [
            f"usage: lrtrain {command} {which} [--config OVERLAY]... [--key value]...\n",
            PURPOSE[command],
            *textwrap.wrap(f"Shipped recipes: {recipes}; and overlays, such as methods/adamw.", 98),
            "",
            *(f"  lrtrain {command} {example}" for example in EXAMPLES[command]),
            "",
            *options,
            "\nValues are as in YAML: null, [1, 2], {a: 1}. [recipe]: the recipe's own.",
            "Every other key is a flag, too. The recipe's keys and the arguments of its classes, explained:",
            f"  lrtrain {command} --config RECIPE --help optimizers    (or model, decoder, data, trainer, lr, ...)",
            f"  lrtrain {command} --config RECIPE --help-all",
        ]
    )
