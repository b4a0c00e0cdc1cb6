from pathlib import Path

from lrtrain.cli.main import main


def test_it_can_be_planned() -> None:
    assert main(["experiment", str(Path(__file__).with_name("my_experiment.yaml")), "--plan"]) == 0
