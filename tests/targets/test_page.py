"""The page: one file, well-formed, offline, with the figures that it was given."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from kdc.cli.nodes import print_nodes
from targets.latency import Latency
from targets.measured import Comparison, Profile
from targets.nodes import NodeProfile, NodeTime
from targets.page.charts import bars
from targets.page.page import render
from targets.page.svg import Scale, number, text, ticks
from targets.ratio import Ratio
from targets.roofline import Peaks

HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script>&\x01"\'.onnx'


def blocks(center_ns, seed, processes=6, drift=0.0):
    rng = np.random.default_rng(seed)
    return tuple(
        tuple(
            tuple(int(ns) for ns in center_ns * (1 + drift * process) * np.exp(rng.normal(0, 0.02, 40)))
            for _ in range(8)
        )
        for process in range(processes)
    )


def profile(name, ms):
    latency = Latency(
        n=1920,
        processes=6,
        median_ms=ms,
        low_ms=ms * 0.99,
        high_ms=ms * 1.01,
        p90_ms=ms * 1.1,
        p99_ms=None,
        load_ms=31.7,
        first_ms=4.56,
    )
    return Profile(
        path=Path("/models") / name,
        sha256="ab" * 32,
        size_mb=1.25,
        latency=latency,
        peak_memory_mb=7.5,
        parameters=312_345,
        macs=40_500_000,
    )


def comparison(name="student.onnx", baseline="teacher.onnx"):
    return Comparison(
        candidate=profile(name, 1.234),
        baseline=None if baseline is None else profile(baseline, 4.321),
        ratio=None if baseline is None else Ratio(ratio=3.5, low=3.45, high=3.56, verdict="faster"),
        reached="precision",
        environment={"cpu": "An <odd> CPU & more", "governor": None, "load_average": [0.1, 0.2, 0.3]},
        notes=("noisy machine: other work kept the measuring core 31% busy",),
        samples_ns=(blocks(1.234e6, 0),) if baseline is None else (blocks(1.234e6, 0), blocks(4.321e6, 1, drift=0.01)),
    )


def node(name, time_us, share, macs, bound=None, module=None):
    return NodeTime(
        name=name,
        operator="Conv" if macs else "Relu",
        provider="CPUExecutionProvider",
        time_us=time_us,
        share=share,
        ran=1.0,
        covers=(name,),
        module=module,
        macs=macs,
        moved_bytes=100_000,
        bound=bound,
    )


PEAKS = Peaks(flops_per_s=60e9, bytes_per_s=12e9)


def nodes(name="student.onnx", peaks=PEAKS):
    return NodeProfile(
        path=Path(name),
        runs=200,
        run_us=1000,
        nodes=(
            node("conv_a", 500, 0.5, 10_000_000, "compute", "layer1.0.conv1"),
            node("conv_b", 300, 0.3, 100_000, "memory", HOSTILE),
            node("relu", 200, 0.2, 0, "overhead"),
        ),
        providers={"CPUExecutionProvider": 3},
        asked=("CPUExecutionProvider",),
        peaks=peaks,
    )


@pytest.fixture(params=["both", "one file", "with nodes", "without peaks", "hostile"])
def page(request):
    if request.param == "both":
        return render(comparison(), target="cpu-ort")
    if request.param == "one file":
        return render(comparison(baseline=None), target="cpu-ort")
    if request.param == "with nodes":
        return render(comparison(), target="cpu-ort", nodes=[nodes(), nodes("teacher.onnx")])
    if request.param == "without peaks":
        return render(comparison(), target="cpu-ort", nodes=[nodes(peaks=None)])
    return render(comparison(HOSTILE, HOSTILE), target=HOSTILE, nodes=[nodes(HOSTILE)], remarks=[HOSTILE])


def test_the_pass_of_a_node_stands_beside_it_on_the_page_and_in_the_terminal(capsys):
    """`<a>` is no pass: the text of a file must not become the page's."""
    profile = nodes()
    given = (*(one.model_copy(update={"made_by": "prune"}) for one in profile.nodes[:1]), *profile.nodes[1:])
    drawn = bars(profile.model_copy(update={"nodes": given}))
    assert drawn.count("by prune") == 1
    assert "by " not in bars(profile)
    hostile = given[0].model_copy(update={"made_by": "<a>"})
    assert "by &lt;a&gt;" in bars(profile.model_copy(update={"nodes": (hostile,)}))
    print_nodes(profile)
    assert "prune" not in capsys.readouterr().out
    print_nodes(profile.model_copy(update={"nodes": given}))
    head, row = (line for line in capsys.readouterr().out.splitlines() if "share" in line or "prune" in line)
    assert "pass" in head
    assert max(len(head), len(row)) <= 80


def test_every_page_is_well_formed_and_fetches_nothing(page):
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    tags = {element.tag for element in root.iter()}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "a", "image", "use", "form"})
    for element in root.iter():
        assert not any(name.startswith("on") or name in ("src", "href") for name in element.attrib)
    style = "".join(element.text or "" for element in root.iter("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_every_number_in_a_drawing_is_one_and_lies_within_it(page):
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    drawings = list(root.iter("svg"))
    assert len(drawings) >= 2
    for drawing in drawings:
        width, height = map(float, drawing.attrib["viewBox"].split()[2:])
        for element in drawing.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0 <= float(element.attrib.get(name, 0)) <= width
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(element.attrib.get(name, 0)) <= height
            for place in re.findall(r"[-\w.]+", element.attrib.get("d", "").replace("M", "").replace("L", " ")):
                assert 0 <= float(place) <= width


def test_a_page_holds_the_figures_the_verdict_and_what_is_to_be_known():
    page = render(comparison(), target="cpu-ort", nodes=[nodes()], remarks=["by the graph: little"])
    for expected in (
        "1.234",
        "4.321",
        "1.222 – 1.246",
        "too few runs",
        "312,345",
        "40,500.0",
        "1,920, 6",
        "student.onnx is faster than teacher.onnx, 3.5 times [3.45, 3.56]",
        "31% busy",
        "An &lt;odd&gt; CPU &amp; more",
        "by the graph: little",
        "layer1.0.conv1",
        "memory-bound",
        "50.0%",
        "3 in CPUExecutionProvider",
    ):
        assert expected in page


def test_hostile_names_stay_text():
    page = render(comparison(HOSTILE), target="cpu-ort", nodes=[nodes()])
    assert "<script" not in page
    assert "\x01" not in page
    assert "&lt;script src=&quot;http://evil.example/x.js&quot;&gt;" in page
    assert text("a\x00b") == "a\ufffdb"


def test_a_curve_of_the_distribution_ends_at_the_share_that_is_shown():
    page = render(comparison(baseline=None), target="cpu-ort")
    drawing = next(ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n")).iter("svg"))
    curve = next(one for one in drawing.iter("path") if "line" in one.attrib["class"]).attrib["d"]
    heights = [float(point.split()[1]) for point in curve[1:].split("L")]
    assert heights == sorted(heights, reverse=True)  # upward is smaller
    assert heights[0] == pytest.approx(260 - 40)
    assert heights[-1] == pytest.approx(10 + 0.01 * 210, abs=1.5)


def test_ticks_are_round_and_within():
    assert ticks(Scale(0, 1, 0, 100)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(Scale(-7.3, 7.3, 0, 100)) == pytest.approx([-5, 0, 5])
    assert ticks(Scale(0.5, 2000, 0, 100, log=True)) == pytest.approx([1, 10, 100, 1000])
    for low, high in ((3.1, 3.2), (1e-7, 2e-7), (-5, 1e6)):
        found = ticks(Scale(low, high, 0, 1))
        assert 2 <= len(found) <= 11
        assert all(low <= tick <= high for tick in found)
    assert [number(tick) for tick in (0, 0.25, 1000, 1e7, 1e-6)] == ["0", "0.25", "1000", "1e7", "1e-6"]


def test_a_scale_keeps_what_is_beyond_its_ends_at_them():
    assert Scale(0, 10, 0, 100).at(12) == 100
    assert Scale(1, 100, 0, 100, log=True).at(10) == pytest.approx(50)
