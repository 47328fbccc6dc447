"""What documents show is what the code says."""

import re
import runpy
import shlex
from pathlib import Path

import typer
import yaml

from kdc.cli.main import app
from kdc.cli.standings import as_markdown
from kdc.distill.settings import Training
from kdc.driver.evidence import shipped
from passes import PASSES

ROOT = Path(__file__).parents[2]


def fenced(page: str, language: str) -> list[str]:
    """The blocks of a page between fences of this language."""
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S) if name == language]


def test_the_picture_of_facts_is_drawn_from_todays_contracts():
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_facts.py"))["draw"]()
    assert drawn == (ROOT / "docs" / "facts.svg").read_text()


def test_the_page_of_passes_tells_of_every_pass():
    page = (ROOT / "docs" / "passes.md").read_text()
    assert {kind for kind in PASSES if f"`{kind}`" in page} == PASSES.keys()


def test_every_file_that_a_page_links_to_is_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_page_of_distillation_shows_the_leaderboards_that_ship():
    page = (ROOT / "docs" / "distillation.md").read_text()
    for one in shipped():
        assert as_markdown(one.board) in page, one.source


def test_the_commands_of_the_page_of_distillation_can_be_given():
    page = (ROOT / "docs" / "distillation.md").read_text()
    lines = [line for block in fenced(page, "") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("kdc ")]
    assert len(commands) >= 3
    for words in commands:
        command, rest = typer.main.get_command(app), words
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context("kdc", list(rest)).close()  # parses; runs nothing


def test_the_settings_of_the_page_of_distillation_are_read():
    page = (ROOT / "docs" / "distillation.md").read_text()
    blocks = [yaml.safe_load(block) for block in fenced(page, "yaml")]
    assert len(blocks) >= 4
    for block in blocks:
        if "training" in block:
            Training.model_validate(block["training"])
        for entry in block.get("passes", ()):
            for kind, settings in entry.items():
                PASSES[kind].model_validate(settings)
