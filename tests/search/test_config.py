"""What a run's configuration promises."""

from pruning.train import SUPERNETS
from search.config import RECIPES, RunConfig


def test_the_recipes_on_the_command_line_are_those_there_are() -> None:
    assert set(RECIPES) == set(SUPERNETS)
    assert RunConfig().recipe in RECIPES


def test_a_database_password_is_never_written_down() -> None:
    config = RunConfig(latency="60%", storage="postgresql+psycopg2://someone:secret@host/name")
    assert "secret" not in str(config.recorded())
    assert config.recorded()["storage"] == "postgresql+psycopg2://someone:…@host/name"
    assert RunConfig().recorded()["storage"] is None
