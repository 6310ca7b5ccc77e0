"""The documentation names every agent."""

from pathlib import Path

from vogn.rl import BANDIT_AGENTS, RL_AGENTS
from vogn.rl.environments import SPARSE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rl.md"


def test_the_tables_of_the_page_have_all_agents():
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    assert set(BANDIT_AGENTS) | set(RL_AGENTS) <= named


def test_the_page_names_all_environments():
    assert all(name in PAGE.read_text() for name in SPARSE)
