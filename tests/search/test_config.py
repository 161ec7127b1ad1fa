"""What a run's configuration promises."""

from typing import get_args

from pruning.recipe import OPTIMIZERS as KINDS
from pruning.train import SUPERNETS
from search import options
from search.config import OPTIMIZERS, RECIPES, RunConfig


def test_what_the_command_line_offers_is_what_there_is() -> None:
    assert set(RECIPES) == set(SUPERNETS)
    assert set(OPTIMIZERS) == set(KINDS)
    assert RunConfig().recipe in RECIPES
    help_of_lr = get_args(options.LearningRate)[1].help
    assert f"sgd {KINDS['sgd'](epochs=1).lr:g}, paper 0.25; adamw {KINDS['adamw'](epochs=1).lr:g}" in help_of_lr


def test_a_database_password_is_never_written_down() -> None:
    config = RunConfig(latency="60%", storage="postgresql+psycopg2://someone:secret@host/name")
    assert "secret" not in str(config.recorded())
    assert config.recorded()["storage"] == "postgresql+psycopg2://someone:…@host/name"
    assert RunConfig().recorded()["storage"] is None
