"""What documents show is what the code says."""

import re
import runpy
from pathlib import Path

from passes import PASSES

ROOT = Path(__file__).parents[2]


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
